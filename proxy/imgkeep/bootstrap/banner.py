"""
The text that `imgkeep serve` prints on a terminal: its addresses, the place of the images, and the permissions of
clients.

Logs get the record `listening`, with the same facts in fields.
"""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.style import Style
from rich.text import Text

from imgkeep.config import absolute, data_folder, read_store_url
from imgkeep.core.store_url import Folder
from imgkeep.listening import format_address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO

    from imgkeep.config import Config

NAME_CHARS: Final = 9
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "localhost"}  # noqa: S104 - by which a browser of this machine reaches such a server


def make_banner(  # noqa: PLR0913 - each is a fact of the text
    stream: TextIO,
    config: Config,
    addresses: Sequence[tuple[str, int]],
    *,
    version: str,
    open_to: Mapping[str, str],
    log_in: str | None,
) -> str:
    """
    Return the text for a terminal, with links that it can open (OSC 8).

    Args:
        stream: The terminal.
        config: The configuration of the server.
        addresses: The addresses that the server listens on.
        version: The version of the program.
        open_to: The permissions of clients.
        log_in: A link to the page under `/` that logs a browser of this machine in.
    """
    urls = [f"{config.server.public_url.rstrip('/')}/"] if config.server.public_url else []
    urls += [f"http://{format_address(_ANY.get(host, host), port)}/" for host, port in addresses]
    rows: list[tuple[str, Text]] = []
    if log_in is not None:  # first: it is the link to open, because the address alone shows no pictures
        rows.append(("open", Text.assemble(_link(log_in), " (within the hour: it logs your browser in)")))
    rows += [("address", _link(url)) for url in dict.fromkeys(urls)]
    rows += [(name, Text(text)) for name, text in {**_places(config), **open_to}.items()]
    rows.append(("end", Text("Ctrl-C")))
    buffer = StringIO()
    terminal = Console(file=stream)  # reads TERM and NO_COLOR
    is_plain = terminal.is_dumb_terminal or terminal.no_color or terminal.color_system is None
    console = Console(file=buffer, force_terminal=not is_plain, no_color=True, legacy_windows=False, highlight=False)
    console.print(Text(f"imgkeep {version}", style="bold"))
    for name, text in rows:
        # Unwrapped: the terminal wraps a line by itself, and a link that rich wraps would become two.
        console.print(Text.assemble(f"{name:<{NAME_CHARS}}", text), soft_wrap=True)
    return buffer.getvalue()


def _places(config: Config) -> dict[str, str]:
    place = read_store_url("store.url", config.store.url)
    folder = absolute(data_folder(config))
    if isinstance(place, Folder):
        return {"images": folder}
    return {"images": str(place), "folder": f"{folder} (drafts alone)" if config.store.exclusive else folder}


def _link(url: str) -> Text:
    return Text(url, style=Style(link=url, underline=True))

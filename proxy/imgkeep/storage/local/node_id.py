"""
The identity of a data folder: a random text in a file. By it a cluster tells two machines of one name apart.

Workers of one machine that start at once agree on one: `publish_new` replaces no file.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Final

from imgkeep.storage.local.atomic_files import durable_partial, make_folder, publish_new

if TYPE_CHECKING:
    from pathlib import Path

NAME: Final = "node-id"
_FORM: Final = re.compile(rb"[0-9a-f]{32}\n?")


def read_node_id(folder: Path) -> str:
    """
    Return the identity of a data folder; make it if there is none. Blocks.

    A folder that cannot be written has a new identity for each process: its node may have to wait for the end of its
    own earlier process.
    """
    path = folder / NAME
    try:
        if not path.exists():
            make_folder(folder)
            partial = folder / f".{NAME}.{secrets.token_hex(8)}"
            with durable_partial(partial, f"{secrets.token_hex(16)}\n".encode()):
                publish_new(partial, path)
        data = path.read_bytes()
    except OSError:
        return secrets.token_hex(16)
    return data.decode().strip() if _FORM.fullmatch(data) else secrets.token_hex(16)

"""`import`: stores a folder of images with its names. `export`: lists all images for other programs."""

from __future__ import annotations

import asyncio
import csv
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final, TextIO

import aiofiles

from imgkeep.bootstrap.preflight import require_owner
from imgkeep.bootstrap.storage import permanent_url
from imgkeep.cli.printing import print_json, readable_time
from imgkeep.cli.progress import progress
from imgkeep.cli.read_only_storage import open_to_read
from imgkeep.config import ConfigError, check_mount
from imgkeep.core.data_url import identify_legacy
from imgkeep.core.errors import ImgkeepError, OriginError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from imgkeep.cli.dispatch import Command
    from imgkeep.cli.invocation import Invocation
    from imgkeep.core.records import Record
    from imgkeep.database import ImageIndex
    from imgkeep.images.upload import Saver

PIECE_BYTES: Final = 262_144
PAGE: Final = 500
"""Maximum number of images in one statement."""
COLUMNS: Final = ("source", "url", "digest", "content_type", "size", "stored_at")


def run(invocation: Invocation) -> Command:
    return _run_import(invocation) if invocation.arguments.command == "import" else _run_export(invocation)


async def _run_import(invocation: Invocation) -> int:
    from imgkeep.bootstrap.command_services import open_command_services  # noqa: PLC0415 - `export` needs no server

    arguments, config = invocation.arguments, invocation.config
    check_mount("--mount", arguments.mount)
    if not arguments.folder.is_dir():
        raise ConfigError(f"{arguments.folder}: is not a folder")
    await asyncio.to_thread(partial(require_owner, config, server_helps=False))
    if arguments.mount not in {legacy.mount for legacy in config.legacy}:
        sys.stderr.write("imgkeep: old names answer once [[legacy]] names this mount in the configuration\n")
    async with open_command_services(config) as services:
        return await import_folder(
            arguments.folder, arguments.mount, services.saver, as_json=arguments.json, out=sys.stdout, err=sys.stderr
        )


async def _run_export(invocation: Invocation) -> int:
    async with open_to_read(invocation.config) as storage:
        url_of = partial(permanent_url, storage.remote, invocation.base)
        as_json = invocation.arguments.format == "jsonl"
        return await export(storage.database.image_index, url_of=url_of, as_json=as_json, out=sys.stdout)


async def import_folder(  # noqa: PLR0913 - all but three by keyword
    folder: Path, mount: str, saver: Saver, *, as_json: bool, out: TextIO, err: TextIO
) -> int:
    """
    Store all images below a folder under their names, `/<mount>/<name>`. 1 if one is not stored.

    A file that is no image is passed over and counted. An image of an earlier run is found, and not stored twice.
    """
    counts: Counter[str] = Counter()
    paths = await asyncio.to_thread(lambda: sorted(_files(folder)))
    with progress("adopting", len(paths), err) as bar:
        for path in paths:
            name = path.relative_to(folder).as_posix()
            try:
                name.encode()
                info = identify_legacy(mount, name)
                saved = await saver.save_bytes(_read(path), path.stat().st_size, info)
                fate, reason = ("adopted" if saved.created else "known"), ""
            except OriginError as error:
                fate, reason = "passed_over", str(error)
            except ImgkeepError as error:
                fate, reason = "failed", str(error)
            except (OSError, UnicodeError) as error:
                fate, reason = "failed", getattr(error, "strerror", None) or "its name is not UTF-8"
            counts[fate] += 1
            bar.advance(1)
            if reason:
                bar.say(f"{fate.replace('_', ' '):<11}  {name.encode('utf-8', 'backslashreplace').decode()}: {reason}")
    facts = {fate: counts[fate] for fate in ("adopted", "known", "passed_over", "failed")}
    if as_json:
        print_json(out, facts)
    else:
        out.write(", ".join(f"{number} {fate.replace('_', ' ')}" for fate, number in facts.items()) + "\n")
    return 1 if counts["failed"] else 0


async def export(image_index: ImageIndex, *, url_of: Callable[[Record], str], as_json: bool, out: TextIO) -> int:
    """Print source, permanent URL, digest and time of all images, newest first: as CSV (RFC 4180) or JSON lines."""
    table = csv.DictWriter(out, COLUMNS, lineterminator="\r\n")
    if not as_json:
        table.writeheader()
    after: tuple[int, str] | None = None
    while page := await image_index.page(limit=PAGE, after=after):
        for record in page:
            row = {
                "source": record.identity,
                "url": url_of(record),
                "digest": record.digest,
                "content_type": record.format.media_type,
                "size": record.size,
                "stored_at": record.stored_at,
            }
            if as_json:
                print_json(out, row)
            else:
                table.writerow({**row, "stored_at": readable_time(record.stored_at)})
        after = (int(page[-1].stored_at.timestamp()), page[-1].key)
    return 0


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files but hidden ones and those behind symbolic links."""
    for path in folder.iterdir():
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


async def _read(path: Path) -> AsyncIterator[bytes]:
    async with aiofiles.open(path, "rb") as file:
        while piece := await file.read(PIECE_BYTES):
            yield piece

"""
Files of HTML and Markdown: found, read, and replaced.

Rules:
- A file is replaced whole or not at all, and keeps its mode and, where we may, its owner. What somebody else has
  written since it was read stays.
- In folders symbolic links and hidden files are passed over; what is named is followed, as other tools do.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, BinaryIO, Final
from urllib.parse import quote

from imgkeep.config import ConfigError
from imgkeep.core.errors import InvalidRequest
from imgkeep.page_rewriting import check_page_url, document_format_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from imgkeep.page_rewriting import DocumentFormat

STANDARD_INPUT: Final = "-"


@dataclass(frozen=True, slots=True)
class Document:
    """
    A document.

    Attributes:
        name: As people are told it.
        url: Its own, if it is known.
        given: What it holds, where that is no file's.
        trouble: Why it is not to be had at all.
    """

    name: str
    path: Path
    form: DocumentFormat = "html"
    url: str | None = None
    given: bytes | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class FileVersion:
    """What a file held when it was read, and its state at that moment."""

    data: bytes
    state: os.stat_result | None = None


def find_documents(
    names: Sequence[str], form: DocumentFormat | None, url: str | None, stdin: BinaryIO
) -> list[Document]:
    """
    Find the documents that are named: files, all in folders, and `-` for standard input.

    Args:
        names: As given.
        form: Of what is named, where its name does not tell; in folders names decide.
        url: Of the page, or of the folder.
        stdin: Standard input.

    Raises:
        ConfigError: Nobody knows what a file holds, or `url` cannot be honoured.
    """
    if url is not None:
        _check_url(names, url)
    pages: list[Document] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT:
            pages.append(Document(name, path, form or "html", url, stdin.read()))
        elif path.is_dir():
            pages += _documents_in_folder(path, path, url)
        else:
            known = form or document_format_of(name)
            if known is None:
                raise ConfigError(f"{printable(name)}: its name does not tell what it holds, so --format has to")
            pages.append(Document(printable(name), path, known, url))
    return pages


def read_document(page: Document) -> FileVersion:
    """
    Read a document.

    Raises:
        OSError: It cannot be read.
    """
    if page.trouble:
        raise OSError(page.trouble)
    if page.given is not None:
        return FileVersion(page.given)
    # Without waiting for anybody to write into a pipe that has got the name of a page.
    with open(os.open(page.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 - by number
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError("it is not a file")
        return FileVersion(file.read(), state)


def replace_document(page: Document, held: FileVersion, data: bytes) -> None:
    """
    Have a file hold other bytes than those that were read.

    Raises:
        OSError: It holds what it did, or what somebody else has written.
    """
    assert held.state is not None
    path = page.path.resolve(strict=True)
    partial = path.with_name(f".imgkeep-{token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - by number
            file.write(data)
            file.flush()
            with suppress(PermissionError):  # then it is ours
                os.fchown(descriptor, held.state.st_uid, held.state.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(held.state.st_mode))
            os.fsync(descriptor)
        _require_unchanged(path, held.state)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def printable(name: str) -> str:
    """Return a file's name so that a terminal does not take it for a command, and everything can encode it."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def _check_url(names: Sequence[str], url: str) -> None:
    if len(names) > 1:
        raise ConfigError("--url: needs one file or one folder")
    try:
        check_page_url(url)
    except InvalidRequest as error:
        raise ConfigError(f"--{error}") from None


def _documents_in_folder(root: Path, folder: Path, url: str | None) -> Iterator[Document]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        yield Document(printable(str(folder)), folder, trouble=error.strerror or str(error))
        return
    for path in paths:
        if path.name.startswith(".") or path.is_symlink():
            continue
        form = document_format_of(path.name)
        if path.is_dir():
            yield from _documents_in_folder(root, path, url)
        elif form is not None and path.is_file():
            place = quote(os.fsencode(path.relative_to(root)))
            yield Document(printable(str(path)), path, form, None if url is None else f"{url.rstrip('/')}/{place}")


def _require_unchanged(path: Path, state: os.stat_result) -> None:
    def version(of: os.stat_result) -> tuple[int, int, int, int]:
        return of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns

    if version(path.stat()) != version(state):
        raise OSError("somebody else has written it meanwhile")

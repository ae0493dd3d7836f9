"""
Files of HTML and Markdown: found, read, and replaced.

Rules:
- A file is replaced whole or not at all, and keeps its mode and, if permissions allow, its owner. A file that another
  program has written since it was read stays.
- A folder is searched without its symbolic links and hidden files; a symbolic link on the command line is followed, as
  other tools do.
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
        name: Its name in messages.
        path: Its file.
        form: HTML or Markdown.
        url: Its own URL, if it is known.
        given: Its bytes, if they are not those of a file.
        error: The reason why it cannot be read at all.
    """

    name: str
    path: Path
    form: DocumentFormat = "html"
    url: str | None = None
    given: bytes | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class FileVersion:
    """The bytes of a file and its state at the moment when it was read."""

    data: bytes
    state: os.stat_result | None = None


def find_documents(
    names: Sequence[str], form: DocumentFormat | None, url: str | None, stdin: BinaryIO
) -> list[Document]:
    """
    Return the documents of the command line: files, all documents in folders, and `-` for standard input. Blocks.

    Args:
        names: The arguments of the command.
        form: The form of a file whose name does not tell; in folders names decide.
        url: The URL of the document, or of the folder.
        stdin: Standard input.

    Raises:
        ConfigError: The form of a file is not known, or `url` cannot be honoured.
    """
    if url is not None:
        _check_url(names, url)
    documents: list[Document] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT:
            documents.append(Document(name, path, form or "html", url, stdin.read()))
        elif path.is_dir():
            documents += _documents_in_folder(path, path, url)
        else:
            known = form or document_format_of(name)
            if known is None:
                raise ConfigError(f"{printable(name)}: its name does not tell what it holds, so --format has to")
            documents.append(Document(printable(name), path, known, url))
    return documents


def read_document(document: Document) -> FileVersion:
    """
    Read a document.

    Raises:
        OSError: It cannot be read.
    """
    if document.error:
        raise OSError(document.error)
    if document.given is not None:
        return FileVersion(document.given)
    # Without waiting: a pipe with the name of a document would block until a program writes into it.
    with open(os.open(document.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 - by number
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError("it is not a file")
        return FileVersion(file.read(), state)


def replace_document(document: Document, version: FileVersion, data: bytes) -> None:
    """
    Replace the bytes of a file, if it still holds those that were read.

    Raises:
        OSError: The file is as it was, or as another program has written it.
    """
    assert version.state is not None
    path = document.path.resolve(strict=True)
    partial = path.with_name(f".imgkeep-{token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - by number
            file.write(data)
            file.flush()
            with suppress(PermissionError):  # then the file gets the owner of this process
                os.fchown(descriptor, version.state.st_uid, version.state.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(version.state.st_mode))
            os.fsync(descriptor)
        _require_unchanged(path, version.state)
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
    """Return the name of a file with escapes for what a terminal obeys and for what no encoding holds."""
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
        yield Document(printable(str(folder)), folder, error=error.strerror or str(error))
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
        raise OSError("another program has written it meanwhile")

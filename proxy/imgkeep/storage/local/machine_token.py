"""
The token of this machine: a file beside the data that only its owner can read.

A client that presents it has read the file, which no proxy and no page does by accident. The first start makes it, and
all workers and all later starts share it; the command line reads it by itself.

Rules:
- The file appears whole or not at all: it is written under another name, and a hard link, which replaces nothing,
  gives it its own. So of several programs that start together one wins, and all read the same token.
- A file that other users can read, or have written, is refused.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

NAME: Final = "api-token"
TOKEN_BYTES: Final = 32
FILE_BYTES_MAX: Final = 1024

_TOKEN: Final = re.compile(rb"([!-~]{16,512})\n?")


class TokenUnusableError(Exception):
    """A missing or refused token. The message says why, and holds neither the token nor its path."""


def make_token(folder: Path) -> str:
    """
    Return the token of this machine; make it if there is none. Blocks.

    Raises:
        TokenUnusableError: It cannot be made, or is refused.
    """
    path = folder / NAME
    try:
        if not os.path.lexists(path):
            _make(path)
    except OSError as error:
        raise TokenUnusableError(f"the file {NAME} cannot be made: {error.strerror}") from None
    return _read(path, is_server=True)


def read_token(folder: Path) -> str:
    """
    Return the token of this machine. Blocks.

    Raises:
        TokenUnusableError: There is none, or it is refused.
    """
    return _read(folder / NAME, is_server=False)


def _read(path: Path, *, is_server: bool) -> str:
    try:
        # Neither a pipe, whose opening would wait, nor a symbolic link.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise TokenUnusableError(f"{NAME} is not a file")
            # root may use the token of a service; a service that runs as root takes only its own.
            if about.st_uid != os.geteuid() and (is_server or os.geteuid() != 0):
                raise TokenUnusableError(f"the file {NAME} belongs to another user")
            if about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise TokenUnusableError(f"the file {NAME} is open to others: chmod 600")
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise TokenUnusableError(f"the file {NAME} cannot be read: {error.strerror}") from None
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise TokenUnusableError(f"the file {NAME} holds no token; delete it, and a start makes a new one")
    return match[1].decode()


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{NAME}.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(f"{secrets.token_urlsafe(TOKEN_BYTES)}\n".encode())
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):  # another program was quicker
            os.link(new, path)
    finally:
        new.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""
Files that appear whole or not at all. All of it blocks, and runs in threads of the disk.

The order is always the same, and no file counts as written before its fsync returned (a failed fsync is never repeated:
the kernel may have dropped the pages it could not write):

    partial name, write, fsync the file, rename to the final name, fsync the folder
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, each durable in its parent."""
    missing = [folder, *folder.parents]
    missing = missing[: next(index for index, path in enumerate(missing) if path.is_dir())]
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir()
        sync_folder(path.parent)


def write_all(descriptor: int, data: bytes | bytearray | mmap) -> None:
    """Write all of `data`: one `os.write` may take less."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def create_partial(path: Path) -> int:
    """Create a partial file and return its descriptor; it is locked as long as its writer lives, for `sweep`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            remove(path)
            raise
        os.close(descriptor)  # swept by another process before it was locked


@contextmanager
def durable_partial(path: Path, data: bytes | mmap) -> Iterator[None]:
    """Write a partial file and make it durable; remove it at the end, unless it was published."""
    descriptor = create_partial(path)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
        yield
    finally:
        os.close(descriptor)
        remove(path)


def sweep(folder: Path) -> None:
    """Remove partial files whose writers are dead: the locks ended with them, on this machine at least."""
    for path in folder.iterdir():
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # its writer is alive and done
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def publish_new(partial: Path, final: Path) -> bool:
    """Give a durable partial file its final name, durably; `False`: another file has that name."""
    try:
        if not final.parent.is_dir():
            make_folder(final.parent)
        os.link(partial, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK}:
            raise
        if final.exists():  # a file system without links cannot say both at once
            return False
        partial.replace(final)
    sync_folder(final.parent)
    return True


def exists(path: str) -> bool:
    """Tell whether a path exists."""
    try:
        os.stat(path)  # noqa: PTH116 - every image that is stored passes here
    except FileNotFoundError:
        return False
    return True


def name_new(descriptor: int, final: str) -> bool:
    """Give a file without a name its final one; `False`: another file has that name. Not durable."""
    try:
        try:
            _name(descriptor, final)
        except FileNotFoundError:
            make_folder(Path(final).parent)
            _name(descriptor, final)
    except FileExistsError:
        return False
    return True


def name_over(descriptor: int, folder: Path, final: str) -> None:
    """Give a file without a name its final one, replacing any other. `folder` is for partial names. Not durable."""
    partial = folder / token_hex(8)
    _name(descriptor, str(partial))
    try:
        partial.replace(final)
    finally:
        remove(partial)


def _name(descriptor: int, path: str) -> None:
    # As man 2 open has it for O_TMPFILE. Python follows a symbolic link only where a folder is given to begin from,
    # and any descriptor will do for that, because the path is absolute.
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)


def publish(partial: Path, final: Path) -> None:
    """Give a durable partial file its final name, durably, in the place of any other."""
    try:
        partial.replace(final)
    except FileNotFoundError:
        make_folder(final.parent)
        partial.replace(final)
    sync_folder(final.parent)


def is_named(descriptor: int, path: Path) -> bool:
    """Tell whether `path` is still the name of the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    with suppress(OSError):
        path.unlink()

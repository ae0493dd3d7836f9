"""Reads from the page cache, and systems without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgkeep.storage.local import page_cache as cached
from imgkeep.storage.local.page_cache import PageCacheReader, type_of
from tests.support.program import cannot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "c").write_bytes(b"12345")
    return tmp_path / "a b"


def changed(path: Path) -> int:
    return path.stat().st_ctime_ns


def test_cached_file_is_read(root: Path) -> None:
    files = PageCacheReader(root)
    files.open()
    if not files.is_available:
        cannot("this kernel or file system cannot read without waiting")
    assert bytes(files.read("c", 5, changed(root / "c")) or b"") == b"12345"
    assert files.read("c", 4, changed(root / "c")) is None, "of another size"
    assert files.read("c", 5, 0) is None, "changed since"
    assert files.read("d", 5, 0) is None, "not there"


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_read_leaves_no_descriptor_open(root: Path) -> None:
    files = PageCacheReader(root)
    files.open()
    before = open_files()
    for _ in range(10):
        files.read("c", 5, changed(root / "c"))
        files.read("c", 5, 0)
    assert open_files() == before


def test_unopened_reader_reads_nothing(root: Path) -> None:
    assert PageCacheReader(root).read("c", 5, changed(root / "c")) is None


def test_unknown_file_system_is_not_read() -> None:
    files = PageCacheReader(Path("/proc"))
    files.open()
    assert not files.is_available


MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /srv/nfs rw - nfs4 server:/x rw
31 22 0:41 / /srv/a\040b rw shared:1 - fuse.rclone rclone rw
32 22 0:42 / /srv/nfs/local rw - xfs /dev/vdb rw
33 22 0:43 / /srv/over rw - tmpfs x rw
34 22 0:44 / /srv/over rw - nfs server:/y rw
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/var/lib/imgkeep", "ext4"),
        ("/srv/nfs", "nfs4"),
        ("/srv/nfs/data", "nfs4"),
        ("/srv/nfsdata", "ext4"),
        ("/srv/nfs/local/data", "xfs"),
        ("/srv/a b/c", "fuse.rclone"),
        ("/srv/over/x", "nfs"),
    ],
)
def test_type_of_a_file_system_is_found(place: str, kind: str) -> None:
    assert type_of(Path(place), MOUNTS) == kind
    assert (kind in cached.LOCAL) == (kind in {"ext4", "xfs"})

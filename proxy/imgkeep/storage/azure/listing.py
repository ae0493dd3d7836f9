"""A page of the list of blobs ("List Blobs")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from imgkeep.storage.azure.errors import NOT_AZURE
from imgkeep.storage.azure.xml_elements import read_elements
from imgkeep.storage.bucket.errors import BucketError

if TYPE_CHECKING:
    from collections.abc import Sequence

ENTRIES_MAX: Final = 1000
"""Maximum number of entries of a page: a megabyte or so. The service sends up to 5000."""
PAGE_BYTES_MAX: Final = 16_777_216
"""Maximum size of a page: each name has up to 1024 characters, each of up to 6 bytes in XML, and 2 kB of properties."""

_ROOT: Final = "EnumerationResults"
_BLOB: Final = f"{_ROOT}/Blobs/Blob"


@dataclass(frozen=True, slots=True)
class Page:
    """Names and sizes of blobs, and the `marker` of the next page; empty: there is none."""

    entries: Sequence[tuple[str, int]]
    marker: str


def read_page(data: bytes) -> Page:
    """
    Read a page.

    Raises:
        BucketError: It is none.
    """
    entries: list[tuple[str, int]] = []
    name, size, marker, is_folder, element = "", "", "", False, None
    try:
        for element in read_elements(data):
            match element.path.removeprefix(_BLOB):
                case "/Name":
                    name = unquote(element.text) if element.attributes.get("Encoded") == "true" else element.text
                case "/Properties/Content-Length":
                    size = element.text
                case "/Properties/ResourceType":
                    # Accounts with a hierarchical namespace list their folders, too.
                    is_folder = element.text == "directory"
                case "":
                    if not is_folder:
                        entries.append((name, _read_size(name, size)))
                    name, size, is_folder = "", "", False
                case path if path == f"{_ROOT}/NextMarker":
                    marker = element.text
    except ValueError:
        raise BucketError(NOT_AZURE) from None
    if element is None or element.path != _ROOT:
        raise BucketError(NOT_AZURE)
    return Page(entries, marker)


def _read_size(name: str, size: str) -> int:
    if not name or not size.isascii() or not size.isdecimal():
        raise ValueError("an entry has no name or size")
    return int(size)

"""
The assets of Cloudinary for paths of the stored layout.

- An object whose format Cloudinary handles is an *image*, so that its transformations work. The public ID of an image
  has no extension; the extension is the format that Cloudinary recognised.
- An object of another format is a *raw* file, with the extension in its public ID. Cloudinary names some formats in
  another way than we do (an animated PNG is `png`), and a delivery URL with another extension is a conversion.
- A derived picture is a *raw* file, too: nothing but imgkeep makes anything of it.
- Everything else (records, blocks, the probe) is a raw file of type `authenticated`: no URL without a signature shows
  it. Objects and pictures have type `upload`, which is public.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from imgkeep.config import ConfigError
from imgkeep.core.derived.names import DERIVED
from imgkeep.core.layout import OBJECTS
from imgkeep.core.records import Format

if TYPE_CHECKING:
    from imgkeep.core.store_url import CloudinaryFolder

ResourceType = Literal["image", "raw"]
DeliveryType = Literal["upload", "authenticated"]

RAW_FORMATS: Final = frozenset({Format.APNG, Format.HEIF, Format.CUR, Format.TIFF})
"""Formats that Cloudinary does not know, or for which its documentation names several extensions."""
_RAW_EXTENSIONS: Final = frozenset(format_.extension for format_ in RAW_FORMATS)
_VERSION: Final = re.compile("v[0-9]")
_OBJECT: Final = re.compile(rf"({OBJECTS}/[0-9a-f]{{2}}/[0-9a-f]{{64}})\.([a-z]{{2,4}})")
_IMAGES_PREFIX: Final = re.compile(rf"({OBJECTS}/[0-9a-f]{{2}}/[0-9a-f]{{64}})\.[a-z]*")


@dataclass(frozen=True, slots=True)
class AssetKind:
    """Resource type and delivery type: together a name space of public IDs."""

    resource_type: ResourceType
    type: DeliveryType


@dataclass(frozen=True, slots=True)
class Asset:
    """
    The name of an asset.

    Attributes:
        format: The extension of an image; empty: a raw file.
    """

    kind: AssetKind
    public_id: str
    format: str = ""


IMAGES: Final = AssetKind("image", "upload")
RAW_OBJECTS: Final = AssetKind("raw", "upload")
PRIVATE_FILES: Final = AssetKind("raw", "authenticated")


def check_folder(folder: CloudinaryFolder) -> None:
    """
    Check that no public ID in a folder begins like the version in a delivery URL.

    Raises:
        ConfigError: They do, or there is no folder: the stored layout begins with `v1`.
    """
    if not folder.prefix or _VERSION.match(folder.prefix):
        raise ConfigError(
            "store.url: expected cloudinary:FOLDER with a folder that does not begin like v1: Cloudinary would take "
            "that for the version in a URL"
        )


def asset_of(folder: CloudinaryFolder, path: str) -> Asset:
    """Return the asset for a path of the stored layout."""
    match = _OBJECT.fullmatch(path)
    if match is None:
        return Asset(RAW_OBJECTS if path.startswith(f"{DERIVED}/") else PRIVATE_FILES, folder.path(path))
    if match[2] in _RAW_EXTENSIONS:
        return Asset(RAW_OBJECTS, folder.path(path))
    return Asset(IMAGES, folder.path(match[1]), match[2])


def object_assets(folder: CloudinaryFolder, prefix: str) -> list[Asset]:
    """Return all assets that the object `v1/objects/<2 hex>/<digest>.` may be; none for any other prefix."""
    match = _OBJECT.fullmatch(f"{prefix}png")
    if match is None:
        return []
    raw = [Asset(RAW_OBJECTS, folder.path(prefix + extension)) for extension in sorted(_RAW_EXTENSIONS)]
    return [Asset(IMAGES, folder.path(match[1])), *raw]


def kinds_below(prefix: str) -> list[AssetKind]:
    """Return the kinds of assets whose paths may begin with a prefix."""
    if prefix.startswith(f"{OBJECTS}/"):
        return [IMAGES, RAW_OBJECTS]
    if prefix.startswith(f"{DERIVED}/"):
        return [RAW_OBJECTS]
    return [IMAGES, RAW_OBJECTS, PRIVATE_FILES] if OBJECTS.startswith(prefix) else [PRIVATE_FILES]


def public_id_prefix(folder: CloudinaryFolder, kind: AssetKind, prefix: str) -> str:
    """Return how the public IDs of a kind begin for paths with a prefix: images have no extension."""
    match = _IMAGES_PREFIX.fullmatch(prefix)
    return folder.path(match[1] if kind == IMAGES and match is not None else prefix)


def delivery_path(folder: CloudinaryFolder, path: str) -> str:
    """
    Return the path of an object's delivery URL, below the host and the cloud's name.

    The version is always in it: without one, the `v1` of the stored layout could be taken for it.
    """
    asset = asset_of(folder, path)
    # A folder of objects has the URLs of images.
    kind = asset.kind if asset.kind != PRIVATE_FILES else IMAGES
    extension = f".{asset.format}" if asset.format else ""
    return f"{kind.resource_type}/{kind.type}/v1/{asset.public_id}{extension}"

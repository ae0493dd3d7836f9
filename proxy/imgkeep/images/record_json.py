"""The JSON form of a record, for the API and the commands, with every store."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, to_builtins

from imgkeep.core.confirmation import standing_of
from imgkeep.core.records import Digest, Doubt, Format, Key, Standing

if TYPE_CHECKING:
    from imgkeep.core.picture_facts import PictureFacts
    from imgkeep.core.records import Record

HASH: Final = "^[0-9a-f]{64}$"

ImageKey = Annotated[Key, Meta(pattern=HASH, description="Key of the image: the SHA-256 of its identity.")]
ObjectDigest = Annotated[Digest, Meta(pattern=HASH, description="SHA-256 of the bytes.")]
MediaType = Annotated[str, Meta(extra_json_schema={"enum": sorted({each.media_type for each in Format})})]


class SourceFacts(Struct, kw_only=True):
    """The source of an image: what its link told."""

    host: str | None
    provider: str | None
    temporary: bool
    expires_at: Annotated[datetime, Meta(tz=True)] | None


STORES: Final = ("s3", "gcs", "azure", "cloudinary", "local")
"""Names of stores in answers: of their services, and of the disk."""


class ImageLocation(Struct, kw_only=True):
    """The places of a stored image."""

    success: Literal[True] | UnsetType = UNSET
    url: Annotated[
        str, Meta(description="Permanent URL; its path alone where the server does not know its own address.")
    ]
    storage: Annotated[
        str,
        Meta(description="Store that holds the image at the moment.", extra_json_schema={"enum": list(STORES)}),
    ]
    node: (
        Annotated[
            str, Meta(description="Node of a cluster on whose disk alone the image is until the bucket takes it.")
        ]
        | UnsetType
    ) = UNSET
    key: ImageKey
    digest: ObjectDigest


class PictureDetails(Struct, kw_only=True):
    """The facts that the pixels of an image tell."""

    frames: Annotated[int, Meta(ge=1, description="Number of frames; 1: the image does not move.")]
    has_alpha: Annotated[bool, Meta(description="Whether a pixel of the first frame can be seen through.")]
    orientation: Annotated[
        int, Meta(ge=1, le=8, description="EXIF orientation of the stored image; 1: as people see it.")
    ]
    colour: Annotated[str, Meta(pattern="^#[0-9a-f]{6}$", description="Dominant colour.")]
    thumbhash: Annotated[str, Meta(description="ThumbHash of the first frame, in base64.")]


class ImageFacts(ImageLocation, kw_only=True):
    """A stored image."""

    content_type: MediaType
    size: Annotated[int, Meta(ge=1, description="Number of bytes.")]
    width: Annotated[
        int | None,
        Meta(
            description="In pixels: as the header states it, and with the orientation applied once `picture` is known."
        ),
    ]
    height: Annotated[int | None, Meta(description="Likewise.")]
    picture: Annotated[
        PictureDetails | None,
        Meta(description="Found in idle time after the image was stored; `null` before, or if it cannot be decoded."),
    ]
    stored_at: Annotated[datetime, Meta(tz=True)]
    standing: Annotated[
        Standing, Meta(description="Whether the image stands for links other than the one that brought it.")
    ]
    doubts: Annotated[
        list[Doubt],
        Meta(
            description="Why the image may not be right for every link of its key; `incomplete`: by its format, bytes "
            "are missing."
        ),
    ]
    suspect: Annotated[
        bool,
        Meta(
            description="Whether its host sent the same bytes under many names recently, as hosts do with placeholders."
        ),
    ]
    source: SourceFacts


def describe_record(record: Record, *, url: str, storage: str, suspect: bool = False) -> ImageFacts:
    """Return the facts of a record. The arguments are fields of `ImageFacts` that the record does not tell."""
    picture = record.picture
    shown = picture or record.pixel_size
    return ImageFacts(
        url=url,
        storage=storage,
        node=record.waits_at or UNSET,
        key=record.key,
        digest=record.digest,
        content_type=record.format.media_type,
        size=record.size,
        width=shown.width if shown else None,
        height=shown.height if shown else None,
        picture=_describe_picture(picture),
        stored_at=record.stored_at,
        standing=standing_of(record),
        doubts=[doubt for doubt in Doubt if doubt in record.doubts],
        suspect=suspect,
        source=SourceFacts(
            host=record.host or None,
            provider=record.provider,
            temporary=record.temporary,
            expires_at=record.expires_at,
        ),
    )


def _describe_picture(picture: PictureFacts | None) -> PictureDetails | None:
    if picture is None:
        return None
    return PictureDetails(
        frames=picture.frames,
        has_alpha=picture.has_alpha,
        orientation=picture.orientation,
        colour=f"#{picture.colour}",
        thumbhash=picture.thumbhash,
    )


def as_dict(facts: ImageFacts) -> dict[str, Any]:
    """Return facts by their names in JSON. Times stay times."""
    named: dict[str, Any] = to_builtins(facts, builtin_types=(datetime,))
    return named

"""
Bodies of the responses of the HTTP API: handlers return these Structs, and the OpenAPI document describes them.

Rules:
- A response has every field whose type is without `UnsetType`; the document calls these fields required.
- `success` comes first, and is true. An entry of a list is without it.
- Errors are `error_presentation.Problem`, whatever the endpoint.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from imgkeep.core.jobs import JobState
from imgkeep.core.records import Digest, Key
from imgkeep.images.failure_history import RecentFailure
from imgkeep.images.record_json import HASH, ImageFacts, ImageKey, ObjectDigest
from imgkeep.web.error_presentation import Problem

JOB_ID: Final = "^[0-9a-f]{32}$"

Moment = Annotated[datetime, Meta(tz=True)]
Cursor = Annotated[str | None, Meta(description="Cursor of the next page; `null` on the last one.")]


class ShownImage(ImageFacts, kw_only=True):
    """A stored image."""

    success: Literal[True] = True


class SavedImage(ShownImage, kw_only=True):
    """An image that was saved."""

    created: Annotated[bool, Meta(description="Whether this request stored the image.")]


class RefetchedImage(ShownImage, kw_only=True):
    """An image that was fetched again."""

    replaced: Annotated[
        bool, Meta(description="Whether the bytes differ from before; equal bytes confirm the stored image.")
    ]


ShownKind = TypeVar("ShownKind", bound=ShownImage)


def show_image(kind: type[ShownKind], facts: ImageFacts, **more: object) -> ShownKind:
    """Return the facts of an image as a response of its own, with the fields that this kind adds."""
    return kind(**{**msgspec.structs.asdict(facts), "success": True, **more})


class Images(Struct, kw_only=True):
    """A page of images, newest first."""

    success: Literal[True] = True
    images: list[ImageFacts]
    next: Cursor


class Placeholder(Struct, kw_only=True):
    """A small blurred picture that a page shows until the image is there."""

    success: Literal[True] = True
    key: ImageKey
    digest: ObjectDigest
    placeholder: Annotated[str, Meta(description="`data:` URL of a PNG with at most 32 pixels a side.")]
    thumbhash: Annotated[str, Meta(description="ThumbHash of the first frame, in base64.")]
    colour: Annotated[str, Meta(pattern="^#[0-9a-f]{6}$", description="Dominant colour.")]
    width: Annotated[int, Meta(ge=1, description="Width of the image in pixels, with its orientation applied.")]
    height: Annotated[int, Meta(ge=1, description="Likewise.")]


class Removed(Struct, kw_only=True):
    """The removal of an image by its key or by its digest."""

    success: Literal[True] = True
    key: ImageKey | UnsetType = UNSET
    digest: ObjectDigest | UnsetType = UNSET


class Restored(Struct, kw_only=True):
    """The undo of a removal."""

    success: Literal[True] = True
    key: ImageKey | UnsetType = UNSET
    restored: Literal[True] = True
    digest: Annotated[
        Annotated[Digest, Meta(pattern=HASH)] | None, Meta(description="Digest that is no longer blocked.")
    ]
    keys: Annotated[list[Annotated[Key, Meta(pattern=HASH)]], Meta(description="Keys whose tombstones were deleted.")]
    stored: Annotated[bool, Meta(description="Whether the bytes are still stored; a removal deletes them.")]
    detail: Annotated[str, Meta(description="What that means, for people.")]


class JobFacts(Struct, kw_only=True):
    """A job, without the results of its links."""

    success: Literal[True] | UnsetType = UNSET
    id: Annotated[str, Meta(pattern=JOB_ID)]
    state: Annotated[
        JobState, Meta(description="`done`: each link is saved or has failed; `cancelled`: the job ended before that.")
    ]
    total: int
    saved: int
    failed: int
    cancelled: Annotated[int, Meta(description="Number of links that the job left, because it was cancelled.")]
    created_at: Moment
    finished_at: Moment | None


class Job(JobFacts, kw_only=True):
    """A job."""

    success: Literal[True] = True


class Jobs(Struct, kw_only=True):
    """A page of jobs, newest first."""

    success: Literal[True] = True
    jobs: list[JobFacts]
    next: Cursor


class LinkFailure(Struct, kw_only=True):
    """Why a link of a job has failed."""

    code: Annotated[str, Meta(description="For programs, as in a problem.")]
    detail: Annotated[str, Meta(description="For people.")]


class Result(Struct, kw_only=True):
    """The result of one link of a job."""

    index: Annotated[int, Meta(description="Place of the link in the request, from 0.")]
    state: Annotated[str, Meta(extra_json_schema={"enum": ["waiting", "saved", "failed", "cancelled"]})]
    host: Annotated[str, Meta(description="Host of the link; absent if the text is no link.")] | UnsetType = UNSET
    key: Annotated[Key, Meta(pattern=HASH, description="Key of the link, later of its image.")] | UnsetType = UNSET
    created: Annotated[bool, Meta(description="Whether this job stored the image.")] | UnsetType = UNSET
    image: ImageFacts | UnsetType = UNSET
    error: LinkFailure | UnsetType = UNSET


class JobWithResults(Job, kw_only=True):
    """A job and the results of its links."""

    results: list[Result]


class RewrittenDocument(Struct, kw_only=True):
    """A document whose links to images were rewritten."""

    success: Literal[True] = True
    html: str | UnsetType = UNSET
    markdown: str | UnsetType = UNSET
    rewritten: Annotated[int, Meta(description="Number of links that were rewritten.")]
    job: (
        Annotated[JobFacts | None, Meta(description="With `save`: the job; `null` if no link was rewritten.")]
        | UnsetType
    ) = UNSET


class Inspection(Struct, kw_only=True):
    """The facts of a link, without a request to its origin."""

    success: Literal[True] = True
    url: str
    identity: str
    key: ImageKey
    provider: str | None
    scheme: str | None
    temporary: bool
    expires_at: Moment | None
    signature_checked: Annotated[
        bool | None,
        Meta(
            description="Whether the service answers a wrong signature with an error, never with an image; `null`: the "
            "identity leaves out nothing that grants access."
        ),
    ]
    ours: Annotated[bool, Meta(description="Whether the link is a URL of this server.")]
    allowed: bool
    reason: str | None


class Failures(Struct, kw_only=True):
    """The last failed fills, the latest first."""

    success: Literal[True] = True
    failures: list[RecentFailure]


class Policy(Struct, kw_only=True):
    """Which links the server would refuse."""

    success: Literal[True] = True
    allow: Annotated[
        list[str],
        Meta(description="`sources.allow`; its words (`auto`, `known`, `shared`) are replaced by what they stand for."),
    ]
    deny: Annotated[
        list[str],
        Meta(description="`sources.deny`, and the hosts and paths that identities fold these to. Wins over `allow`."),
    ]
    ports: Annotated[list[int], Meta(description="`fetch.allow_ports`.")]
    networks: Annotated[list[str], Meta(description="`fetch.allow_networks`.")]
    schemes: list[str]
    signature: Annotated[
        Literal["off", "misses", "always"],
        Meta(description="`security.signature`: `off` accepts links without a signature."),
    ]
    url_chars_max: Annotated[int, Meta(description="Maximum length of a link.")]
    widths: Annotated[
        list[int], Meta(description="`derive.widths`: widths of derived pictures that any client may ask for.")
    ]


class Server(Struct, kw_only=True):
    """The description of this server, and its endpoints."""

    name: Literal["imgkeep"] = "imgkeep"
    summary: str
    version: str
    status: Literal["ready", "degraded", "unready", "draining"]
    image: str
    openapi: str
    api: str
    documentation: str
    health: str
    readiness: str
    module: str


RESPONSES: Final[tuple[type[Struct], ...]] = (
    Server,
    ShownImage,
    SavedImage,
    RefetchedImage,
    Images,
    Placeholder,
    Removed,
    Restored,
    Job,
    Jobs,
    JobWithResults,
    RewrittenDocument,
    Inspection,
    Failures,
    Policy,
    Problem,
)


def make_schemas() -> dict[str, Any]:
    """Return the JSON schemas of all responses and of their parts, by name."""
    _, schemas = msgspec.json.schema_components(RESPONSES, ref_template="#/components/schemas/{name}")
    for kind in _all_structs():
        schema = schemas[kind.__name__]
        # A default is a value that the handler need not name, and is sent all the same.
        schema["required"] = [field.encode_name for field in msgspec.structs.fields(kind) if field.default is not UNSET]
        for described in schema["properties"].values():
            described.pop("default", None)
    return schemas


def _all_structs() -> set[type[Struct]]:
    found: set[type[Struct]] = set()
    kinds = list(msgspec.inspect.multi_type_info(RESPONSES))
    while kinds:
        kind = kinds.pop()
        if isinstance(kind, msgspec.inspect.StructType):
            if kind.cls in found:
                continue
            found.add(kind.cls)
            kinds += [field.type for field in kind.fields]
        elif isinstance(kind, msgspec.inspect.UnionType):
            kinds += kind.types
        elif isinstance(kind, msgspec.inspect.ListType):
            kinds.append(kind.item_type)
        elif isinstance(kind, msgspec.inspect.Metadata):
            kinds.append(kind.type)
    return found

"""The parts that operations of the OpenAPI document are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from imgkeep.core.derived.options import BLUR_MAX, DPR_MAX, PAGE_MAX, SIDE_MAX, Fit, Gravity, PictureFormat
from imgkeep.images.record_json import HASH
from imgkeep.web.api.schemas import JOB_ID

if TYPE_CHECKING:
    from enum import Enum

_COLOUR: Final = "^(?:[0-9A-Fa-f]{3}|[0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})$"
KEY: Final = {"type": "string", "pattern": HASH}
TIME: Final = {"type": "string", "format": "date-time"}
TEXT: Final = {"type": "string"}
IN_PATH: Final = {"in": "path", "required": True}


def ref(name: str) -> dict[str, str]:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def closed_object(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the schema of a request's object, which may have no other fields."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def json_content(name: str, description: str, **more: Any) -> dict[str, Any]:
    """Return a response with a body of JSON."""
    return {"description": description, "content": {"application/json": {"schema": ref(name)}}, **more}


def text_content(media_type: str, description: str) -> dict[str, Any]:
    """Return a response with a body of text."""
    return {"description": description, "content": {media_type: {"schema": TEXT}}}


def query(name: str, description: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    """Return a parameter of the query."""
    return {"name": name, "in": "query", "description": description, "required": required, "schema": schema}


def picture_parameters() -> list[dict[str, Any]]:
    """Return the options of a derived picture (`docs/derived.md`), as parameters of a query."""
    side = {"type": "integer", "minimum": 1, "maximum": SIDE_MAX}
    return [
        query("w", "Width of a derived picture in CSS pixels; without options the answer is the original.", side),
        query("h", "Height in CSS pixels; without it the height follows from the width.", side),
        query("dpr", "Device pixels for a CSS pixel.", {"type": "number", "minimum": 1, "maximum": DPR_MAX}),
        query("fit", "What becomes of a picture of another shape than `w` and `h`.", _words(Fit, "inside")),
        query("gravity", "The part that `fit=cover` keeps; `attention`: the salient one.", _words(Gravity, "center")),
        query("format", "Format; `auto`: the best of those that the client accepts.", _words(PictureFormat)),
        query("q", "Quality of a lossy format.", {"type": "integer", "minimum": 1, "maximum": 100}),
        query("bg", "Background: `rgb`, `rrggbb` or `rrggbbaa`.", {"type": "string", "pattern": _COLOUR}),
        query("rotate", "Degrees, clockwise.", {"type": "integer", "enum": [0, 90, 180, 270], "default": 0}),
        query("blur", "Standard deviation in CSS pixels.", {"type": "number", "minimum": 0, "maximum": BLUR_MAX}),
        query(
            "page", "The only frame to keep, counted from 0.", {"type": "integer", "minimum": 0, "maximum": PAGE_MAX}
        ),
        query("metadata", "Whether EXIF and the like stay.", {"type": "string", "enum": ["strip", "keep"]}),
        query("preset", "Options of `derive.presets`; those beside it take precedence.", TEXT),
    ]


def _words(kind: type[Enum], default: str = "") -> dict[str, Any]:
    words = {"type": "string", "enum": [each.value for each in kind]}
    return {**words, "default": default} if default else words


def body(schema: dict[str, Any], example: object, **more: Any) -> dict[str, Any]:
    """Return a request body: JSON, or one of `more` by its media type."""
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}, **more}}


def operation(summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return an operation; every other response is a problem."""
    return {"summary": summary, "responses": {**responses, "default": _PROBLEM}, **more}


def api_operation(summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return an operation that needs access to the API."""
    return operation(summary, responses, security=[{"token": []}, {"session": []}], **more)


_PROBLEM: Final = {
    "description": "What went wrong, as a problem (RFC 9457); in a tab of a browser as a page with the same facts.",
    "content": {"application/problem+json": {"schema": ref("Problem")}, "text/html": {"schema": TEXT}},
}

KEY_IN_PATH: Final = [{"name": "key", **IN_PATH, "schema": KEY}]
JOB_IN_PATH: Final = {"name": "id", **IN_PATH, "schema": {"type": "string", "pattern": JOB_ID}}
SRC: Final = query("src", "The link, percent-encoded.", TEXT, required=True)
EXAMPLE: Final = "https://example.com/picture.png?signature=abc"

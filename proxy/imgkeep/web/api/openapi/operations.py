"""The parts that operations of the OpenAPI document are made of."""

from __future__ import annotations

from typing import Any, Final

from imgkeep.images.record_json import HASH
from imgkeep.web.api.schemas import JOB_ID

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

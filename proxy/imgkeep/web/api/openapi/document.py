"""
The description of the HTTP interface: `GET /openapi.json` (OpenAPI 3.1), and as a plain page under `/api`.

Operations are written by hand, because a generated description states what the code does, and not what it promises. The
tests ask the running server all that the document allows, and compare the routes.
"""

from __future__ import annotations

from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from imgkeep import __version__
from imgkeep.web.api.openapi import api_paths, public_paths
from imgkeep.web.api.schemas import make_schemas
from imgkeep.web.login_tickets import COOKIE

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADERS: Final = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
PAGE_HEADERS: Final = {
    **HEADERS,
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}

STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "body{color:#222;background:#fff}"
    "code,pre{font:14px/1.4 ui-monospace,monospace;background:#f4f4f4;padding:.1em .3em;overflow:auto}"
    "pre{padding:.8em}h2{margin-top:2.5rem}th,td{text-align:left;vertical-align:top;padding:.2em 1em .2em 0}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}code,pre{background:#262626}a{color:#8bf}}"
)

PATHS: Final[dict[str, Any]] = {**public_paths.PATHS, **api_paths.PATHS}

DOCUMENT: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "info": {
        "title": "imgkeep",
        "version": __version__,
        "summary": "Makes temporary image links permanent.",
        "license": {"name": "MIT", "identifier": "MIT"},
    },
    "paths": PATHS,
    "components": {
        "schemas": make_schemas(),
        "securitySchemes": {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "One of `security.api_tokens` or, where none is set, the token in the file `api-token` "
                "in the data folder.",
            },
            "session": {
                "type": "apiKey",
                "in": "cookie",
                "name": COOKIE,
                "description": "The session of a browser on this machine, from the log-in link. It is valid for half a "
                "day, and for pages of this server only: a request that changes something needs an `Origin` that is "
                "this server.",
            },
        },
    },
}


async def document(_request: web.Request) -> web.Response:
    """Return the description for programs."""
    return web.Response(body=_encoded(), content_type="application/json", headers=HEADERS)


async def page(_request: web.Request) -> web.Response:
    """Return the description for people, as a page that loads nothing from other servers."""
    return web.Response(text=_page(), content_type="text/html", headers=PAGE_HEADERS)


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(DOCUMENT)


@cache
def _page() -> str:
    return "".join(_lines())


def _lines() -> Iterator[str]:
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>imgkeep API</title><style>{STYLE}</style>'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<h1>imgkeep {escape(__version__)}</h1><p>{_prose(DOCUMENT['info']['summary'])} "
    yield 'For programs: <a href="openapi.json">openapi.json</a>.</p>'
    for path, operations in PATHS.items():
        for method, operation in operations.items():
            yield from _operation_lines(method, path, operation)


def _prose(text: str) -> str:
    """Return a text in Markdown as HTML: the parts between backticks are code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def _operation_lines(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p><strong>{_prose(operation['summary'])}.</strong> "
    yield f"{_prose(operation.get('description', ''))}</p>"
    if operation.get("parameters"):
        yield "<table>"
        for parameter in operation["parameters"]:
            needed = "" if parameter["required"] else " (optional)"
            text = _prose(parameter.get("description", ""))
            yield f"<tr><td><code>{parameter['name']}</code>{needed}<td>{text}"
        yield "</table>"
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        example = content.get("example")
        shown = "" if example is None else f"<pre>{escape(msgspec.json.encode(example).decode())}</pre>"
        yield f"<p>Body: <code>{media_type}</code></p>{shown}"
    yield "<table>"
    for status, response in operation["responses"].items():
        yield f"<tr><td>{'else' if status == 'default' else status}<td>{_prose(response['description'])}"
    yield "</table>"

"""Operations outside `/api`: images, pages, the module, probes."""

from __future__ import annotations

from typing import Any, Final

from imgkeep.web.api.openapi.operations import (
    IN_PATH,
    SRC,
    TEXT,
    operation,
    picture_parameters,
    query,
    ref,
    text_content,
)

_EXP: Final = query("exp", "End of `sig`, in epoch seconds.", TEXT)
_SIG: Final = query("sig", "Signature of this server, where `security.signature` requires one.", TEXT)
_IMAGE: Final = {
    "description": "The image.",
    "content": {"image/*": {"schema": {"type": "string", "contentEncoding": "binary"}}},
}
_PART: Final = {**_IMAGE, "description": "A part of the image."}
_NOT_MODIFIED: Final = {"description": "The copy of the client is still right."}
_REDIRECT: Final = {"description": "The URL of the image, with `delivery.mode` redirect or presign."}
_PAGE: Final = text_content("text/html", "A page.")
_NAME_IN_PATH: Final = {
    "name": "name",
    **IN_PATH,
    "description": "`<digest>.<ext>`",
    "schema": {"type": "string", "pattern": r"^[0-9a-f]{64}\.[a-z]{2,4}$"},
}
_PREFLIGHT: Final = operation(
    "Tell pages of other sites what their scripts may request", {"204": {"description": "What CORS allows."}}
)

PATHS: Final[dict[str, Any]] = {
    "/": {
        "get": operation(
            "Describe this server",
            {
                "200": {
                    "description": "JSON for programs, and a page for clients that prefer `text/html`.",
                    "content": {"application/json": {"schema": ref("Server")}, "text/html": {"schema": TEXT}},
                }
            },
        )
    },
    "/docs": {"get": operation("List the documentation, for people", {"200": _PAGE})},
    "/docs/{name}": {
        "get": operation(
            "Show a page of the documentation",
            {"200": _PAGE},
            parameters=[{"name": "name", **IN_PATH, "schema": TEXT}],
        )
    },
    "/img": {
        "get": operation(
            "Show the image behind a link, for ever",
            {"200": _IMAGE, "206": _PART, "302": _REDIRECT, "304": _NOT_MODIFIED},
            description="The first request fetches, streams and stores the image; the store answers all later ones. "
            "`src` may stand unencoded at the end, if it contains `://` and, after a `?`, a `=`. With options the "
            "answer is a picture that imgkeep makes of the image, in another size or format.",
            parameters=[SRC, *picture_parameters(), _EXP, _SIG],
        ),
        "options": _PREFLIGHT,
    },
    "/images/{name}": {
        "get": operation(
            "Show an image under its permanent URL",
            {"200": _IMAGE, "206": _PART, "302": _REDIRECT},
            parameters=[_NAME_IN_PATH, *picture_parameters(), _EXP, _SIG],
        ),
        "options": {**_PREFLIGHT, "parameters": [_NAME_IN_PATH]},
    },
    "/imgkeep.js": {
        "get": operation(
            "Give the module that makes such links in browsers and in Node.js",
            {
                "200": text_content("text/javascript", "A JavaScript module without dependencies."),
                "304": _NOT_MODIFIED,
            },
        )
    },
    "/imgkeep.d.ts": {
        "get": operation(
            "Give the types of the module",
            {"200": text_content("text/plain", "Declarations of TypeScript."), "304": _NOT_MODIFIED},
        )
    },
    "/login": {
        "get": operation(
            "Log a browser on this machine in",
            {"303": {"description": "The browser has a session, and goes to `/` (`/api` without that page)."}},
            description="imgkeep prints the link at start, on a loopback address without `security.api_tokens`, and "
            "with `imgkeep token --login`. The link is valid for an hour.",
            parameters=[query("ticket", "The ticket of the link.", TEXT, required=True)],
        )
    },
    "/healthz": {
        "get": operation("State that the process can answer", {"200": {"description": "The process can answer."}})
    },
    "/readyz": {
        "get": operation(
            "State how each part is",
            {"200": {"description": "`ready` or `degraded`."}, "503": {"description": "`unready` or `draining`."}},
        )
    },
    "/metrics": {
        "get": operation("Show all counters for Prometheus", {"200": {"description": "Text, version 0.0.4."}})
    },
}

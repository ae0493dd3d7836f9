"""
The description of our HTTP interface: `GET /openapi.json` (OpenAPI 3.1), and as a plain page under `/api`.

Written by hand, because what is generated describes the code and not the promise; the tests ask the running server all
that it allows, and compare the routes.
"""

from __future__ import annotations

from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any, Final, get_args

import msgspec
from aiohttp import web

from imgkeep import __version__
from imgkeep.core.records import Doubt, Format, JobState, Standing
from imgkeep.jobs.runner import ITEMS_MAX
from imgkeep.web.api.images import LIMIT_DEFAULT, LIMIT_MAX
from imgkeep.web.api.rewrite import REWRITTEN
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

_KEY: Final = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_TIME: Final = {"type": "string", "format": "date-time"}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _object(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_IMAGE: Final[dict[str, Any]] = {
    "url": {
        "type": "string",
        "description": "The permanent URL; only its path where nobody knows how clients reach us.",
    },
    "storage": {"type": "string", "enum": ["s3", "local"], "description": "Where the image is at the moment."},
    "key": {**_KEY, "description": "Names the picture by what its link names."},
    "digest": {**_KEY, "description": "SHA-256 of the bytes."},
    "content_type": {"type": "string", "enum": sorted({format_.media_type for format_ in Format})},
    "size": {"type": "integer", "minimum": 1},
    "width": {"type": ["integer", "null"]},
    "height": {"type": ["integer", "null"]},
    "stored_at": _TIME,
    "standing": {
        "type": "string",
        "enum": [standing.value for standing in Standing],
        "description": "What the image is worth to links other than the one that brought it.",
    },
    "doubts": {
        "type": "array",
        "items": {"type": "string", "enum": [doubt.value for doubt in Doubt]},
        "description": "Why it may not stand for every link of its key; `incomplete`: by its format bytes are missing.",
    },
    "suspect": {
        "type": "boolean",
        "description": "Whether its host gave the same bytes under many names lately, as it does with a placeholder.",
    },
    "source": _object(
        {
            "host": {"type": ["string", "null"]},
            "provider": {"type": ["string", "null"]},
            "temporary": {"type": "boolean"},
            "expires_at": _maybe(_TIME),
        }
    ),
}
_SUCCESS: Final = {"success": {"const": True}}
_JOB: Final[dict[str, Any]] = {
    "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "state": {
        "type": "string",
        "enum": list(get_args(JobState)),
        "description": "`done`: all links are saved or have failed; `cancelled`: it was ended before.",
    },
    "total": {"type": "integer"},
    "saved": {"type": "integer"},
    "failed": {"type": "integer"},
    "cancelled": {"type": "integer", "description": "Links that nothing became of, because the job was cancelled."},
    "created_at": _TIME,
    "finished_at": _maybe(_TIME),
}

SCHEMAS: Final[dict[str, Any]] = {
    "Server": _object(
        {
            "name": {"const": "imgkeep"},
            "summary": {"type": "string"},
            "version": {"type": "string"},
            "status": {"type": "string", "enum": ["ready", "degraded", "unready", "draining"]},
            **{
                name: {"type": "string"}
                for name in ("image", "openapi", "api", "documentation", "health", "readiness", "module")
            },
        }
    ),
    "Image": _object(_IMAGE),
    "ShownImage": _object({**_SUCCESS, **_IMAGE}),
    "SavedImage": _object(
        {**_SUCCESS, **_IMAGE, "created": {"type": "boolean", "description": "Whether it was not kept before."}}
    ),
    "Images": _object(
        {
            **_SUCCESS,
            "images": {"type": "array", "items": _ref("Image")},
            "next": {"type": ["string", "null"], "description": "The cursor of the next page."},
        }
    ),
    "Job": _object({**_SUCCESS, **_JOB}),
    "Result": _object(
        {
            "index": {"type": "integer"},
            "state": {"type": "string", "enum": ["waiting", "saved", "failed", "cancelled"]},
            "host": {"type": "string", "description": "Of the link, where it is one."},
            "key": {**_KEY, "description": "Of the link, where it is one; once it is saved, of the image."},
            "created": {"type": "boolean"},
            "image": _ref("Image"),
            "error": _object({"code": {"type": "string"}, "detail": {"type": "string"}}),
        },
        optional=("host", "key", "created", "image", "error"),
    ),
    "Jobs": _object(
        {
            **_SUCCESS,
            "jobs": {"type": "array", "items": _object(_JOB)},
            "next": {"type": ["string", "null"], "description": "The cursor of the next page."},
        }
    ),
    "JobWithResults": _object({**_SUCCESS, **_JOB, "results": {"type": "array", "items": _ref("Result")}}),
    "RefetchedImage": _object(
        {
            **_SUCCESS,
            **_IMAGE,
            "replaced": {
                "type": "boolean",
                "description": "Whether the bytes are other than before; else they were confirmed.",
            },
        }
    ),
    "Restored": _object(
        {
            **_SUCCESS,
            "restored": {"const": True},
            "key": _KEY,
            "digest": {**_maybe(_KEY), "description": "What is blocked no longer."},
            "keys": {"type": "array", "items": _KEY, "description": "Keys whose tombstones were deleted."},
            "stored": {"type": "boolean", "description": "Whether the bytes are still stored; a removal deletes them."},
            "detail": {"type": "string", "description": "What that means, for people."},
        },
        optional=("key",),
    ),
    "Removed": _object({**_SUCCESS, "key": _KEY, "digest": _KEY}, optional=("key", "digest")),
    "RewrittenDocument": _object(
        {
            **_SUCCESS,
            "html": {"type": "string"},
            "markdown": {"type": "string"},
            "rewritten": {"type": "integer", "description": "How many links were."},
            "job": {
                "oneOf": [_object(_JOB), {"type": "null"}],
                "description": "With `save`: what saves the images; `null` if no link was rewritten.",
            },
        },
        optional=("html", "markdown", "job"),
    ),
    "Inspection": _object(
        {
            **_SUCCESS,
            "url": {"type": "string"},
            "identity": {"type": "string"},
            "key": _KEY,
            "provider": {"type": ["string", "null"]},
            "scheme": {"type": ["string", "null"]},
            "temporary": {"type": "boolean"},
            "expires_at": _maybe(_TIME),
            "signature_checked": {
                "type": ["boolean", "null"],
                "description": "Whether the service answers a wrong signature with an error, never with a picture; "
                "`null`: the identity leaves out nothing that grants access.",
            },
            "ours": {"type": "boolean"},
            "allowed": {"type": "boolean"},
            "reason": {"type": ["string", "null"]},
        }
    ),
    "Failures": _object(
        {
            **_SUCCESS,
            "failures": {
                "type": "array",
                "items": _object(
                    {
                        "key": _KEY,
                        "host": {"type": "string"},
                        "provider": {"type": ["string", "null"]},
                        "code": {"type": "string", "description": "As in an answer to a client."},
                        "detail": {"type": "string", "description": "For people."},
                        "origin_status": {"type": ["integer", "null"]},
                        "count": {"type": "integer", "description": "How many there were since `first_at`."},
                        "first_at": _TIME,
                        "last_at": _TIME,
                    }
                ),
            },
        }
    ),
    "Policy": _object(
        {
            **_SUCCESS,
            "allow": {
                "type": "array",
                "items": {"type": "string"},
                "description": "`sources.allow`, with its words (`auto`, `known`, `shared`) written out.",
            },
            "deny": {
                "type": "array",
                "items": {"type": "string"},
                "description": "`sources.deny`, and what its places are folded to. Wins over `allow`.",
            },
            "ports": {"type": "array", "items": {"type": "integer"}, "description": "`fetch.allow_ports`."},
            "networks": {"type": "array", "items": {"type": "string"}, "description": "`fetch.allow_networks`."},
            "schemes": {"type": "array", "items": {"type": "string"}},
            "signature": {
                "type": "string",
                "enum": ["off", "misses", "always"],
                "description": "`security.signature`: `off` takes links that are not signed.",
            },
            "url_chars_max": {"type": "integer", "description": "Longer links are refused."},
        }
    ),
    "Problem": _object(
        {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "For people."},
            "code": {"type": "string", "description": "For programs."},
            "success": {"const": False},
        },
        optional=("success",),
    ),
}


def _json(name: str, description: str, **more: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(name)}}, **more}


def _text(media_type: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


def _query(name: str, description: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "required": required, "schema": schema}


_PROBLEM: Final = {
    "description": "What went wrong, as RFC 9457 says it; in a tab of a browser the same as a page.",
    "content": {"application/problem+json": {"schema": _ref("Problem")}, "text/html": {"schema": {"type": "string"}}},
}
_IN_PATH: Final = {"in": "path", "required": True}
_SRC: Final = _query("src", "The link, percent-encoded.", {"type": "string"}, required=True)
_EXP: Final = _query("exp", "Until when `sig` holds, in epoch seconds.", {"type": "string"})
_SIG: Final = _query("sig", "Our own signature, where `security.signature` wants one.", {"type": "string"})
_BYTES: Final = {
    "description": "The image.",
    "content": {"image/*": {"schema": {"type": "string", "contentEncoding": "binary"}}},
}
_AS_IT_WAS: Final = {"description": "As it was."}
_ELSEWHERE: Final = {"description": "Where the image is, with `delivery.mode` redirect or presign."}


def _operation(summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"summary": summary, "responses": {**responses, "default": _PROBLEM}, **more}


def _api(summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return _operation(summary, responses, security=[{"token": []}, {"session": []}], **more)


def _body(schema: dict[str, Any], example: object, **more: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}, **more}}


_KEY_IN_PATH: Final = [{"name": "key", **_IN_PATH, "schema": _KEY}]
_JOB_IN_PATH: Final = {"name": "id", **_IN_PATH, "schema": _JOB["id"]}
_NAME_IN_PATH: Final = {
    "name": "name",
    **_IN_PATH,
    "description": "`<digest>.<ext>`",
    "schema": {"type": "string", "pattern": r"^[0-9a-f]{64}\.[a-z]{2,4}$"},
}
_WHICH: Final = "`temporary` (links that die; the default), `all`, or host globs as in `sources.allow`."
_PAGE_URL: Final = "The page's own URL, for relative links."
_SAVE: Final = "Whether a job saves the images at once."
_FORCE: Final = _query(
    "force", "Also what is not stored, so that it never is.", {"type": "string", "enum": ["true", "false"]}
)
_REFETCH: Final = (
    "The stored image is replaced only if the new one is whole and differs; no failure changes it, and its bytes stay "
    "under their permanent URL."
)
_RESTORE: Final = (
    "The digest is blocked no longer, and neither are the keys that were removed with it. The bytes were deleted: the "
    "image has to be fetched or uploaded again. What is not removed is 404."
)
_EXAMPLE: Final = "https://example.com/picture.png?signature=abc"

_HTML: Final = {"description": "A page.", "content": {"text/html": {"schema": {"type": "string"}}}}
_PREFLIGHT: Final = _operation(
    "Tell pages of other sites what their scripts may ask", {"204": {"description": "What CORS allows."}}
)

PATHS: Final[dict[str, Any]] = {
    "/": {
        "get": _operation(
            "Tell what this server is",
            {
                "200": {
                    "description": "JSON for programs, and a page for clients that prefer `text/html`.",
                    "content": {
                        "application/json": {"schema": _ref("Server")},
                        "text/html": {"schema": {"type": "string"}},
                    },
                }
            },
        )
    },
    "/docs": {"get": _operation("List the documentation, for people", {"200": _HTML})},
    "/docs/{name}": {
        "get": _operation(
            "Show a page of the documentation",
            {"200": _HTML},
            parameters=[{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
        )
    },
    "/img": {
        "get": _operation(
            "Show the image behind a link, for ever",
            {
                "200": _BYTES,
                "206": {**_BYTES, "description": "A part of it."},
                "302": _ELSEWHERE,
                "304": _AS_IT_WAS,
            },
            description="The first request fetches the image, streams and keeps it; all later ones are answered from "
            "the store. `src` may stand unencoded at the end, if it holds `://` and, behind a `?`, a `=`.",
            parameters=[_SRC, _EXP, _SIG],
        ),
        "options": _PREFLIGHT,
    },
    "/images/{name}": {
        "get": _operation(
            "Show an image under its permanent URL",
            {"200": _BYTES, "206": {**_BYTES, "description": "A part of it."}, "302": _ELSEWHERE},
            parameters=[_NAME_IN_PATH],
        ),
        "options": {**_PREFLIGHT, "parameters": [_NAME_IN_PATH]},
    },
    "/imgkeep.js": {
        "get": _operation(
            "Give the module that makes such links in browsers and in Node.js",
            {"200": _text("text/javascript", "A JavaScript module without dependencies."), "304": _AS_IT_WAS},
        )
    },
    "/imgkeep.d.ts": {
        "get": _operation(
            "Give its types", {"200": _text("text/plain", "Declarations of TypeScript."), "304": _AS_IT_WAS}
        )
    },
    "/api/save-image": {
        "post": _api(
            "Keep an image now",
            {"200": _json("SavedImage", "It was kept already."), "201": _json("SavedImage", "It is kept, durably.")},
            description="By its link, as a data URL, as an uploaded file, or as the body itself. Joins a fetch that is "
            "under way, and answers when the image is durable.",
            requestBody=_body(
                {
                    "oneOf": [
                        {**_object({"url": {"type": "string"}}), "additionalProperties": False},
                        {**_object({"data": {"type": "string"}}), "additionalProperties": False},
                    ]
                },
                {"url": _EXAMPLE},
                **{
                    "multipart/form-data": {
                        "schema": _object({"file": {"type": "string", "contentMediaType": "image/*"}})
                    },
                    "image/*": {"schema": {"type": "string", "contentMediaType": "image/*"}},
                },
            ),
        )
    },
    "/api/save-images": {
        "post": _api(
            "Keep many images",
            {
                "200": _json("JobWithResults", "With `wait`: all is done."),
                "202": _json("Job", "A job, which goes on.", headers={"Location": {"schema": {"type": "string"}}}),
            },
            description="Those that expire first come first; what may pass is tried again until the link expires. "
            "What is no link fails alone.",
            requestBody=_body(
                {
                    **_object(
                        {
                            "urls": {
                                "type": "array",
                                "minItems": 1,
                                "items": {},
                                "description": f"{ITEMS_MAX} links at most.",
                            },
                            "wait": {"type": "boolean", "default": False},
                            "webhook": {
                                "type": ["string", "null"],
                                "description": "Is told when the job is done, signed as Standard Webhooks says.",
                            },
                        },
                        optional=("wait", "webhook"),
                    ),
                    "additionalProperties": False,
                },
                {"urls": [_EXAMPLE]},
            ),
        )
    },
    "/api/rewrite": {
        "post": _api(
            "Rewrite the links to images in a page or a text",
            {
                "200": {
                    "description": "The document, of the same kind, with nothing changed but links.",
                    "content": {
                        "application/json": {"schema": _ref("RewrittenDocument")},
                        "text/html": {"schema": {"type": "string"}},
                        "text/markdown": {"schema": {"type": "string"}},
                    },
                    "headers": {
                        REWRITTEN: {"schema": {"type": "integer"}, "description": "How many links were rewritten."},
                        "Location": {"schema": {"type": "string"}, "description": "With `save`: the job."},
                    },
                }
            },
            description="Links that die, or those that `which` names, become links to `/img`, signed where "
            "`security.signing_keys` are set. A document that is the body itself takes the options as parameters; a "
            "string in JSON has them beside it.",
            parameters=[
                _query("which", f"{_WHICH} Globs are separated by commas.", {"type": "string"}),
                _query("url", _PAGE_URL, {"type": "string", "format": "uri"}),
                _query("save", _SAVE, {"type": "boolean"}),
            ],
            requestBody=_body(
                {
                    "oneOf": [
                        {
                            **_object(
                                {
                                    form: {"type": "string"},
                                    "which": {
                                        "anyOf": [
                                            {"type": "string", "enum": ["temporary", "all"]},
                                            {"type": "array", "items": {"type": "string"}, "minItems": 1},
                                        ],
                                        "default": "temporary",
                                        "description": _WHICH,
                                    },
                                    "url": {"type": ["string", "null"], "description": _PAGE_URL},
                                    "save": {"type": "boolean", "default": False, "description": _SAVE},
                                },
                                optional=("which", "url", "save"),
                            ),
                            "additionalProperties": False,
                        }
                        for form in ("html", "markdown")
                    ]
                },
                {"html": f'<img src="{_EXAMPLE}">', "which": "all"},
                **{kind: {"schema": {"type": "string"}} for kind in ("text/html", "text/markdown")},
            ),
        )
    },
    "/api/jobs": {
        "get": _api(
            "List jobs, newest first",
            {"200": _json("Jobs", "A page, without the results of links.")},
            description="A job is forgotten a week after its end.",
            parameters=[
                _query(
                    "limit",
                    f"Jobs a page; {LIMIT_DEFAULT} if left out.",
                    {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX},
                ),
                _query("cursor", "`next` of the page before.", {"type": "string"}),
                _query("state", "In this state only.", {"type": "string", "enum": list(get_args(JobState))}),
            ],
        )
    },
    "/api/jobs/{id}/cancel": {
        "post": _api(
            "End a job before its end",
            {"200": _json("Job", "The job, which has ended.")},
            description="No link of it is begun any more, and fetches under way are given up unless others wait for "
            "them. What is stored stays. A job that has ended stays as it is.",
            parameters=[_JOB_IN_PATH],
        )
    },
    "/api/jobs/{id}": {
        "get": _api(
            "Tell how far a job is",
            {"200": _json("JobWithResults", "The job, and what became of each link so far.")},
            parameters=[
                _JOB_IN_PATH,
                _query(
                    "after", "Results behind this index only.", {"type": "integer", "minimum": 0, "maximum": 99_999}
                ),
                _query("limit", "So many results at most.", {"type": "integer", "minimum": 0, "maximum": 99_999}),
            ],
        )
    },
    "/api/jobs/{id}/events": {
        "get": _api(
            "Follow a job",
            {
                "200": {
                    "description": "Server-Sent Events: `progress` when something changed, `done` at the end, also "
                    "of a job that was cancelled; the data is the job.",
                    "content": {
                        "text/event-stream": {
                            "schema": _object({name: {"type": "string"} for name in ("id", "event", "data")})
                        }
                    },
                }
            },
            parameters=[_JOB_IN_PATH],
        )
    },
    "/api/images": {
        "get": _api(
            "List images, newest first",
            {"200": _json("Images", "A page.")},
            parameters=[
                _query(
                    "limit",
                    f"Images a page; {LIMIT_DEFAULT} if left out.",
                    {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX},
                ),
                _query("cursor", "`next` of the page before.", {"type": "string"}),
                _query("host", "Fetched from this host.", {"type": "string"}),
                _query("provider", "Of this provider.", {"type": "string"}),
                _query("digest", "With these bytes.", _KEY),
                _query("since", "Stored at this time or later.", _TIME),
                _query("until", "Stored before this time.", _TIME),
            ],
        ),
        "delete": _api(
            "Remove an image by its link or its bytes",
            {"200": _json("Removed", "It is removed, for good.")},
            description="`src` or `digest`. A removed picture is refused under every link, and as an upload. What is "
            "not stored is 404, and nothing is done.",
            parameters=[
                _query("src", "The link, percent-encoded.", {"type": "string"}),
                _query("digest", "SHA-256 of the bytes.", _KEY),
                _FORCE,
            ],
        ),
    },
    "/api/images/{key}": {
        "get": _api(
            "Tell what is known of an image",
            {"200": _json("ShownImage", "The image.")},
            parameters=_KEY_IN_PATH,
        ),
        "delete": _api(
            "Remove an image",
            {"200": _json("Removed", "The picture is removed, for good.")},
            parameters=[*_KEY_IN_PATH, _FORCE],
        ),
    },
    "/api/images/{key}/refetch": {
        "post": _api(
            "Fetch a stored image again",
            {"200": _json("RefetchedImage", "The image as it stands now.")},
            description=f"{_REFETCH} Without a link the identity of the image is tried as one, which works for links "
            "without a signature.",
            parameters=_KEY_IN_PATH,
            requestBody={
                **_body(
                    {
                        **_object(
                            {
                                "url": {
                                    "type": ["string", "null"],
                                    "description": "The link to fetch by. It has to have this key.",
                                }
                            },
                            optional=("url",),
                        ),
                        "additionalProperties": False,
                    },
                    {"url": _EXAMPLE},
                ),
                "required": False,
            },
        )
    },
    "/api/images/{key}/restore": {
        "post": _api(
            "Undo the removal of an image",
            {"200": _json("Restored", "The removal is undone.")},
            description=_RESTORE,
            parameters=_KEY_IN_PATH,
        )
    },
    "/api/refetch": {
        "post": _api(
            "Fetch the stored image of a link again, by this link",
            {"200": _json("RefetchedImage", "The image as it stands now.")},
            description=_REFETCH,
            requestBody=_body(
                {**_object({"url": {"type": "string"}}), "additionalProperties": False}, {"url": _EXAMPLE}
            ),
        )
    },
    "/api/restore": {
        "post": _api(
            "Undo the removal of an image by its link or its digest",
            {"200": _json("Restored", "The removal is undone.")},
            description=_RESTORE,
            requestBody=_body(
                {
                    "oneOf": [
                        {**_object({"url": {"type": "string"}}), "additionalProperties": False},
                        {**_object({"digest": _KEY}), "additionalProperties": False},
                    ]
                },
                {"url": _EXAMPLE},
            ),
        )
    },
    "/login": {
        "get": _operation(
            "Let a browser on this machine into the API",
            {"303": {"description": "The browser has a session, and is sent to `/` (`/api` without that page)."}},
            description="The link is printed at start on a loopback address without `security.api_tokens`, and by "
            "`imgkeep token --login`. It holds for an hour.",
            parameters=[_query("ticket", "As the link has it.", {"type": "string"}, required=True)],
        )
    },
    "/api/inspect": {
        "get": _api(
            "Tell what a link names, and ask nobody",
            {"200": _json("Inspection", "What the link tells by itself.")},
            parameters=[_SRC],
        )
    },
    "/api/failures": {
        "get": _api(
            "List what failed lately, and why",
            {"200": _json("Failures", "The last failures, the last to fail first.")},
            description="Fills that brought no image, since the start: up to 500, of one host up to 100.",
            parameters=[
                _query("limit", "Maximum number of entries.", {"type": "integer", "minimum": 1, "maximum": 500}),
                _query("host", "Only of this host.", {"type": "string"}),
                _query("code", "Only with this error code.", {"type": "string"}),
            ],
        )
    },
    "/api/policy": {
        "get": _api(
            "Tell which links would be refused",
            {"200": _json("Policy", "The policy, as this server goes by it.")},
            description="For programs that rewrite pages: a link that would be refused should stay as it is. Without "
            "a token nobody is told, because `sources.deny` and networks are the operator's own affair.",
        )
    },
    "/healthz": {"get": _operation("Tell that the process can answer", {"200": {"description": "It can."}})},
    "/readyz": {
        "get": _operation(
            "Tell the state of every part",
            {"200": {"description": "`ready` or `degraded`."}, "503": {"description": "`unready` or `draining`."}},
        )
    },
    "/metrics": {
        "get": _operation("Show all counters for Prometheus", {"200": {"description": "Text, version 0.0.4."}})
    },
}

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
        "schemas": SCHEMAS,
        "securitySchemes": {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "One of `security.api_tokens` or, where none is set, what stands in the file "
                "`api-token` in the data folder.",
            },
            "session": {
                "type": "apiKey",
                "in": "cookie",
                "name": COOKIE,
                "description": "Of a browser on this machine, from the log-in link. It holds for half a day, for our "
                "own pages only: what changes something needs an `Origin` that is this server.",
            },
        },
    },
}


async def document(_request: web.Request) -> web.Response:
    """Give the description to programs."""
    return web.Response(body=_encoded(), content_type="application/json", headers=HEADERS)


async def page(_request: web.Request) -> web.Response:
    """Show the description to people; loads nothing from elsewhere."""
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
    """Return a text in Markdown as HTML: what stands between backticks is code."""
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

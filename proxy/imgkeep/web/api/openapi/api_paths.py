"""Operations under `/api`."""

from __future__ import annotations

from typing import Any, Final, get_args

from imgkeep.core.jobs import JobState
from imgkeep.images.failure_history import ENTRIES_MAX, PER_HOST_MAX
from imgkeep.jobs.runner import ITEMS_MAX
from imgkeep.web.api.openapi.operations import (
    EXAMPLE,
    JOB_IN_PATH,
    KEY,
    KEY_IN_PATH,
    SRC,
    TEXT,
    TIME,
    api_operation,
    body,
    closed_object,
    json_content,
    query,
    ref,
)
from imgkeep.web.api.paging import LIMIT_DEFAULT, LIMIT_MAX
from imgkeep.web.api.rewrite import REWRITTEN

_BOOLEAN: Final = {"type": "boolean"}
_URL_BODY: Final = closed_object({"url": TEXT})
_IMAGE_BODY: Final = {"schema": {"type": "string", "contentMediaType": "image/*"}}
_LIMIT: Final = query(
    "limit",
    f"Maximum number of entries of a page; {LIMIT_DEFAULT} by default.",
    {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX},
)
_CURSOR: Final = query("cursor", "`next` of the page before.", TEXT)
_FORCE: Final = query(
    "force", "Also removes what is not stored, so that it never will be.", {"type": "string", "enum": ["true", "false"]}
)
_WHICH: Final = "`temporary` (links that die; the default), `all`, or host globs as in `sources.allow`."
_PAGE_URL: Final = "URL of the page, for relative links."
_PICTURES: Final = "Options of derived pictures for the links of `<img>`, as `preset=thumb` or `w=400&format=auto`."
_WIDTHS: Final = (
    "An `<img>` without `srcset` gets one with these widths, if the size at which it is shown is known; `auto`: those "
    "of `derive.widths` that this size needs."
)
_SIZES: Final = "The `sizes` of such a `srcset`; without it, the size is that of `width`, or of the image."
_LAZY: Final = 'An `<img>` without `loading` gets `loading="lazy"`.'
_DIMENSIONS: Final = "An `<img>` gets the `width` and `height` that it lacks, if its image is stored."
_SAVE: Final = "Whether a job saves the images at once."
_REFETCH: Final = (
    "The new image replaces the stored one only if it is whole and differs; no failure changes the stored image, and "
    "its bytes stay under their permanent URL."
)
_RESTORE: Final = (
    "Unblocks the digest, and the keys that were removed with it. A removal deletes the bytes, so the image has to be "
    "fetched or uploaded again. What is not removed is 404."
)

_SAVE_PATHS: Final[dict[str, Any]] = {
    "/api/save-image": {
        "post": api_operation(
            "Save an image now",
            {
                "200": json_content("SavedImage", "The image was stored already."),
                "201": json_content("SavedImage", "The image is stored, durably."),
            },
            description="By its link, as a data URL, as an uploaded file, or as the body itself. The request joins a "
            "fill that is running, and gets its response when the image is durable.",
            requestBody=body(
                {"oneOf": [_URL_BODY, closed_object({"data": TEXT})]},
                {"url": EXAMPLE},
                **{
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "properties": {"file": _IMAGE_BODY["schema"]},
                            "required": ["file"],
                        }
                    },
                    "image/*": _IMAGE_BODY,
                },
            ),
        )
    },
    "/api/save-images": {
        "post": api_operation(
            "Save many images",
            {
                "200": json_content("JobWithResults", "With `wait`: the job has ended."),
                "202": json_content("Job", "A job, which goes on.", headers={"Location": {"schema": TEXT}}),
            },
            description="Links that expire first come first; a failure that may pass is tried again until the link "
            "expires. A text that is no link fails alone.",
            requestBody=body(
                closed_object(
                    {
                        "urls": {
                            "type": "array",
                            "minItems": 1,
                            "items": {},
                            "description": f"At most {ITEMS_MAX} links.",
                        },
                        "wait": {**_BOOLEAN, "default": False},
                        "webhook": {
                            "type": ["string", "null"],
                            "description": "URL that gets a message at the end of the job, signed as Standard Webhooks "
                            "describes it.",
                        },
                    },
                    optional=("wait", "webhook"),
                ),
                {"urls": [EXAMPLE]},
            ),
        )
    },
    "/api/rewrite": {
        "post": api_operation(
            "Rewrite the links to images in a page or a text",
            {
                "200": {
                    "description": "The document, of the same kind; only links differ.",
                    "content": {
                        "application/json": {"schema": ref("RewrittenDocument")},
                        "text/html": {"schema": TEXT},
                        "text/markdown": {"schema": TEXT},
                    },
                    "headers": {
                        REWRITTEN: {"schema": {"type": "integer"}, "description": "Number of rewritten links."},
                        "Location": {"schema": TEXT, "description": "With `save`: the job."},
                    },
                }
            },
            description="Links that die, or those that `which` names, become links to `/img`, signed where "
            "`security.signing_keys` are set. A document that is the body itself has the options as parameters; a "
            "string in JSON has them beside it.",
            parameters=[
                query("which", f"{_WHICH} Commas separate globs.", TEXT),
                query("url", _PAGE_URL, {"type": "string", "format": "uri"}),
                query("save", _SAVE, _BOOLEAN),
                query("pictures", _PICTURES, TEXT),
                query("widths", f"{_WIDTHS} Commas separate widths.", TEXT),
                query("sizes", _SIZES, TEXT),
                query("lazy", _LAZY, _BOOLEAN),
                query("dimensions", _DIMENSIONS, _BOOLEAN),
            ],
            requestBody=body(
                {
                    "oneOf": [
                        closed_object(
                            {
                                form: TEXT,
                                "which": {
                                    "anyOf": [
                                        {"type": "string", "enum": ["temporary", "all"]},
                                        {"type": "array", "items": TEXT, "minItems": 1},
                                    ],
                                    "default": "temporary",
                                    "description": _WHICH,
                                },
                                "url": {"type": ["string", "null"], "description": _PAGE_URL},
                                "save": {**_BOOLEAN, "default": False, "description": _SAVE},
                                "pictures": {
                                    "anyOf": [TEXT, {"type": "object", "additionalProperties": TEXT}],
                                    "default": "",
                                    "description": f"{_PICTURES} An object has them by patterns of hosts and paths, of "
                                    "which the first that matches counts.",
                                },
                                "widths": {
                                    "anyOf": [
                                        {"type": "string", "enum": ["auto"]},
                                        {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1},
                                        {"type": "null"},
                                    ],
                                    "description": _WIDTHS,
                                },
                                "sizes": {"type": "string", "default": "", "description": _SIZES},
                                "lazy": {**_BOOLEAN, "default": False, "description": _LAZY},
                                "dimensions": {**_BOOLEAN, "default": False, "description": _DIMENSIONS},
                            },
                            optional=("which", "url", "save", "pictures", "widths", "sizes", "lazy", "dimensions"),
                        )
                        for form in ("html", "markdown")
                    ]
                },
                {"html": f'<img src="{EXAMPLE}">', "which": "all"},
                **{kind: {"schema": TEXT} for kind in ("text/html", "text/markdown")},
            ),
        )
    },
}

_JOB_PATHS: Final[dict[str, Any]] = {
    "/api/jobs": {
        "get": api_operation(
            "List jobs, newest first",
            {"200": json_content("Jobs", "A page, without the results of links.")},
            description="The server forgets a job a week after its end.",
            parameters=[
                _LIMIT,
                _CURSOR,
                query("state", "Only jobs in this state.", {"type": "string", "enum": list(get_args(JobState))}),
            ],
        )
    },
    "/api/jobs/{id}/cancel": {
        "post": api_operation(
            "Cancel a job",
            {"200": json_content("Job", "The job, which has ended.")},
            description="The job begins no other link, and gives fills up that no other client waits for. Stored "
            "images stay. A job that has ended stays as it is.",
            parameters=[JOB_IN_PATH],
        )
    },
    "/api/jobs/{id}": {
        "get": api_operation(
            "Show the progress of a job",
            {"200": json_content("JobWithResults", "The job, and the result of each link so far.")},
            parameters=[
                JOB_IN_PATH,
                query("after", "Only results after this index.", {"type": "integer", "minimum": 0, "maximum": 99_999}),
                query("limit", "Maximum number of results.", {"type": "integer", "minimum": 0, "maximum": 99_999}),
            ],
        )
    },
    "/api/jobs/{id}/events": {
        "get": api_operation(
            "Follow a job",
            {
                "200": {
                    "description": "Server-Sent Events: `progress` at each change, and `done` at the end, also of a "
                    "cancelled job; the data is the job.",
                    "content": {
                        "text/event-stream": {
                            "schema": {
                                "type": "object",
                                "properties": dict.fromkeys(("id", "event", "data"), TEXT),
                                "required": ["id", "event", "data"],
                            }
                        }
                    },
                }
            },
            parameters=[JOB_IN_PATH],
        )
    },
}

_IMAGE_PATHS: Final[dict[str, Any]] = {
    "/api/images": {
        "get": api_operation(
            "List images, newest first",
            {"200": json_content("Images", "A page.")},
            parameters=[
                _LIMIT,
                _CURSOR,
                query("host", "Only images from this host.", TEXT),
                query("provider", "Only images of this provider.", TEXT),
                query("digest", "Only images with these bytes.", KEY),
                query("since", "Only images stored at this time or later.", TIME),
                query("until", "Only images stored before this time.", TIME),
            ],
        ),
        "delete": api_operation(
            "Remove an image by its link or its bytes",
            {"200": json_content("Removed", "The image is removed, for good.")},
            description="`src` or `digest`. The server refuses a removed image under every link, and as an upload. An "
            "image that is not stored is 404, and nothing changes.",
            parameters=[
                query("src", "The link, percent-encoded.", TEXT),
                query("digest", "SHA-256 of the bytes.", KEY),
                _FORCE,
            ],
        ),
    },
    "/api/images/{key}": {
        "get": api_operation(
            "Show the facts of an image", {"200": json_content("ShownImage", "The image.")}, parameters=KEY_IN_PATH
        ),
        "delete": api_operation(
            "Remove an image",
            {"200": json_content("Removed", "The image is removed, for good.")},
            parameters=[*KEY_IN_PATH, _FORCE],
        ),
    },
    "/api/images/{key}/placeholder": {
        "get": api_operation(
            "Show the placeholder of an image",
            {"200": json_content("Placeholder", "The placeholder.")},
            description="A small blurred picture, and the dominant colour. What the pixels tell is found now if it is "
            "not known. 501 where imgkeep[derive] is not installed or the format cannot be decoded, 422 if the pixels "
            "cannot be decoded within the limits.",
            parameters=KEY_IN_PATH,
        )
    },
    "/api/images/{key}/refetch": {
        "post": api_operation(
            "Fetch a stored image again",
            {"200": json_content("RefetchedImage", "The image as it is now.")},
            description=f"{_REFETCH} Without a link the server tries the identity of the image as one, which works for "
            "links without a signature.",
            parameters=KEY_IN_PATH,
            requestBody={
                **body(
                    closed_object(
                        {
                            "url": {
                                "type": ["string", "null"],
                                "description": "The link to fetch by. It has to have this key.",
                            }
                        },
                        optional=("url",),
                    ),
                    {"url": EXAMPLE},
                ),
                "required": False,
            },
        )
    },
    "/api/images/{key}/restore": {
        "post": api_operation(
            "Undo the removal of an image",
            {"200": json_content("Restored", "The removal is undone.")},
            description=_RESTORE,
            parameters=KEY_IN_PATH,
        )
    },
    "/api/refetch": {
        "post": api_operation(
            "Fetch the stored image of a link again, by this link",
            {"200": json_content("RefetchedImage", "The image as it is now.")},
            description=_REFETCH,
            requestBody=body(_URL_BODY, {"url": EXAMPLE}),
        )
    },
    "/api/restore": {
        "post": api_operation(
            "Undo the removal of an image by its link or its digest",
            {"200": json_content("Restored", "The removal is undone.")},
            description=_RESTORE,
            requestBody=body({"oneOf": [_URL_BODY, closed_object({"digest": KEY})]}, {"url": EXAMPLE}),
        )
    },
}

_POLICY_PATHS: Final[dict[str, Any]] = {
    "/api/inspect": {
        "get": api_operation(
            "State what a link names, without asking another server",
            {"200": json_content("Inspection", "What the link states by itself.")},
            parameters=[SRC],
        )
    },
    "/api/failures": {
        "get": api_operation(
            "List the last failures, and why they happened",
            {"200": json_content("Failures", "The last failures, the latest first.")},
            description=f"Fills without an image, since the start: up to {ENTRIES_MAX}, and up to {PER_HOST_MAX} of "
            "one host.",
            parameters=[
                query("limit", "Maximum number of entries.", {"type": "integer", "minimum": 1, "maximum": ENTRIES_MAX}),
                query("host", "Only failures of this host.", TEXT),
                query("code", "Only failures with this error code.", TEXT),
            ],
        )
    },
    "/api/policy": {
        "get": api_operation(
            "State which links the server would refuse",
            {"200": json_content("Policy", "The policy of this server.")},
            description="For programs that rewrite pages: a link that the server would refuse should stay as it is. "
            "It needs a token, because `sources.deny` and networks are the operator's own affair.",
        )
    },
}

PATHS: Final[dict[str, Any]] = {**_SAVE_PATHS, **_JOB_PATHS, **_IMAGE_PATHS, **_POLICY_PATHS}

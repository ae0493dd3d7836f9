"""
Google Cloud Storage as strict as its documentation, on loopback: tokens, signatures, checksums, preconditions.

It is written from the reference of the JSON API and from the description of V4 signatures. Beside it are the servers
for credentials (`accounts`). It can break some of its promises on request; a gate before it (`tests.support.s3.gate`)
does what any server may do.
"""

from __future__ import annotations

import json
import time
from base64 import b64encode
from calendar import timegm
from dataclasses import dataclass, field
from hashlib import md5, sha256
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from aiohttp import web

from tests.support.gcs.accounts import ACCOUNT, Accounts, is_signed, now
from tests.support.loopback import HOST, port_of, reserve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

BUCKET = "strict-bucket"
PREFIX = "pre"
PUBLIC = f"{PREFIX}/v1/objects/"
"""The names that any client may read begin so."""
BODY_BYTES_MAX = 100_000_000


@dataclass(frozen=True)
class Stored:
    """An object: its bytes, its metadata as a client sent them, and its generation."""

    data: bytes
    metadata: Mapping[str, str]
    generation: int


class _Refused(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass
class StrictGcs:
    """
    The server, with one bucket.

    Attributes:
        objects: By name.
        seen: Method and path with query of each request.
        denied: Permissions that the account lacks.
        page_size: Maximum number of objects on a page; there is an empty page before the first.
        limited: Names that others write to more often than the service allows.
        lies_about_md5: States another checksum than that of the bytes that it stored.
        damages_uploads: Stores other bytes than were sent.
        is_forgetful: Repeats the token of a page for ever.
        rewrite_steps: Number of requests that a copy takes.
        under_retention: Refuses to delete or to overwrite.
        compressed: Names of objects that it transcodes.
    """

    accounts: Accounts = field(default_factory=Accounts)
    objects: dict[str, Stored] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    page_size: int = 1000
    limited: set[str] = field(default_factory=set)
    lies_about_md5: bool = False
    damages_uploads: bool = False
    is_forgetful: bool = False
    rewrite_steps: int = 1
    under_retention: bool = False
    compressed: set[str] = field(default_factory=set)
    _generations: count[int] = field(default_factory=lambda: count(1_700_000_000_000_000))
    _runner: web.AppRunner | None = None
    _port: int = 0

    async def start(self) -> None:
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._answer])
        self.accounts.add_routes(app.router)
        app.router.add_route("GET", "/storage/v1/b/{bucket}/o", self._list)
        app.router.add_route("POST", "/upload/storage/v1/b/{bucket}/o", self._insert)
        app.router.add_route("GET", "/download/storage/v1/b/{bucket}/o/{name:[^/]+}", self._download)
        app.router.add_route("GET", "/storage/v1/b/{bucket}/o/{name:[^/]+}", self._tell)
        app.router.add_route("DELETE", "/storage/v1/b/{bucket}/o/{name:[^/]+}", self._delete)
        target = "/storage/v1/b/{bucket}/o/{name:[^/]+}/rewriteTo/b/{to_bucket}/o/{to:[^/]+}"
        app.router.add_route("POST", target, self._rewrite)
        app.router.add_get("/{bucket}/{name:.+}", self._follow_link)  # and HEAD
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        holder = reserve()
        self._port = port_of(holder)
        await web.TCPSite(self._runner, HOST, self._port, reuse_address=True).start()
        holder.close()

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        return self._port

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._port}"

    def count(self, method: str, part: str = "") -> int:
        """Return how many requests of a method arrived whose path has this part."""
        return sum(seen == method and part in path for seen, path in self.seen)

    def store(self, name: str, data: bytes, **metadata: str) -> Stored:
        """Put an object past the API."""
        self.objects[name] = Stored(data, metadata, next(self._generations))
        return self.objects[name]

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.seen.append((request.method, request.raw_path))
        try:
            answer: web.StreamResponse = await handler(request)
        except _Refused as refused:
            if "/download/" in request.path:
                return web.Response(status=refused.status, text=str(refused), content_type="text/html")
            causes = [{"message": str(refused), "domain": "global", "reason": refused.reason}]
            error = {"code": refused.status, "message": str(refused), "errors": causes}
            return web.json_response({"error": error}, status=refused.status)
        return answer

    # --- the API

    def _permit(self, request: web.Request, permission: str) -> None:
        """Check token, bucket and right, in the order of the service."""
        if not self.accounts.accepts(request):
            raise _Refused(401, "authError", "Invalid Credentials")
        if request.match_info["bucket"] != BUCKET:
            raise _Refused(404, "notFound", "The specified bucket does not exist.")
        if permission in self.denied:
            what = f"{ACCOUNT} does not have {permission} access to the Google Cloud Storage object."
            raise _Refused(
                403, "forbidden", f"{what} Permission '{permission}' denied on resource (or it may not exist)."
            )

    def _find(self, request: web.Request, condition: str = "ifGenerationMatch") -> tuple[str, Stored]:
        name = request.match_info["name"]
        found = self.objects.get(name)
        if found is None:
            raise _Refused(404, "notFound", f"No such object: {BUCKET}/{name}")
        _require(found.generation, request.query.get(condition))
        return name, found

    async def _insert(self, request: web.Request) -> web.Response:
        body = await request.read()
        self._permit(request, "storage.objects.create")
        assert request.query["uploadType"] == "multipart"
        assert request.content_length == len(body), "it was not sent in chunks"
        head, media = _read_related(request.headers["Content-Type"], body)
        metadata = json.loads(head)
        name = metadata.pop("name")
        before = self.objects.get(name)
        _require(0 if before is None else before.generation, request.query.get("ifGenerationMatch"))
        if before is not None and self.under_retention:
            raise _Refused(403, "retentionPolicyNotMet", "Object is subject to bucket's retention policy")
        if before is not None and "storage.objects.delete" in self.denied:
            raise _Refused(403, "forbidden", "Permission 'storage.objects.delete' denied on resource")
        if name in self.limited:
            raise _Refused(
                429, "rateLimitExceeded", "The object exceeded the rate limit for object mutation operations"
            )
        sent = metadata.pop("md5Hash")
        media = media[:-1] + b"?" if self.damages_uploads else media
        if sent != _md5(media):
            raise _Refused(400, "invalid", f"Provided MD5 hash {sent!r} doesn't match calculated MD5 hash")
        return web.json_response(self._resource(name, self.store(name, media, **metadata)))

    async def _download(self, request: web.Request) -> web.Response:
        self._permit(request, "storage.objects.get")
        assert request.query["alt"] == "media"
        name, found = self._find(request)
        return self._media(request, name, found)

    async def _tell(self, request: web.Request) -> web.Response:
        self._permit(request, "storage.objects.get")
        return web.json_response(self._resource(*self._find(request)))

    async def _delete(self, request: web.Request) -> web.Response:
        self._permit(request, "storage.objects.delete")
        name, _ = self._find(request)
        if self.under_retention:
            raise _Refused(403, "retentionPolicyNotMet", "Object is subject to bucket's retention policy")
        del self.objects[name]
        return web.Response(status=204)

    async def _rewrite(self, request: web.Request) -> web.Response:
        assert await request.read() == b""
        self._permit(request, "storage.objects.create")
        assert request.match_info["to_bucket"] == BUCKET
        _, found = self._find(request, "ifSourceGenerationMatch")
        step = int(request.query.get("rewriteToken", "0")) + 1
        answer: dict[str, Any] = {"kind": "storage#rewriteResponse", "done": step >= self.rewrite_steps}
        if step < self.rewrite_steps:
            return web.json_response({**answer, "rewriteToken": str(step)})
        to = request.match_info["to"]
        copied = self.store(to, found.data, **found.metadata)
        return web.json_response({**answer, "resource": self._resource(to, copied)})

    async def _list(self, request: web.Request) -> web.Response:
        self._permit(request, "storage.objects.list")
        names = sorted(name for name in self.objects if name.startswith(request.query.get("prefix", "")))
        token = int(request.query.get("pageToken", "0"))
        size = min(self.page_size, int(request.query["maxResults"]))
        # The service may return an empty page that has a next one ("Objects: list").
        starts = [0, *range(0, len(names), size)]
        page = names[starts[token] : starts[token] + size] if token else []
        answer: dict[str, Any] = {"kind": "storage#objects"}
        if page:
            answer["items"] = [{"name": name, "size": str(len(self.objects[name].data))} for name in page]
        if token + 1 < len(starts):
            answer["nextPageToken"] = str(token if token and self.is_forgetful else token + 1)
        return web.json_response(answer)

    def _resource(self, name: str, stored: Stored) -> dict[str, str]:
        checksum = _md5(b"other bytes" if self.lies_about_md5 else stored.data)
        size, generation = str(len(stored.data)), str(stored.generation)
        return {"name": name, "size": size, "generation": generation, "md5Hash": checksum}

    def _media(self, request: web.Request, name: str, found: Stored) -> web.Response:
        headers = {
            "x-goog-generation": str(found.generation),
            "x-goog-hash": f"crc32c=AAAAAA==,md5={_md5(found.data)}",
            "x-goog-stored-content-length": str(len(found.data)),
            "Content-Type": found.metadata.get("contentType", "application/octet-stream"),
        }
        if name in self.compressed:
            return web.Response(body=_in_pieces(found.data * 2), headers=headers)
        part = request.http_range
        if part.start is None and part.stop is None:
            return web.Response(body=found.data, headers=headers)
        start, stop = part.start or 0, min(part.stop or len(found.data), len(found.data))
        if start >= len(found.data):
            raise _Refused(416, "requestedRangeNotSatisfiable", "Request range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(found.data)}"
        return web.Response(status=206, body=found.data[start:stop], headers=headers)

    # --- links

    async def _follow_link(self, request: web.Request) -> web.Response:
        """Serve an object by its public URL, or by a link with a V4 signature."""
        name = unquote(urlsplit(request.raw_path).path).removeprefix(f"/{BUCKET}/")
        found = self.objects.get(name)
        if "X-Goog-Signature" in request.query:
            if why := _find_fault_of_link(request):
                return web.Response(status=403, text=why)
        elif not name.startswith(PUBLIC):
            return web.Response(status=403, text="AccessDenied")
        if request.match_info["bucket"] != BUCKET or found is None:
            return web.Response(status=404, text="NoSuchKey")
        return self._media(request, name, found)


def _find_fault_of_link(request: web.Request) -> str:
    """Return what is wrong with the signature of a link; empty: nothing is."""
    path, _, query = request.raw_path.partition("?")
    unsigned, _, signature = query.rpartition("&X-Goog-Signature=")
    given = dict(parse_qsl(unsigned))
    moment, scope = given["X-Goog-Date"], f"{given['X-Goog-Date'][:8]}/auto/storage/goog4_request"
    begins = timegm(time.strptime(moment, "%Y%m%dT%H%M%SZ"))
    life_s = int(given["X-Goog-Expires"])
    if not 0 < life_s <= 604_800 or not begins - 900 <= now() <= begins + life_s:
        return "ExpiredToken"
    if sorted(unsigned.split("&")) != unsigned.split("&") or given["X-Goog-Credential"] != f"{ACCOUNT}/{scope}":
        return "AuthenticationRequired"
    asked = [request.method, path, unsigned, f"host:{request.headers['Host']}", "", "host", "UNSIGNED-PAYLOAD"]
    digest = sha256("\n".join(asked).encode()).hexdigest()
    text = f"GOOG4-RSA-SHA256\n{moment}\n{scope}\n{digest}"
    return "" if is_signed(bytes.fromhex(signature), text.encode()) else "SignatureDoesNotMatch"


def _require(generation: int, condition: str | None) -> None:
    if condition is not None and condition != str(generation):
        message = "At least one of the pre-conditions you specified did not hold."
        raise _Refused(412, "conditionNotMet", message)


def _read_related(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """Return the two parts of a body (RFC 2387)."""
    boundary = content_type.partition("boundary=")[2].encode()
    assert content_type.startswith("multipart/related;")
    start, head, media, end = body.split(b"--" + boundary)
    assert (start, end) == (b"", b"--\r\n")
    assert b"application/json" in head
    return head.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n"), media.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")


async def _in_pieces(data: bytes) -> AsyncIterator[bytes]:
    """Yield data whose size the head of the response cannot tell."""
    yield data


def _md5(data: bytes) -> str:
    return b64encode(md5(data, usedforsecurity=False).digest()).decode()

"""
A server with Cloudinary's API, written from its published reference, and as strict as that is.

- A signed request has exactly the parameters of its method, a signature over all of them (but `file` and `api_key`),
  our API key, and a timestamp of the last hour. The Admin API takes Basic authentication.
- An upload states its length, and is a form with one file that has a name.
- An image gets the format of its content; what is none is refused.
- A delivery URL with another extension converts, and the CDN before the delivery URLs remembers what it delivered, and
  what it did not find, until it is told to forget it.

The reference does not say how unknown parameters are answered; here they are refused.
"""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import BodyPartReader, web

from tests.support.cloudinary.formats import MEDIA_TYPES, format_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Kind = tuple[str, str]
"""Resource type and delivery type."""

PARAMETERS = {
    "upload": ({"public_id", "type", "overwrite"}, {"invalidate"}),
    "explicit": ({"public_id", "type"}, set[str]()),
    "destroy": ({"public_id", "type"}, {"invalidate"}),
    "rename": ({"from_public_id", "to_public_id", "type"}, {"to_type", "overwrite", "invalidate"}),
    "download": ({"public_id", "type"}, {"format", "expires_at", "attachment"}),
}
"""By method: the parameters that we require, and others that we know."""
KINDS = {("image", "upload"), ("raw", "upload"), ("image", "authenticated"), ("raw", "authenticated")}
FORBIDDEN = set("?&#\\%<>+")
"""Characters that no public ID has (Upload API reference, `public_id`)."""
SIGNED_S = 3600


class RefusalError(Exception):
    """An answer of the service that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass
class StoredAsset:
    data: bytes
    format: str
    version: int


@dataclass
class CloudinaryServer:
    """
    The service, in this process.

    Attributes:
        assets: What is stored, by kind and public ID.
        calls: Method and public ID of each request of the API so far, in the order of arrival.
        images_only: Whether images are recognised by their content; else all files are taken for `png`.
        size_max: Maximum size of a file.
        listings_left: Number of requests that the Admin API answers within this hour.
        incoming: What is done to each uploaded image before it is stored.
        names_fields: Whether downloads state their size and ETag.
        knows_overwrite: Whether `overwrite=false` has an effect.
        page_max: Maximum number of assets on a page, whatever is asked for.
        sorts: Whether listings are sorted by public ID.
        before: By method: what happens before its next request is carried out.
    """

    cloud: str = "demo"
    key: str = "123456789012345"
    secret: str = "a-Secret_of-the-Service"
    assets: dict[tuple[Kind, str], StoredAsset] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    images_only: bool = True
    size_max: int = 10_485_760
    listings_left: int = 500
    incoming: Callable[[bytes], bytes] = bytes
    names_fields: bool = True
    knows_overwrite: bool = True
    page_max: int = 500
    sorts: bool = True
    before: dict[str, Callable[[], None]] = field(default_factory=dict)
    port: int = 0
    _cdn: dict[str, tuple[int, bytes, str]] = field(default_factory=dict)
    _versions: int = 1_700_000_000
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=200_000_000)
        app.router.add_post("/v1_1/{cloud}/{resource_type}/{method}", self._answer)
        app.router.add_get("/v1_1/{cloud}/{resource_type}/download", self._answer)
        app.router.add_get("/v1_1/{cloud}/resources/{resource_type}/{type}", self._list)
        app.router.add_get("/{cloud}/{resource_type}/{type}/{rest:.*}", self._deliver)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def url(self, endpoint: str = "") -> str:
        """Return the value of `CLOUDINARY_URL`; `endpoint`: of a gate before this server."""
        host = endpoint.removeprefix("http://") or f"127.0.0.1:{self.port}"
        return (
            f"cloudinary://{self.key}:{self.secret}@{self.cloud}?upload_prefix=http://{host}&secure=false&cname={host}"
        )

    def put(self, kind: Kind, public_id: str, data: bytes, format_: str = "") -> None:
        """Store an asset, as another program may have done."""
        self._versions += 1
        self.assets[kind, public_id] = StoredAsset(data, format_, self._versions)

    def paths(self) -> dict[str, bytes]:
        """Return everything that is stored: by public ID, and for images the extension behind it."""
        return {
            f"{public_id}.{asset.format}" if kind[0] == "image" else public_id: asset.data
            for (kind, public_id), asset in self.assets.items()
        }

    # --- the Upload API

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info.get("method", "download")
        try:
            fields, file = await _read_fields(request, method)
            self._authorize(request.match_info["cloud"], method, fields)
            self.calls.append((method, fields.get("public_id", fields.get("from_public_id", ""))))
            kind = _read_kind(request.match_info["resource_type"], fields["type"])
            self.before.pop(method, lambda: None)()
            return self._methods()[method](kind, fields, file)
        except RefusalError as refusal:
            return web.json_response({"error": {"message": refusal.message}}, status=refusal.status)

    def _methods(self) -> Mapping[str, Callable[[Kind, Mapping[str, str], bytes], web.StreamResponse]]:
        return {
            "upload": self._upload,
            "explicit": self._explicit,
            "destroy": self._destroy,
            "rename": self._rename,
            "download": self._download,
        }

    def _authorize(self, cloud: str, method: str, fields: Mapping[str, str]) -> None:
        if cloud != self.cloud:
            raise RefusalError(401, f"Invalid cloud_name {cloud}")
        if method not in PARAMETERS:
            raise RefusalError(404, "Unknown method")
        if fields.get("api_key") != self.key:
            raise RefusalError(401, f"Unknown API key {fields.get('api_key')}")
        signed = {name: value for name, value in fields.items() if name not in {"signature", "api_key"}}
        text = "&".join(f"{name}={signed[name]}" for name in sorted(signed))
        hashes = {getattr(hashlib, name)((text + self.secret).encode()).hexdigest() for name in ("sha1", "sha256")}
        if fields.get("signature") not in hashes:
            raise RefusalError(401, f"Invalid Signature {fields.get('signature')}. String to sign - '{text}'.")
        stamp = fields.get("timestamp", "")
        if not stamp.isdigit() or abs(time.time() - int(stamp)) > SIGNED_S:  # noqa: TID251 - as a server of its own
            raise RefusalError(400, f"Stale request - reported time is {stamp} which is more than 1 hour ago")
        required, others = PARAMETERS[method]
        names = set(signed) - {"timestamp"}
        if missing := required - names:
            raise RefusalError(400, f"Missing required parameter - {min(missing)}")
        if unknown := names - required - others:
            raise RefusalError(400, f"Invalid parameter {min(unknown)}")

    def _upload(self, kind: Kind, fields: Mapping[str, str], file: bytes) -> web.StreamResponse:
        public_id = fields["public_id"]
        _check_public_id(public_id)
        there = self.assets.get((kind, public_id))
        if there is not None and self.knows_overwrite and not _is_true(fields["overwrite"]):
            return web.json_response(self._description(kind, public_id) | {"existing": True})
        if len(file) > self.size_max:
            raise RefusalError(400, f"File size too large. Got {len(file)}. Maximum is {self.size_max}.")
        format_ = ""
        if kind[0] == "image":
            format_ = format_of(file) if self.images_only else "png"
            if not format_:
                raise RefusalError(400, "Invalid image file")
            file = self.incoming(file)
            format_ = format_of(file) or format_
        self.put(kind, public_id, file, format_)
        if _is_true(fields.get("invalidate", "0")):
            self._cdn.clear()
        return web.json_response(self._description(kind, public_id))

    def _explicit(self, kind: Kind, fields: Mapping[str, str], _file: bytes) -> web.StreamResponse:
        self._find(kind, fields["public_id"])
        return web.json_response(self._description(kind, fields["public_id"]))

    def _destroy(self, kind: Kind, fields: Mapping[str, str], _file: bytes) -> web.StreamResponse:
        gone = self.assets.pop((kind, fields["public_id"]), None)
        if _is_true(fields.get("invalidate", "0")):
            self._cdn.clear()
        return web.json_response({"result": "not found" if gone is None else "ok"})

    def _rename(self, kind: Kind, fields: Mapping[str, str], _file: bytes) -> web.StreamResponse:
        target = (kind[0], fields.get("to_type", kind[1]))
        _check_public_id(fields["to_public_id"])
        asset = self._find(kind, fields["from_public_id"])
        if (target, fields["to_public_id"]) in self.assets and not _is_true(fields.get("overwrite", "0")):
            raise RefusalError(409, f"to_public_id {fields['to_public_id']} already exists")
        del self.assets[kind, fields["from_public_id"]]
        self.assets[target, fields["to_public_id"]] = asset
        if _is_true(fields.get("invalidate", "0")):
            self._cdn.clear()
        return web.json_response(self._description(target, fields["to_public_id"]))

    def _download(self, kind: Kind, fields: Mapping[str, str], _file: bytes) -> web.StreamResponse:
        asset = self._find(kind, fields["public_id"])
        response = web.Response(body=asset.data, content_type=MEDIA_TYPES.get(asset.format, "application/octet-stream"))
        if self.names_fields:
            response.headers["ETag"] = f'"{_md5(asset.data)}"'
        else:
            response.enable_chunked_encoding()
        return response

    def _find(self, kind: Kind, public_id: str) -> StoredAsset:
        asset = self.assets.get((kind, public_id))
        if asset is None:
            raise RefusalError(404, f"Resource not found - {public_id}")
        return asset

    def _description(self, kind: Kind, public_id: str) -> dict[str, Any]:
        asset = self.assets[kind, public_id]
        return {
            "asset_id": "3515c6000a548515f1134043f9785c2f",
            "public_id": public_id,
            "version": asset.version,
            "resource_type": kind[0],
            "type": kind[1],
            "created_at": "2026-11-30T12:00:00Z",
            "bytes": len(asset.data),
            "etag": _md5(asset.data),
            "tags": [],
            "secure_url": f"https://res.cloudinary.com/{self.cloud}/{kind[0]}/{kind[1]}/v{asset.version}/{public_id}",
            **({"format": asset.format, "width": 1, "height": 1} if kind[0] == "image" else {"format": None}),
        }

    # --- the Admin API

    async def _list(self, request: web.Request) -> web.StreamResponse:
        credentials = b64encode(f"{self.key}:{self.secret}".encode()).decode()
        if request.headers.get("Authorization") != f"Basic {credentials}":
            return web.Response(status=401, text="<html>HTTP Basic: Access denied.</html>", content_type="text/html")
        if request.match_info["cloud"] != self.cloud:
            return _error(401, f"Invalid cloud_name {request.match_info['cloud']}")
        self.calls.append(("list", request.query.get("prefix", "")))
        if unknown := set(request.query) - {"prefix", "max_results", "next_cursor"}:
            return _error(400, f"Invalid parameter {min(unknown)}")
        limit = int(request.query.get("max_results", "10"))
        if not 1 <= limit <= 500:
            return _error(400, "Invalid max_results")
        if self.listings_left == 0:
            return _error(420, "Rate Limit Exceeded. Limit of 500 api operations reached. Try again on 2026-11-30")
        self.listings_left -= 1
        kind = (request.match_info["resource_type"], request.match_info["type"])
        prefix, after = request.query.get("prefix", ""), request.query.get("next_cursor", "")
        names = [name for its, name in self.assets if its == kind and name.startswith(prefix) and name > after]
        if self.sorts:
            names.sort()
        page = names[: min(limit, self.page_max)]
        answer: dict[str, Any] = {"resources": [self._entry(kind, name) for name in page]}
        answer["next_cursor"] = page[-1] if len(page) < len(names) else None
        return web.json_response(answer)

    def _entry(self, kind: Kind, public_id: str) -> dict[str, Any]:
        return {name: value for name, value in self._description(kind, public_id).items() if name != "etag"}

    # --- delivery

    async def _deliver(self, request: web.Request) -> web.StreamResponse:
        if request.path not in self._cdn:
            self._cdn[request.path] = self._origin(request.match_info)
        status, body, media_type = self._cdn[request.path]
        headers = {"Cache-Control": "public, no-transform, immutable, max-age=2592000"} if status == 200 else {}
        return web.Response(status=status, body=body, content_type=media_type, headers=headers)

    def _origin(self, match: Mapping[str, str]) -> tuple[int, bytes, str]:
        kind, name = (match["resource_type"], match["type"]), match["rest"]
        if match["cloud"] != self.cloud or kind not in KINDS:
            return 404, b"", "text/plain"
        if kind[1] == "authenticated":
            return 401, b"", "text/plain"  # no URL here is signed
        version, _, rest = name.partition("/")
        name = rest if version[:1] == "v" and version[1:].isdigit() else name
        if kind[0] == "raw":
            asset = self.assets.get((kind, name))
            return (404, b"", "text/plain") if asset is None else (200, asset.data, "application/octet-stream")
        public_id, _, extension = name.rpartition(".")
        asset = self.assets.get((kind, public_id))
        if asset is None:
            return 404, b"", "text/plain"
        body = asset.data if asset.format == extension else b"converted " + asset.data
        return 200, body, MEDIA_TYPES.get(extension, "application/octet-stream")


async def _read_fields(request: web.Request, method: str) -> tuple[dict[str, str], bytes]:
    if method == "download":
        return dict(request.query), b""
    if request.content_length is None:
        raise RefusalError(411, "Length required")
    if method != "upload":
        # The examples of the reference have the first form, their libraries the second.
        if request.content_type not in {"application/x-www-form-urlencoded", "multipart/form-data"}:
            raise RefusalError(400, "Invalid content type")
        form = await request.post()
        return {name: str(value) for name, value in form.items()}, b""
    if request.content_type != "multipart/form-data":
        raise RefusalError(400, "Missing required parameter - file")
    return await _read_form(request)


async def _read_form(request: web.Request) -> tuple[dict[str, str], bytes]:
    fields: dict[str, str] = {}
    file: bytes | None = None
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        assert part.name is not None
        content = bytes(await part.read())
        if part.name in fields or (part.name == "file" and file is not None):
            raise RefusalError(400, f"Invalid parameter {part.name}")
        if part.name != "file":
            fields[part.name] = content.decode()
        elif part.filename:
            file = content
    if file is None:
        raise RefusalError(400, "Missing required parameter - file")
    return fields, file


def _read_kind(resource_type: str, type_: str) -> Kind:
    if (resource_type, type_) not in KINDS:
        raise RefusalError(400, f"Invalid type {type_}")
    return resource_type, type_


def _check_public_id(public_id: str) -> None:
    if not public_id or len(public_id) > 255 or FORBIDDEN & set(public_id) or public_id != public_id.strip("/ "):
        raise RefusalError(400, f"public_id ({public_id}) is invalid")


def _is_true(value: str) -> bool:
    return value in {"1", "true"}


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


def _md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()

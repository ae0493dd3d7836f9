"""The authorization by key is that of Microsoft's library, whose order of fields is the service's own."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import quote

import pytest
from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.core.pipeline.transport import HttpRequest, RequestsTransport
from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy

from imgkeep.storage.azure.shared_key import sign

KEY = b"the key of an account"
BLOB = "https://acc.blob.core.windows.net/images/pre%20fix/v1/objects/00/0.svg"
DATES = {"x-ms-date": "Mon, 30 Nov 2026 16:00:00 GMT", "x-ms-version": "2021-12-02"}
FIELDS = {
    "x-ms-blob-content-type": "image/svg+xml",
    "x-ms-blob-cache-control": "public, max-age=31536000, immutable",
    "x-ms-blob-content-disposition": 'attachment; filename="0.svg"',
}

REQUESTS = {
    "get": ("GET", BLOB, {}, {}),
    "get a part of a version": ("GET", BLOB, {}, {"x-ms-range": "bytes=1-2", "If-Match": '"0x1"'}),
    "put": (
        "PUT",
        BLOB,
        {},
        {"Content-Length": "4", "Content-MD5": "bWQ1", "x-ms-blob-type": "BlockBlob", "If-None-Match": "*", **FIELDS},
    ),
    "put nothing": ("PUT", BLOB, {}, {"Content-Length": "0", "x-ms-blob-type": "BlockBlob", **FIELDS}),
    "put a block": ("PUT", BLOB, {"comp": "block", "blockid": "MDAwMDA+/w=="}, {"Content-Length": "4"}),
    "commit": ("PUT", BLOB, {"comp": "blocklist"}, {"x-ms-blob-content-md5": "bWQ1", "Content-Length": "9", **FIELDS}),
    "copy": ("PUT", BLOB, {}, {"x-ms-copy-source": BLOB, "x-ms-source-if-match": '"0x1"', "Content-Length": "0"}),
    "delete": ("DELETE", BLOB, {}, {"x-ms-delete-snapshots": "include", "If-Match": '"0x1"'}),
    "list": (
        "GET",
        "http://127.0.0.1:10000/acc/images",
        {"restype": "container", "comp": "list", "prefix": "pre fix/ü&=", "maxresults": "1", "marker": "2!88!MDA="},
        {},
    ),
}


@pytest.mark.parametrize(("method", "url", "query", "headers"), REQUESTS.values(), ids=REQUESTS)
def test_library_signs_alike(method: str, url: str, query: dict[str, str], headers: dict[str, str]) -> None:
    parameters = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    fields = DATES | headers
    request = HttpRequest(method, f"{url}?{parameters}" if query else url, headers=dict(fields))
    policy = SharedKeyCredentialPolicy("acc", b64encode(KEY).decode())  # type: ignore[no-untyped-call]
    policy.on_request(PipelineRequest(request, PipelineContext(RequestsTransport())))  # type: ignore[no-untyped-call]
    ours = sign(account="acc", key=KEY, method=method, url=url, query=query, headers=fields)
    assert ours == request.headers["Authorization"]

"""
A managed identity: the local endpoint that gives access tokens to a program on Azure, and what azure-identity needs to
ask it and nothing else.

The tokens are of the form that Azurite checks: audience, issuer and lifetime, but not the signature.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.network import server_context

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SECRET = "header-of-the-identity"
TENANT = "ab1f708d-50f6-404c-a006-d71b2ac7a606"


AUDIENCE = "https://storage.azure.com"


@cache
def authority() -> trustme.CA:
    """Return the certificate authority of the services here, which clients of other tests do not trust."""
    return trustme.CA()


def make_token(number: int, life_s: float, audience: str) -> str:
    """Return a token for an audience."""
    now = int(time.time())  # noqa: TID251 - the server checks it by its own clock
    claims = {
        "aud": audience,
        "iss": f"https://sts.windows.net/{TENANT}/",
        "iat": now - 60,
        "nbf": now - 60,
        "exp": int(now + life_s),
        "oid": "11059fcc-5514-4800-b5f8-49808b9cfab6",
        "tid": TENANT,
        "number": number,
    }
    parts = (json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return ".".join([*(urlsafe_b64encode(part).decode().rstrip("=") for part in parts), "c2ln"])


@dataclass
class IdentityEndpoint:
    """
    The endpoint, or the authority of a workload identity in its place.

    Attributes:
        audience: Audience of the tokens that it gives.
        life_s: Life of the tokens that it gives.
        status: What it answers with; other than 200: an error.
        requests: Number of requests so far.
        arrived: Is set by each request.
        go: Requests wait for it.
    """

    audience: str = AUDIENCE
    life_s: float = 3600
    status: int = 200
    requests: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    _server: TestServer | None = None

    async def start(self, patch: pytest.MonkeyPatch) -> None:
        """Start, and make azure-identity ask it and nothing else."""
        self.go.set()
        app = web.Application()
        app.router.add_get("/token", self._answer)
        self._server = TestServer(app)
        await self._server.start_server()
        patch.setenv("IDENTITY_ENDPOINT", str(self._server.make_url("/token")))
        patch.setenv("IDENTITY_HEADER", SECRET)
        patch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")

    async def start_workload(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        """Start over TLS, and give azure-identity what a pod has: a signed assertion in a file."""
        app = web.Application()
        app.router.add_post(f"/{TENANT}/oauth2/v2.0/token", self._exchange)
        self._server = TestServer(app, scheme="https")
        await self._server.start_server(ssl=server_context("127.0.0.1", ca=authority()))
        (folder / "assertion").write_text(SECRET, "utf-8")
        (folder / "authority.pem").write_bytes(authority().cert_pem.bytes())
        patch.setenv("AZURE_AUTHORITY_HOST", str(self._server.make_url("")).rstrip("/"))
        patch.setenv("AZURE_TENANT_ID", TENANT)
        patch.setenv("AZURE_CLIENT_ID", "client")
        patch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(folder / "assertion"))
        patch.setenv("REQUESTS_CA_BUNDLE", str(folder / "authority.pem"))
        patch.setenv("AZURE_TOKEN_CREDENTIALS", "prod")

    async def stop(self) -> None:
        self.go.set()
        if self._server is not None:
            await self._server.close()

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        self.arrived.set()
        number = self.requests
        await self.go.wait()
        if request.headers.get("X-IDENTITY-HEADER") != SECRET or request.query.get("resource") not in {
            "https://storage.azure.com",
            "https://storage.azure.com/",
        }:
            return web.json_response({"statusCode": 400, "message": "the request is malformed"}, status=400)
        if self.status != 200:
            return web.json_response({"statusCode": self.status, "message": f"no: {SECRET}"}, status=self.status)
        return web.json_response(
            {
                "access_token": make_token(number, self.life_s, self.audience),
                "expires_on": str(int(time.time() + self.life_s)),  # noqa: TID251 - as above
                "resource": request.query["resource"],
                "token_type": "Bearer",
            }
        )

    async def _exchange(self, request: web.Request) -> web.Response:
        self.requests += 1
        form = await request.post()
        if (form.get("client_assertion"), form.get("scope")) != (SECRET, f"{AUDIENCE}/.default"):
            return web.json_response({"error": "invalid_client"}, status=401)
        token = make_token(self.requests, self.life_s, self.audience)
        return web.json_response({"access_token": token, "expires_in": int(self.life_s), "token_type": "Bearer"})

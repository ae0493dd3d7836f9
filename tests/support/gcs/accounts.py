"""
Google's servers for credentials, on the strict server: tokens, workload identity, a machine's metadata, signatures.

A token is given for a proof alone: a JWT with a good signature, a refresh token, a subject token, or a machine's own
header field.
"""

from __future__ import annotations

import json
import time
from base64 import b64decode, b64encode, urlsafe_b64decode
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    import pytest

ACCOUNT = "imgkeep@project.iam.gserviceaccount.com"
TOKEN_LIFE_S = 3600
REFRESH_TOKEN = "refresh-secret"
SUBJECT_TOKEN = "subject-secret"


@cache
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def now() -> float:
    return time.time()  # noqa: TID251 - as a server has its own clock


def is_signed(signature: bytes, text: bytes) -> bool:
    """Tell whether the key of the account has signed a text."""
    try:
        private_key().public_key().verify(signature, text, padding.PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


@dataclass
class Accounts:
    """
    The servers for credentials.

    Attributes:
        token_life_s: Life of the next token in seconds.
        refuses_with: Code of the error in place of a token.
        holds: Is awaited before each token.
        issued: How many tokens were given.
        may_sign: Whether the service signs for the account.
        signs: Is awaited before each signature.
    """

    token_life_s: int = TOKEN_LIFE_S
    refuses_with: str = ""
    holds: asyncio.Event | None = None
    issued: int = 0
    may_sign: bool = True
    signs: asyncio.Event | None = None
    _valid: set[str] = field(default_factory=set)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_post("/token", self._give_token)
        router.add_post("/sts", self._exchange)
        router.add_get("/", self._ping)
        router.add_get("/computeMetadata/v1/{path:.*}", self._tell_metadata)
        router.add_post("/v1/projects/-/serviceAccounts/{account}:generateAccessToken", self._impersonate)
        router.add_post("/v1/projects/-/serviceAccounts/{account}:signBlob", self._sign)

    def revoke_all(self) -> None:
        self._valid.clear()

    def accepts(self, request: web.Request) -> bool:
        """Tell whether a request has a valid token."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme == "Bearer" and token in self._valid

    async def _issue(self, *, name: str = "access_token") -> web.Response:
        if self.holds is not None:
            await self.holds.wait()
        if self.refuses_with:
            return web.json_response({"error": self.refuses_with, "error_description": "secret words"}, status=400)
        self.issued += 1
        token = f"token-secret-{next(self._numbers)}"
        self._valid.add(token)
        if name == "accessToken":
            expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now() + self.token_life_s))
            return web.json_response({name: token, "expireTime": expiry})
        kind = {"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}
        return web.json_response({name: token, "expires_in": self.token_life_s, "token_type": "Bearer", **kind})

    async def _give_token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form.get("grant_type") == "refresh_token":
            good = form.get("refresh_token") == REFRESH_TOKEN
        else:
            good = _is_good_jwt(str(form.get("assertion", "")))
        return await self._issue() if good else web.json_response({"error": "invalid_grant"}, status=400)

    async def _exchange(self, request: web.Request) -> web.Response:
        form = await request.post()
        good = form.get("subject_token") == SUBJECT_TOKEN
        return await self._issue() if good else web.json_response({"error": "invalid_request"}, status=400)

    async def _impersonate(self, request: web.Request) -> web.Response:
        if not self.accepts(request):
            return web.Response(status=401)
        return await self._issue(name="accessToken")

    async def _sign(self, request: web.Request) -> web.Response:
        if not self.accepts(request) or request.match_info["account"] != ACCOUNT or not self.may_sign:
            return web.json_response({"error": {"code": 403, "message": "secret words"}}, status=403)
        if self.signs is not None:
            await self.signs.wait()
        text = b64decode((await request.json())["payload"])
        signature = private_key().sign(text, padding.PKCS1v15(), SHA256())
        return web.json_response({"keyId": "1", "signedBlob": b64encode(signature).decode()})

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.Response(headers={"Metadata-Flavor": "Google"})

    async def _tell_metadata(self, request: web.Request) -> web.Response:
        if request.headers.get("Metadata-Flavor") != "Google":
            return web.Response(status=403)
        path = request.match_info["path"]
        if path.endswith("/token"):
            return await self._issue()
        if path.startswith("instance/service-accounts/"):
            return web.json_response({"email": ACCOUNT, "aliases": ["default"], "scopes": []})
        if path == "project/project-id":
            return web.Response(text="project", content_type="application/text")
        return web.Response(status=404)


def _is_good_jwt(assertion: str) -> bool:
    """Tell whether an assertion is one that the account has signed, for Google and now (RFC 7523, section 3)."""
    parts = assertion.split(".")
    if len(parts) != 3:
        return False
    head, claims, signature = (urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts)
    told = json.loads(claims)
    return (
        json.loads(head)["alg"] == "RS256"
        and is_signed(signature, f"{parts[0]}.{parts[1]}".encode())
        and told["iss"] == ACCOUNT
        and told["aud"] == "https://oauth2.googleapis.com/token"
        and told["scope"] == "https://www.googleapis.com/auth/devstorage.read_write"
        and told["iat"] - 300 <= now() < told["exp"] <= told["iat"] + 3600
    )


def service_account(endpoint: str) -> dict[str, Any]:
    """Return the content of a key file of a service account, as gcloud writes it."""
    key = private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return {
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "1",
        "private_key": key,
        "client_email": ACCOUNT,
        "client_id": "1",
        "token_uri": f"{endpoint}/token",
    }


def authorized_user(endpoint: str) -> dict[str, Any]:
    """Return the content of a file of `gcloud auth application-default login`."""
    return {
        "type": "authorized_user",
        "client_id": "1",
        "client_secret": "client-secret",
        "refresh_token": REFRESH_TOKEN,
        "token_uri": f"{endpoint}/token",
    }


def external_account(endpoint: str, token_file: Path, *, impersonates: bool) -> dict[str, Any]:
    """Return the content of a file of `gcloud iam workload-identity-pools create-cred-config`. It blocks."""
    token_file.write_text(SUBJECT_TOKEN)
    pool = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/provider"
    info = {
        "type": "external_account",
        "audience": pool,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{endpoint}/sts",
        "credential_source": {"file": str(token_file)},
    }
    if impersonates:
        url = f"{endpoint}/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken"
        info["service_account_impersonation_url"] = url
    return info


def use_credentials(info: dict[str, Any], folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write a file with credentials, and have it found. It blocks."""
    path = folder / "credentials.json"
    path.write_text(json.dumps(info))
    patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    return path

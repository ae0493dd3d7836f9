"""An origin with signed links and a chosen answer to wrong signatures; genuine, invented and ended links."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from imgkeep.bootstrap.server import SERVICES
from tests.support.images import make_image

if TYPE_CHECKING:
    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

IMAGE, PLACEHOLDER = make_image(seed=1), make_image(seed=2)
FAR, PAST = 1_893_456_000, 1_700_000_000
UNCERTAIN = {
    "name": "Acme",
    "hosts": ["127.0.0.1", "img.example.com"],
    "signed_by": {"acme_sig": "hex64", "acme_end": "epoch"},
    "expires": ["epoch acme_end"],
}
"""A provider that may or may not check signatures."""
ENFORCED = {
    "name": "Strict",
    "hosts": ["127.0.0.1", "img.example.com"],
    "signed_by": {"strict_sig": "hex64", "strict_end": "epoch"},
    "expires": ["epoch strict_end"],
    "enforced": True,
}
BRIEF = "public, max-age=60"
FOREVER = "public, max-age=31536000, immutable"


def sign(name: str) -> str:
    """Return a signature of the right shape."""
    return sha256(name.encode()).hexdigest()


def good(number: int = 0, *, end: int = FAR) -> str:
    """Return the query of a link that the origin's owner has signed."""
    return f"?acme_end={end}&acme_sig={sign(f'good {number} {end}')}"


def invented(number: int = 0, *, end: int = FAR) -> str:
    """Return the query of a link that a stranger can write."""
    return f"?acme_end={end}&acme_sig={sign(f'invented {number}')}"


def shaped(number: int = 0) -> str:
    """Return the query of a link that a stranger can write, with a signature in the shape of Amazon's."""
    return f"?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={sign(f'shaped {number}')}"


def strict(*, end: int = FAR) -> str:
    """Return the query of a good link of the other provider."""
    return f"?strict_end={end}&strict_sig={sign(f'strict {end}')}"


@dataclass
class SignedOrigin:
    """
    Attributes:
        image: The image of good links.
        placeholder: The answer to wrong links; `None`: 403.
        bare: The answer to a link without a signature; `None`: as to a wrong one.
        images: The images of good links that show another one, by query.
        checks: Whether signatures make a difference at all.
        status: The status of each answer without an image, at an unstable origin.
    """

    origin: FakeOrigin
    path: str = "/a.png"
    image: bytes = IMAGE
    placeholder: bytes | None = PLACEHOLDER
    bare: bytes | None = None
    images: dict[str, bytes] = field(default_factory=dict)
    checks: bool = True
    failing: str = ""
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.origin.on(self.path, self._answer)

    def url(self, query: str = "") -> str:
        return self.origin.url(self.path + query)

    async def _answer(self, exchange: Exchange) -> None:
        query = exchange.target.partition("?")[2]
        self.asked.append(query)
        body = self.shown(query)
        if self.failing and not self._is_good(query):
            await exchange.answer(b"not now", status=self.failing)
        elif body is None:
            await exchange.answer(b"no", status="403 Forbidden")
        else:
            await exchange.answer(body)

    def shown(self, query: str) -> bytes | None:
        """Return the image for this query; `None`: a refusal."""
        if not self.checks or self._is_good(query):
            return self.images.get(f"?{query}", self.image)
        return self.bare if not query and self.bare is not None else self.placeholder

    @staticmethod
    def _is_good(query: str) -> bool:
        fields = {name: values[0] for name, values in parse_qs(query).items()}
        end, signature = fields.get("acme_end", "0"), fields.get("acme_sig", "")
        if "strict_sig" in fields:
            return fields["strict_sig"] == sign(f"strict {fields['strict_end']}") and int(fields["strict_end"]) == FAR
        return int(end) == FAR and any(signature == sign(f"good {number} {end}") for number in range(10))


@dataclass(frozen=True)
class Shown:
    """What a client was shown."""

    body: bytes
    caching: str
    outcome: str
    status: int = 200


async def show(imgkeep: Imgkeep, url: str) -> Shown:
    """Request an image, and wait until no background fill runs any more."""
    response = await imgkeep.img(url)
    body = await response.read()
    app = imgkeep.client.app
    assert app is not None
    await app[SERVICES].image_service.drain()
    outcome = response.headers.get("Cache-Status", "").removeprefix("imgkeep; ")
    return Shown(body, response.headers.get("Cache-Control", ""), outcome, response.status)

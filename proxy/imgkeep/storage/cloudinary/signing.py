"""
Signatures of requests to Cloudinary ("Generating authentication signatures" in its documentation).

The parameters, sorted by name and joined as `name=value&name=value`, and the API secret behind them, are hashed; the
parameters `file`, `cloud_name`, `resource_type` and `api_key` are not among them. Cloudinary takes SHA-1 and SHA-256.
We use SHA-256, because an account can be limited to it, and not to SHA-1.

Their library is not used: it sends requests with urllib3, which blocks, and this is all that we would need of it.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def sign(parameters: Mapping[str, str], secret: str) -> str:
    """Return the signature of parameters, none of which is empty."""
    # Version 2 of the algorithm escapes `&`, or a value could pass for another parameter.
    pairs = sorted(f"{name}={value}".replace("&", "%26") for name, value in parameters.items())
    return sha256(f"{'&'.join(pairs)}{secret}".encode()).hexdigest()


def signed(parameters: Mapping[str, str], *, key: str, secret: str, timestamp: int) -> dict[str, str]:
    """Return the parameters with timestamp (seconds since 1970), API key and signature. It is valid for one hour."""
    stamped = {**parameters, "timestamp": str(timestamp)}
    return {**stamped, "api_key": key, "signature": sign(stamped, secret)}

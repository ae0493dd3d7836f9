"""`sign` and `token`: our own signatures, and secrets that nobody guesses."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, TextIO

from imgkeep.cli.printing import print_json
from imgkeep.core.errors import SourceRejected
from imgkeep.core.signing import signed_path
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

TOKEN_BYTES = 32


def sign(  # noqa: PLR0913 - all by keyword
    urls: Iterable[str],
    *,
    key: str,
    base: str,
    now: datetime,
    ttl_s: int | None,
    as_json: bool,
    out: TextIO,
    err: TextIO,
) -> int:
    """Print what a page asks for instead of each URL; `ttl_s` `None`: for ever. 1 if one is not readable."""
    status = 0
    expires = None if ttl_s is None else int(now.timestamp()) + ttl_s
    for url in urls:
        try:
            read_source(url)
        except SourceRejected as error:
            err.write(f"imgkeep: {error}\n")
            status = 1
            continue
        signed = base.rstrip("/") + signed_path(key, url, expires=expires)
        if as_json:
            print_json(out, {"url": url, "signed": signed})
        else:
            out.write(f"{signed}\n")
    return status


def make_token() -> str:
    """Return a secret for `security.api_tokens` or `security.signing_keys`."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def show(name: str, secret: str, *, as_json: bool, out: TextIO) -> int:
    """Print a secret that was asked for; `name`: its field in JSON."""
    if as_json:
        print_json(out, {name: secret})
    else:
        out.write(f"{secret}\n")
    return 0

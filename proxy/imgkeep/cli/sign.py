"""`sign`: prints signed `/img` URLs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from imgkeep.cli.invocation import read_urls
from imgkeep.cli.printing import print_json
from imgkeep.clock import read_clock
from imgkeep.config import ConfigError
from imgkeep.core.errors import SourceRejected
from imgkeep.core.signing import signed_path
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from imgkeep.cli.invocation import Invocation


def run(invocation: Invocation) -> int:
    arguments, config = invocation.arguments, invocation.config
    if not config.security.signing_keys:
        raise ConfigError("security.signing_keys: there is none to sign with; `imgkeep token` makes one")
    return sign(
        read_urls(arguments.urls),
        key=config.security.signing_keys[0],
        base=config.server.public_url,
        now=read_clock(),
        ttl_s=arguments.ttl_s,
        as_json=arguments.json,
        out=sys.stdout,
        err=sys.stderr,
    )


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
    """Print the signed `/img` URL of each link; `ttl_s` `None`: it holds for ever. 1 if imgkeep cannot read a link."""
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

"""`sign`: prints signed URLs of images and of their derived pictures."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final, TextIO

from imgkeep.cli.invocation import read_urls
from imgkeep.cli.printing import print_json
from imgkeep.clock import read_clock
from imgkeep.config import ConfigError
from imgkeep.core.derived.options import split_options
from imgkeep.core.errors import InvalidOption, SourceRejected
from imgkeep.core.signing import signed_images_path, signed_path
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from imgkeep.cli.invocation import Invocation


_IMAGES: Final = re.compile(r"/images/[0-9a-z.]+")


def run(invocation: Invocation) -> int:
    arguments, config = invocation.arguments, invocation.config
    if not config.security.signing_keys:
        raise ConfigError("security.signing_keys: there is none to sign with; `imgkeep token` makes one")
    options = split_options(arguments.options or "")
    try:
        config.derive_policy().read(options)
    except InvalidOption as error:
        raise ConfigError(f"--options: {error}") from None
    return sign(
        read_urls(arguments.urls),
        options,
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
    options: Sequence[tuple[str, str]] = (),
    *,
    key: str,
    base: str,
    now: datetime,
    ttl_s: int | None,
    as_json: bool,
    out: TextIO,
    err: TextIO,
) -> int:
    """
    Print the signed URL of each link: of `/img`, or of `/images` for the path of a stored image.

    Args:
        urls: The links.
        options: Options of derived pictures.
        key: The key to sign with.
        base: `server.public_url`.
        now: The time.
        ttl_s: How long the URLs hold; `None`: for ever.
        as_json: Whether the output is for programs.
        out: Where URLs go.
        err: Where messages go.

    Returns:
        The status: 1 if imgkeep cannot read a link.
    """
    status = 0
    expires = None if ttl_s is None else int(now.timestamp()) + ttl_s
    for url in urls:
        try:
            if not _IMAGES.fullmatch(url):
                read_source(url)
        except SourceRejected as error:
            err.write(f"imgkeep: {error}\n")
            status = 1
            continue
        write = signed_images_path if _IMAGES.fullmatch(url) else signed_path
        signed = base.rstrip("/") + write(key, url, expires=expires, options=options)
        if as_json:
            print_json(out, {"url": url, "signed": signed})
        else:
            out.write(f"{signed}\n")
    return status

"""
Which picture a link names, and what kind of link it is.

Rules:
- Two pictures never share a key: a missed merge costs one fetch, a collision shows a wrong picture.
- The identity names the picture for ever, so it and the key derived from it are public and versioned.
- A host that is not in the catalogue gives a permanent link of which every part counts.
"""

from __future__ import annotations

import tomllib
from fnmatch import translate
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from re import compile as compile_pattern
from typing import TYPE_CHECKING, Final

from proxy.core.model import Key, SourceInfo

if TYPE_CHECKING:
    from proxy.core.model import Source

KEY_VERSION: Final = 1
"""Goes up when a rule changes the identity of links that had one before; records say which they were made by."""

_PROVIDERS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = tuple(
    (provider["name"], tuple(provider["hosts"]))
    for provider in tomllib.loads(resources.files(__package__).joinpath("providers.toml").read_text("utf-8"))[
        "providers"
    ]
)
_PATTERNS: Final = tuple((name, compile_pattern("|".join(map(translate, hosts)))) for name, hosts in _PROVIDERS)

KNOWN_HOSTS: Final = tuple(glob for _, hosts in _PROVIDERS for glob in hosts)
"""Host globs of the catalogue: what `known` in `sources.allow` stands for."""


def identify(source: Source) -> SourceInfo:
    """Tell the identity of a source and what is known about its host."""
    identity = source.url
    return SourceInfo(
        identity=identity, key=Key(sha256(identity.encode()).hexdigest()), provider=find_provider(source.host)
    )


@lru_cache(maxsize=4096)
def find_provider(host: str) -> str | None:
    """Return the name of the provider in the catalogue that serves images from `host`."""
    return next((name for name, pattern in _PATTERNS if pattern.match(host)), None)

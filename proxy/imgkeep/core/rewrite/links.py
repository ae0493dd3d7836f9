"""
Which links are rewritten, and to what.

Rules:
- A link that expires is rewritten; others if somebody says so. A link that we could not serve is left alone, because it
  may work where it is: one that `read_source` or the policy refuses.
- Links of ours are left alone, so rewriting twice changes nothing.
- What is written holds no white space, no quotes and no angle brackets, whoever made it; so it can stand anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import quote

from imgkeep.core.errors import SourceRejected
from imgkeep.core.host_patterns import Globs
from imgkeep.core.identity import BUILT_IN, identify
from imgkeep.core.policy import judge
from imgkeep.core.rewrite import resolve_link as resolve
from imgkeep.core.signing import signed_path
from imgkeep.core.source_url import own_path, read_img_query, read_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from imgkeep.core.identity import ProviderRules
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Source

Linker: TypeAlias = "Callable[[str], str | None]"
"""Takes an absolute http(s) URL without its fragment, gives what to write in its place; `None`: leave it alone."""

Choice: TypeAlias = "Callable[[Source], bool]"
"""Says whether a link is rewritten."""

IMG: Final = "/img?"
OWN_PATHS: Final = (IMG, "/images/")
"""How links of ours begin that do not name a server."""

_UNREADABLE: Final = re.compile(r"[\ud800-\udfff]")
"""Bytes that are no text in the page's encoding."""

_ILLEGAL: Final = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+")


def every(_: Source) -> bool:
    """Choose all links."""
    return True


@dataclass(frozen=True, slots=True)
class Temporary:
    """Chooses links that expire by the provider rules; the default. `now` is the present."""

    now: datetime
    provider_rules: ProviderRules = BUILT_IN

    def __call__(self, source: Source) -> bool:
        return identify(source, self.now, self.provider_rules).temporary


class Hosts:
    """
    Chooses links by host globs, as in `sources.allow`.

    Raises:
        ValueError: A glob can match no host.
    """

    def __init__(self, *globs: str) -> None:
        self._globs = Globs(globs)

    def __call__(self, source: Source) -> bool:
        return self._globs.match(source.host)


@dataclass(frozen=True, slots=True)
class ImgLinks:
    """
    A linker: writes `/img?src=` for the links that are chosen.

    Attributes:
        chosen: Which are.
        public_url: What stands before our paths, as `server.public_url`; empty: nothing, for pages that are served
            from the same place as we.
        key: The first of `security.signing_keys`, if there are any: links are signed, for ever.
        policy: What may be fetched at all, if that is known; other links are left alone.

    Raises:
        SourceRejected: `public_url` is neither empty nor an http(s) URL.
    """

    chosen: Choice
    public_url: str = ""
    key: str | None = field(default=None, repr=False)
    policy: Policy | None = None
    _public: Source | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_public", read_source(self.public_url) if self.public_url else None)

    def __call__(self, url: str) -> str | None:
        try:
            source = read_source(url)
        except SourceRejected:
            return None
        if self._public is not None and own_path(source, self._public) is not None:
            return None
        if (self.policy is not None and judge(source, self.policy) is not None) or not self.chosen(source):
            return None
        path = f"/img?src={quote(url, safe='')}" if self.key is None else signed_path(self.key, url)
        return self.public_url.rstrip("/") + path


@dataclass(frozen=True, slots=True)
class SourceLinks:
    """
    A linker that undoes `ImgLinks`: writes the source URLs that links of ours hold, whether they are signed or not.

    Attributes:
        public_url: What stands before our paths; links that begin with the path itself are ours as well.

    Raises:
        SourceRejected: `public_url` is neither empty nor an http(s) URL.
    """

    public_url: str = ""
    undoes: bool = field(default=True, init=False, repr=False)
    _public: Source | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_public", read_source(self.public_url) if self.public_url else None)

    def __call__(self, url: str) -> str | None:
        try:
            path = url if self._public is None or url.startswith("/") else own_path(read_source(url), self._public)
            if path is None or not path.startswith(IMG):
                return None
            return read_img_query(path.removeprefix(IMG)).text
        except SourceRejected:
            return None


def undoes(linker: Linker) -> bool:
    """Return whether a linker wants to be asked about links of ours, too, as they are written."""
    return bool(getattr(linker, "undoes", False))


class Page:
    """
    Finds what to write for the links of one page.

    Args:
        linker: Decides.
        url: The page's own, if it is known.
        query_codec: Of the page, if it is not UTF-8.
    """

    def __init__(self, linker: Linker, url: str | None = None, query_codec: str | None = None) -> None:
        self._linker = linker
        self._url = None if url is None else resolve.read(resolve.trimmed(url), None)
        self._base = self._url
        self.query_codec = query_codec
        self._base_is_told = False

    def note_base(self, text: str) -> None:
        """Heed the first `<base href>`."""
        if not self._base_is_told:
            self._base_is_told = True
            self._base = resolve.read_base(text, self._url)

    def replacement(self, text: str) -> str | None:
        """Return what to write for a link, in printable ASCII; `None`: leave it alone."""
        trimmed = resolve.trimmed(text)
        if undoes(self._linker):
            return self._written(text, trimmed if trimmed.startswith(IMG) else resolve.resolve(text, self._base))
        if trimmed.startswith(OWN_PATHS):
            return None
        url = resolve.resolve(text, self._base)
        return None if url is None or self._is_ours(url) else self._written(text, url)

    def _written(self, text: str, url: str | None) -> str | None:
        if url is None or _UNREADABLE.search(url):
            return None
        if self.query_codec is not None and not url.isascii():
            url = resolve.with_query_in(url, self.query_codec)
        address, mark, fragment = url.partition("#")
        made = self._linker(address)
        if made is None:
            return None
        try:
            written = _ILLEGAL.sub(lambda found: quote(found[0], safe=""), made + mark + fragment)
        except UnicodeEncodeError:
            return None
        return None if written == text else written

    def _is_ours(self, url: str) -> bool:
        if self._url is None:
            return False
        origin = f"{self._url.scheme}://{self._url.authority}"
        return url.startswith(tuple(origin + path for path in OWN_PATHS))

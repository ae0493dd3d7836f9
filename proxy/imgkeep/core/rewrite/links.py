"""
The choice of links to rewrite, and the links to write.

Rules:
- The default choice is links that expire; the caller may choose others. A link that imgkeep could not serve stays,
  because it may work unchanged: one that `read_source` or the policy refuses.
- imgkeep's own links stay, so rewriting twice changes nothing.
- A written link never contains white space, quotes or angle brackets, whatever the linker returns; so it is safe in any
  context.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias
from urllib.parse import quote

from imgkeep.core.errors import SourceRejected
from imgkeep.core.host_patterns import Globs
from imgkeep.core.identity import BUILT_IN, identify
from imgkeep.core.policy import judge
from imgkeep.core.rewrite import resolve_link as resolve
from imgkeep.core.signing import signed_path
from imgkeep.core.source_url import own_path, read_img_query, read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from imgkeep.core.identity import ProviderRules
    from imgkeep.core.policy import Policy
    from imgkeep.core.records import Source
    from imgkeep.core.rewrite.pictures import Pictures
    from imgkeep.core.source_url import Parameters

Linker: TypeAlias = "Callable[[str], str | None]"
"""A function from an absolute http(s) URL without fragment to the link to write; `None`: the link stays."""

Choice: TypeAlias = "Callable[[Source], bool]"
"""A function that decides whether to rewrite a link."""

IMG: Final = "/img?"
OWN_PATHS: Final = (IMG, "/images/")
"""Prefixes of imgkeep's own links without a server."""

ADDED_CHARS_MAX: Final = 1 << 20
"""
Maximum length of the attributes that a page gets; behind them only links change. A thousand images with eight widths
each take as much, while a page of a megabyte could hold eighty thousand.
"""

_UNREADABLE: Final = re.compile(r"[\ud800-\udfff]")
"""Bytes that the page's encoding cannot decode."""

_ILLEGAL: Final = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+")


def every(_: Source) -> bool:
    """Choose all links."""
    return True


@dataclass(frozen=True, slots=True)
class Temporary:
    """The default choice: links that expire by the provider rules. `now` is the present time."""

    now: datetime
    provider_rules: ProviderRules = BUILT_IN

    def __call__(self, source: Source) -> bool:
        return identify(source, self.now, self.provider_rules).temporary


class Hosts:
    """
    A choice of links by host globs, as in `sources.allow`.

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
    A linker that writes `/img?src=` for the chosen links.

    Attributes:
        chosen: The choice of links.
        public_url: Prefix of imgkeep's paths, as `server.public_url`; empty: none, for pages on the same server.
        key: The first of `security.signing_keys`, if any: the linker signs links, without an expiry.
        policy: The policy of imgkeep, if known; links that it refuses stay.
        pictures: Settings for derived pictures; `None`: all links are to originals.

    Raises:
        SourceRejected: `public_url` is neither empty nor an http(s) URL.
    """

    chosen: Choice
    public_url: str = ""
    key: str | None = field(default=None, repr=False)
    policy: Policy | None = None
    pictures: Pictures | None = None
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
        return self.link(url)

    def link(self, url: str, options: Parameters = ()) -> str:
        """Return the link to a picture of any URL, or to the original."""
        if self.key is not None:
            path = signed_path(self.key, url, options=options)
        else:
            given = "".join(f"&{name}={quote(value, safe='')}" for name, value in options)
            path = f"/img?src={quote(url, safe='')}{given}"
        return self.public_url.rstrip("/") + path


@dataclass(frozen=True, slots=True)
class SourceLinks:
    """
    A linker that undoes `ImgLinks`: it writes the source URLs in imgkeep's own links, signed or not.

    Attributes:
        public_url: Prefix of imgkeep's paths; links that begin with the path itself are imgkeep's own, too.

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


class PictureLinker(NamedTuple):
    """
    A writer of links to derived pictures.

    Attributes:
        pictures: The settings.
        link: Returns the link to a picture of a URL that was chosen, or to its original.
    """

    pictures: Pictures
    link: Callable[[str, Parameters], str]


def picture_linker(linker: Linker) -> PictureLinker | None:
    """Return what writes the links to derived pictures; `None`: the linker writes none."""
    if isinstance(linker, ImgLinks):
        return None if linker.pictures is None else PictureLinker(linker.pictures, linker.link)
    return getattr(linker, "picture_linker", None)


def undoes(linker: Linker) -> bool:
    """Return whether a linker also decides about imgkeep's own links, unresolved."""
    return bool(getattr(linker, "undoes", False))


class Page:
    """
    The context of the links in one page.

    Args:
        linker: Decides about each link.
        url: URL of the page, if known.
        query_codec: Encoding of the page, if it is not UTF-8.
    """

    def __init__(self, linker: Linker, url: str | None = None, query_codec: str | None = None) -> None:
        self._linker = linker
        self._url = None if url is None else resolve.read(resolve.trimmed(url), None)
        self._base = self._url
        self.query_codec = query_codec
        self._base_is_told = False
        self._pictures = picture_linker(linker)
        self._chars_left = ADDED_CHARS_MAX

    @property
    def undoes(self) -> bool:
        """Return whether source URLs are put back."""
        return undoes(self._linker)

    @property
    def has_pictures(self) -> bool:
        """Return whether links to images get options, or elements attributes."""
        return self._pictures is not None

    def note_base(self, text: str) -> None:
        """Set the base URL by the first `<base href>`, and ignore any other."""
        if not self._base_is_told:
            self._base_is_told = True
            self._base = resolve.read_base(text, self._url)

    def replacement(self, text: str, *, is_picture: bool = False) -> str | None:
        """
        Return the new link in printable ASCII; `None`: the link stays.

        Args:
            text: The link as it stands in the page.
            is_picture: Whether it is that of an `<img>`, so it gets the options of derived pictures.
        """
        trimmed = resolve.trimmed(text)
        if undoes(self._linker):
            return self._written(text, trimmed if trimmed.startswith(IMG) else resolve.resolve(text, self._base))
        url = self._readable(text, trimmed)
        return self._written(text, url, is_picture=is_picture)

    def attributes(self, text: str, given: Callable[[str], str | None]) -> Iterator[tuple[str, str]]:
        """Yield attributes for an `<img>` whose link, `text`, was rewritten, and their values in printable ASCII."""
        url = self._readable(text, resolve.trimmed(text))
        if self._pictures is None or url is None or "#" in url or self._chars_left <= 0:
            return
        settings, link = self._pictures
        for name, value in settings.attributes(
            self._in_query_codec(url), given, lambda url, options: _encode_illegal(link(url, options))
        ):
            self._chars_left -= len(name) + len(value)
            yield name, value

    def _readable(self, text: str, trimmed: str) -> str | None:
        """Return the absolute URL of a link that is none of imgkeep's own; `None`: there is none."""
        if trimmed.startswith(OWN_PATHS):
            return None
        url = resolve.resolve(text, self._base)
        return None if url is None or self._is_ours(url) else url

    def _in_query_codec(self, url: str) -> str:
        return url if self.query_codec is None or url.isascii() else resolve.with_query_in(url, self.query_codec)

    def _written(self, text: str, url: str | None, *, is_picture: bool = False) -> str | None:
        if url is None or _UNREADABLE.search(url):
            return None
        address, mark, fragment = self._in_query_codec(url).partition("#")
        made = self._linker(address)
        if made is not None and is_picture and self._pictures is not None:
            settings, link = self._pictures
            options = settings.link_options_of(address)
            made = link(address, options) if options else made
        if made is None:
            return None
        try:
            written = _encode_illegal(made + mark + fragment)
        except UnicodeEncodeError:
            return None
        return None if written == text else written

    def _is_ours(self, url: str) -> bool:
        if self._url is None:
            return False
        origin = f"{self._url.scheme}://{self._url.authority}"
        return url.startswith(tuple(origin + path for path in OWN_PATHS))


def _encode_illegal(link: str) -> str:
    """Percent-encode what a link must not contain. Raises: UnicodeEncodeError."""
    return _ILLEGAL.sub(lambda found: quote(found[0], safe=""), link)

"""Which links in pages of a site are rewritten, as its developers configure it, and to what."""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, Literal, Required, TypeAlias, TypedDict

from proxy.core.errors import SourceRejected
from proxy.core.identity import BUILT_IN, read_catalogue
from proxy.core.rewrite import Hosts, ImgLinks, Temporary, rewrite_html
from proxy.core.rewrite.links import Page
from proxy.core.signing import KEY_CHARS_MIN
from proxy.core.source import read_base, read_source
from proxy.sites.saver import saver_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from proxy.core.model import Source
    from proxy.core.rewrite import Choice
    from proxy.sites.saver import Saver

Which: TypeAlias = "Literal['temporary', 'all'] | Sequence[str] | Callable[[Source], bool]"

log = logging.getLogger(__name__)

PATH_SAFE: Final = "/:;=,@!$&'()*+~"
"""What stands for itself in a path (RFC 3986, 3.3)."""

FRAGMENT_STEPS_MAX: Final = 16_384
"""
For HTML that a template filter rewrites (`proxy/core/rewrite/budget.py`): a filter cannot let others have their turn.
A megabyte of what people write takes fewer; what is made to be slow is read for some hundredths of a second, and the
rest of it stays.
"""

_WORDS: Final = ("temporary", "all")


class Options(TypedDict, total=False):
    """
    What can be said about a site; the same everywhere.

    Attributes:
        public_url: Where browsers reach imgkeep; empty: on the site's own server.
        which: Links that die (`temporary`, the default), `all` that lead to other hosts, those of a list of host globs,
            or those of which a function says so.
        signing_key: The first of imgkeep's `security.signing_keys`, if it has any.
        providers: As `[[sources.providers]]` of imgkeep, for links that only you know to be temporary.
        site_url: Scheme and host of the site, where its server does not know them.
        save: Where the application reaches imgkeep; links are handed there to be saved as they are rewritten.
        token: One of imgkeep's `security.api_tokens`, for `save`.
    """

    public_url: Required[str]
    which: Which
    signing_key: str | None
    providers: Sequence[Mapping[str, object]]
    site_url: str
    save: str | None
    token: str | None


class SiteLinks:
    """
    The links of a site; see `Options`.

    Raises:
        ValueError: An option cannot be honoured; the message names it.
    """

    def __init__(  # noqa: PLR0913 - they are `Options`
        self,
        *,
        public_url: str,
        which: Which = "temporary",
        signing_key: str | None = None,
        providers: Sequence[Mapping[str, object]] = (),
        site_url: str = "",
        save: str | None = None,
        token: str | None = None,
    ) -> None:
        _check_url("public_url", public_url)
        _check_url("site_url", site_url)
        if signing_key is not None and len(signing_key) < KEY_CHARS_MIN:
            raise ValueError(f"signing_key: has to have {KEY_CHARS_MIN} characters or more")
        if token is not None and save is None:
            raise ValueError("token: is for save, and there is none")
        self._public_url, self._key = public_url, signing_key
        self._which: Choice | Literal["temporary", "all"] = _read_which(which)
        self._catalogue = read_catalogue(providers) if providers else BUILT_IN
        self._saver = saver_for(save, token) if save is not None else None
        self.site_url = site_url.rstrip("/")

    def of_page(self, url: str | None) -> PageLinks:
        """Return the linker of one page; `url` is its own."""
        links = ImgLinks(self._choice(url), self._public_url, self._key)
        return PageLinks(links, url, self._saver)

    def page_url(self, scheme: str, host: str, path: str, query: str = "") -> str | None:
        """Return the URL of a page from what its request says, all quoted; `None`: nobody knows its host."""
        target = f"{path or '/'}?{query}" if query else path or "/"
        if self.site_url:
            return f"{self.site_url}{target}"
        return f"{scheme}://{host}{target}" if host else None

    def rewrite(self, html: str) -> str:
        """Return HTML with its links rewritten."""
        links = self.of_page(self.site_url or None)
        try:
            return rewrite_html(html, links, url=links.url, steps_max=FRAGMENT_STEPS_MAX)
        except Exception as error:  # noqa: BLE001 - the page goes on
            tell("HTML stays as it is", error)
            return html

    def img_url(self, url: str) -> str:
        """Return what to write in the place of a link; the link itself if it is not chosen."""
        links = self.of_page(self.site_url or None)
        return Page(links, links.url).replacement(url) or url

    def _choice(self, url: str | None) -> Choice:
        if self._which == "temporary":
            # Until when "in ten years" reaches is judged anew for each page.
            return Temporary(datetime.now(UTC), self._catalogue)  # noqa: TID251 - there is no app.py to ask
        return _ElsewhereThan(url) if self._which == "all" else self._which


class PageLinks:
    """
    The linker of one page.

    Attributes:
        url: The page's.
        count: How many links it has rewritten.
    """

    def __init__(self, links: ImgLinks, url: str | None, saver: Saver | None) -> None:
        self._links, self._saver = links, saver
        self._has_told = False
        self.url = url
        self.count = 0

    def __call__(self, url: str) -> str | None:
        try:
            made = self._links(url)
        except Exception as error:  # noqa: BLE001 - a choice is somebody else's code, and the page goes on
            if not self._has_told:
                self._has_told = True
                tell("a link stays as it is", error)
            return None
        if made is not None:
            self.count += 1
            if self._saver is not None:
                self._saver.note(url)
        return made


class _ElsewhereThan:
    """Chooses all links but those to the site itself, which serves them as long as it serves the page."""

    def __init__(self, url: str | None) -> None:
        own = None
        if url is not None:
            try:
                own = read_source(url)
            except SourceRejected:
                own = None
        self._own = None if own is None else (own.host, own.port)

    def __call__(self, source: Source) -> bool:
        return (source.host, source.port) != self._own


def tell(message: str, error: Exception) -> None:
    """Log where something went wrong. What exceptions say is not told: it may hold a link."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    log.warning("%s: %s at %s:%s", message, type(error).__name__, PurePath(frame.filename).name, frame.lineno)


def _check_url(name: str, url: str) -> None:
    try:
        if url:
            read_base(url)
    except SourceRejected as error:
        raise ValueError(f"{name}: {error}".replace("the source URL", "it")) from None


def _read_which(which: Which) -> Choice | Literal["temporary", "all"]:
    if isinstance(which, str):
        if which in _WORDS:
            return which  # type: ignore[return-value] # mypy does not narrow by membership
        raise ValueError("which: is temporary, all, a list of host globs, or a function")
    if callable(which):
        return which
    try:
        return Hosts(*which)
    except ValueError as error:
        raise ValueError(f"which: {error}") from None

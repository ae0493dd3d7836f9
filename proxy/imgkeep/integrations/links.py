"""The rewriter of links in the pages of a site, configured by its developers."""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, Literal, Required, TypeAlias, TypedDict

from imgkeep.core.derived.derive_policy import DEFAULT_WIDTHS
from imgkeep.core.errors import SourceRejected
from imgkeep.core.identity import BUILT_IN, read_provider_rules
from imgkeep.core.policy import PORTS
from imgkeep.core.rewrite import Hosts, ImgLinks, PictureSettings, Temporary, every, rewrite_html
from imgkeep.core.rewrite.links import Page, picture_linker
from imgkeep.core.signing import KEY_CHARS_MIN
from imgkeep.core.source_url import read_base, read_source
from imgkeep.integrations.policy import ANY, KNOWN, PolicyClient, Rules, make_policy
from imgkeep.integrations.save_client import saver_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgkeep.core.records import Source
    from imgkeep.core.rewrite import Choice, Linker, Pictures
    from imgkeep.integrations.save_client import Saver

Which: TypeAlias = "Literal['temporary', 'all'] | Sequence[str] | Callable[[Source], bool]"
Allow: TypeAlias = "Sequence[str] | Literal['ask'] | None"

log = logging.getLogger(__name__)

PATH_SAFE: Final = "/:;=,@!$&'()*+~"
"""Characters that need no escape in a path (RFC 3986, 3.3)."""

FRAGMENT_STEPS_MAX: Final = 16_384
"""
Maximum number of steps (`core/rewrite/budget.py`) for HTML in a template filter, which cannot let other tasks run. A
megabyte of ordinary HTML takes fewer; of HTML that is crafted to be slow, the rest stays after some hundredths of a
second.
"""

_WORDS: Final = ("temporary", "all")
_REWRITERS_MAX: Final = 64
"""Maximum number of rewriters that `img_url` caches. An application has one site, or one for each of its customers."""


class PictureDict(TypedDict, total=False):
    """
    Settings for derived pictures in pages; each is off by default.

    Attributes:
        rules: Options for the links of all `<img>`, as `preset=thumb`; or by patterns of hosts and paths, as in
            `sources.allow`, of which the first that matches counts.
        widths: `auto`, or widths in device pixels: an `<img>` without `srcset` gets one.
        sizes: The `sizes` of such a `srcset`; without, it is made for an `<img>` with a `width` alone.
        lazy: Whether an `<img>` without `loading` gets `loading="lazy"`.
    """

    rules: str | Mapping[str, str]
    widths: Literal["auto"] | Sequence[int]
    sizes: str
    lazy: bool


class Options(TypedDict, total=False):
    """
    The options of every integration.

    Attributes:
        public_url: URL at which browsers reach imgkeep; empty: the site's own server.
        which: Links that expire (`temporary`, the default), `all` that lead to other hosts, those of a list of host
            globs, or those of which a function says so.
        allow: Patterns of `sources.allow` in imgkeep, or `ask`: imgkeep is asked for its policy. A link that imgkeep
            would refuse stays. `None`: with `signing_key` all; else the `known` hosts and those in `which`.
        deny: Patterns of `sources.deny` in imgkeep.
        allow_ports, allow_networks: As imgkeep's `fetch.allow_ports` and `fetch.allow_networks`.
        signing_key: The first of imgkeep's `security.signing_keys`, if it has any.
        providers: `[[sources.providers]]` of imgkeep, for temporary links of your own.
        site_url: Scheme and host of the site, if its server does not know them.
        save: URL at which the application reaches imgkeep, to save the links of each rewritten page.
        token: One of imgkeep's `security.api_tokens`, for `save` and for `allow="ask"`.
        pictures: Derived pictures; see `PictureDict`. `None`: links are to originals, and nothing but links changes.
    """

    public_url: Required[str]
    which: Which
    allow: Allow
    deny: Sequence[str]
    allow_ports: Sequence[int]
    allow_networks: Sequence[str]
    signing_key: str | None
    providers: Sequence[Mapping[str, object]]
    site_url: str
    save: str | None
    token: str | None
    pictures: PictureDict | None


class LinkRewriter:
    """
    The rewriter of the links of a site; see `Options`.

    Raises:
        ValueError: An option is invalid; the message names it.
    """

    def __init__(  # noqa: PLR0913 - they are `Options`
        self,
        *,
        public_url: str,
        which: Which = "temporary",
        allow: Allow = None,
        deny: Sequence[str] = (),
        allow_ports: Sequence[int] = PORTS,
        allow_networks: Sequence[str] = (),
        signing_key: str | None = None,
        providers: Sequence[Mapping[str, object]] = (),
        site_url: str = "",
        save: str | None = None,
        token: str | None = None,
        pictures: PictureDict | None = None,
    ) -> None:
        _check_url("public_url", public_url)
        _check_url("site_url", site_url)
        if signing_key is not None and len(signing_key) < KEY_CHARS_MIN:
            raise ValueError(f"signing_key: has to have {KEY_CHARS_MIN} characters or more")
        if token is not None and save is None and allow != "ask":
            raise ValueError('token: is for save and for allow="ask", and there is neither')
        self._public_url, self._key = public_url, signing_key
        self._pictures = _read_pictures(pictures)
        self._which: Choice | Literal["temporary", "all"] = _read_which(which)
        self._provider_rules = read_provider_rules(providers) if providers else BUILT_IN
        patterns = self._allowed(which) if allow is None or allow == "ask" else allow
        policy = make_policy(patterns, deny, self._provider_rules, ports=allow_ports, networks=allow_networks)
        self._rules: Rules | PolicyClient = Rules(policy)
        if allow == "ask":
            if token is None:
                raise ValueError('allow: "ask" needs a token')
            self._rules = PolicyClient(save or public_url, token, self._provider_rules, self._rules)
        self._saver = saver_for(save, token) if save is not None else None
        self.site_url = site_url.rstrip("/")

    def of_page(self, url: str | None) -> PageLinks:
        """Return the linker of one page; `url` is the URL of the page."""
        rules = self._rules.current if isinstance(self._rules, PolicyClient) else self._rules
        if rules is None or (rules.needs_key and self._key is None):
            return PageLinks(_leave, url, None)
        pictures = self._pictures
        if pictures is not None and pictures.fits and rules.ladder:
            pictures = pictures.with_widths(rules.ladder)
        links = ImgLinks(self._choice(url), self._public_url, self._key, rules.policy, pictures)
        return PageLinks(links, url, self._saver)

    def page_url(self, scheme: str, host: str, path: str, query: str = "") -> str | None:
        """Return the URL of a page from the quoted parts of its request; `None`: the host is unknown."""
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
            log_fault("HTML not rewritten", error)
            return html

    def img_url(self, url: str, options: str = "") -> str:
        """
        Return the new link for any link; the same link if it is none to an image.

        Args:
            url: The link.
            options: Options of a derived picture, as `w=400&format=auto` or `preset=thumb`.

        Raises:
            ValueError: An option is malformed.
        """
        links = ImgLinks(every, self._public_url, self._key, None, _pictures_of(options))
        page = PageLinks(links, self.site_url or None, self._saver)
        return Page(page, page.url).replacement(url, is_picture=True) or url

    def _allowed(self, which: Which) -> Sequence[str]:
        """Return the default of `allow`: an imgkeep that requires signatures fetches from any host by default."""
        named = () if isinstance(which, str) or callable(which) else tuple(which)
        return ANY if self._key is not None else (*KNOWN, *named)

    def _choice(self, url: str | None) -> Choice:
        if self._which == "temporary":
            # Each page has its own present time, from which the ten years of a permanent link count.
            return Temporary(datetime.now(UTC), self._provider_rules)  # noqa: TID251 - there is no app.py to ask
        return _OtherHosts(url) if self._which == "all" else self._which


class PageLinks:
    """
    The linker of one page.

    Attributes:
        url: URL of the page.
        count: Number of rewritten links.
    """

    def __init__(self, links: Linker, url: str | None, saver: Saver | None) -> None:
        self._links, self._saver = links, saver
        self.picture_linker = picture_linker(links)
        self._has_told = False
        self.url = url
        self.count = 0

    def __call__(self, url: str) -> str | None:
        try:
            made = self._links(url)
        except Exception as error:  # noqa: BLE001 - a choice is the application's code, and the page goes on
            if not self._has_told:
                self._has_told = True
                log_fault("link not rewritten", error)
            return None
        if made is not None:
            self.count += 1
            if self._saver is not None:
                self._saver.note(url)
        return made


def img_url(
    url: str, options: str = "", *, public_url: str = "", signing_key: str | None = None, site_url: str = ""
) -> str:
    """
    Return imgkeep's link for any link to an image.

    These links stay: imgkeep's own, `data:` and other schemes, relative links without `site_url`, malformed links and
    links with a password.

    Args:
        url: The link.
        options: Options of a derived picture, as `w=400&format=auto` or `preset=thumb`.
        public_url: URL at which browsers reach imgkeep; empty: the server of the page.
        signing_key: The first of imgkeep's `security.signing_keys`, if it has any.
        site_url: Base URL of relative links.

    Raises:
        ValueError: An option is invalid; the message names it.
    """
    return _rewriter(public_url, signing_key, site_url).img_url(url, options) if url else url


@lru_cache(_REWRITERS_MAX)
def _rewriter(public_url: str, signing_key: str | None, site_url: str) -> LinkRewriter:
    return LinkRewriter(public_url=public_url, signing_key=signing_key, site_url=site_url, allow=ANY)


def _leave(_: str) -> None:
    """Return `None` for every link: it stays."""


class _OtherHosts:
    """The choice of all links but those to the site itself, which serves them as long as it serves the page."""

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


def log_fault(message: str, error: Exception) -> None:
    """Log the place of a fault, without the message of the exception, which may contain a link."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    log.warning("%s: %s at %s:%s", message, type(error).__name__, PurePath(frame.filename).name, frame.lineno)


def _check_url(name: str, url: str) -> None:
    try:
        if url:
            read_base(url)
    except SourceRejected as error:
        raise ValueError(f"{name}: {error}".replace("the source URL", "it")) from None


@lru_cache(_REWRITERS_MAX)
def _pictures_of(options: str) -> Pictures | None:
    return PictureSettings(options).read(DEFAULT_WIDTHS)


def _read_pictures(given: PictureDict | None) -> Pictures | None:
    if given is None:
        return None
    unknown = sorted(set(given) - {"rules", "widths", "sizes", "lazy"})
    if unknown:
        raise ValueError(f"pictures: {unknown[0]} is unknown; there are rules, widths, sizes and lazy")
    settings = PictureSettings(
        given.get("rules", ""), given.get("widths"), given.get("sizes", ""), is_lazy=given.get("lazy", False)
    )
    try:
        return settings.read(DEFAULT_WIDTHS)
    except ValueError as error:
        raise ValueError(f"pictures: {error}") from None


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

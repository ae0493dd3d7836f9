"""
Pages and texts whose links to images are made to lead through us: for the API and for the command line.

Rules:
- Bytes in, bytes out, and nothing changes but links (`core/rewrite`).
- Links that policy refuses stay, and so do links that lead to what is kept: under our public URL, and to the objects
  of a public bucket.
- It takes processor time in proportion to the length, and the interpreter has one processor. So a server has it done in
  threads, which give way to the event loop after a fraction of a millisecond, and long documents come one at a time.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from imgkeep.core.errors import Busy, InvalidRequest, SourceRejected
from imgkeep.core.rewrite import Hosts, HtmlStream, ImgLinks, every, rewrite_markdown
from imgkeep.core.rewrite.commonmark import TooManySteps
from imgkeep.core.rewrite.links import undoes
from imgkeep.core.rewrite.markdown import MARKDOWN_CHARS_MAX
from imgkeep.core.source_url import own_path, read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgkeep.core.records import Source
    from imgkeep.core.rewrite import Choice, Linker
    from imgkeep.images.inspect import Inspector

DocumentFormat: TypeAlias = Literal["html", "markdown"]

Which: TypeAlias = Literal["temporary", "all"] | tuple[str, ...]
"""Links that die, all links, or those of these hosts, in globs as in `sources.allow`."""

MARKDOWN_BYTES_MAX: Final = MARKDOWN_CHARS_MAX
"""Longer texts would stay as they are, and nobody would know why."""
GLOBS_MAX: Final = 100
PIECE_BYTES: Final = 65_536
"""A page is read so much at a time: no step keeps the interpreter to itself for long."""
SHORT_BYTES: Final = 65_536
"""What takes some milliseconds does not wait for what takes seconds."""
THREADS: Final = 2
WAITING_MAX: Final = 64
"""Documents that are being rewritten or wait for it; short ones take a tenth of a second at most."""

_ENDINGS: Final[Mapping[str, DocumentFormat]] = {
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".markdown": "markdown",
}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """
    A document as it is now.

    Attributes:
        links: Those that were rewritten, as absolute URLs, in order: credentials.
    """

    document: bytes = field(repr=False)
    links: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LinkSelection:
    """
    Says which links become ours here, and how they are written.

    Attributes:
        key: The first of `security.signing_keys`, if there are any.
        objects: Where clients find objects without us, if they do.
    """

    inspector: Inspector
    key: str | None = field(repr=False)
    objects: Source | None = None

    def linker(self, which: Which, base: str) -> ImgLinks:
        """
        Return what rewrites these links; `base` stands before our paths.

        Raises:
            InvalidRequest: A glob can match no host.
        """
        chosen = self._choose(which)
        return ImgLinks(
            lambda source: not self._leads_to_object(source) and chosen(source), base, self.key, self.inspector.policy
        )

    def _choose(self, which: Which) -> Choice:
        if which == "all":
            return every
        if which == "temporary":
            return lambda source: self.inspector.identify(source).temporary
        if not 1 <= len(which) <= GLOBS_MAX:
            raise InvalidRequest(f"which has to hold 1 to {GLOBS_MAX} host globs")
        try:
            return Hosts(*which)
        except ValueError as error:
            raise InvalidRequest(f"which: {error}") from None

    def _leads_to_object(self, source: Source) -> bool:
        return self.objects is not None and own_path(source, self.objects) is not None


def document_format_of(name: str) -> DocumentFormat | None:
    """Return what a file holds, by the end of its name; `None`: nothing that can be rewritten."""
    return next((form for ending, form in _ENDINGS.items() if name.lower().endswith(ending)), None)


def check_page_url(url: str) -> None:
    """
    Check the URL that relative links of a page are resolved against.

    Raises:
        InvalidRequest: It is none.
    """
    try:
        read_source(url)
    except SourceRejected:
        raise InvalidRequest("url has to be the page's own absolute http(s) URL") from None


def rewrite(
    document: bytes | bytearray,
    form: DocumentFormat,
    linker: Linker,
    *,
    url: str | None = None,
    charset: str | None = None,
) -> Rewritten:
    """
    Rewrite a document.

    Args:
        document: Whatever bytes there are.
        form: As what they are read.
        linker: Decides about each link.
        url: The page's own, if it is known: relative links are resolved against it.
        charset: As the document's media type tells it, if it does.

    Raises:
        InvalidRequest: Markdown is too long, or takes too much work.
    """
    noting = _Noting(linker, undoes(linker))
    links = noting.links
    if form == "markdown":
        if len(document) > MARKDOWN_BYTES_MAX:
            raise InvalidRequest(f"Markdown of more than {MARKDOWN_BYTES_MAX} bytes is not rewritten")
        try:
            made = rewrite_markdown(bytes(document), noting, url=url, charset=charset, insists=True)
        except TooManySteps:
            raise InvalidRequest(
                "the Markdown takes more work than its length allows: brackets, quotations or lists are too deep"
            ) from None
    else:
        stream = HtmlStream(noting, url=url, charset=charset)
        view = memoryview(document)
        pieces = [stream.feed(bytes(view[at : at + PIECE_BYTES])) for at in range(0, len(document), PIECE_BYTES)]
        made = b"".join((*pieces, stream.close()))
    return Rewritten(made, tuple(links) if made != document else ())


@dataclass(frozen=True, slots=True)
class _Noting:
    """A linker that remembers which links another one has rewritten."""

    linker: Linker
    undoes: bool
    links: list[str] = field(default_factory=list)

    def __call__(self, link: str) -> str | None:
        made = self.linker(link)
        if made is not None:
            self.links.append(link)
        return made


class RewriteService:
    """
    Has documents rewritten away from the event loop, few at a time. One per process.

    Args:
        counted: Is told the form of each document, and how many links were rewritten.
    """

    def __init__(self, counted: Callable[[str, int], None]) -> None:
        self._counted = counted
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="rewriting")
        self._turn = asyncio.Semaphore()
        self._waiting = 0

    async def rewrite(
        self, document: bytes | bytearray, form: DocumentFormat, linker: Linker, *, url: str | None, charset: str | None
    ) -> Rewritten:
        """
        Rewrite a document, as the function of this name does.

        Raises:
            InvalidRequest: Markdown is too long, or takes too much work.
            Busy: Too many documents wait.
        """
        if self._waiting >= WAITING_MAX:
            raise Busy("too many documents are being rewritten", retry_after_s=2)
        self._waiting += 1
        try:
            async with AsyncExitStack() as stack:
                if len(document) > SHORT_BYTES:
                    await stack.enter_async_context(self._turn)
                rewritten = await asyncio.get_running_loop().run_in_executor(
                    self._threads, lambda: rewrite(document, form, linker, url=url, charset=charset)
                )
        finally:
            self._waiting -= 1
        self._counted(form, len(rewritten.links))
        return rewritten

    def close(self) -> None:
        """Let go of the threads; what they are at they end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

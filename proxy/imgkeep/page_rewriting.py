"""
Rewriting of the image links in HTML and Markdown documents into links of imgkeep: for the API and for the command line.

Rules:
- Bytes in, bytes out, and nothing changes but links (`core/rewrite`).
- Links that the policy refuses stay, and so do links to stored images: under the public URL of this server, and to the
  objects of a public bucket.
- Rewriting takes processor time in proportion to the length, and the interpreter has one processor. So a server
  rewrites in threads that yield to the event loop after a fraction of a millisecond, and long documents one at a time.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from imgkeep.core.errors import Busy, InvalidOption, InvalidRequest, OptionsForbidden, SourceRejected
from imgkeep.core.records import Format, PixelSize
from imgkeep.core.rewrite import Hosts, HtmlStream, ImgLinks, every, rewrite_markdown
from imgkeep.core.rewrite.commonmark import TooManySteps
from imgkeep.core.rewrite.links import picture_linker, undoes
from imgkeep.core.rewrite.markdown import MARKDOWN_CHARS_MAX
from imgkeep.core.source_url import own_path, read_source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from imgkeep.core.derived.derive_policy import DerivePolicy
    from imgkeep.core.records import Key, Record, Source
    from imgkeep.core.rewrite import Choice, Linker, Pictures, PictureSettings
    from imgkeep.core.rewrite.links import PictureLinker
    from imgkeep.images.inspect import Inspector

DocumentFormat: TypeAlias = Literal["html", "markdown"]

LinkChoice: TypeAlias = Literal["temporary", "all"] | tuple[str, ...]
"""Temporary links, all links, or the links of these hosts, in globs as in `sources.allow`."""

MARKDOWN_BYTES_MAX: Final = MARKDOWN_CHARS_MAX
"""Maximum size of a Markdown document: a longer one would stay as it is, and its author would not know why."""
GLOBS_MAX: Final = 100
CHUNK_BYTES: Final = 65_536
"""Number of bytes of a page that are read at a time: no step holds the interpreter for long."""
SHORT_DOCUMENT_BYTES_MAX: Final = 65_536
"""Maximum size of a document that takes some milliseconds, and does not wait for those that take seconds."""
THREADS: Final = 2
DOCUMENTS_MAX: Final = 64
"""Maximum number of documents that are being rewritten or wait; short ones take a tenth of a second at most."""

_ENDINGS: Final[Mapping[str, DocumentFormat]] = {
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".markdown": "markdown",
}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """
    A rewritten document.

    Attributes:
        document: Its bytes.
        links: The links that were rewritten, as absolute URLs, in order: credentials.
    """

    document: bytes = field(repr=False)
    links: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LinkSelection:
    """
    The links that are rewritten here, and how.

    Attributes:
        inspector: Tells what a link is.
        key: The first of `security.signing_keys`, if there are any.
        derive_policy: Which derived pictures clients may ask for.
        objects: The base URL of a public bucket, if there is one.
    """

    inspector: Inspector
    key: str | None = field(repr=False)
    derive_policy: DerivePolicy
    objects: Source | None = None

    def linker(self, which: LinkChoice, base: str, pictures: Pictures | None = None) -> ImgLinks:
        """
        Return the function that rewrites the chosen links; `base` stands before the paths of this server.

        Raises:
            InvalidRequest: A glob can match no host.
        """
        chosen = self._choose(which)
        return ImgLinks(
            lambda source: not self._leads_to_object(source) and chosen(source),
            base,
            self.key,
            self.inspector.policy,
            pictures,
        )

    def read_pictures(
        self, settings: PictureSettings, sizes_of_images: Callable[[str], PixelSize | None] | None = None
    ) -> Pictures | None:
        """
        Read settings for derived pictures; `None`: they ask for nothing.

        Raises:
            InvalidRequest: A setting is malformed, or the server would refuse pictures that it asks for.
        """
        policy = self.derive_policy
        try:
            pictures = settings.read(policy.widths, policy.presets, sizes_of_images)
            for options in () if pictures is None else pictures.examples():
                policy.require(options, is_signed=self.key is not None)
        except ValueError as error:
            raise InvalidRequest(re.sub("^rules:", "pictures:", str(error))) from None
        except (InvalidOption, OptionsForbidden) as error:
            raise InvalidRequest(f"pictures: {error}") from None
        return pictures

    def _choose(self, which: LinkChoice) -> Choice:
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


LINKS_AT_A_TIME: Final = 16
"""Number of links that are identified before other tasks run: identifying one takes a tenth of a millisecond."""
_UPRIGHT: Final = frozenset({Format.PNG, Format.APNG, Format.GIF, Format.BMP})
"""Formats whose headers state the size at which people see an image: no orientation turns it."""


def shown_size(record: Record) -> PixelSize | None:
    """Return the size at which browsers show an image; `None`: unknown."""
    if record.picture is not None:
        return PixelSize(record.picture.width, record.picture.height)
    return record.pixel_size if record.format in _UPRIGHT else None


async def find_sizes(
    links: Iterable[str],
    inspector: Inspector,
    find_all: Callable[[Collection[Key]], Awaitable[Mapping[Key, Record]]],
    add_facts: Callable[[Sequence[Record]], Awaitable[Sequence[Record]]],
) -> dict[str, PixelSize]:
    """
    Return the sizes at which browsers show the stored images behind links.

    Args:
        links: Links that were rewritten.
        inspector: Tells what a link is.
        find_all: Returns those of the records that are known.
        add_facts: Returns records with the facts of their pictures, where these are known.

    Raises:
        StorageError: The image index cannot be read.
    """
    keys: dict[str, Key] = {}
    for number, link in enumerate(dict.fromkeys(links)):
        keys[link] = inspector.identify(read_source(link)).key
        if number % LINKS_AT_A_TIME == 0:
            await asyncio.sleep(0)
    records = await find_all(frozenset(keys.values()))
    sizes = {record.key: shown_size(record) for record in await add_facts(list(records.values()))}
    return {link: size for link, key in keys.items() if (size := sizes.get(key)) is not None}


def document_format_of(name: str) -> DocumentFormat | None:
    """Return the format of a file, by the end of its name; `None`: it cannot be rewritten."""
    return next((form for ending, form in _ENDINGS.items() if name.lower().endswith(ending)), None)


def check_page_url(url: str) -> None:
    """
    Check the URL that relative links of a page are resolved against.

    Raises:
        InvalidRequest: It is not an absolute http(s) URL.
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
        document: Its bytes.
        form: Its format.
        linker: Decides about each link.
        url: The URL of the page, if it is known: relative links are resolved against it.
        charset: The character set that the document's media type names, if it does.

    Raises:
        InvalidRequest: Markdown is too long, or takes too many steps.
    """
    recorder = _RecordingLinker(linker, undoes(linker))
    links = recorder.links
    if form == "markdown":
        if len(document) > MARKDOWN_BYTES_MAX:
            raise InvalidRequest(f"Markdown of more than {MARKDOWN_BYTES_MAX} bytes is not rewritten")
        try:
            made = rewrite_markdown(bytes(document), recorder, url=url, charset=charset, insists=True)
        except TooManySteps:
            raise InvalidRequest(
                "the Markdown takes more steps than its length allows: brackets, quotations or lists are too deep"
            ) from None
    else:
        stream = HtmlStream(recorder, url=url, charset=charset)
        view = memoryview(document)
        pieces = [stream.feed(bytes(view[at : at + CHUNK_BYTES])) for at in range(0, len(document), CHUNK_BYTES)]
        made = b"".join((*pieces, stream.close()))
    return Rewritten(made, tuple(links) if made != document else ())


@dataclass(frozen=True, slots=True)
class _RecordingLinker:
    """A linker that records the links that another one rewrites."""

    linker: Linker
    undoes: bool
    links: list[str] = field(default_factory=list)

    @property
    def picture_linker(self) -> PictureLinker | None:
        return picture_linker(self.linker)

    def __call__(self, link: str) -> str | None:
        made = self.linker(link)
        if made is not None:
            self.links.append(link)
        return made


class RewriteService:
    """
    Rewrites documents in threads, few at a time. One per process.

    Args:
        counted: Is called with the format of each document and the number of rewritten links.
    """

    def __init__(self, counted: Callable[[str, int], None]) -> None:
        self._counted = counted
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="rewriting")
        self._long_document = asyncio.Semaphore()
        self._waiting = 0

    async def rewrite(
        self, document: bytes | bytearray, form: DocumentFormat, linker: Linker, *, url: str | None, charset: str | None
    ) -> Rewritten:
        """
        Rewrite a document, as the function `rewrite` does, and count its links.

        Raises:
            InvalidRequest: Markdown is too long, or takes too many steps.
            Busy: Too many documents wait.
        """
        rewritten = await self.try_out(document, form, linker, url=url, charset=charset)
        self._counted(form, len(rewritten.links))
        return rewritten

    async def try_out(
        self, document: bytes | bytearray, form: DocumentFormat, linker: Linker, *, url: str | None, charset: str | None
    ) -> Rewritten:
        """Rewrite a document to learn its links. Raises as `rewrite`."""
        if self._waiting >= DOCUMENTS_MAX:
            raise Busy("too many documents are being rewritten", retry_after_s=2)
        self._waiting += 1
        try:
            async with AsyncExitStack() as stack:
                if len(document) > SHORT_DOCUMENT_BYTES_MAX:
                    await stack.enter_async_context(self._long_document)
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, lambda: rewrite(document, form, linker, url=url, charset=charset)
                )
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Stop the threads once they have finished what they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)

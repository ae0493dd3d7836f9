"""
`rewrite`: links to images in HTML and Markdown lead through us; printed, as a diff, or in place.

With `--save` all images are saved before the first file is written: a run that is killed is run again, and finds the
links where they were.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, BinaryIO, Literal, TextIO

from imgkeep.cli.diff import unified
from imgkeep.cli.documents import FileVersion, read_document, replace_document
from imgkeep.cli.printing import as_line
from imgkeep.cli.progress import progress
from imgkeep.core.errors import InvalidRequest
from imgkeep.core.policy import is_local_name
from imgkeep.core.source_url import read_source
from imgkeep.page_rewriting import rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgkeep.cli.documents import Document
    from imgkeep.cli.save import Target
    from imgkeep.core.rewrite import Linker
    from imgkeep.page_rewriting import Rewritten

Way = Literal["print", "diff", "in_place"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a document: what it was and is, or what went wrong."""

    held: FileVersion | None = None
    rewritten: Rewritten | None = None
    trouble: str = ""

    @property
    def document(self) -> bytes:
        return self.rewritten.document if self.rewritten else b""

    @property
    def links(self) -> Sequence[str]:
        return self.rewritten.links if self.rewritten else ()


class RewriteRun:
    """One run of the command over `pages`; `undoes`: it puts source URLs back."""

    def __init__(  # noqa: PLR0913 - all but two by keyword
        self, pages: Sequence[Document], linker: Linker, *, undoes: bool, out: BinaryIO, text: TextIO, err: TextIO
    ) -> None:
        self._pages = pages
        self._linker = linker
        self._undoes = undoes
        self._out = out
        self._text = text
        self._err = err

    async def print(self) -> int:
        """Print documents as they would be. 1 if one cannot be read."""
        status = 0
        for page in self._pages:
            outcome = await asyncio.to_thread(self._try, page)
            status |= self._complain(page, outcome, self._err.write)
            await asyncio.to_thread(self._out.write, outcome.document)
        return status

    async def diff(self) -> int:
        """Print what would change. 1 if something would, or if one cannot be read."""
        status = changed = 0
        for page in self._pages:
            outcome = await asyncio.to_thread(self._try, page)
            status |= self._complain(page, outcome, self._err.write)
            if outcome.links:
                changed += 1
                await asyncio.to_thread(self._print_diff, page, outcome)
        self._err.write(f"{changed} would be rewritten, {len(self._pages) - changed} would not\n")
        return 1 if changed else status

    async def replace(self, *, as_json: bool) -> int:
        """Put documents in the place of what they were. 1 if one cannot be rewritten."""
        done = "restored" if self._undoes else "rewritten"
        counts = {done: 0, "unchanged": 0, "failed": 0}
        links = 0
        with progress("rewriting", len(self._pages), self._err) as bar:
            for page in self._pages:
                outcome = await asyncio.to_thread(self._replace, page)
                fate = "failed" if outcome.trouble else done if outcome.links else "unchanged"
                counts[fate] += 1
                links += len(outcome.links)
                bar.advance(1)
                if as_json:
                    facts = {"file": page.name, "state": fate, "links": len(outcome.links)}
                    facts |= {"error": outcome.trouble} if outcome.trouble else {}
                    bar.answer(self._text, as_line(facts))
                else:
                    self._complain(page, outcome, lambda line: bar.say(line.rstrip("\n")))
        if not as_json:
            told = ", ".join(f"{number} {fate}" for fate, number in counts.items())
            undo = "" if self._undoes or not links else "; --undo puts the old links back"
            self._err.write(f"{told}; {links} links{undo}\n")
        return 1 if counts["failed"] else 0

    async def save(self, target: Target) -> int:
        """
        Save the images of all links that are going to be rewritten. 1 if one is not stored: that link is left as it is,
        because while its origin shows the image it works, and through us it would not.
        """
        names: dict[str, str] = {}
        with progress("reading", len(self._pages), self._err) as bar:
            for page in self._pages:
                outcome = await asyncio.to_thread(self._try, page)
                names |= {link: page.name for link in outcome.links if link not in names}
                bar.advance(1)
        lost = await _save(names, target, self._err)
        if lost:
            linker = self._linker
            self._linker = lambda link: None if link in lost else linker(link)
        return 1 if lost else 0

    def _try(self, page: Document) -> Outcome:
        try:
            held = read_document(page)
            return Outcome(held, rewrite(held.data, page.form, self._linker, url=page.url))
        except OSError as error:
            return Outcome(trouble=error.strerror or str(error))
        except InvalidRequest as error:
            return Outcome(trouble=str(error))

    def _replace(self, page: Document) -> Outcome:
        outcome = self._try(page)
        if outcome.held is None or not outcome.links:
            return outcome
        try:
            replace_document(page, outcome.held, outcome.document)
        except OSError as error:
            return Outcome(trouble=error.strerror or str(error))
        return outcome

    def _print_diff(self, page: Document, outcome: Outcome) -> None:
        assert outcome.held is not None
        self._out.writelines(unified(outcome.held.data, outcome.document, str(page.path)))

    @staticmethod
    def _complain(page: Document, outcome: Outcome, say: Callable[[str], object]) -> int:
        if outcome.trouble:
            say(f"imgkeep: {page.name}: {outcome.trouble}\n")
        return 1 if outcome.trouble else 0


def warn_about_base(base: str, *, err: TextIO) -> None:
    """Say where links of ours work, if that is not everywhere."""
    try:
        host = read_source(base).host if base else ""
        local = is_local_name(host) or ip_address(host).is_loopback
    except ValueError:
        local = False
    remedy = "server.public_url or --base say how readers reach imgkeep"
    if not base:
        err.write(
            "imgkeep: new links are paths like /img?src=..., which work only in pages from the server that imgkeep is "
            f"behind; {remedy}\n"
        )
    elif local:
        err.write(f"imgkeep: new links begin with {base}, which only this machine or network reaches; {remedy}\n")


async def _save(names: Mapping[str, str], target: Target, err: TextIO) -> frozenset[str]:
    """
    Save links, tell of those that are not stored by the names of their documents, because links are credentials, and
    return them.
    """
    links = list(names)
    lost: set[str] = set()
    with progress("saving", len(links), err) as bar:
        async with aclosing(target.save(links, bar.note)) as outcomes:
            async for outcome in outcomes:
                link = links[outcome.number]
                bar.advance(1)
                if outcome.facts is None:
                    lost.add(link)
                    where = f"{names[link]}: an image of {read_source(link).host}"
                    bar.say(f"imgkeep: {where}: {outcome.code}: {outcome.detail}")
    left = f"; {len(lost)} failed, whose links stay as they are" if lost else ""
    err.write(f"{len(links) - len(lost)} images stored{left}\n")
    return frozenset(lost)

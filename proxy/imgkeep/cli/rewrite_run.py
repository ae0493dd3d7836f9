"""One run of `rewrite`: saves the images of documents, and prints, compares or replaces the documents."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, TextIO

from imgkeep.cli.diff import unified
from imgkeep.cli.documents import read_document, replace_document
from imgkeep.cli.printing import as_line
from imgkeep.cli.progress import progress
from imgkeep.core.errors import InvalidRequest
from imgkeep.core.rewrite.links import picture_linker
from imgkeep.core.source_url import read_source
from imgkeep.page_rewriting import rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imgkeep.cli.documents import Document, FileVersion
    from imgkeep.cli.save import Target
    from imgkeep.core.rewrite import Linker
    from imgkeep.core.rewrite.links import PictureLinker
    from imgkeep.page_rewriting import Rewritten


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one document: its old and its new bytes, or the error."""

    version: FileVersion | None = None
    rewritten: Rewritten | None = None
    error: str = ""

    @property
    def document(self) -> bytes:
        return self.rewritten.document if self.rewritten else b""

    @property
    def links(self) -> Sequence[str]:
        return self.rewritten.links if self.rewritten else ()


@dataclass(frozen=True, slots=True)
class _WithoutLost:
    """A linker that leaves the links whose images could not be stored, and asks another one about all others."""

    linker: Linker
    lost: frozenset[str]

    def __call__(self, link: str) -> str | None:
        return None if link in self.lost else self.linker(link)

    @property
    def picture_linker(self) -> PictureLinker | None:
        return picture_linker(self.linker)


class RewriteRun:
    """One run of the command over `documents`; `undoes`: it puts source URLs back."""

    def __init__(  # noqa: PLR0913 - all but two by keyword
        self, documents: Sequence[Document], linker: Linker, *, undoes: bool, out: BinaryIO, text: TextIO, err: TextIO
    ) -> None:
        self._documents = documents
        self._linker = linker
        self._undoes = undoes
        self._out = out
        self._text = text
        self._err = err

    async def print(self) -> int:
        """Print the rewritten documents. 1 if one cannot be read."""
        status = 0
        for document in self._documents:
            outcome = await asyncio.to_thread(self._try, document)
            status |= self._report_error(document, outcome, self._err.write)
            await asyncio.to_thread(self._out.write, outcome.document)
        return status

    async def diff(self) -> int:
        """Print what would change. 1 if something would, or if a document cannot be read."""
        status = changed = 0
        for document in self._documents:
            outcome = await asyncio.to_thread(self._try, document)
            status |= self._report_error(document, outcome, self._err.write)
            if outcome.links:
                changed += 1
                await asyncio.to_thread(self._print_diff, document, outcome)
        self._err.write(f"{changed} would be rewritten, {len(self._documents) - changed} would not\n")
        return 1 if changed else status

    async def replace(self, *, as_json: bool) -> int:
        """Replace the files of the documents. 1 if one cannot be rewritten."""
        done = "restored" if self._undoes else "rewritten"
        counts = {done: 0, "unchanged": 0, "failed": 0}
        links = 0
        with progress("rewriting", len(self._documents), self._err) as bar:
            for document in self._documents:
                outcome = await asyncio.to_thread(self._replace, document)
                state = "failed" if outcome.error else done if outcome.links else "unchanged"
                counts[state] += 1
                links += len(outcome.links)
                bar.advance(1)
                if as_json:
                    facts = {"file": document.name, "state": state, "links": len(outcome.links)}
                    facts |= {"error": outcome.error} if outcome.error else {}
                    bar.answer(self._text, as_line(facts))
                else:
                    self._report_error(document, outcome, lambda line: bar.say(line.rstrip("\n")))
        if not as_json:
            summary = ", ".join(f"{number} {state}" for state, number in counts.items())
            undo = "" if self._undoes or not links else "; --undo puts the old links back"
            self._err.write(f"{summary}; {links} links{undo}\n")
        return 1 if counts["failed"] else 0

    async def save(self, target: Target) -> int:
        """
        Save the images of all links that are going to be rewritten. 1 if one is not stored. Its link stays as it is:
        it works while its origin shows the image, and through imgkeep it would not.
        """
        names: dict[str, str] = {}
        with progress("reading", len(self._documents), self._err) as bar:
            for document in self._documents:
                outcome = await asyncio.to_thread(self._try, document)
                names |= {link: document.name for link in outcome.links if link not in names}
                bar.advance(1)
        lost = await _save(names, target, self._err)
        if lost:
            self._linker = _WithoutLost(self._linker, lost)
        return 1 if lost else 0

    async def links(self) -> frozenset[str]:
        """Return the links that are going to be rewritten."""
        outcomes = [await asyncio.to_thread(self._try, document) for document in self._documents]
        return frozenset(link for outcome in outcomes for link in outcome.links)

    def _try(self, document: Document) -> Outcome:
        try:
            version = read_document(document)
            return Outcome(version, rewrite(version.data, document.form, self._linker, url=document.url))
        except OSError as error:
            return Outcome(error=error.strerror or str(error))
        except InvalidRequest as error:
            return Outcome(error=str(error))

    def _replace(self, document: Document) -> Outcome:
        outcome = self._try(document)
        if outcome.version is None or not outcome.links:
            return outcome
        try:
            replace_document(document, outcome.version, outcome.document)
        except OSError as error:
            return Outcome(error=error.strerror or str(error))
        return outcome

    def _print_diff(self, document: Document, outcome: Outcome) -> None:
        assert outcome.version is not None
        self._out.writelines(unified(outcome.version.data, outcome.document, str(document.path)))

    @staticmethod
    def _report_error(document: Document, outcome: Outcome, write: Callable[[str], object]) -> int:
        if outcome.error:
            write(f"imgkeep: {document.name}: {outcome.error}\n")
        return 1 if outcome.error else 0


async def _save(names: Mapping[str, str], target: Target, err: TextIO) -> frozenset[str]:
    """
    Save links, and return those that are not stored. Messages name their documents, because links are credentials.
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

"""
Derived pictures in rewritten pages: options in links, and attributes that an `<img>` gets beside its new link.

Rules:
- All of it is off by default. An `<img>` whose link stays is left alone, and so is each attribute that is there.
- A `srcset` with widths changes the size at which a browser shows an image, unless the page says that size. So it is
  made only where the size is known: by the `width` of the `<img>`, the image itself, or `sizes` of the settings.
- No width of a `srcset` is told as more than the image has: a picture is never enlarged.
- An image whose options have a width, a height or a preset gets no `srcset`: its size was chosen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from imgkeep.core.derived.derive_policy import WIDTHS_MAX
from imgkeep.core.derived.options import SIDE_MAX, Fit, PictureOptions, read_options, split_options
from imgkeep.core.derived.plan import plan, turned
from imgkeep.core.errors import InvalidOption, SourceRejected
from imgkeep.core.host_patterns import Patterns
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from imgkeep.core.records import PixelSize
    from imgkeep.core.source_url import Parameters

Attributes: TypeAlias = "Callable[[str], str | None]"
"""A function that returns the value of an attribute; `None`: there is none."""

RULES_MAX: Final = 100
RULE_CHARS_MAX: Final = 1000
SIZES_CHARS_MAX: Final = 1000
DENSITY: Final = 2
"""Device pixels for a CSS pixel up to which `widths="auto"` goes: people see no difference beyond."""
PHONE_PX: Final = 320
"""Width of the narrowest screens, below which `widths="auto"` does not go for an image that is wider."""

_DIMENSION: Final = re.compile(r"[\t\n\f\r ]*([1-9][0-9]{0,4})(?:\.[0-9]*)?(?:px)?[\t\n\f\r ]*", re.IGNORECASE)
_SIZED: Final = frozenset({"w", "h", "preset"})
_WITH_SRCSET: Final = ("srcset", "data-src", "data-srcset")
"""Attributes of an `<img>` that has a `srcset`, or gets one from a script."""


class PictureRule(NamedTuple):
    """Options for the links that a pattern matches: `host` or `host/path`, as in `sources.allow`."""

    pattern: str
    options: Parameters


@dataclass(frozen=True, slots=True)
class Pictures:
    """
    The settings for derived pictures in pages.

    Attributes:
        rules: The first that matches a link decides about its options.
        widths: Widths of a `srcset` in device pixels, in ascending order; empty: none is made.
        fits: Whether a `srcset` has only those of `widths` that the displayed size needs.
        sizes: The `sizes` of a `srcset` whose `<img>` has none; empty: by the width of the image.
        is_lazy: Whether an `<img>` without `loading` gets `loading="lazy"`.
        sizes_of_images: Returns the size of the image behind a URL, if it is known; `None`: no `width` and `height`.
        presets: The presets of imgkeep, if they are known.

    Raises:
        ValueError: A pattern can match no host.
    """

    rules: tuple[PictureRule, ...] = ()
    widths: tuple[int, ...] = ()
    fits: bool = False
    sizes: str = ""
    is_lazy: bool = False
    sizes_of_images: Callable[[str], PixelSize | None] | None = None
    presets: Mapping[str, PictureOptions] = field(default_factory=dict)
    _patterns: tuple[Patterns, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        patterns = tuple(Patterns((rule.pattern,), denying=False) for rule in self.rules)
        object.__setattr__(self, "_patterns", patterns)

    def with_widths(self, widths: Sequence[int]) -> Pictures:
        """Return the same settings with other widths."""
        return replace(self, widths=tuple(sorted(widths)))

    def options_of(self, url: str) -> Parameters:
        """Return the options for the link to an image; empty: the original."""
        if not self.rules:
            return ()
        try:
            source = read_source(url)
        except SourceRejected:
            return ()
        path = source.target.partition("?")[0]
        found = (
            rule for rule, pattern in zip(self.rules, self._patterns, strict=True) if pattern.match(source.host, path)
        )
        return next((rule.options for rule in found), ())

    def examples(self) -> Iterator[Parameters]:
        """Yield the options that links can have, of each kind one."""
        yield from (self._of_link(rule.options) for rule in self.rules)
        free = [rule.options for rule in self.rules if not any(name in _SIZED for name, _ in rule.options)]
        yield from ((("w", str(width)), *options) for width in self.widths for options in [(), *free][:2])

    def link_options_of(self, url: str) -> Parameters:
        """
        Return the options for the link of an `<img>`.

        Where there are widths and the options choose no size, it is the largest width, which leaves most images as
        they are: `derive.allow` opens the widths to any client, and a format alone to none.
        """
        return self._of_link(self.options_of(url))

    def _of_link(self, options: Parameters) -> Parameters:
        is_sized = not options or any(name in _SIZED for name, _ in options)
        return options if is_sized or not self.widths else (("w", str(self.widths[-1])), *options)

    def attributes(
        self, url: str, given: Attributes, link: Callable[[str, Parameters], str]
    ) -> Iterator[tuple[str, str]]:
        """
        Yield the attributes that an `<img>` gets, with their values.

        Args:
            url: The absolute URL of its image, whose link was rewritten.
            given: Its attributes.
            link: Returns the link to a picture of a URL.
        """
        options = self.options_of(url)
        size = None if self.sizes_of_images is None else self.sizes_of_images(url)
        shown = None if size is None else self._shown(size, options)
        yield from self._srcset(url, options, given, None if size is None else size.width, shown, link)
        yield from _dimensions(given, shown)
        if self.is_lazy and given("loading") is None:
            yield "loading", "lazy"

    def _shown(self, size: PixelSize, options: Parameters) -> PixelSize | None:
        """Return the size of the picture that these options make; `None`: unknown."""
        if not options:
            return size
        try:
            read = read_options(options, self.presets)
        except InvalidOption:
            return None
        if any(name == "dpr" for name, _ in options):
            return None
        return plan(turned(size) if read.rotate in {90, 270} else size, read, SIDE_MAX).canvas

    def _srcset(  # noqa: PLR0913, PLR0917 - called once
        self,
        url: str,
        options: Parameters,
        given: Attributes,
        natural: int | None,
        shown: PixelSize | None,
        link: Callable[[str, Parameters], str],
    ) -> Iterator[tuple[str, str]]:
        has_srcset = any(given(name) is not None for name in _WITH_SRCSET)
        if not self.widths or has_srcset or any(name in _SIZED for name, _ in options):
            return
        display = _read_dimension(given("width")) or (None if shown is None else shown.width)
        sizes = self.sizes or (f"(max-width: {display}px) 100vw, {display}px" if display else "")
        if not sizes and given("sizes") is None:
            return
        candidates = []
        for width, told in _choose_widths(self.widths, natural, display if self.fits else None):
            candidates.append(f"{link(url, (('w', str(width)), *options))} {told}w")
        if len(candidates) < 2:
            return
        yield "srcset", ", ".join(candidates)
        if given("sizes") is None:
            yield "sizes", sizes


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """
    The settings for derived pictures as a developer, an operator or a client writes them.

    Attributes:
        rules: Options for all links, or by patterns of hosts and paths, of which the first that matches counts.
        widths: `auto`, or widths of a `srcset`; `None`: none is made.
        sizes: As in `Pictures`.
        is_lazy: As in `Pictures`.
    """

    rules: str | Mapping[str, str] = ""
    widths: object = None
    sizes: str = ""
    is_lazy: bool = False

    def read(
        self,
        ladder: Sequence[int],
        presets: Mapping[str, PictureOptions] | None = None,
        sizes_of_images: Callable[[str], PixelSize | None] | None = None,
    ) -> Pictures | None:
        """
        Read the settings; `None`: they ask for nothing.

        Args:
            ladder: The widths of `auto`.
            presets: The presets of imgkeep, if they are known.
            sizes_of_images: As in `Pictures`.

        Raises:
            ValueError: A setting is malformed; the message begins with the name of the field.
        """
        rules = self.rules if not isinstance(self.rules, str) else {"*": self.rules} if self.rules else {}
        if len(rules) > RULES_MAX:
            raise ValueError(f"rules: expected {RULES_MAX} at most")
        if len(self.sizes) > SIZES_CHARS_MAX or not self.sizes.isascii() or not self.sizes.isprintable():
            raise ValueError(f"sizes: expected {SIZES_CHARS_MAX} printable ASCII characters at most")
        try:
            read = tuple(_read_rule(pattern, text, presets) for pattern, text in rules.items())
        except ValueError as error:
            raise ValueError(f"rules: {error}") from None
        try:
            widths, fits = ((), False) if self.widths is None else read_widths(self.widths, ladder)
        except ValueError as error:
            raise ValueError(f"widths: {error}") from None
        if not (read or widths or self.is_lazy or sizes_of_images):
            return None
        return Pictures(read, widths, fits, self.sizes, self.is_lazy, sizes_of_images, presets or {})


def _read_rule(pattern: str, text: str, presets: Mapping[str, PictureOptions] | None) -> PictureRule:
    """
    Read a rule: options as `preset=thumb` or `w=400&format=auto`. With `presets` of `None` any preset may exist.

    Raises:
        ValueError: The pattern can match no host, or the options are malformed.
    """
    if len(pattern) > RULE_CHARS_MAX or len(text) > RULE_CHARS_MAX:
        raise ValueError(f"a pattern, or its options, is longer than {RULE_CHARS_MAX} characters")
    Patterns((pattern,), denying=False)
    parameters = split_options(text)
    if not parameters:
        raise ValueError("there are no options")
    if presets is None:
        presets = {value: _ANY_PRESET for name, value in parameters if name == "preset"}
    try:
        read_options(parameters, presets)
    except InvalidOption as error:
        raise ValueError(str(error)) from None
    return PictureRule(pattern, tuple(sorted(parameters)))


_ANY_PRESET: Final = PictureOptions(1, 1, Fit.COVER)
"""Options of a preset beside which all others may have an effect."""


def read_widths(given: object, ladder: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """
    Read the widths of a `srcset`.

    Args:
        given: `auto`, or widths in device pixels.
        ladder: The widths of `auto`: `derive.widths`.

    Returns:
        The widths in ascending order, and whether only those that the displayed size needs are written.

    Raises:
        ValueError: They are neither.
    """
    if given == "auto":
        return tuple(sorted(ladder)), True
    widths = tuple(given) if isinstance(given, (list, tuple)) else ()
    if not 1 <= len(widths) <= WIDTHS_MAX or not all(map(_is_width, widths)):
        raise ValueError(f"expected auto, or 1 to {WIDTHS_MAX} widths from 1 to {SIDE_MAX}")
    return tuple(sorted(set(widths))), False


def _is_width(width: object) -> bool:
    return isinstance(width, int) and not isinstance(width, bool) and 1 <= width <= SIDE_MAX


def _choose_widths(widths: Sequence[int], natural: int | None, display: int | None) -> list[tuple[int, int]]:
    """Return the widths of a `srcset` with those to tell, which differ where the image is narrower."""
    most = [bound for bound in (natural, None if display is None else display * DENSITY) if bound is not None]
    least = 0 if display is None else min(display, PHONE_PX)
    chosen = []
    for width in widths:
        if width < least:
            continue
        chosen.append((width, width if natural is None else min(width, natural)))
        if most and width >= min(most):
            break
    return chosen


def _dimensions(given: Attributes, size: PixelSize | None) -> Iterator[tuple[str, str]]:
    """Yield `width` and `height`, or the missing one: a browser leaves room for an image before it is there."""
    if size is None:
        return
    width, height = given("width"), given("height")
    if width is None and height is None:
        yield "width", str(size.width)
        yield "height", str(size.height)
    elif height is None and (known := _read_dimension(width)):
        yield "height", str(max(1, round(known * size.height / size.width)))
    elif width is None and (known := _read_dimension(height)):
        yield "width", str(max(1, round(known * size.width / size.height)))


def _read_dimension(text: str | None) -> int | None:
    """Return a width or height in CSS pixels; `None`: there is none, or in another unit."""
    match = None if text is None else _DIMENSION.fullmatch(text)
    return None if match is None else int(match[1])

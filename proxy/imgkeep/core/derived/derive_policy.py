"""
The policy of derived pictures: which options a client may ask for, because each other picture costs work and disk.

Rules:
- Open to any client: a preset, with `dpr` 1, 2, 3 or 4 and `format` beside it; and the widths of the ladder
  (`derive.widths`, in device pixels) with `fit=inside`, in any format. So an original has as many pictures as the
  operator has listed, times the formats.
- Other options need a valid signature with `derive.allow = "signed"`, nothing with `"any"`, and are refused with
  `"presets"`.
- No picture has a side longer than `derive.side_max`, whatever the permission.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from imgkeep.core.derived.options import TOLD_MAX, VALUE_CHARS_MAX, PictureOptions, read_options, read_preset
from imgkeep.core.errors import InvalidOption, OptionsForbidden, SignatureExpired

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from imgkeep.core.signing import Signatures
    from imgkeep.core.source_url import ImgQuery, Parameters, PictureQuery

DEFAULT_WIDTHS: Final = (
    *(16, 32, 48, 64, 96, 128, 256, 320, 384, 480, 640),
    *(750, 828, 960, 1080, 1200, 1440, 1920, 2048, 2560, 3840),
)
"""Default of `derive.widths`: the ladder of Next.js, whose pages ask for these, and the steps between."""

WIDTHS_MAX: Final = 64
"""Maximum number of widths in a ladder, or in a `srcset`: each is a picture of every original, in every format."""
_DPRS: Final = frozenset({"1", "2", "3", "4"})
_BESIDE_A_PRESET: Final = frozenset({"preset", "dpr", "format"})
_PRESET_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{VALUE_CHARS_MAX}}}")


@dataclass(frozen=True, slots=True)
class Permission:
    """
    The permission to see a picture.

    Attributes:
        options: Its options.
        ends: Epoch seconds at which the signature that gives the permission expires, so no cache serves beyond it;
            `None`: never, or the permission needs no signature.
    """

    options: PictureOptions
    ends: int | None = None


@dataclass(frozen=True, slots=True)
class DerivePolicy:
    """
    The settings that decide.

    Attributes:
        allow: `derive.allow`, without `auto`.
        widths: `derive.widths`.
        presets: The options of `[derive.presets]` by their names.
        side_max: `derive.side_max`.
    """

    allow: Literal["presets", "signed", "any"]
    widths: tuple[int, ...]
    presets: Mapping[str, PictureOptions]
    side_max: int

    def read(self, parameters: Iterable[tuple[str, str]]) -> PictureOptions:
        """
        Read the options of a request.

        Raises:
            InvalidOption: As `read_options`; or a side is longer than `derive.side_max`.
        """
        options = read_options(parameters, self.presets)
        for name, side in (("w", options.width), ("h", options.height)):
            if side is not None and side > self.side_max:
                raise InvalidOption(f"{name}: is {side} device pixels, and derive.side_max allows {self.side_max}")
        return options

    def judge(self, query: ImgQuery | PictureQuery, signatures: Signatures, now_s: float) -> Permission:
        """
        Read the options of a request, and require that its client may ask for them.

        Args:
            query: The query, with picture options.
            signatures: The verifier of `security.signing_keys`.
            now_s: Epoch seconds.

        Raises:
            InvalidOption: As `read`.
            OptionsForbidden: The client may not, and the URL has no signature that could permit it.
            SignatureInvalid, SignatureExpired: It has one, and that is not valid.
        """
        options = self.read(query.picture)
        if self.allow == "any" or self._is_open(dict(query.picture), options):
            return Permission(options)
        given = dict(query.options)
        if self.allow == "signed" and query.foreign is not None and query.foreign.covers_options:
            if query.foreign.ends is not None and query.foreign.ends <= now_s:
                raise SignatureExpired("the signature has expired")
            return Permission(options, query.foreign.ends)
        if self.allow == "presets" or not given.get("sig"):
            raise OptionsForbidden(self._explain())
        return Permission(options, signatures.judge(query.text, given, now_s))

    def require(self, picture: Parameters, *, is_signed: bool) -> None:
        """
        Require that a client may ask for a picture by a link that imgkeep writes.

        Args:
            picture: The options of the link.
            is_signed: Whether imgkeep signs it.

        Raises:
            InvalidOption: As `read`.
            OptionsForbidden: The server would refuse the link.
        """
        options = self.read(picture)
        if not (self.allow == "any" or (self.allow == "signed" and is_signed) or self._is_open(dict(picture), options)):
            raise OptionsForbidden(self._explain())

    def _is_open(self, given: Mapping[str, str], options: PictureOptions) -> bool:
        """Return whether any client may ask for these options."""
        if "preset" in given:
            return given.keys() <= _BESIDE_A_PRESET and given.get("dpr", "1") in _DPRS
        return options.width in self.widths and options == PictureOptions(width=options.width, format=options.format)

    def _explain(self) -> str:
        ways = []
        if self.presets:
            ways.append(f"ask for a preset ({', '.join(sorted(self.presets)[:TOLD_MAX])})")
        if self.widths:
            widths = ", ".join(map(str, self.widths[:TOLD_MAX]))
            ways.append(f"ask for w of derive.widths ({widths}), alone or with format")
        if self.allow == "signed":
            ways.append("sign the URL (docs/signing.md)")
        remedy = ", or ".join(ways) or "derive.presets and derive.widths are empty, so ask for the original"
        return f"derive.allow does not permit these options: {remedy}"


def read_presets(texts: Mapping[str, str], side_max: int) -> dict[str, PictureOptions]:
    """
    Read the table `[derive.presets]`.

    Args:
        texts: The texts of the presets by their names.
        side_max: `derive.side_max`.

    Raises:
        ValueError: A preset is malformed. The message begins with its name.
    """
    return {name: _read_preset(name, text, side_max) for name, text in texts.items()}


def _read_preset(name: str, text: str, side_max: int) -> PictureOptions:
    if _PRESET_NAME.fullmatch(name) is None:
        raise ValueError(f"{name[:VALUE_CHARS_MAX]!r} is no name: expected letters, digits, - and _, 64 at most")
    try:
        options = read_preset(text)
    except InvalidOption as error:
        raise ValueError(f"{name}: {error}") from None
    if max(options.width or 0, options.height or 0) > side_max:
        raise ValueError(f"{name}: a side is longer than derive.side_max, {side_max}")
    return options

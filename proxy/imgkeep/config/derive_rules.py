"""Rules for the section `[derive]`: which pictures may be made, and with how much work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from imgkeep.config.errors import ConfigError
from imgkeep.config.rule import Rule
from imgkeep.core.derived.derive_policy import WIDTHS_MAX, read_presets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.config.schema import Config, Derive

PRESETS_MAX: Final = 256
"""Maximum number of presets, likewise."""


def derive_rules(config: Config) -> Iterator[Rule]:
    """Yield the rules."""
    derive = config.derive
    yield Rule(
        "derive.widths",
        lambda: len(derive.widths) <= WIDTHS_MAX and len(set(derive.widths)) == len(derive.widths),
        f"expected {WIDTHS_MAX} different widths at most; each is a picture of every original, in every format",
    )
    yield Rule(
        "derive.widths",
        lambda: all(width <= derive.side_max for width in derive.widths),
        "a width is more than derive.side_max, so no client could have it",
        needs=("derive.side_max",),
    )
    yield Rule(
        "derive.allow",
        lambda: (
            derive.allow != "signed" or any((config.security.signing_keys, derive.imageproxy_key, derive.thumbor_key))
        ),
        "'signed' needs security.signing_keys; `imgkeep token` makes one",
        needs=("security.signing_keys", "derive.imageproxy_key", "derive.thumbor_key"),
    )


def check_presets(derive: Derive) -> None:
    """
    Check the presets one by one.

    Raises:
        ConfigError: A preset is malformed, or there are too many.
    """
    mistakes = []
    if len(derive.presets) > PRESETS_MAX:
        mistakes.append(f"derive.presets: expected {PRESETS_MAX} presets at most")
    for name, text in list(derive.presets.items())[:PRESETS_MAX]:
        try:
            read_presets({name: text}, derive.side_max)
        except ValueError as error:
            mistakes.append(f"derive.presets: {error}")
    if mistakes:
        raise ConfigError(*mistakes)

"""
Rules for mounts: the paths under which imgkeep answers URLs of other image servers, and those before old file names.

A mount of `[derive]` begins with a slash, and `/` alone stands for every path that is none of imgkeep's own. Each has a
first part of its own, so a path has one meaning.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from imgkeep.config.errors import ConfigError
from imgkeep.config.rule import Rule
from imgkeep.core.signing import KEY_CHARS_MIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.config.schema import Config

OWN_PATHS: Final = frozenset(
    {
        "img",
        "images",
        "api",
        "docs",
        "login",
        "healthz",
        "readyz",
        "metrics",
        "openapi.json",
        "imgkeep.js",
        "imgkeep.d.ts",
    }
)
FOREIGN_MOUNTS: Final = ("imageproxy", "thumbor", "nextjs")
"""Settings of `[derive]` with the mounts of other image servers."""

_PATH: Final = re.compile(r"[A-Za-z0-9_-][\w.-]*(/[A-Za-z0-9_-][\w.-]*)*", re.ASCII)


def mount_rules(config: Config) -> Iterator[Rule]:
    """Yield the rules of keys that belong to mounts."""
    derive = config.derive
    for setting, key in (("imageproxy_key", derive.imageproxy_key), ("thumbor_key", derive.thumbor_key)):
        yield Rule(
            f"derive.{setting}",
            lambda key=key: not key or re.fullmatch(rf"[!-~]{{{KEY_CHARS_MIN},}}", key) is not None,  # type: ignore[misc]
            f"needs {KEY_CHARS_MIN} printable ASCII characters or more, without spaces: a shorter key can be guessed",
        )


def check_foreign_mounts(config: Config) -> None:
    """
    Check the mounts of other image servers.

    Raises:
        ConfigError: One is no path, a path of imgkeep, or has its first part in common with another mount.
    """
    mistakes: list[str] = []
    taken = {legacy.mount.partition("/")[0]: "legacy.mount" for legacy in config.legacy}
    for name in FOREIGN_MOUNTS:
        mount: str = getattr(config.derive, name)
        if not mount:
            continue
        setting, first = f"derive.{name}", mount[1:].partition("/")[0]
        if mount != "/" and (mount[0] != "/" or not _PATH.fullmatch(mount[1:])):
            mistakes.append(f"{setting}: expected a path like /{name}, or / alone, got {mount!r}")
        elif first in OWN_PATHS:
            mistakes.append(f"{setting}: {mount} is a path of imgkeep's own")
        elif first in taken:
            mistakes.append(f"{setting}: {taken[first]} begins with the same part; each needs one of its own")
        elif name == "nextjs" and mount == "/":
            mistakes.append(f"{setting}: / is the home page; Next.js asks for /_next/image")
        else:
            taken[first] = setting
    if mistakes:
        raise ConfigError(*mistakes)


def check_mount(setting: str, mount: str) -> None:
    """
    Check the path before old file names.

    Raises:
        ConfigError: It is no path, or a path of imgkeep.
    """
    if not _PATH.fullmatch(mount):
        raise ConfigError(
            f"{setting}: expected a path like generated-images, without slashes at its ends, got {mount!r}"
        )
    if mount.partition("/")[0] in OWN_PATHS:
        raise ConfigError(f"{setting}: /{mount} is a path of imgkeep's own")


def check_legacy_mounts(config: Config) -> None:
    """
    Check the paths of all `[[legacy]]` tables. Raises as `check_mount`.
    """
    mistakes: list[str] = []
    for legacy in config.legacy:
        try:
            check_mount("legacy.mount", legacy.mount)
        except ConfigError as error:
            mistakes += error.messages
    if mistakes:
        raise ConfigError(*mistakes)

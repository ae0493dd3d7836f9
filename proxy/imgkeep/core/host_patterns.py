"""
Patterns of hosts and paths in `sources.allow` and `sources.deny`: `host`, or `host/path`.

Rules:
- In a host `*` matches any characters, dots too; in a path likewise, slashes too. `?` matches one character, `[abc]`
  one of these.
- A path is compared in canonical form. Servers read `..`, `//`, `%2F` and backslashes in more than one way, so a path
  has several readings: an allow list must allow all of them, a deny list applies if it denies one of them.
- A deny list ignores the case of paths, because some services do so.
- A pattern that can never match is an error, so that no line of a configuration is without effect.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from imgkeep.core.errors import SourceRejected
from imgkeep.core.identity.canonical import canonical_escapes
from imgkeep.core.ip_ranges import read_literal
from imgkeep.core.source_url import read_source
from imgkeep.core.url_host import ascii_name

if TYPE_CHECKING:
    from collections.abc import Iterable

HOSTS_REMEMBERED: Final = 4096
"""Maximum number of hosts in the cache of path patterns, for each list."""

DECODINGS_MAX: Final = 3
"""Maximum number of decodings of a path. A path that is still encoded afterwards may mean any path."""

_GLOB: Final = re.compile(r"(?:[a-z0-9_.*?-]|\[!?[a-z0-9_.-]+\])+|(?:[0-9a-f:.*?]|\[!?[0-9a-f:-]+\])+")
"""Pattern of a glob for names, or for addresses with colons."""
_BRACKETED: Final = re.compile(r"\[([^\[\]:]*:[^\[\]]*)\]")
"""An IPv6 address as in a URL; as a set of characters it could match no host."""
_WITH_PORT: Final = re.compile(r"(?:[^:\[\]]+|\[[^\[\]]*:[^\[\]]*\]):[0-9]*")
_WHOLE_LABEL: Final = re.compile(r"[a-z0-9_-]+")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNSURE: Final = re.compile(r"[%\\]|//|/\.")
"""Parts of a path that servers read in more than one way."""
_WILD: Final = re.compile(r"[*?\[]")
_SLASHES: Final = re.compile(r"/{2,}")


class Globs:
    """Host globs in one pattern: `*` any characters, dots too; `?` one; `[abc]` one of these, `[!abc]` of others."""

    __slots__ = ("_pattern",)

    def __init__(self, globs: tuple[str, ...]) -> None:
        self._pattern = re.compile("|".join(map(_translated, globs)) or "(?!)")

    def match(self, host: str) -> bool:
        return self._pattern.match(host) is not None


class Patterns:
    """
    One immutable list of patterns.

    Args:
        patterns: Patterns as the operator wrote them.
        denying: Whether it is a deny list: one reading of a path is enough, and case does not count.

    Raises:
        ValueError: A pattern can match nothing; the message quotes it.
    """

    __slots__ = ("_by_host", "_denying", "_globbed", "_hosts", "_paths_of")

    def __init__(self, patterns: Iterable[str], *, denying: bool) -> None:
        hosts: list[str] = []
        paths: dict[str, list[str]] = {}
        for pattern in patterns:
            host, slash, path = pattern.partition("/")
            if not slash:
                hosts.append(pattern)
                continue
            paths.setdefault(_read_host(host, pattern), []).append(_read_path(slash + path, pattern))
        read = {host: _Paths(globs, denying=denying) for host, globs in paths.items()}
        self._denying = denying
        self._hosts = Globs(tuple(hosts))
        self._by_host = {host: globs for host, globs in read.items() if _WILD.search(host) is None}
        self._globbed = [(Globs((host,)), globs) for host, globs in read.items() if host not in self._by_host]
        self._paths_of = lru_cache(HOSTS_REMEMBERED)(self._find_paths)

    def match_host(self, host: str) -> bool:
        """Return whether a pattern without a path matches."""
        return self._hosts.match(host)

    def match(self, host: str, path: str) -> str | None:
        """
        Return what a pattern of the list matches: `host`, `path`, or None: no pattern matches.

        Args:
            host: As in `Source.host`.
            path: Path with its escapes, in canonical form or not, without the query.
        """
        if self._hosts.match(host):
            return "host"
        paths = self._paths_of(host)
        return "path" if paths and _decide(paths, read_path(path), denying=self._denying) else None

    def knows(self, host: str) -> bool:
        """Return whether there are patterns for paths of `host`."""
        return bool(self._paths_of(host))

    def _find_paths(self, host: str) -> tuple[_Paths, ...]:
        found = [self._by_host[host]] if host in self._by_host else []
        return (*found, *(paths for glob, paths in self._globbed if glob.match(host)))


class _Paths:
    """The path globs of one host glob, compiled for encoded and for decoded paths."""

    __slots__ = ("_decoded", "_encoded")

    def __init__(self, globs: list[str], *, denying: bool) -> None:
        flags = re.IGNORECASE if denying else 0
        self._encoded = re.compile("|".join(map(fnmatch.translate, globs)), flags)
        self._decoded = re.compile("|".join(fnmatch.translate(_decoded(glob)) for glob in globs), flags)

    def match(self, path: str, *, decoded: bool) -> bool:
        return (self._decoded if decoded else self._encoded).match(path) is not None


def _decide(paths: tuple[_Paths, ...], readings: Readings | None, *, denying: bool) -> bool:
    if readings is None:
        return denying
    encoded, decoded = readings
    matched = (
        any(each.match(path, decoded=is_decoded) for each in paths)
        for is_decoded, these in ((False, encoded), (True, decoded))
        for path in these
    )
    return any(matched) if denying else all(matched)


Readings = tuple[tuple[str, ...], tuple[str, ...]]
"""The paths that servers may read in one path: encoded, and decoded."""


def read_path(path: str) -> Readings | None:
    """Return the readings of a path; None: it is encoded too many times."""
    text = canonical_escapes(path)
    if _UNSURE.search(text) is None:
        return (text,), ()
    encoded = dict.fromkeys([text, *_resolved(text)])
    decoded: dict[str, None] = {}
    for _ in range(DECODINGS_MAX):
        known, text = text, _decoded(text)
        if text == known:
            break
        decoded |= dict.fromkeys(_resolved(text))
    else:
        if _decoded(text) != text:
            return None
    return tuple(encoded), tuple(decoded)


def _decoded(text: str) -> str:
    """Decode escapes byte by byte; all other text stays."""
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text) if "%" in text else text


def _resolved(path: str) -> tuple[str, str]:
    """Resolve dot segments (RFC 3986, 5.2.4), once with empty segments and once without."""
    path = path.replace("\\", "/")
    return _without_dots(path), _without_dots(_SLASHES.sub("/", path))


def _without_dots(path: str) -> str:
    if "/." not in path:
        return path
    resolved: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        name = segment.partition(";")[0]  # `..;` is `..` to servers that know path parameters
        if name == "..":
            del resolved[-1:]
        elif name != ".":
            resolved.append(segment)
    if segments[-1].partition(";")[0] in {".", ".."}:
        resolved.append("")
    return "/" + "/".join(resolved)


def _read_path(path: str, pattern: str) -> str:
    """Convert a path glob to the canonical form of paths."""
    if path == "/":
        raise ValueError(f"{pattern!r} is the root alone: leave the slash out, or write /*")
    if "#" in path:
        raise ValueError(f"{pattern!r} can match no path: fragments are not sent")
    try:
        # A placeholder stands for `?`, which would begin the query.
        target = read_source(f"https://h.example{path.replace('?', chr(0xE000))}").target
    except SourceRejected:
        raise ValueError(f"{pattern!r} can match no path: it holds a control character") from None
    glob = canonical_escapes(target).replace("%EE%80%80", "?")
    if any(part in {".", ".."} for part in glob.split("/")):
        raise ValueError(f"{pattern!r} can match no path: it holds a dot segment")
    return glob


def _translated(glob: str) -> str:
    return fnmatch.translate(_read_host(glob, glob))


def _read_host(glob: str, pattern: str) -> str:
    """Convert a host glob to the form of `Source.host`."""
    text = _normalised(glob)
    if text is None or _GLOB.fullmatch(text) is None or _WITH_PORT.fullmatch(text.replace("*", "x")):
        raise ValueError(
            f"{pattern!r} can match no host: it is neither a name nor an address, with * for any characters "
            "(no scheme, no port; international labels whole or as xn--)"
        )
    return text


def _read_label(label: str) -> str:
    if label.isascii():
        return label
    name = ascii_name(label)
    if _WHOLE_LABEL.fullmatch(name) is None or _WILD.search(label):
        raise ValueError("wild cards stand for characters of xn-- names, not of international ones")
    return name


def _normalised(glob: str) -> str | None:
    bracketed = _BRACKETED.fullmatch(glob.lower())
    if bracketed is not None or read_literal(glob.lower()) is not None:
        try:
            # An address has one canonical spelling.
            return read_source(f"https://{glob if bracketed or ':' not in glob else f'[{glob}]'}/").host
        except SourceRejected:
            return bracketed[1] if bracketed else None
    labels = re.sub("[\u3002\uff0e\uff61]", ".", glob).lower().removesuffix(".").split(".")
    try:
        return ".".join(map(_read_label, labels))
    except ValueError:
        return None

"""
Makes the configuration from the mapping of a file and from the environment, which wins.

Rules:
- One error lists all mistakes: each setting is converted on its own, and a check is left out if a setting that it needs
  is wrong.
- Words are read in any case, sizes and durations in any of the forms of `units.py`.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin
from urllib.parse import quote

import msgspec

from imgkeep.config.environment import read_environment, settings
from imgkeep.config.errors import ConfigError
from imgkeep.config.files import read_secret_file
from imgkeep.config.schema import OLD_SECTIONS, SECRETS, Config, Legacy, Section, Store
from imgkeep.config.suggest import suggest
from imgkeep.config.units import FORMS, read_quantity, unit_of
from imgkeep.config.validate import validate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from imgkeep.config.units import Unit

_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def load(
    file: Mapping[str, Any],
    environment: Mapping[str, str],
    read_file: Callable[[str], str] = read_secret_file,
    check: Callable[[Config], object] | None = None,
) -> Config:
    """
    Make the configuration from a parsed `config.toml` and the process environment, which wins.

    Args:
        file: The mapping of the file.
        environment: The variables of the process.
        read_file: See `read_environment`.
        check: A further check, which raises `ConfigError`. It gets the default for each setting that is wrong.

    Raises:
        ConfigError: A key is unknown, or a value is not of its type or cannot be honoured. It lists all mistakes.
    """
    mistakes: list[str] = []
    given = read_environment(environment, read_file, mistakes)
    merged = {name: dict(table) if isinstance(table, dict) else table for name, table in file.items()}
    variables: dict[str, str] = {}
    for setting in given:
        table = merged.setdefault(setting.section, {})
        if isinstance(table, dict):  # else the reader reports it below
            table[setting.key] = setting.value
            variables[f"{setting.section}.{setting.key}"] = setting.variable
    _apply_aws_variables(merged, environment)
    reading = _SettingsReader(variables, mistakes)
    sections: dict[str, Any] = {name: value for name, table in merged.items() for value in reading.section(name, table)}
    config = _apply_exclusive(Config(**sections), merged)
    validate(config, mistakes, reading.failed)
    if check is not None:
        try:
            check(config)
        except ConfigError as error:
            mistakes += error.messages
    if mistakes:
        raise ConfigError(*mistakes)
    return config


class _SettingsReader:
    """Converts settings one at a time. `failed`: the settings and sections that it could not convert."""

    def __init__(self, variables: Mapping[str, str], mistakes: list[str]) -> None:
        self._variables = variables
        self._mistakes = mistakes
        self.failed: set[str] = set()

    def section(self, name: str, table: object) -> list[object]:
        """Return the section in a list, which is empty if there is no section of that name."""
        default = getattr(Config(), name) if name in Config.__struct_fields__ else None
        known = [f"{section}.{key}" for section, key in settings()]
        if name in OLD_SECTIONS:
            self._fail(name, f"[{name}] is now called [{OLD_SECTIONS[name]}]")
            return []
        if default is None:
            sections = Config.__struct_fields__
            hint = suggest(name, (*sections, *known), separator=".") or f"; there are {', '.join(sections)}"
            self._fail(name, f"unknown setting{hint}")
            return []
        if not isinstance(default, Section):
            if isinstance(table, list):
                return self._convert(name, table, tuple[Legacy, ...])
            self._fail(name, f"expected a list of tables, each under [[{name}]], got {_quoted(table)}")
            return []
        if not isinstance(table, dict):
            self._fail(name, f"expected a table, [{name}] once, got {_quoted(table)}")
            return []
        types = {field.name: field.type for field in msgspec.structs.fields(type(default))}
        values: dict[str, Any] = {}
        for key, value in table.items():
            if key not in types:
                self._fail(f"{name}.{key}", f"unknown setting{suggest(f'{name}.{key}', known, separator='.')}")
                continue
            for converted in self._convert(f"{name}.{key}", value, types[key]):
                values[key] = converted
        return [msgspec.structs.replace(default, **values)]

    def _convert(self, setting: str, value: object, kind: Any) -> list[Any]:
        """Return the value of a setting in a list, which is empty if the value is not of its type."""
        unit, choices = unit_of(setting.rpartition(".")[2]), _choices(kind)
        try:
            return [msgspec.convert(_normalize(value, kind, unit, choices), kind, strict=False)]
        except ValueError as error:  # as those of msgspec are
            shown = None if tuple(setting.split(".")) in SECRETS else _quoted(value)
            self._fail(setting, *_explain(str(error), shown, unit, choices))
        return []

    def _fail(self, setting: str, message: str, path: str = "") -> None:
        self.failed.add(setting)
        variable = self._variables.get(setting)
        self._mistakes.append(f"{setting}{path}{f' ({variable})' if variable else ''}: {message}")


def _choices(kind: Any) -> tuple[object, ...]:
    """Return the words or numbers of a setting; empty if it takes other values too."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(choice for each in get_args(kind) if get_origin(each) is Literal for choice in get_args(each))


def _normalize(value: object, kind: Any, unit: Unit | None, choices: tuple[object, ...]) -> object:
    """Return a value as msgspec takes it. Raises: ValueError: Its form is not known."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    if not isinstance(value, str):
        return value
    for choice in choices:
        if isinstance(choice, str) and value.strip().lower() == choice:
            return choice
    if unit is not None:
        try:
            return read_quantity(value, unit)
        except ValueError as error:
            words = f", or {' or '.join(map(str, choices))}" if choices else ""
            raise ValueError(f"{error}{words}") from None
    return _BOOLEANS.get(value.strip().lower(), value) if kind is bool else value


VALUE_CHARS_MAX: Final = 80
"""Maximum length of a value in a message."""
_WORDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_LIMITS: Final = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}


def _quoted(value: object) -> str:
    """Return a value as a message quotes it; for a table the words 'a table'."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value)):
        return "a table" if isinstance(value, dict) else "a list of tables"
    shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= VALUE_CHARS_MAX else f"{shown[:VALUE_CHARS_MAX]}..."


def _explain(error: str, shown: str | None, unit: Unit | None, choices: tuple[object, ...]) -> tuple[str, str]:
    """
    Translate the message of msgspec, "Expected `int`, got `str` - at `$[0].mount`", into a sentence for an operator and
    the path within a setting.

    Args:
        error: The message of msgspec, or of `_normalize`.
        shown: The value as it may be shown; `None`: it is a secret.
        unit: The unit of the setting.
        choices: All values of the setting, if they are few.
    """
    got = "" if shown is None else f", got {shown}"
    what, _, path = error.partition(" - at ")
    path = re.sub(r"^\$|\[(\.\.\.|\d+)\]", "", path.strip("`"))
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown:
        return "unknown setting", f"{path}.{unknown[1]}"
    if choices and unit is None:
        return f"expected one of {', '.join(map(str, choices))}{got}", path
    kind = re.fullmatch(r"Expected `([a-z |]+)`(?: ([<>]=?) ([0-9.]+))?(?:, got .*)?", what)
    if kind is None:  # a message of `_normalize`
        return f"{what[:1].lower()}{what[1:].replace('`', '')}{got}", path
    limit = f", {_LIMITS[kind[2]]} {_plain(kind[3])}" if kind[2] else ""
    message = f"expected {' or '.join(_WORDS.get(word, word) for word in kind[1].split(' | '))}{limit}{got}"
    return f"{message}; it takes {FORMS[unit]}" if unit is not None else message, path


def _plain(number: str) -> str:
    """Return a limit with all its digits, and no more."""
    return f"{float(number):.15g}"


def _apply_exclusive(config: Config, merged: Mapping[str, Any]) -> Config:
    """Leave out the fallback and the caches on the disk, which `store.exclusive` excludes, unless they are given."""
    if not config.store.exclusive:
        return config
    store = {name: value for name, value in _EXCLUSIVE.items() if name not in merged["store"]}
    derive = {} if "cache_bytes_max" in merged.get("derive", {}) else {"cache_bytes_max": 0}
    return msgspec.structs.replace(
        config,
        store=msgspec.structs.replace(config.store, **store),
        derive=msgspec.structs.replace(config.derive, **derive),
    )


_EXCLUSIVE: Final[Mapping[str, Any]] = {"fallback": "", "cache_bytes_max": 0}


def _apply_aws_variables(merged: dict[str, Any], environment: Mapping[str, str]) -> None:
    """
    Apply `AWS_S3_BUCKET_NAME`, which names a store if `store.url` has its default, and `AWS_REGION`, its region.

    The AWS library reads all others itself; of these two it knows `AWS_DEFAULT_REGION` only.
    """
    store = merged.setdefault("store", {})
    bucket, region = environment.get("AWS_S3_BUCKET_NAME", ""), environment.get("AWS_REGION", "")
    if not isinstance(store, dict):
        return
    if bucket and store.get("url", Store().url) == Store().url:
        store["url"] = f"s3://{bucket}"
    url = store.get("url")
    if region and isinstance(url, str) and url.startswith("s3://") and not re.search(r"[?&]region=[^&]", url):
        url = re.sub(r"([?&])region=(?:&|$)", r"\1", url).rstrip("?&")
        store["url"] = f"{url}{'&' if '?' in url else '?'}region={quote(region, safe='')}"

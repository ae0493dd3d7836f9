"""
The environment: `IMGKEEP_SECTION__KEY` for a setting, `IMGKEEP_SECTION__KEY_FILE` for a file that holds a secret.

Rules:
- Every other `IMGKEEP_*` variable is a mistake: a misspelt variable would leave its setting at the default.
- Kubernetes and Docker make variables for services and containers with the name imgkeep. Their form tells them apart,
  and they pass: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables and
  https://docs.docker.com/engine/network/links/#environment-variables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from imgkeep.config.schema import OLD_SECTIONS, SECRETS, Config, Section
from imgkeep.config.suggest import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PREFIX: Final = "IMGKEEP_"
OTHER_VARIABLES: Final = frozenset({"IMGKEEP_CONFIG", "IMGKEEP_TOKEN", "IMGKEEP_TOKEN_FILE", "IMGKEEP_URL"})
"""Variables that are no settings: the configuration file, and the server and token of examples and commands."""
TEST_PREFIX: Final = "IMGKEEP_TEST_"
"""Prefix of the variables that the tests of this project read."""
FILE_SUFFIX: Final = "_FILE"

_SERVICE_LINKS: Final = re.compile(
    r"""IMGKEEP_ (?: [A-Z0-9_]+_ )?? (?:
          SERVICE_HOST
        | SERVICE_PORT (?: _[A-Z0-9_]+ )?
        | PORT_ [0-9]+ _ (?: TCP | UDP | SCTP ) (?: _ (?: ADDR | PORT | PROTO | START | END ) )?
        | ENV_ [A-Za-z0-9_]+
    )""",
    re.VERBOSE,
)
"""Names of service variables."""
_SERVICE_LINKS_BY_VALUE: Final = (
    (
        re.compile(r"IMGKEEP_(?:[A-Z0-9_]+_)??PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)_(?:START|END))?"),
        re.compile(r"[a-z]+://.*"),
    ),
    (re.compile(r"IMGKEEP_(?:[A-Z0-9_]+_)??NAME"), re.compile(r"/.*/.*")),
)
"""Names of service variables by their values too: `IMGKEEP_PORT=9000` is a mistake of a person."""


@dataclass(frozen=True, slots=True)
class GivenSetting:
    """A setting from a variable."""

    section: str
    key: str
    variable: str
    value: object


def variable_of(section: str, key: str) -> str:
    """Return the variable of a setting."""
    return f"{PREFIX}{section}__{key}".upper()


def settings() -> Iterator[tuple[str, str]]:
    """Yield section and key of every setting that a variable can give."""
    defaults = Config()
    for section in defaults.__struct_fields__:
        table = getattr(defaults, section)
        if isinstance(table, Section):
            yield from ((section, key) for key in table.__struct_fields__)


def read_environment(
    environment: Mapping[str, str], read_file: Callable[[str], str], mistakes: list[str]
) -> list[GivenSetting]:
    """
    Return the settings of the environment, sorted by variable.

    Args:
        environment: The variables of the process.
        read_file: Returns the text of a file that holds a secret, or raises a `ValueError` with the reason.
        mistakes: Receives a message for each mistake.
    """
    known = {variable_of(section, key): (section, key) for section, key in settings()}
    files = {f"{variable_of(*setting)}{FILE_SUFFIX}": setting for setting in sorted(SECRETS)}
    found: list[GivenSetting] = []
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX):
            continue
        name = variable.upper()
        if name in known:
            section, key = known[name]
            try:
                value = _read(section, key, text)
            except ValueError as error:
                mistakes.append(f"{variable}: {error}")
            else:
                found.append(GivenSetting(section, key, variable, value))
        elif name in files:
            found += _read_secret(files[name], variable, text, environment, read_file, mistakes)
        elif (
            variable not in OTHER_VARIABLES
            and not variable.startswith(TEST_PREFIX)
            and not _is_service_link(variable, text)
        ):
            mistakes.append(_unknown_variable_message(variable, name, [*known, *files]))
    return found


def _read(section: str, key: str, text: str) -> object:
    default = getattr(getattr(Config(), section), key)
    if isinstance(default, tuple):
        return _read_list(text)
    if isinstance(default, dict):
        return _read_table(text)
    # `server.host` is one address, or a list.
    return _read_list(text) if (section, key) == ("server", "host") and "," in text else text


def _read_list(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        try:
            return msgspec.json.decode(text, type=list[Any])
        except msgspec.DecodeError:
            raise ValueError("expected a JSON array or values separated by commas") from None
    return [item.strip() for item in text.split(",") if item.strip()]


def _read_table(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        try:
            return msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError:
            raise ValueError("expected a JSON object or name=value, separated by commas") from None
    pairs = [item.strip().partition("=") for item in text.split(",") if item.strip()]
    if not all(name and separator for name, separator, _ in pairs):
        raise ValueError("expected a JSON object or name=value, separated by commas")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _read_secret(  # noqa: PLR0913, PLR0917 - called once, above
    setting: tuple[str, str],
    variable: str,
    path: str,
    environment: Mapping[str, str],
    read_file: Callable[[str], str],
    mistakes: list[str],
) -> Iterator[GivenSetting]:
    other = variable[: -len(FILE_SUFFIX)]
    if other in environment:
        mistakes.append(f"{variable}: {other} is set too; set one of them")
        return
    try:
        text = read_file(path)
    except ValueError as error:
        mistakes.append(f"{variable}: {error}")
        return
    section, key = setting
    value: object = text.removesuffix("\n").removesuffix("\r")
    if isinstance(getattr(getattr(Config(), section), key), tuple):
        value = [line for line in text.splitlines() if line]
    if not value:
        # An empty secret would leave the API or the signatures as the default has them.
        mistakes.append(f"{variable}: the file {path} is empty")
        return
    yield GivenSetting(section, key, variable, value)


def _is_service_link(variable: str, text: str) -> bool:
    if _SERVICE_LINKS.fullmatch(variable):
        return True
    return any(name.fullmatch(variable) and value.fullmatch(text) for name, value in _SERVICE_LINKS_BY_VALUE)


def _unknown_variable_message(variable: str, name: str, known: list[str]) -> str:
    section, separator, key = name.removeprefix(PREFIX).lower().partition("__")
    if not separator:
        what = "there is no such variable; those of settings are IMGKEEP_SECTION__KEY"
        key = section.rpartition("_")[2] if section not in {each for _, each in settings()} else section
        hint = suggest(name, known, separator="__") or suggest(f"__{key}".upper(), known, separator="__")
        return f"{variable}: {what}{hint}"
    if section in OLD_SECTIONS:
        return f"{variable}: is now called {variable_of(OLD_SECTIONS[section], key)}"
    if name.endswith(FILE_SUFFIX) and name.removesuffix(FILE_SUFFIX) in known:
        files = ", ".join(each for each in known if each.endswith(FILE_SUFFIX))
        return f"{variable}: only secrets are read from files ({files})"
    if section in Config.__struct_fields__ and not isinstance(getattr(Config(), section), Section):
        return f"{variable}: a variable cannot give a list of tables; write [[{section}]] into the configuration file"
    if not isinstance(getattr(Config(), section, None), Section):
        what = f"there is no section '{section}'"
    else:
        what = f"there is no setting '{section}.{key}'"
    return f"{variable}: {what}{suggest(name, known, separator='__')}"

"""
The files of a configuration: `config.toml`, and files that hold a secret.

`__main__` names them. Both have a maximum size, and every message names the file and the cause.
"""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

from imgkeep.config.errors import ConfigError


def _find_working_folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a string, which paths are joined with
    except OSError:  # another program has removed it
        return "."


WORKING_FOLDER: Final = _find_working_folder()
"""The folder from which relative paths count. Read once, because reading it blocks."""
CONFIG_BYTES_MAX: Final = 1_048_576
"""Maximum size of `config.toml`: a thousand providers."""
SECRET_BYTES_MAX: Final = 65_536
"""Maximum size of a file with secrets: a thousand tokens."""


def read_config_file(path: str) -> dict[str, Any]:
    """
    Return the content of a TOML file.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: It cannot be read, or is no TOML.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise ConfigError(f"{path}: cannot be read: {_cause(error)}") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: is larger than {CONFIG_BYTES_MAX} bytes, so it is no configuration")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: is not UTF-8 (at line {line}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {str(error)[:1].lower()}{str(error)[1:]}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None


def read_secret_file(path: str) -> str:
    """
    Return the text of a file that holds a secret.

    Raises:
        ValueError: It cannot be read. The message names the file and the cause, and quotes nothing of it.
    """
    if not path:
        raise ValueError("expected the path of a file")
    try:
        # Without waiting: a pipe would block the start until another program writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"{path} is no regular file")
            data = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"the file {path} cannot be read: {_cause(error)}") from None
    if len(data) > SECRET_BYTES_MAX:
        raise ValueError(f"the file {path} is larger than {SECRET_BYTES_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the file {path} is not UTF-8") from None


def absolute(path: str | os.PathLike[str]) -> str:
    """Return an absolute path, for messages. Does not block."""
    return os.path.normpath(os.path.join(WORKING_FOLDER, path))  # noqa: PTH118 - pathlib's asks the system


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

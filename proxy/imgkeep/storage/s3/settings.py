"""
AWS settings besides the configuration of imgkeep: variables, profiles and files.

A mistake in them is the operator's, so it is a `ConfigError` that names the variable, the profile or the file. The
message quotes no value that may be a secret, and no line of a file.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any, Final

import botocore.session
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ConfigNotFound, ConfigParseError, ProfileNotFound
from botocore.httpsession import get_cert_path

from imgkeep.config import ConfigError

_LOCAL_PROVIDERS: Final = frozenset({"env", "shared-credentials-file", "config-file"})
"""Sources of credentials that need no request."""


async def open_session() -> Any:
    """
    Return a session that has read its settings.

    Raises:
        ConfigError: They cannot be read.
    """
    session = get_session()
    try:
        # Reads some hundred kilobytes of JSON the first time: not on the event loop.
        await asyncio.to_thread(_prepare, session)
    except (BotoCoreError, ValueError) as error:
        raise explain(error) from None
    return session


async def check_settings(options: dict[str, Any]) -> None:
    """
    Check that a client can be made, without any request.

    Args:
        options: The options of the client.

    Raises:
        ConfigError: It cannot.
    """
    session = await open_session()
    try:
        bundle = session.get_config_variable("ca_bundle")
        if isinstance(bundle, str) and not await asyncio.to_thread(Path(bundle).exists):
            raise ConfigError(
                f"{_SETTINGS}: AWS_CA_BUNDLE, or ca_bundle of the profile, names {bundle}, which is not there"
            )
        async with AsyncExitStack() as stack:
            # A client with given credentials asks no service for others.
            keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
            client = await stack.enter_async_context(session.create_client("s3", **options, **keys))
            if not client.meta.endpoint_url.lower().startswith(("http://", "https://")):
                raise ConfigError(f"{_SETTINGS}: {_ENDPOINT}")
        for provider in session.get_component("credential_provider").providers:
            if provider.METHOD in _LOCAL_PROVIDERS:
                await provider.load()
    except (BotoCoreError, ValueError) as error:
        raise explain(error) from None


async def load_certificates(session: Any) -> ssl.SSLContext:
    """
    Return the certificates that the AWS library would trust: those of `AWS_CA_BUNDLE` or of the profile, or its own.

    Raises:
        ConfigError: They cannot be read.
    """
    bundle = session.get_config_variable("ca_bundle")
    path = get_cert_path(bundle or True)

    def load() -> ssl.SSLContext:
        is_folder = Path(path).is_dir()
        return ssl.create_default_context(cafile=None if is_folder else path, capath=path if is_folder else None)

    try:
        # Parses some hundred kilobytes: not on the event loop.
        return await asyncio.to_thread(load)
    except OSError:
        raise ConfigError(f"{_SETTINGS}: the certificates in {path} (AWS_CA_BUNDLE) cannot be read") from None


_SETTINGS: Final = "store.url: the AWS settings of this machine are not usable"
_ENDPOINT: Final = (
    "the endpoint is no URL like https://s3.example.com: AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3, or endpoint_url of the "
    "profile"
)


def explain(error: Exception) -> ConfigError:
    """Return the mistakes in the settings, and their places."""
    match error:
        case ProfileNotFound():
            why = (
                f"there is no profile {error.kwargs.get('profile')} (AWS_PROFILE) in the files of AWS "
                "(AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE, else ~/.aws/config and ~/.aws/credentials)"
            )
        case ConfigParseError():
            why = f"the file {error.kwargs.get('path')} cannot be parsed{_line_of(error.__context__)}"
        case ConfigNotFound():
            why = f"the file {error.kwargs.get('path')} is not there"
        case ValueError() if str(error).startswith(("Invalid endpoint", "Invalid IPv6")):
            why = _ENDPOINT
        case ValueError() if "invalid literal for int()" in str(error):
            why = (
                "a setting that is a number is none: AWS_MAX_ATTEMPTS, AWS_METADATA_SERVICE_TIMEOUT or "
                "AWS_METADATA_SERVICE_NUM_ATTEMPTS, or what the profile has of these"
            )
        case _:
            words = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))
            why = words or type(error).__name__
    return ConfigError(f"{_SETTINGS}: {why}")


def _line_of(cause: BaseException | None) -> str:
    lines = [getattr(cause, "lineno", None), *(line for line, _ in getattr(cause, "errors", []))]
    found = next((line for line in lines if isinstance(line, int)), None)
    return " (it is not UTF-8)" if isinstance(cause, UnicodeError) else f" (at line {found})" if found else ""


def _prepare(session: Any) -> None:
    """Load the data and settings of a session. Blocks, the first time."""
    session.register_component("data_loader", _loader())
    _ = session.full_config


@cache
def _loader() -> Any:
    """Return a loader that has read the definitions of S3 by making a client: a loader remembers what it has read."""
    session = botocore.session.Session()
    # The endpoint of this machine may be wrong, and `store.url` may have another.
    given = {"region_name": "us-east-1", "endpoint_url": "https://s3.amazonaws.com"}
    session.create_client("s3", **given, aws_access_key_id="none", aws_secret_access_key="none")  # noqa: S106
    return session.get_component("data_loader")

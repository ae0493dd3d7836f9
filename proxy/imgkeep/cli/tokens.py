"""`token`: prints a new secret, or the token or login link of this machine."""

from __future__ import annotations

import secrets
import sys
from functools import partial
from typing import TYPE_CHECKING, TextIO

from imgkeep.cli.invocation import read_local_token
from imgkeep.cli.printing import print_json
from imgkeep.clock import read_clock
from imgkeep.config import ConfigError, absolute, data_folder
from imgkeep.storage.local.machine_token import TokenUnusableError
from imgkeep.web.login_tickets import make_log_in_link

if TYPE_CHECKING:
    from imgkeep.cli.invocation import Invocation

TOKEN_BYTES = 32
"""Entropy of a new secret: as much as the SHA-256 of a signature keeps."""


def run(invocation: Invocation) -> int:
    arguments, config = invocation.arguments, invocation.config
    show = partial(_show, as_json=arguments.json, out=sys.stdout)
    if not arguments.local and not arguments.login:
        return show("token", make_token())
    server = config.server
    if arguments.login and (config.security.api_tokens or server.is_open or not server.port):
        raise ConfigError("--login: is for a server on a loopback address and a port of its own, without api_tokens")
    try:
        token = read_local_token(config)
    except TokenUnusableError as error:
        place = absolute(data_folder(config))
        remedy = "run this where imgkeep runs, or name its configuration with --config; `imgkeep serve` makes the file"
        raise ConfigError(f"{error} in {place}; {remedy}") from None
    if arguments.local:
        return show("token", token)

    host = "127.0.0.1" if server.hosts[0] == "localhost" else server.hosts[0]
    return show("url", make_log_in_link(token, host, server.port, read_clock()))


def make_token() -> str:
    """Return a secret for `security.api_tokens` or `security.signing_keys`."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def _show(name: str, secret: str, *, as_json: bool, out: TextIO) -> int:
    if as_json:
        print_json(out, {name: secret})
    else:
        out.write(f"{secret}\n")
    return 0

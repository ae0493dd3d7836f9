"""Refuses values that the type of a setting allows and imgkeep cannot honour."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from imgkeep.config.cluster_rules import cluster_rules
from imgkeep.config.derive_rules import check_presets, derive_rules
from imgkeep.config.errors import ConfigError
from imgkeep.config.mount_rules import FOREIGN_MOUNTS, check_foreign_mounts, check_legacy_mounts, mount_rules
from imgkeep.config.rule import Rule
from imgkeep.config.urls import read_database_url, read_store_url
from imgkeep.core.errors import SourceRejected
from imgkeep.core.http_headers import FORWARDED_HEADERS
from imgkeep.core.policy import Policy
from imgkeep.core.signing import KEY_CHARS_MIN
from imgkeep.core.source_url import read_base
from imgkeep.core.store_url import CloudinaryFolder, Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from imgkeep.config.schema import Config, Server
    from imgkeep.core.store_url import StorePlace

HOSTS_MAX: Final = 16
"""Maximum number of addresses to listen on: each costs every worker a socket."""


def validate(config: Config, mistakes: list[str], failed: AbstractSet[str]) -> None:
    """
    Check the settings that are of their types.

    Args:
        config: The configuration, with the default for each setting that is not.
        mistakes: Receives a message for each mistake.
        failed: Settings and sections that are not of their types: checks that need them are left out.
    """
    for settings, check in _checks(config):
        if failed.isdisjoint(settings) and failed.isdisjoint(each.partition(".")[0] for each in settings):
            try:
                check()
            except ConfigError as error:
                mistakes += error.messages


def _checks(config: Config) -> Iterator[tuple[tuple[str, ...], Callable[[], object]]]:
    """Yield each check with the settings that it reads."""
    server, store = config.server, config.store
    openness = ("server.host", "server.public_url", "server.trusted_proxies", "security.signature")
    yield ("server.host",), lambda: _check_hosts(server.hosts)
    yield ("server.metrics_address", "server.host", "server.port"), lambda: _check_metrics_address(server)
    for setting, networks in (
        ("server.trusted_proxies", server.trusted_proxies),
        ("fetch.allow_networks", config.fetch.allow_networks),
    ):
        yield (setting,), partial(_check_networks, setting, networks)
    for setting, url in (("server.public_url", server.public_url), ("delivery.base_url", config.delivery.base_url)):
        yield (setting,), partial(_check_base_url, setting, url)
    yield ("sources.providers",), config.read_provider_rules
    yield ("sources.allow", "sources.providers", *openness), lambda: _check_allowed(config)
    for setting, globs, words in (
        ("sources.deny", config.sources.deny, _GROUPS),
        ("sources.refresh", config.sources.refresh, _GROUPS | _FORMER_REFRESHES),
    ):
        yield (setting,), partial(_check_globs, setting, globs, words)
    yield ("store.url",), lambda: read_store_url("store.url", store.url)
    yield ("store.fallback",), lambda: _check_fallback(store.fallback)
    yield ("database.url",), lambda: read_database_url(config.database.url)
    yield ("legacy",), lambda: check_legacy_mounts(config)
    yield ("derive.presets", "derive.side_max"), lambda: check_presets(config.derive)
    yield (*(f"derive.{name}" for name in FOREIGN_MOUNTS), "legacy"), lambda: check_foreign_mounts(config)
    for rule in _rules(config):
        yield (rule.setting, *rule.needs), partial(_require, rule)


def _rules(config: Config) -> Iterator[Rule]:
    fetch, security = config.fetch, config.security
    yield Rule(
        "fetch.user_agent",
        lambda: not re.search(r"[\x00-\x1f\x7f]", fetch.user_agent),
        "must not hold control characters",
    )
    yield Rule(
        "fetch.accept",
        lambda: _is_accept(fetch.accept),
        "expected media types with commas between them, as image/png,image/*;q=0.5",
    )
    yield Rule(
        "fetch.total_timeout_s",
        lambda: fetch.total_timeout_s >= fetch.connect_timeout_s,
        "is less than fetch.connect_timeout_s, so nothing could be fetched",
        needs=("fetch.connect_timeout_s",),
    )
    yield Rule(
        "server.forwarded_header",
        lambda: config.server.forwarded_header.lower() in {"", *FORWARDED_HEADERS},
        f"expected one of {', '.join(FORWARDED_HEADERS)}, or nothing",
    )
    yield Rule(
        "security.signature",
        lambda: security.signature == "off" or bool(security.signing_keys),
        "needs security.signing_keys; `imgkeep token` makes one",
        needs=("security.signing_keys",),
    )
    yield Rule("security.signing_keys", lambda: _are_secret(security.signing_keys), _NO_SECRET)
    yield Rule("security.api_tokens", lambda: _are_secret(security.api_tokens), _NO_SECRET)
    yield from _store_rules(config)
    yield from _delivery_rules(config)
    yield from cluster_rules(config)
    yield from derive_rules(config)
    yield from mount_rules(config)


def _store_rules(config: Config) -> Iterator[Rule]:
    store = config.store
    yield Rule(
        "store.exclusive",
        lambda: not (store.exclusive and isinstance(_place(config), Folder)),
        "no image may stay on a local disk, and store.url is one; name a bucket there",
        needs=("store.url",),
    )
    for setting, value in (
        ("store.fallback", store.fallback),
        ("store.cache_bytes_max", store.cache_bytes_max),
        ("derive.cache_bytes_max", config.derive.cache_bytes_max),
    ):
        yield Rule(
            setting,
            partial(_is_left_out, value, exclusive=store.exclusive),
            "puts images on a local disk, which store.exclusive forbids; leave it out",
            needs=("store.exclusive",),
        )
    yield Rule(
        "store.hot_bytes_max",
        lambda: not store.exclusive or store.hot_bytes_max // config.server.workers >= config.fetch.body_bytes_max,
        "with store.exclusive images are in memory while clients read them, so each of server.workers needs the "
        "memory for one of fetch.body_bytes_max",
        needs=("store.exclusive", "server.workers", "fetch.body_bytes_max"),
    )


def _is_left_out(value: object, *, exclusive: bool) -> bool:
    return not (exclusive and value)


def _delivery_rules(config: Config) -> Iterator[Rule]:
    delivery = config.delivery
    yield Rule(
        "delivery.mode",
        lambda: delivery.mode == "serve" or not isinstance(_place(config), Folder),
        "only 'serve' is supported by a local store",
        needs=("store.url",),
    )
    yield Rule(
        "delivery.mode",
        lambda: delivery.mode != "presign" or not isinstance(_place(config), CloudinaryFolder),
        "Cloudinary has public links alone; use 'redirect' or 'serve'",
        needs=("store.url",),
    )
    yield Rule(
        "delivery.base_url",
        lambda: not delivery.base_url or not isinstance(_place(config), Folder),
        "needs an object store, see store.url",
        needs=("store.url",),
    )
    yield Rule(
        "delivery.base_url",
        lambda: not delivery.base_url or not isinstance(_place(config), CloudinaryFolder),
        "the links of Cloudinary have a form of their own; leave it empty, and put their host into CLOUDINARY_URL, see "
        "docs/cloudinary.md",
        needs=("store.url",),
    )
    yield Rule(
        "sources.permanent",
        lambda: not _is_open_redirect(config),
        _OPEN_REDIRECT,
        needs=(
            "server.host",
            "server.public_url",
            "server.trusted_proxies",
            "security.signature",
            "sources.allow",
        ),
    )


_MEDIA_RANGE: Final = re.compile(r" *[\w!#$%&'*+.^`|~-]+/[\w!#$%&'*+.^`|~-]+ *(?:;[^,]*)?", re.ASCII)
"""One part of the header field `Accept` (RFC 9110, 12.5.1)."""
ACCEPT_CHARS_MAX: Final = 1000
"""Maximum length of `fetch.accept`: ten times the field of a browser."""


def _is_accept(text: str) -> bool:
    printable = text.isascii() and text.isprintable() and text == text.strip() and len(text) <= ACCEPT_CHARS_MAX
    return printable and (not text or all(_MEDIA_RANGE.fullmatch(part) for part in text.split(",")))


def _require(rule: Rule) -> None:
    if not rule.is_honoured():
        raise ConfigError(f"{rule.setting}: {rule.message}")


def _place(config: Config) -> StorePlace | None:
    """Return the place of the store; `None`: its URL is wrong, which another check reports."""
    with suppress(ConfigError):
        return read_store_url("store.url", config.store.url)
    return None


def _check_fallback(url: str) -> None:
    if url and not (url.lower().startswith("file:") and isinstance(read_store_url("store.fallback", url), Folder)):
        raise ConfigError("store.fallback: expected file:PATH, a disk that is there when the network is not")


def _check_hosts(hosts: Sequence[str]) -> None:
    """Refuse hosts that can be no address to listen on, before a resolver sees them."""
    if not hosts or len(hosts) > HOSTS_MAX:
        raise ConfigError(f"server.host: expected an address, or a list of {HOSTS_MAX} at most")
    mistakes = [
        f"server.host: {host!r} is neither an address nor a name; the port is server.port"
        for host in hosts
        if not _is_host(host)
    ]
    if len(hosts) > 1 and not all(hosts):
        mistakes.append("server.host: an address of the list is empty")
    lowered = [host.lower() for host in hosts]
    mistakes += [
        f"server.host: {host!r} stands there twice" for host in sorted(set(lowered)) if lowered.count(host) > 1
    ]
    if mistakes:
        raise ConfigError(*mistakes)


def _check_metrics_address(server: Server) -> None:
    """Refuse a malformed address, and that of `server.port`, which several workers would share unnoticed."""
    wanted = server.metrics_host_and_port
    if wanted is None:
        return
    host, port = wanted
    if not _is_host(host):
        raise ConfigError(f"server.metrics_address: {host!r} is neither an address nor a name")
    if port == server.port and not all(_differ(host, each) for each in server.hosts):
        raise ConfigError(
            "server.metrics_address: server.port is there already; choose another port, or leave it empty"
        )


def _differ(host: str, other: str) -> bool:
    """Whether two hosts are certainly different addresses: a name may be any."""
    if not (_is_address(host) and _is_address(other)):
        return False
    addresses = {ipaddress.ip_address(host), ipaddress.ip_address(other)}
    return len(addresses) > 1 and not any(address.is_unspecified for address in addresses)


def _is_host(host: str) -> bool:
    return _is_address(host) if ":" in host else re.fullmatch(r"[A-Za-z0-9._-]*", host) is not None


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


_OPEN_REDIRECT: Final = (
    "'redirect' sends clients to the target of the link, image or not. Where others can ask without a signature "
    "(another server.host than loopback, server.public_url or server.trusted_proxies), any client could put your name "
    "in front of any page: require signatures (security.signature), or write out the hosts of sources.allow, without * "
    "and groups"
)


_GROUPS: Final = frozenset({"auto", "known", "shared"})
"""The words that `sources.allow` takes besides patterns."""
_FORMER_REFRESHES: Final = frozenset({"never", "resigned"})


def _is_open_redirect(config: Config) -> bool:
    """Whether untrusted clients can make redirects to hosts that the operator has not written out."""
    if config.sources.permanent == "store" or config.security.signature != "off":
        return False
    if not config.server.is_open:
        return False
    return any(
        pattern.lower() in _GROUPS or re.search(r"[*?\[]", pattern.partition("/")[0])
        for pattern in config.sources.allow
    )


_NO_SECRET: Final = (
    f"each needs {KEY_CHARS_MIN} printable ASCII characters or more, without spaces; see `imgkeep token`"
)


def _are_secret(texts: Sequence[str]) -> bool:
    """Whether each can stand in a header field, and is too long to guess."""
    return all(re.fullmatch(rf"[!-~]{{{KEY_CHARS_MIN},}}", text) for text in texts)


def _check_allowed(config: Config) -> None:
    try:
        rules = config.read_provider_rules()
    except ConfigError:
        return  # another check reports it
    _check_globs("sources.allow", config.hosts_allowed(rules), frozenset())


def _check_globs(setting: str, globs: tuple[str, ...], words: frozenset[str]) -> None:
    """Refuse malformed patterns, and `words` that would be read as hosts and match none."""
    mistakes = [f"{setting}: '{glob}' is no host; write out the hosts" for glob in globs if glob.lower() in words]
    try:
        _read_globs(globs)
    except ValueError:
        for glob in globs:  # one by one, to report each
            try:
                _read_globs((glob,))
            except ValueError as error:
                mistakes.append(f"{setting}: {error}")
    if mistakes:
        raise ConfigError(*mistakes)


def _read_globs(globs: tuple[str, ...]) -> None:
    Policy(hosts_allowed=globs, hosts_denied=(), ports=frozenset(), networks=())


def _check_networks(setting: str, networks: Sequence[str]) -> None:
    mistakes: list[str] = []
    for text in networks:
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            mistakes.append(f"{setting}: {error}")
            with suppress(ValueError):
                mistakes[-1] += f"; did you mean {ipaddress.ip_network(text, strict=False)}?"
    if mistakes:
        raise ConfigError(*mistakes)


def _check_base_url(setting: str, url: str) -> None:
    try:
        if url:
            read_base(url)
    except SourceRejected as error:
        got = "" if "@" in url else f", got {url!r}"  # it may hold a password
        raise ConfigError(f"{setting}: {error}".replace("the source URL", "it") + got) from None

"""
The settings: one frozen section for each table of `config.toml`, and values that follow from them.

Rules:
- Defaults stand beside their names; `config.toml` explains empty values and zeros.
- A secret never prints. `SECRETS` names those that can come from a file of their own.
- This module reads nothing: `__main__` passes the mappings of the file and of the environment.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from socket import gethostname
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from imgkeep.config.errors import ConfigError
from imgkeep.core.derived.derive_policy import DEFAULT_WIDTHS, DerivePolicy, read_presets
from imgkeep.core.derived.options import SIDE_MAX
from imgkeep.core.errors import SourceRejected
from imgkeep.core.identity import BUILT_IN, places_of, read_provider_rules
from imgkeep.core.policy import PORTS, Policy
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgkeep.core.identity import ProviderRules
    from imgkeep.core.ip_ranges import Network

WORKERS_MAX: Final = 64
"""Maximum number of workers: more than a machine has cores; each opens its own files, threads and connections."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


T = TypeVar("T", bound="Section")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all tables: immutable, without unknown keys."""


class Server(Section, frozen=True):
    host: str | tuple[str, ...] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080  # 0: any free port
    workers: Annotated[int, msgspec.Meta(ge=1, le=WORKERS_MAX)] = 1
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    forwarded_header: str = "x-forwarded-for"
    metrics_address: str = ""
    welcome: bool = True

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses to listen on; an empty one stands for all."""
        return (self.host,) if isinstance(self.host, str) else self.host

    @property
    def loopback(self) -> bool:
        """Whether each of the addresses is reachable from this machine alone."""
        return all(_is_loopback(host) for host in self.hosts)

    @property
    def metrics_host_and_port(self) -> tuple[str, int] | None:
        """
        The address of a listener for `/metrics` alone; `None`: it is on the port of everything else.

        Raises:
            ConfigError: The setting is not an address.
        """
        return read_address("server.metrics_address", self.metrics_address) if self.metrics_address else None

    @property
    def metrics_loopback(self) -> bool:
        """Whether `metrics_address` is reachable from this machine alone. Raises as `metrics_host_and_port`."""
        wanted = self.metrics_host_and_port
        return wanted is not None and _is_loopback(wanted[0])

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach the server: by its address, or through a proxy in front."""
        return not self.loopback or bool(self.public_url or self.trusted_proxies)


def read_address(setting: str, text: str) -> tuple[str, int]:
    """
    Read `HOST:PORT`, with brackets around an IPv6 address.

    Raises:
        ConfigError: The text has another form.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    is_port = port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535
    if not host or not is_port or bracketed != (":" in host):
        raise ConfigError(f'{setting}: expected HOST:PORT, as in "127.0.0.1:9100" or "[::1]:9100", got {text!r}')
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Store(Section, frozen=True):
    url: str = "file:data"
    fallback: str = "file:data"
    cache_bytes_max: Bytes = 10_737_418_240
    hot_bytes_max: Bytes = 268_435_456
    free_bytes_min: Bytes = 536_870_912
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5
    exclusive: bool = False


class Database(Section, frozen=True):
    url: str = "sqlite:data/imgkeep.db"

    @property
    def is_shared(self) -> bool:
        """Whether processes of other machines can use the database: it is PostgreSQL."""
        return self.url.partition(":")[0].lower() in {"postgresql", "postgres"}


class Cluster(Section, frozen=True):
    name: str = ""
    secret: str = ""
    advertise_url: str = ""
    listen: str = ""
    stale_max_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 30
    tls_certificate: str = ""
    tls_key: str = ""
    tls_ca: str = ""

    def __repr__(self) -> str:
        return f"Cluster(name={self.name!r}, advertise_url={self.advertise_url!r})"

    @property
    def node_name(self) -> str:
        """The name of this node."""
        return self.name or gethostname()

    @property
    def listen_host_and_port(self) -> tuple[str, int] | None:
        """
        The address of the listener for other nodes; `None`: there are none.

        Raises:
            ConfigError: A setting is not an address.
        """
        if self.listen:
            return read_address("cluster.listen", self.listen)
        if not self.advertise_url:
            return None
        try:
            return "", urlsplit(self.advertise_url).port or 0
        except ValueError:
            raise ConfigError("cluster.advertise_url: expected a URL with a port, as http://10.0.0.5:8081") from None


class Delivery(Section, frozen=True):
    mode: Literal["serve", "redirect", "presign"] = "serve"
    base_url: str = ""
    presign_ttl_s: Annotated[int, msgspec.Meta(ge=60, le=604_800)] = 3600
    redirect_status: Literal[301, 302, 303, 307, 308] = 302
    placeholder: str = ""


class Sources(Section, frozen=True):
    allow: tuple[str, ...] = ("auto",)
    deny: tuple[str, ...] = ()
    identity: Literal["object", "exact"] = "object"
    permanent: Literal["store", "redirect"] = "store"
    refresh: tuple[str, ...] = ()
    placeholders: Literal["report", "refuse"] = "report"
    providers: tuple[dict[str, Any], ...] = ()


class Fetch(Section, frozen=True):
    connect_timeout_s: Seconds = 5
    read_timeout_s: Seconds = 20
    total_timeout_s: Seconds = 60
    bytes_per_s_min: Bytes = 1024
    rate_grace_s: Seconds = 10
    body_bytes_max: Count = 52_428_800
    pixels_max: Count = 250_000_000
    redirects_max: Annotated[int, msgspec.Meta(ge=0, le=20)] = 5
    retries_max: Annotated[int, msgspec.Meta(ge=0, le=10)] = 2
    concurrent_max: Count = 64
    per_host_max: Count = 16
    allow_ports: tuple[Port, ...] = PORTS
    allow_networks: tuple[str, ...] = ()
    user_agent: str = ""
    accept: str = "image/png,image/jpeg,image/gif,image/webp;q=0.8,image/*;q=0.5,*/*;q=0.3"
    show_errors: bool = False

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(ipaddress.ip_network(text) for text in self.allow_networks)


class Security(Section, frozen=True):
    signature: Literal["off", "misses", "always"] = "off"
    signing_keys: tuple[str, ...] = ()
    api_tokens: tuple[str, ...] = ()

    def __repr__(self) -> str:
        keys, tokens = len(self.signing_keys), len(self.api_tokens)
        return f"Security(signature={self.signature!r}, {keys} signing keys, {tokens} API tokens)"


EXPOSED_FILL_BYTES_PER_DAY: Final = 2_147_483_648
"""
Maximum of `limits.fill_bytes_per_day` by default where untrusted clients can start fills: a thousand generated images
of 2 MB, many times what a visitor looks at in a day, while a hundred addresses need five days to fill a disk of a
terabyte.
"""


class Limits(Section, frozen=True):
    fills_per_minute: Bytes = 600
    fills_concurrent: Bytes = 32
    fill_bytes_per_day: Bytes | Literal["auto"] = "auto"
    misses_per_minute: Bytes = 300
    connections: Bytes = 256


class Derive(Section, frozen=True):
    allow: Literal["auto", "presets", "signed", "any"] = "auto"
    widths: tuple[Annotated[int, msgspec.Meta(ge=1, le=SIDE_MAX)], ...] = DEFAULT_WIDTHS
    processes: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    queue_max: Count = 64
    timeout_s: Seconds = 20
    memory_bytes_max: Annotated[int, msgspec.Meta(ge=268_435_456)] = 1_073_741_824
    pixels_max: Count = 100_000_000
    frames_max: Count = 500
    side_max: Annotated[int, msgspec.Meta(ge=1, le=SIDE_MAX)] = 8192
    cache_bytes_max: Bytes = 2_147_483_648
    store: bool = False
    svg: bool = False
    facts: bool = True
    presets: dict[str, str] = {}
    imageproxy: str = ""
    imageproxy_key: str = ""
    thumbor: str = ""
    thumbor_key: str = ""
    nextjs: str = ""

    def __repr__(self) -> str:
        """Return the settings without the keys."""
        shown = (name for name in self.__struct_fields__ if not name.endswith("_key"))
        return f"Derive({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


class Legacy(Section, frozen=True):
    """Old file names that stay valid: those of `imgkeep import --mount`, under `/<mount>/<name>`."""

    mount: str


class Log(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    access: bool = True


SECRETS: Final = frozenset(
    {
        ("security", "signing_keys"),
        ("security", "api_tokens"),
        ("database", "url"),
        ("cluster", "secret"),
        ("derive", "imageproxy_key"),
        ("derive", "thumbor_key"),
    }
)
"""Settings with secrets: a variable with `_FILE` at its end names a file for each."""
OLD_SECTIONS: Final = {"catalog": "database"}
"""Sections by their names before the first release; a mistake message has the new one."""


class Config(Section, frozen=True):
    """All settings, valid together. `config.toml` has their forms, defaults and meanings."""

    server: Server = Server()
    store: Store = Store()
    database: Database = Database()
    cluster: Cluster = Cluster()
    delivery: Delivery = Delivery()
    sources: Sources = Sources()
    fetch: Fetch = Fetch()
    security: Security = Security()
    limits: Limits = Limits()
    derive: Derive = Derive()
    log: Log = Log()
    legacy: tuple[Legacy, ...] = ()

    def share(self) -> Config:
        """
        Return the configuration of one of `server.workers`: limits for all of them are divided, at least 1 for each; a
        0 stays. The limits on fills and lookups are divided as they are used (`images/limit_share.py`).
        """
        workers = self.server.workers
        if workers == 1:
            return self

        def divide(section: T, *names: str) -> T:
            parts = {name: max(1, getattr(section, name) // workers) for name in names if getattr(section, name)}
            return msgspec.structs.replace(section, **parts)

        return msgspec.structs.replace(
            self,
            store=divide(self.store, "hot_bytes_max", "cache_bytes_max"),
            fetch=divide(self.fetch, "concurrent_max", "per_host_max"),
            limits=divide(self.limits, "connections"),
            derive=divide(self.derive, "processes", "queue_max", "cache_bytes_max"),
        )

    @property
    def fill_bytes_per_day(self) -> int:
        """`limits.fill_bytes_per_day` with `auto` resolved."""
        chosen = self.limits.fill_bytes_per_day
        if chosen != "auto":
            return chosen
        return EXPOSED_FILL_BYTES_PER_DAY if self.server.is_open and self.security.signature == "off" else 0

    def derive_policy(self) -> DerivePolicy:
        """
        Return the policy of derived pictures, with `auto` of `derive.allow` resolved.

        Raises:
            ConfigError: A preset is malformed.
        """
        derive = self.derive
        allow = derive.allow if derive.allow != "auto" else "signed" if self.server.is_open else "any"
        try:
            presets = read_presets(derive.presets, derive.side_max)
        except ValueError as error:
            raise ConfigError(f"derive.presets: {error}") from None
        return DerivePolicy(allow, derive.widths, presets, derive.side_max)

    def read_provider_rules(self) -> ProviderRules:
        """
        Return the provider rules: those of this configuration before the built-in ones.

        Raises:
            ConfigError: A rule cannot be honoured.
        """
        if not self.sources.providers:
            return BUILT_IN
        try:
            return read_provider_rules(self.sources.providers)
        except ValueError as error:
            raise ConfigError(f"sources.providers: {error}") from None

    def hosts_allowed(self, rules: ProviderRules) -> tuple[str, ...]:
        """
        The patterns of `sources.allow` with `auto`, `known` and `shared` resolved.

        `auto` is `*` if only this machine can reach the server or if it requires signatures, and `known` otherwise: an
        open server must not fetch from any host for an untrusted client.
        """
        private = not self.server.is_open or self.security.signature != "off"
        words = {"auto": "*" if private else "known", "known": "known", "shared": "shared"}
        return rules.resolve(words.get(glob.lower(), glob) for glob in self.sources.allow)

    def policy(self, rules: ProviderRules) -> Policy:
        """Return the policy: which sources imgkeep may fetch."""
        return Policy(
            hosts_allowed=self.hosts_allowed(rules),
            hosts_denied=tuple(dict.fromkeys((*self.sources.deny, *self._deny_patterns_folded(rules)))),
            ports=frozenset(self.fetch.allow_ports),
            networks=self.fetch.networks,
            names=lambda source: places_of(source, rules),
        )

    def _deny_patterns_folded(self, rules: ProviderRules) -> Iterator[str]:
        """Yield the canonical places of `sources.deny`: an image has one place for all its endpoints."""
        for pattern in self.sources.deny:
            host, slash, path = pattern.partition("/")
            if "*" in host or "?" in path:
                continue
            with suppress(SourceRejected):
                for place in places_of(read_source(f"https://{host}/{path or '*'}"), rules):
                    yield place if slash else place.removesuffix("/*")

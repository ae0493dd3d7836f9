"""
The configuration: a parsed mapping in, frozen sections out.

Rules:
- One section per table of `config.toml`; defaults stand beside their names; empty and zero mean what is said there.
- Unknown keys are refused, and every message names the setting and, where it came from there, the environment variable.
- This module reads nothing: `__main__` brings the file's mapping and the environment's.
- Secrets come from the environment or from the file, never from argv, and never print.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import msgspec

from proxy.core.errors import SourceRejected
from proxy.core.headers import FORWARDED_HEADERS
from proxy.core.identity import BUILT_IN, places_of, read_catalogue
from proxy.core.policy import PORTS, Policy
from proxy.core.signing import KEY_CHARS_MIN
from proxy.core.source import read_base, read_source
from proxy.core.store_url import Bucket, Folder
from proxy.core.store_url import read_store_url as read_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from proxy.core.address import Network
    from proxy.core.identity import Catalogue

OWN_PATHS: Final = frozenset(
    {"img", "images", "api", "login", "healthz", "readyz", "metrics", "openapi.json", "imgkeep.js", "imgkeep.d.ts"}
)
ENVIRONMENT_PREFIX: Final = "IMGKEEP_"
WORKERS_MAX: Final = 64
"""More than a machine of today has cores for; each opens its own files, threads and connections."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


T = TypeVar("T", bound="Section")


class ConfigError(Exception):
    """A setting is unknown or has a value that cannot be honoured. The message names the setting."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all tables: immutable, and every key has to be known."""


class Server(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080  # 0: any free port
    workers: Annotated[int, msgspec.Meta(ge=1, le=WORKERS_MAX)] = 1
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    forwarded_header: str = "x-forwarded-for"
    metrics_address: str = ""
    welcome: bool = True

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach us."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def metrics_host_and_port(self) -> tuple[str, int] | None:
        """
        Where `/metrics` is served apart; `None`: beside everything else.

        Raises:
            ConfigError: The setting is no address.
        """
        if not self.metrics_address:
            return None
        host, _, port = self.metrics_address.rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port[:6]) <= 65535:
            raise ConfigError('server.metrics_address: expected HOST:PORT, as in "127.0.0.1:9100" or "[::1]:9100"')
        return host.removeprefix("[").removesuffix("]"), int(port)

    @property
    def is_open(self) -> bool:
        """Whether others can reach us: by the address, or through a proxy in front."""
        return not self.loopback or bool(self.public_url or self.trusted_proxies)


class Store(Section, frozen=True):
    url: str = "file:data"
    fallback: str = "file:data"
    cache_bytes_max: Bytes = 10_737_418_240
    hot_bytes_max: Bytes = 268_435_456
    free_bytes_min: Bytes = 536_870_912
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 5


class Catalog(Section, frozen=True):
    url: str = "sqlite:data/catalog.db"


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


OPEN_BYTES_PER_DAY: Final = 2_147_483_648
"""
`limits.fill_bytes_per_day` where strangers can have images fetched: a thousand generated pictures of 2 MB, many times
what a visitor looks at in a day, while a hundred addresses need five days to fill a disk of a terabyte.
"""


class Limits(Section, frozen=True):
    fills_per_minute: Bytes = 600
    fills_concurrent: Bytes = 32
    fill_bytes_per_day: Bytes | Literal["auto"] = "auto"
    misses_per_minute: Bytes = 300
    connections: Bytes = 256


class Legacy(Section, frozen=True):
    """Old file names that go on working: what `imgkeep import --mount` has adopted, under `/<mount>/<name>`."""

    mount: str


class Log(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    access: bool = True


class Config(Section, frozen=True):
    """All settings, valid together. Shapes, defaults and meaning: `config.toml`."""

    server: Server = Server()
    store: Store = Store()
    catalog: Catalog = Catalog()
    delivery: Delivery = Delivery()
    sources: Sources = Sources()
    fetch: Fetch = Fetch()
    security: Security = Security()
    limits: Limits = Limits()
    log: Log = Log()
    legacy: tuple[Legacy, ...] = ()

    def share(self) -> Config:
        """
        Return what each of `server.workers` goes by: what all of them may take together is divided, at least 1 for
        each. 0 stays what it means.
        """
        workers = self.server.workers
        if workers == 1:
            return self
        limits = msgspec.structs.replace(self.limits, fill_bytes_per_day=self.fill_bytes_per_day)

        def divide(section: T, *names: str) -> T:
            parts = {name: max(1, getattr(section, name) // workers) for name in names if getattr(section, name)}
            return msgspec.structs.replace(section, **parts)

        return msgspec.structs.replace(
            self,
            store=divide(self.store, "hot_bytes_max", "cache_bytes_max"),
            fetch=divide(self.fetch, "concurrent_max", "per_host_max"),
            limits=divide(limits, *limits.__struct_fields__),
        )

    @property
    def fill_bytes_per_day(self) -> int:
        """`limits.fill_bytes_per_day` with `auto` resolved."""
        chosen = self.limits.fill_bytes_per_day
        if chosen != "auto":
            return chosen
        return OPEN_BYTES_PER_DAY if self.server.is_open and self.security.signature == "off" else 0

    def read_catalogue(self) -> Catalogue:
        """
        Return what is known about links: our catalogue with the providers of this configuration before it.

        Raises:
            ConfigError: A provider cannot be honoured.
        """
        if not self.sources.providers:
            return BUILT_IN
        try:
            return read_catalogue(self.sources.providers)
        except ValueError as error:
            raise ConfigError(f"sources.providers: {error}") from None

    def hosts_allowed(self, catalogue: Catalogue) -> tuple[str, ...]:
        """
        The patterns of `sources.allow` with `auto`, `known` and `shared` resolved.

        `auto` is `*` when only this machine can reach us or when signatures are required, and `known` otherwise: an
        open server must not fetch for any stranger from any host.
        """
        private = not self.server.is_open or self.security.signature != "off"
        globs = [("*" if private else "known") if glob == "auto" else glob for glob in self.sources.allow]
        return catalogue.resolve(globs)

    def policy(self, catalogue: Catalogue) -> Policy:
        """Return what may be fetched."""
        return Policy(
            hosts_allowed=self.hosts_allowed(catalogue),
            hosts_denied=tuple(dict.fromkeys((*self.sources.deny, *self._folded(catalogue)))),
            ports=frozenset(self.fetch.allow_ports),
            networks=self.fetch.networks,
            names=lambda source: places_of(source, catalogue),
        )

    def _folded(self, catalogue: Catalogue) -> Iterator[str]:
        """Give what the places of `sources.deny` are folded to: an image has one place for all its endpoints."""
        for pattern in self.sources.deny:
            host, slash, path = pattern.partition("/")
            if "*" in host or "?" in path:
                continue
            with suppress(SourceRejected):
                for place in places_of(read_source(f"https://{host}/{path or '*'}"), catalogue):
                    yield place if slash else place.removesuffix("/*")


def load(file: Mapping[str, Any], environment: Mapping[str, str]) -> Config:
    """
    Make the configuration from a parsed `config.toml` and the process environment, which wins.

    Raises:
        ConfigError: A key is unknown or a value is not of its kind or cannot be honoured.
    """
    merged = {name: dict(table) if isinstance(table, dict) else table for name, table in file.items()}
    for section, key, value in _from_environment(environment):
        table = merged.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{section}: expected a table")
        table[key] = value
    _take_aws(merged, environment)
    try:
        config = msgspec.convert(merged, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_message(str(error), environment)) from None
    _validate(config)
    return config


def _take_aws(merged: dict[str, Any], environment: Mapping[str, str]) -> None:
    """
    Let the usual variables count: `AWS_S3_BUCKET_NAME` names a store where none is set but the default, which stands in
    the shipped file, and `AWS_REGION` its region.

    All others are read by the AWS library itself, which knows `AWS_DEFAULT_REGION` only.
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


def _variable(section: str, key: str) -> str:
    return f"{ENVIRONMENT_PREFIX}{section.upper()}__{key.upper()}"


def _from_environment(environment: Mapping[str, str]) -> list[tuple[str, str, object]]:
    """Read `IMGKEEP_SECTION__KEY` variables; a list is written with commas or as a JSON array."""
    found: list[tuple[str, str, object]] = []
    for variable, text in sorted(environment.items()):
        section, separator, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        # Kubernetes sets variables like IMGKEEP_PORT for a service of that name: only ours have the two underscores.
        if not variable.startswith(ENVIRONMENT_PREFIX) or not separator:
            continue
        defaults = getattr(Config(), section, None)
        if not isinstance(defaults, Section):
            raise ConfigError(f"{variable}: there is no section '{section}'")
        if key not in defaults.__struct_fields__:
            raise ConfigError(f"{variable}: there is no setting '{section}.{key}'")
        is_list = isinstance(getattr(defaults, key), tuple)
        found.append((section, key, _read_list(variable, text) if is_list else text))
    return found


def _read_list(variable: str, text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        try:
            return msgspec.json.decode(text, type=list[Any])
        except msgspec.DecodeError:
            raise ConfigError(f"{variable}: expected a JSON array or values separated by commas") from None
    return [item.strip() for item in text.split(",") if item.strip()]


def _message(error: str, environment: Mapping[str, str]) -> str:
    """Turn msgspec's "Expected `int`, got `str` - at `$.server.port`" into ours, which leads with the setting."""
    what, _, path = error.partition(" - at ")
    path = re.sub(r"^\$\.?|\[(\.\.\.|\d+)\]", "", path.strip("`"))
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what)
    if unknown:
        what, path = "unknown setting", f"{path}.{unknown[1]}".lstrip(".")
    variable = _variable(*path.split(".", 1)) if "." in path else ""
    origin = f" ({variable})" if variable in environment else ""
    return f"{path}{origin}: {what[:1].lower()}{what[1:].replace('`', '')}"


_MEDIA_RANGE: Final = re.compile(r" *[\w!#$%&'*+.^`|~-]+/[\w!#$%&'*+.^`|~-]+ *(?:;[^,]*)?", re.ASCII)
"""One part of the header field `Accept` (RFC 9110, 12.5.1)."""
ACCEPT_CHARS_MAX: Final = 1000
"""Browsers send a hundred."""


def _is_accept(text: str) -> bool:
    printable = text.isascii() and text.isprintable() and text == text.strip() and len(text) <= ACCEPT_CHARS_MAX
    return printable and (not text or all(_MEDIA_RANGE.fullmatch(part) for part in text.split(",")))


def _validate(config: Config) -> None:
    """Refuse what each setting's type cannot tell, and what this version cannot honour."""
    _check_networks("server.trusted_proxies", config.server.trusted_proxies)
    _check_networks("fetch.allow_networks", config.fetch.allow_networks)
    _check_base_url("server.public_url", config.server.public_url)
    _check_base_url("delivery.base_url", config.delivery.base_url)
    _check_globs(config)
    if re.search(r"[\x00-\x1f\x7f]", config.fetch.user_agent):
        raise ConfigError("fetch.user_agent: must not hold control characters")
    if not _is_accept(config.fetch.accept):
        raise ConfigError("fetch.accept: expected media types with commas between them, as image/png,image/*;q=0.5")
    if config.fetch.total_timeout_s < config.fetch.connect_timeout_s:
        raise ConfigError("fetch.total_timeout_s: is less than fetch.connect_timeout_s, so nothing could be fetched")
    place = read_store_url("store.url", config.store.url)
    if config.store.fallback and not isinstance(read_store_url("store.fallback", config.store.fallback), Folder):
        raise ConfigError("store.fallback: expected file:PATH, a disk that is there when the network is not")
    forwarded = config.server.forwarded_header.lower()
    for legacy in config.legacy:
        check_mount("legacy.mount", legacy.mount)
    remote = isinstance(place, Bucket)
    read_catalog_url(config.catalog.url)
    for setting, honoured, instead in (
        (
            "server.forwarded_header",
            forwarded in {"", *FORWARDED_HEADERS},
            f"expected one of {', '.join(FORWARDED_HEADERS)}, or nothing",
        ),
        ("delivery.mode", config.delivery.mode == "serve" or remote, "only 'serve' is supported by a local store"),
        ("delivery.base_url", not config.delivery.base_url or remote, "needs an object store, see store.url"),
        ("sources.permanent", not _is_open_redirect(config), _OPEN_REDIRECT),
        (
            "security.signature",
            config.security.signature == "off" or bool(config.security.signing_keys),
            "needs security.signing_keys; `imgkeep token` makes one",
        ),
        ("security.signing_keys", _are_secret(config.security.signing_keys), _NO_SECRET),
        ("security.api_tokens", _are_secret(config.security.api_tokens), _NO_SECRET),
    ):
        if not honoured:
            raise ConfigError(f"{setting}: {instead}")


_OPEN_REDIRECT: Final = (
    "'redirect' sends clients to whatever the link names, image or not. Where others can ask without a signature "
    "(another server.host than loopback, server.public_url or server.trusted_proxies), strangers could put your name "
    "in front of any page: require signatures (security.signature), or write out the hosts of sources.allow, without * "
    "and groups"
)


_GROUPS: Final = frozenset({"auto", "known", "shared"})
"""What `sources.allow` takes besides patterns."""
_FORMER_REFRESHES: Final = frozenset({"never", "resigned"})


def _is_open_redirect(config: Config) -> bool:
    """Whether strangers can have clients sent to places that the operator did not write out."""
    if config.sources.permanent == "store" or config.security.signature != "off":
        return False
    if not config.server.is_open:
        return False
    return any(
        pattern in _GROUPS or re.search(r"[*?\[]", pattern.partition("/")[0]) for pattern in config.sources.allow
    )


_NO_SECRET: Final = (
    f"each needs {KEY_CHARS_MIN} printable ASCII characters or more, without spaces; see `imgkeep token`"
)


def _are_secret(texts: Sequence[str]) -> bool:
    """Whether each can stand in a header field, and is not guessed."""
    return all(re.fullmatch(rf"[!-~]{{{KEY_CHARS_MIN},}}", text) for text in texts)


def check_mount(setting: str, mount: str) -> None:
    """
    Check what stands before old file names.

    Raises:
        ConfigError: It is no path, or one of ours.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][\w.-]*(/[A-Za-z0-9_-][\w.-]*)*", mount, re.ASCII):
        raise ConfigError(f"{setting}: expected a path like generated-images, without slashes at its ends")
    if mount.partition("/")[0] in OWN_PATHS:
        raise ConfigError(f"{setting}: /{mount} is a path of imgkeep's own")


def _check_globs(config: Config) -> None:
    for setting, globs in (
        ("sources.allow", config.hosts_allowed(config.read_catalogue())),
        ("sources.deny", config.sources.deny),
        ("sources.refresh", config.sources.refresh),
    ):
        try:
            Policy(hosts_allowed=globs, hosts_denied=(), ports=frozenset(), networks=())
        except ValueError as error:
            raise ConfigError(f"{setting}: {error}") from None
    for setting, globs, words in (
        ("sources.deny", config.sources.deny, _GROUPS),
        ("sources.refresh", config.sources.refresh, _GROUPS | _FORMER_REFRESHES),
    ):
        # Read as a host, a word would match none: nothing would be denied, and nothing refreshed.
        if word := next((glob for glob in globs if glob.lower() in words), None):
            raise ConfigError(f"{setting}: '{word}' is no host; write out the hosts")


def _check_networks(setting: str, networks: Sequence[str]) -> None:
    for text in networks:
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            raise ConfigError(f"{setting}: {error}") from None


def _check_base_url(setting: str, url: str) -> None:
    try:
        if url:
            read_base(url)
    except SourceRejected as error:
        raise ConfigError(f"{setting}: {error}".replace("the source URL", "it")) from None


def read_store_url(setting: str, url: str) -> Folder | Bucket:
    """
    Read the URL of a store.

    Raises:
        ConfigError: It names none that this version has.
    """
    try:
        return read_place(url)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from None


_LIBPQ_PARAMETERS: Final = frozenset({
    "application_name", "channel_binding", "client_encoding", "connect_timeout", "gssencmode", "host", "hostaddr",
    "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname", "load_balance_hosts",
    "options", "passfile", "port", "require_auth", "service", "ssl_max_protocol_version", "ssl_min_protocol_version",
    "sslcert", "sslcompression", "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslrootcert", "sslsni",
    "target_session_attrs", "tcp_user_timeout",
})  # fmt: skip
"""Of connections (PostgreSQL 17, 32.1.2). Another one would be found out about at the first connection only."""


def read_catalog_url(url: str) -> str:
    """
    Return the SQLAlchemy URL of `catalog.url`: `sqlite:PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`.

    Raises:
        ConfigError: It is neither. The message does not quote it: it may hold a password.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite":
        # SQLAlchemy takes what follows a `?` for options of the driver, and the names that SQLite keeps in memory.
        # So it does once more with what is percent-encoded.
        if not all(
            re.fullmatch(r"(?!//)(?!:)[^\x00-\x1f\x7f?#]*[^\x00-\x1f\x7f?#/]", it) for it in (rest, unquote(rest))
        ):
            raise ConfigError("catalog.url: expected sqlite:PATH, a file, without ? and # in its name")
        return f"sqlite:///{rest}"
    if scheme in {"postgresql", "postgres"}:
        _check_postgresql_url(url)
        return f"postgresql+psycopg:{rest}"
    raise ConfigError("catalog.url: expected sqlite:PATH or postgresql://USER:PASSWORD@HOST/DATABASE")


def _check_postgresql_url(url: str) -> None:
    expected = "catalog.url: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigError(f"{expected}; in a password / ? # @ : and % are percent-encoded") from None
    user, _, authority = parts.netloc.rpartition("@")
    if not url.isprintable() or "\0" in unquote(url) or parts.fragment or "@" in user:
        raise ConfigError(f"{expected}; in a password / ? # @ : and % are percent-encoded")
    if not host or port == 0 or not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]+)?", authority):
        raise ConfigError(f"{expected}; the host or the port is malformed")
    if not re.fullmatch(r"/[^/]+", parts.path):
        raise ConfigError(f"{expected}; the name of the database is missing or has a slash in it")
    for name, _ in parameters:
        if name not in _LIBPQ_PARAMETERS:
            raise ConfigError("catalog.url: behind the ? expected parameters of PostgreSQL's libpq, as sslmode=require")

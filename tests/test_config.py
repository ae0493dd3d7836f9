"""Every setting is known, checked and documented, and each message names its setting."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from imgkeep.config import Config, ConfigError, Section, load, read_database_url, read_store_url
from imgkeep.config.schema import Derive
from imgkeep.core.derived.options import PictureOptions
from imgkeep.core.identity import BUILT_IN
from imgkeep.core.policy import judge
from imgkeep.core.source_url import read_source
from imgkeep.core.store_url import Folder
from tests.support.tables import table

ROOT = Path(__file__).parent.parent
SETTINGS = [
    (section, key)
    for section in Config.__struct_fields__
    if section != "legacy"
    for key in getattr(Config(), section).__struct_fields__
]


def test_empty_configuration_is_valid() -> None:
    assert load({}, {}) == Config()


def test_shipped_file_holds_the_defaults() -> None:
    shipped = tomllib.loads((ROOT / "config.toml").read_text())
    defaults = msgspec.json.decode(msgspec.json.encode(Config()))
    # An empty list in the file could not be followed by the tables that operators write.
    assert defaults["sources"].pop("providers") == defaults.pop("legacy") == []
    assert shipped == defaults
    assert load(shipped, {}) == Config()


@table(("section", "key"), SETTINGS)
def test_readme_has_every_setting(section: str, key: str) -> None:
    assert f"`{section}.{key}`" in (ROOT / "README.md").read_text()


@table(("section", "key"), SETTINGS)
def test_every_setting_can_come_from_the_environment(section: str, key: str) -> None:
    default = getattr(getattr(Config(), section), key)
    text = (
        ",".join(map(str, default))
        if isinstance(default, tuple)
        else str(default).lower()
        if isinstance(default, bool)
        else str(default)
    )
    assert (
        load({section: {key: "overridden by the environment"}}, {f"IMGKEEP_{section}__{key}".upper(): text}) == Config()
    )


@table(
    ("file", "environment", "message"),
    [
        pytest.param({"server": {"prt": 1}}, {}, "server.prt: unknown setting", id="unknown key"),
        pytest.param({"sever": {}}, {}, "sever: unknown setting", id="unknown section"),
        pytest.param({"server": 1}, {}, "server: expected a table, [server] once, got 1", id="section of another kind"),
        pytest.param(
            {"server": {"port": "http"}}, {}, "server.port: expected a whole number, got 'http'", id="wrong type"
        ),
        pytest.param(
            {"server": {"port": 70000}},
            {},
            "server.port: expected a whole number, at most 65535, got 70000",
            id="out of range",
        ),
        pytest.param(
            {},
            {"IMGKEEP_SERVER__PRT": "1"},
            "IMGKEEP_SERVER__PRT: there is no setting 'server.prt'",
            id="unknown variable",
        ),
        pytest.param(
            {},
            {"IMGKEEP_SEVER__PORT": "1"},
            "IMGKEEP_SEVER__PORT: there is no section 'sever'",
            id="unknown section variable",
        ),
        pytest.param(
            {},
            {"IMGKEEP_SERVER__PORT": "x"},
            "server.port (IMGKEEP_SERVER__PORT): expected a whole number, got 'x'",
            id="wrong variable",
        ),
        pytest.param(
            {"server": 1}, {"IMGKEEP_SERVER__PORT": "1"}, "server: expected a table", id="variable into no table"
        ),
        pytest.param(
            {},
            {"IMGKEEP_FETCH__ALLOW_PORTS": "[80"},
            "IMGKEEP_FETCH__ALLOW_PORTS: expected a JSON array or values separated by commas",
            id="bad JSON",
        ),
        pytest.param(
            {"fetch": {"allow_networks": ["10.0.0.1/8"]}},
            {},
            "fetch.allow_networks: 10.0.0.1/8 has host bits set",
            id="host bits",
        ),
        pytest.param(
            {"server": {"trusted_proxies": ["me"]}},
            {},
            "server.trusted_proxies: 'me' does not appear to be an IPv4 or IPv6 network",
            id="no network",
        ),
        pytest.param(
            {"server": {"public_url": "img.example.com"}}, {}, "server.public_url: ", id="public URL without scheme"
        ),
        pytest.param(
            {"server": {"public_url": "https://a.example/?b=1"}},
            {},
            "server.public_url: it must have neither a query nor a fragment",
            id="public URL with query",
        ),
        pytest.param(
            {"server": {"public_url": "https://a.example/#b"}},
            {},
            "server.public_url: it must have neither a query nor a fragment",
            id="public URL with fragment",
        ),
        pytest.param(
            {"fetch": {"user_agent": "a\nb"}},
            {},
            "fetch.user_agent: must not hold control characters",
            id="header injection",
        ),
        pytest.param({"fetch": {"total_timeout_s": 1}}, {}, "fetch.total_timeout_s: ", id="total below connect"),
        pytest.param(
            {"fetch": {"connect_timeout_s": 0}},
            {},
            "fetch.connect_timeout_s: expected a number, more than 0, got 0",
            id="zero timeout",
        ),
        pytest.param({"sources": {"allow": ["https://a"]}}, {}, "sources.allow: ", id="a URL is no glob"),
        pytest.param({"sources": {"deny": [""]}}, {}, "sources.deny: ", id="an empty glob"),
        pytest.param({"sources": {"deny": ["a.example/"]}}, {}, "sources.deny: ", id="a root alone"),
        pytest.param({"sources": {"allow": ["https://a.example/x/*"]}}, {}, "sources.allow: ", id="a scheme"),
        pytest.param({"sources": {"allow": ["a.example:80/x/*"]}}, {}, "sources.allow: ", id="a port"),
        pytest.param({"sources": {"refresh": ["https://a"]}}, {}, "sources.refresh: ", id="a URL to refresh at"),
        pytest.param({"sources": {"refresh": "resigned"}}, {}, "sources.refresh: ", id="refresh by word"),
        pytest.param({}, {"IMGKEEP_SOURCES__REFRESH": "resigned"}, "sources.refresh: ", id="refresh by word as a list"),
        pytest.param({"sources": {"refresh": ["known"]}}, {}, "sources.refresh: ", id="a group to refresh at"),
        pytest.param({"sources": {"deny": ["a.example", "shared"]}}, {}, "sources.deny: ", id="a group to deny"),
        pytest.param({"sources": {"placeholders": "yes"}}, {}, "sources.placeholders: ", id="unknown policy"),
        pytest.param({"store": {"url": "ftp://host"}}, {}, "store.url: expected file:PATH, s3://", id="another store"),
        pytest.param(
            {"store": {"url": "gs://Bucket"}}, {}, "store.url: expected gs://BUCKET/PREFIX", id="a bucket of Google"
        ),
        pytest.param(
            {"store": {"url": "az://my--images"}}, {}, "store.url: expected az://CONTAINER/PREFIX", id="a container"
        ),
        pytest.param(
            {"store": {"url": "cloudinary://123:hush@acme"}},
            {},
            "store.url: expected cloudinary:FOLDER",
            id="the variable of Cloudinary",
        ),
        pytest.param({"store": {"url": "data"}}, {}, "store.url: expected file:PATH", id="a bare path"),
        pytest.param(
            {"store": {"url": "file://host/data"}},
            {},
            "store.url: expected file:PATH, relative or absolute",
            id="a host",
        ),
        pytest.param(
            {"store": {"url": "file:"}}, {}, "store.url: expected file:PATH, relative or absolute", id="no path"
        ),
        pytest.param({"store": {"url": "s3://"}}, {}, "store.url: expected s3://BUCKET/PREFIX", id="no bucket"),
        pytest.param(
            {"store": {"timeout_s": 0}}, {}, "store.timeout_s: expected a number, more than 0, got 0", id="no time"
        ),
        pytest.param(
            {"store": {"timeout_s": 61}},
            {},
            "store.timeout_s: expected a number, at most 60, got 61",
            id="too much time",
        ),
        pytest.param(
            {"store": {"url": "s3://bucket", "fallback": "s3://other"}},
            {},
            "store.fallback: expected file:PATH",
            id="a fallback behind the network",
        ),
        pytest.param(
            {"store": {"url": "s3://bucket", "fallback": "other"}},
            {},
            "store.fallback: expected file:PATH",
            id="a fallback that is a bare path",
        ),
        pytest.param(
            {"delivery": {"mode": "redirect"}}, {}, "delivery.mode: only 'serve'", id="redirects to a local store"
        ),
        pytest.param(
            {"delivery": {"mode": "presign"}}, {}, "delivery.mode: only 'serve'", id="links into a local store"
        ),
        pytest.param(
            {"delivery": {"base_url": "https://cdn.example"}},
            {},
            "delivery.base_url: needs an object store",
            id="a public place of a local store",
        ),
        pytest.param(
            {"store": {"url": "cloudinary:images"}, "delivery": {"mode": "presign"}},
            {},
            "delivery.mode: Cloudinary has public links alone",
            id="presigned links of Cloudinary",
        ),
        pytest.param(
            {"store": {"url": "cloudinary:images"}, "delivery": {"base_url": "https://cdn.example"}},
            {},
            "delivery.base_url: the links of Cloudinary",
            id="another base of Cloudinary",
        ),
        pytest.param(
            {"store": {"exclusive": True}},
            {},
            "store.exclusive: no image may stay on a local disk, and store.url is one",
            id="an exclusive local store",
        ),
        pytest.param(
            {"store": {"url": "s3://images", "exclusive": True, "fallback": "file:data"}},
            {},
            "store.fallback: puts images on a local disk, which store.exclusive forbids",
            id="an exclusive bucket with a fallback",
        ),
        pytest.param(
            {"store": {"url": "s3://images", "exclusive": "yes"}},
            {"IMGKEEP_STORE__CACHE_BYTES_MAX": "1GiB"},
            "store.cache_bytes_max: puts images on a local disk, which store.exclusive forbids",
            id="an exclusive bucket with a disk cache",
        ),
        pytest.param(
            {"store": {"url": "s3://images", "exclusive": True}, "derive": {"cache_bytes_max": 1}},
            {},
            "derive.cache_bytes_max: puts images on a local disk, which store.exclusive forbids",
            id="an exclusive bucket with a cache of derived pictures",
        ),
        pytest.param(
            {"store": {"url": "s3://images", "exclusive": True}, "server": {"workers": 8}},
            {},
            "store.hot_bytes_max: with store.exclusive images are in memory while clients read them",
            id="an exclusive bucket with too little memory",
        ),
        pytest.param(
            {}, {"AWS_S3_BUCKET_NAME": "-"}, "store.url: expected s3://BUCKET/PREFIX", id="a variable that is no bucket"
        ),
        pytest.param(
            {"store": 1},
            {"AWS_S3_BUCKET_NAME": "bucket"},
            "store: expected a table, [store] once, got 1",
            id="a bucket into no table",
        ),
        pytest.param(
            {"store": {"url": 1}},
            {"AWS_REGION": "eu-central-1"},
            "store.url: expected text, got 1",
            id="a region into no URL",
        ),
        pytest.param(
            {"database": {"url": "mysql://x/y"}},
            {},
            "database.url: expected sqlite:PATH or postgresql://",
            id="another database",
        ),
        pytest.param({"legacy": [{"mount": "images"}]}, {}, "legacy.mount: /images is a path of imgkeep's", id="mount"),
        pytest.param({"legacy": [{"mount": "a/"}]}, {}, "legacy.mount: expected a path", id="mount with a slash"),
        pytest.param({"legacy": [{"folder": "a"}]}, {}, "legacy.folder: unknown setting", id="no mount"),
        pytest.param(
            {"server": {"workers": 65}}, {}, "server.workers: expected a whole number, at most 64, got 65", id="workers"
        ),
        pytest.param(
            {"derive": {"memory_bytes_max": 1000}},
            {},
            "derive.memory_bytes_max: expected a whole number, at least 268435456, got 1000",
            id="memory of a derive process",
        ),
        pytest.param(
            {"security": {"signature": "always"}},
            {},
            "security.signature: needs security.signing_keys",
            id="signatures without a key",
        ),
        pytest.param(
            {"security": {"signing_keys": ["short"]}}, {}, "security.signing_keys: each needs 16", id="short key"
        ),
        pytest.param(
            {"security": {"api_tokens": ["with space" * 4]}}, {}, "security.api_tokens: each needs", id="token"
        ),
        pytest.param(
            {"log": {"level": "loud"}},
            {},
            "log.level: expected one of debug, info, warning, error, got 'loud'",
            id="unknown choice",
        ),
    ],
)
def test_bad_setting_is_named(file: dict[str, Any], environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        load(file, environment)


def test_other_variables_do_not_count() -> None:
    assert load({}, {"IMGKEEP_CONFIG": "x", "PATH": "y", "SERVER__PORT": "1"}) == Config()


@pytest.mark.parametrize("text", ["80,443", " 80 , 443 ", "[80, 443]", '["80", "443"]'])
def test_lists_are_written_with_commas_or_as_json(text: str) -> None:
    assert load({}, {"IMGKEEP_FETCH__ALLOW_PORTS": text}).fetch.allow_ports == (80, 443)


@pytest.mark.parametrize(
    "text",
    [
        "thumb=w=320&h=320,large=w=1600",
        " thumb = w=320&h=320 , large = w=1600, ",
        '{"thumb": "w=320&h=320", "large": "w=1600"}',
    ],
)
def test_tables_are_written_with_commas_or_as_json(text: str) -> None:
    presets = load({}, {"IMGKEEP_DERIVE__PRESETS": text}).derive.presets
    assert presets == {"thumb": "w=320&h=320", "large": "w=1600"}


@pytest.mark.parametrize("text", ["thumb", "=w=320", "{", "thumb=w=320,large"])
def test_malformed_table_of_a_variable_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^IMGKEEP_DERIVE__PRESETS: expected a JSON object or name=value"):
        load({}, {"IMGKEEP_DERIVE__PRESETS": text})


@pytest.mark.parametrize(
    ("url", "path"), [("file:data", "data"), ("file:/var/lib/x", "/var/lib/x"), ("file:///var/lib/x", "/var/lib/x")]
)
def test_store_url_names_a_folder(url: str, path: str) -> None:
    assert read_store_url("store.url", url) == Folder(path)


BUCKET, REGION, OURS = "AWS_S3_BUCKET_NAME", "AWS_REGION", "IMGKEEP_STORE__URL"
AWS_VARIABLES: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "no variable": ({}, {}, "file:data"),
    "a bucket": ({}, {BUCKET: "images"}, "s3://images"),
    "an empty bucket": ({}, {BUCKET: ""}, "file:data"),
    "a bucket and a region": ({}, {BUCKET: "images", REGION: "eu-central-1"}, "s3://images?region=eu-central-1"),
    "an empty region": ({}, {BUCKET: "images", REGION: ""}, "s3://images"),
    "a region alone": ({}, {REGION: "eu-central-1"}, "file:data"),
    "a region and a URL of ours": (
        {"store": {"url": "s3://images/pre"}},
        {REGION: "eu-central-1"},
        "s3://images/pre?region=eu-central-1",
    ),
    "a region behind another parameter": (
        {"store": {"url": "s3://images?addressing=path"}},
        {REGION: "eu-central-1"},
        "s3://images?addressing=path&region=eu-central-1",
    ),
    "a region that the URL has": (
        {"store": {"url": "s3://images?addressing=path&region=us-east-1"}},
        {REGION: "eu-central-1"},
        "s3://images?addressing=path&region=us-east-1",
    ),
    "a bucket and a file's URL": ({"store": {"url": "s3://ours"}}, {BUCKET: "images"}, "s3://ours"),
    "a bucket, a region and a file's folder": (
        {"store": {"url": "file:here"}},
        {BUCKET: "images", REGION: "eu-central-1"},
        "file:here",
    ),
    "a bucket and a variable of ours": ({}, {BUCKET: "images", OURS: "s3://ours"}, "s3://ours"),
    "a bucket and the shipped file": (
        tomllib.loads((ROOT / "config.toml").read_text()),
        {BUCKET: "images"},
        "s3://images",
    ),
    "an empty region in the URL": (
        {"store": {"url": "s3://images?region=&addressing=path"}},
        {REGION: "eu-central-1"},
        "s3://images?addressing=path&region=eu-central-1",
    ),
    "another setting of the store": ({"store": {"timeout_s": 2}}, {BUCKET: "images"}, "s3://images"),
}


@table(("file", "environment", "url"), AWS_VARIABLES.values(), ids=AWS_VARIABLES)
def test_aws_variables_name_a_bucket_by_default(file: dict[str, Any], environment: dict[str, str], url: str) -> None:
    before = copy.deepcopy(file)
    assert load(file, environment).store.url == url
    assert file == before


def test_credentials_of_a_service_name_no_store() -> None:
    environment = {
        "CLOUDINARY_URL": "cloudinary://123:secret@acme",
        "GOOGLE_CLOUD_PROJECT": "acme",
        "GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountName=acme;AccountKey=c2VjcmV0",
        "AZURE_STORAGE_ACCOUNT": "acme",
    }
    assert load({}, environment) == Config()


@pytest.mark.parametrize("url", ["s3://images", "gs://images", "az://images"])
@pytest.mark.parametrize("mode", ["serve", "redirect", "presign"])
def test_bucket_allows_every_delivery_mode(url: str, mode: str) -> None:
    delivery = {"mode": mode, "base_url": "https://cdn.example"}
    config = load({"store": {"url": url, "fallback": ""}, "delivery": delivery}, {})
    assert (config.delivery.mode, config.delivery.base_url) == (mode, "https://cdn.example")


@pytest.mark.parametrize("mode", ["serve", "redirect"])
def test_cloudinary_serves_and_redirects(mode: str) -> None:
    assert load({"store": {"url": "cloudinary:images"}, "delivery": {"mode": mode}}, {}).delivery.mode == mode


def test_exclusive_store_has_neither_fallback_nor_disk_cache() -> None:
    config = load({"store": {"url": "gs://images"}}, {"IMGKEEP_STORE__EXCLUSIVE": "true"})
    store = config.store
    assert (store.exclusive, store.fallback, store.cache_bytes_max) == (True, "", 0)
    assert config.derive.cache_bytes_max == 0
    given = {"url": "gs://images", "exclusive": True, "fallback": "", "cache_bytes_max": 0}
    assert load({"store": given}, {}).store == store


def test_bucket_timeout_has_a_maximum() -> None:
    assert load({}, {}).store.timeout_s == 5
    assert load({"store": {"timeout_s": 0.5}}, {"IMGKEEP_STORE__TIMEOUT_S": "60"}).store.timeout_s == 60


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("sqlite:data/imgkeep.db", "sqlite:///data/imgkeep.db"),
        ("sqlite:/var/lib/c.db", "sqlite:////var/lib/c.db"),
        ("postgresql://u:p@db/images", "postgresql+psycopg://u:p@db/images"),
    ],
)
def test_database_url_is_read(url: str, target: str) -> None:
    assert read_database_url(url) == target


@pytest.mark.parametrize("password", ["hush%zz", "hush%", "hush hush"])
def test_password_that_libpq_reads_otherwise_is_refused_without_a_quote(password: str) -> None:
    with pytest.raises(ConfigError, match="percent-encoded") as refusal:
        read_database_url(f"postgresql://u:{password}@db/images")
    assert "hush" not in str(refusal.value)


def test_secrets_do_not_print() -> None:
    security = load({}, {"IMGKEEP_SECURITY__SIGNATURE": "off"}).security
    secret = msgspec.structs.replace(security, api_tokens=("hush",), signing_keys=("hush",))
    assert "hush" not in repr(secret)
    assert "1 API tokens" in repr(secret)


@pytest.mark.parametrize(
    ("host", "open_to_any"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("img.internal", False),
    ],
)
def test_open_server_fetches_from_known_hosts_only(host: str, *, open_to_any: bool) -> None:
    assert load({"server": {"host": host}}, {}).hosts_allowed(BUILT_IN) == (
        ("*",) if open_to_any else BUILT_IN.known_hosts
    )


def test_known_hosts_can_be_allowed_beside_others() -> None:
    config = load({"sources": {"allow": ["known", "img.example.com"]}}, {})
    assert config.hosts_allowed(BUILT_IN) == (*BUILT_IN.known_hosts, "img.example.com")


def test_shared_hosts_are_a_group_of_their_own() -> None:
    config = load({"sources": {"allow": ["shared", "img.example.com/acme/*"]}}, {})
    assert config.hosts_allowed(BUILT_IN) == (*BUILT_IN.shared_hosts, "img.example.com/acme/*")
    assert "raw.githubusercontent.com" in BUILT_IN.shared_hosts


@pytest.mark.parametrize("pattern", ["b-1.s3.eu-west-1.amazonaws.com", "s3.amazonaws.com/b-1/*"])
def test_denied_bucket_is_denied_at_all_endpoints(pattern: str) -> None:
    policy = load({"sources": {"deny": [pattern, "*.b-2.example", "2001:db8::1"]}}, {}).policy(BUILT_IN)
    for url in (
        "https://b-1.s3.amazonaws.com/a.png",
        "https://b-1.s3.eu-west-1.amazonaws.com/a.png",
        "https://b-1.s3-accelerate.amazonaws.com/a.png",
        "https://s3.amazonaws.com/b-1/a.png",
        "https://s3.dualstack.eu-west-1.amazonaws.com/b-1/a.png",
    ):
        assert judge(read_source(url), policy) is not None, url
    assert judge(read_source("https://b-3.s3.amazonaws.com/a.png"), policy) is None
    assert judge(read_source("https://s3.amazonaws.com/b-3/a.png"), policy) is None


@pytest.mark.parametrize(
    ("server", "allow", "resolved"),
    [
        ({}, "auto", "any"),
        ({"host": "0.0.0.0"}, "auto", "signed"),
        ({"public_url": "https://img.example"}, "auto", "signed"),
        ({}, "presets", "presets"),
        ({"host": "::"}, "any", "any"),
    ],
)
def test_options_are_open_where_no_other_machine_can_ask(server: dict[str, Any], allow: str, resolved: str) -> None:
    policy = load({"server": server, "derive": {"allow": allow, "presets": {"thumb": "w=320"}}}, {}).derive_policy()
    assert (policy.allow, policy.side_max) == (resolved, 8192)
    assert policy.widths[:3] == (16, 32, 48)
    assert policy.presets == {"thumb": PictureOptions(320)}


def test_malformed_preset_makes_no_policy() -> None:
    with pytest.raises(ConfigError, match=r"^derive\.presets: thumb: w: expected"):
        Config(derive=Derive(presets={"thumb": "w=0"})).derive_policy()


def test_sections_are_immutable() -> None:
    section: Section = Config().server
    with pytest.raises(AttributeError):
        section.port = 1  # type: ignore[attr-defined]


def test_limits_are_divided_among_workers() -> None:
    config = load(
        {
            "server": {"workers": 3},
            "fetch": {"concurrent_max": 64, "per_host_max": 2},
            "limits": {"fills_per_minute": 600, "connections": 30},
            "store": {"cache_bytes_max": 0, "hot_bytes_max": 300},
            "derive": {"processes": 6, "queue_max": 2},
        },
        {},
    )
    share = config.share()
    assert (share.derive.processes, share.derive.queue_max) == (2, 1)
    assert (share.fetch.concurrent_max, share.fetch.per_host_max) == (21, 1)
    assert (share.limits.fills_per_minute, share.limits.connections) == (600, 10)
    assert (share.store.cache_bytes_max, share.store.hot_bytes_max) == (0, 100)
    assert (share.server, share.fetch.total_timeout_s) == (config.server, config.fetch.total_timeout_s)
    assert Config().share() == Config()

"""The forms of a configuration, and the messages for a wrong one."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.config import Config, ConfigError, load, read_config_file
from imgkeep.config.files import SECRET_BYTES_MAX
from imgkeep.config.units import TEXT_CHARS_MAX, read_quantity
from tests.support.tables import table

if TYPE_CHECKING:
    from pathlib import Path

KEY = "k" * 32

SIZES: dict[str, int | None] = {
    "0": 0,
    "1024": 1024,
    "512MiB": 512 * 1024**2,
    " 512 mib ": 512 * 1024**2,
    "1.5GiB": 3 * 1024**3 // 2,
    "2kB": 2000,
    "2KB": 2000,
    "2KiB": 2048,
    "1TB": 10**12,
    "1TiB": 1024**4,
    "7B": 7,
    "512M": None,
    "1G": None,
    "5k": None,
    "0.3B": None,
    "-1MiB": None,
    "1e9": None,
    "MiB": None,
    "": None,
    "1 MiB MiB": None,
    "\u0661MiB": None,
    "1h": None,
}
DURATIONS: dict[str, float | None] = {
    "30": 30,
    "0.5": 0.5,
    "1h": 3600,
    "1h30m": 5400,
    "1h 30min": 5400,
    "90s": 90,
    "1500ms": 1.5,
    "1D": 86_400,
    "2w": 1_209_600,
    "30m1h": None,
    "1h1h": None,
    "5 parsecs": None,
    "1y": None,
    "inf": None,
    "nan": None,
    "-1s": None,
    "": None,
    "1MiB": None,
}


@table(("text", "number"), SIZES.items())
def test_sizes_are_exact_and_have_known_units(text: str, number: int | None) -> None:
    if number is None:
        with pytest.raises(ValueError, match=r"expected a .*512MiB"):
            read_quantity(text, "size")
    else:
        assert read_quantity(text, "size") == number


@table(("text", "number"), DURATIONS.items())
def test_durations_have_known_units(text: str, number: float | None) -> None:
    if number is None:
        with pytest.raises(ValueError, match=r"expected a number of seconds.*1h30m"):
            read_quantity(text, "duration")
    else:
        assert read_quantity(text, "duration") == number


def test_long_text_is_no_quantity() -> None:
    assert read_quantity(f"{'0' * (TEXT_CHARS_MAX - 1)}1", "size") == 1
    with pytest.raises(ValueError, match="expected"):
        read_quantity("1" * (TEXT_CHARS_MAX + 1), "size")


def test_quantities_stand_in_file_and_environment() -> None:
    file = {"store": {"hot_bytes_max": "512MiB", "timeout_s": "1500ms"}, "delivery": {"presign_ttl_s": "2h"}}
    config = load(file, {"IMGKEEP_FETCH__BODY_BYTES_MAX": "50MB", "IMGKEEP_FETCH__TOTAL_TIMEOUT_S": "2m"})
    assert (config.store.hot_bytes_max, config.store.timeout_s) == (536_870_912, 1.5)
    assert (config.delivery.presign_ttl_s, config.fetch.body_bytes_max) == (7200, 50_000_000)
    assert config.fetch.total_timeout_s == 120
    assert load({"limits": {"fill_bytes_per_day": "2GiB"}}, {}).limits.fill_bytes_per_day == 2 * 1024**3
    assert load({"limits": {"fill_bytes_per_day": "AUTO"}}, {}) == Config()


def test_words_are_read_in_any_case() -> None:
    environment = {
        "IMGKEEP_LOG__LEVEL": "WARNING",
        "IMGKEEP_LOG__ACCESS": "Off",
        "IMGKEEP_DELIVERY__MODE": "Serve",
        "IMGKEEP_DELIVERY__REDIRECT_STATUS": "307",
        "IMGKEEP_SOURCES__ALLOW": "Known,SHARED",
        "IMGKEEP_STORE__URL": "FILE:data",
        "IMGKEEP_DATABASE__URL": "SQLite:data/imgkeep.db",
    }
    config = load({"sources": {"identity": "Exact"}}, environment)
    assert (config.log.level, config.log.access, config.delivery.mode) == ("warning", False, "serve")
    assert (config.delivery.redirect_status, config.sources.identity) == (307, "exact")
    provider_rules = config.read_provider_rules()
    assert config.hosts_allowed(provider_rules) == provider_rules.known_hosts + provider_rules.shared_hosts


MISTAKES: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "enum": ({"log": {"format": "xml"}}, {}, "log.format: expected one of text, json, got 'xml'"),
    "number enum": (
        {"delivery": {"redirect_status": 300}},
        {},
        "delivery.redirect_status: expected one of 301, 302, 303, 307, 308, got 300",
    ),
    "wrong unit": (
        {"store": {"hot_bytes_max": "512M"}},
        {},
        "store.hot_bytes_max: expected a number of bytes, or one with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB",
    ),
    "wrong unit of a variable": (
        {},
        {"IMGKEEP_STORE__TIMEOUT_S": "5x"},
        "store.timeout_s (IMGKEEP_STORE__TIMEOUT_S): expected a number of seconds, or one with ms, s, m, h, d or w",
    ),
    "size or a word": (
        {"limits": {"fill_bytes_per_day": "some"}},
        {},
        (
            "limits.fill_bytes_per_day: expected a number of bytes, or one with B, kB, MB, GB, TB, KiB, MiB, GiB or "
            "TiB, like 512MiB, or auto"
        ),
    ),
    "no number": ({"fetch": {"connect_timeout_s": float("nan")}}, {}, "fetch.connect_timeout_s: expected a finite"),
    "misspelt key": ({"server": {"prot": 1}}, {}, "server.prot: unknown setting; did you mean server.port?"),
    "key of another section": (
        {"fetch": {"signing_keys": []}},
        {},
        "fetch.signing_keys: unknown setting; did you mean security.signing_keys?",
    ),
    "key without section": ({"port": 8080}, {}, "port: unknown setting; did you mean server.port?"),
    "no section": ({"frobnicate": {}}, {}, "frobnicate: unknown setting; there are server, store, database, "),
    "one table in the place of many": (
        {"legacy": {"mount": "a"}},
        {},
        "legacy: expected a list of tables, each under [[legacy]], got a table",
    ),
    "many tables in the place of one": (
        {"server": [{"port": 1}]},
        {},
        "server: expected a table, [server] once, got a list of tables",
    ),
    "tables in a variable": (
        {},
        {"IMGKEEP_LEGACY__MOUNT": "a"},
        "IMGKEEP_LEGACY__MOUNT: a variable cannot give a list of tables; write [[legacy]] into the configuration file",
    ),
    "no list": ({"fetch": {"allow_ports": 80}}, {}, "fetch.allow_ports: expected a list, got 80"),
    "long value": ({"server": {"port": "x" * 200}}, {}, f"server.port: expected a whole number, got '{'x' * 79}..."),
    "network with host bits": (
        {"fetch": {"allow_networks": ["10.0.0.1/8"]}},
        {},
        "fetch.allow_networks: 10.0.0.1/8 has host bits set; did you mean 10.0.0.0/8?",
    ),
    "public URL": (
        {"server": {"public_url": "img.example.com"}},
        {},
        "server.public_url: it is not an absolute http:// or https:// URL, got 'img.example.com'",
    ),
    "bucket as fallback": ({"store": {"fallback": "s3://x"}}, {}, "store.fallback: expected file:PATH"),
    "old section": ({"catalog": {"url": "sqlite:a"}}, {}, "catalog: [catalog] is now called [database]"),
    "old variable": (
        {},
        {"IMGKEEP_CATALOG__URL": "sqlite:a"},
        "IMGKEEP_CATALOG__URL: is now called IMGKEEP_DATABASE__URL",
    ),
    "old variable of a file": (
        {},
        {"IMGKEEP_CATALOG__URL_FILE": "/run/secrets/url"},
        "IMGKEEP_CATALOG__URL_FILE: is now called IMGKEEP_DATABASE__URL_FILE",
    ),
    "misspelt section": ({"sever": {}}, {}, "sever: unknown setting; did you mean server?"),
    "misspelt variable": (
        {},
        {"IMGKEEP_SERVER__PROT": "1"},
        "IMGKEEP_SERVER__PROT: there is no setting 'server.prot'; did you mean IMGKEEP_SERVER__PORT?",
    ),
    "variable with one underscore": (
        {},
        {"IMGKEEP_SERVER_HOST": "0.0.0.0"},
        (
            "IMGKEEP_SERVER_HOST: there is no such variable; those of settings are IMGKEEP_SECTION__KEY; "
            "did you mean IMGKEEP_SERVER__HOST?"
        ),
    ),
    "port with one underscore": (
        {},
        {"IMGKEEP_SERVER_PORT": "9000"},
        (
            "IMGKEEP_SERVER_PORT: there is no such variable; those of settings are IMGKEEP_SECTION__KEY; "
            "did you mean IMGKEEP_SERVER__PORT?"
        ),
    ),
    "variable without a section": (
        {},
        {"IMGKEEP_PORT": "9000"},
        (
            "IMGKEEP_PORT: there is no such variable; those of settings are IMGKEEP_SECTION__KEY; "
            "did you mean IMGKEEP_SERVER__PORT?"
        ),
    ),
    "variable without its section": (
        {},
        {"IMGKEEP_API_TOKENS": KEY},
        (
            "IMGKEEP_API_TOKENS: there is no such variable; those of settings are IMGKEEP_SECTION__KEY; "
            "did you mean IMGKEEP_SECURITY__API_TOKENS?"
        ),
    ),
    "variable of another section": (
        {},
        {"IMGKEEP_STORAGE__URL": "sqlite:x"},
        "IMGKEEP_STORAGE__URL: there is no section 'storage'; did you mean ",
    ),
    "file of no secret": (
        {},
        {"IMGKEEP_SERVER__PORT_FILE": "/x"},
        "IMGKEEP_SERVER__PORT_FILE: only secrets are read from files (IMGKEEP_CLUSTER__SECRET_FILE, ",
    ),
    "long variable": ({}, {f"IMGKEEP_{'A' * 10_000}": ""}, "IMGKEEP_AAA"),
    "preset without a table": ({"derive": {"presets": "w=1"}}, {}, "derive.presets: expected a table, got 'w=1'"),
    "preset that is a table": (
        {"derive": {"presets": {"thumb": {"w": 1}}}},
        {},
        "derive.presets: expected text, got a table",
    ),
    "preset with a wrong option": (
        {"derive": {"presets": {"thumb": "w=320&fit=fill"}}},
        {},
        "derive.presets: thumb: fit: expected one of inside, contain, cover",
    ),
    "preset with a wrong option in a variable": (
        {},
        {"IMGKEEP_DERIVE__PRESETS": "thumb=w=0"},
        "derive.presets: thumb: w: expected a whole number from 1 to 16383",
    ),
    "preset that is too large": (
        {"derive": {"presets": {"thumb": "w=320"}, "side_max": 319, "widths": []}},
        {},
        "derive.presets: thumb: a side is longer than derive.side_max, 319",
    ),
    "many presets": (
        {"derive": {"presets": {f"p{n}": "w=1" for n in range(257)}}},
        {},
        "derive.presets: expected 256 presets at most",
    ),
    "width that is too large": (
        {"derive": {"widths": [8193]}},
        {},
        "derive.widths: a width is more than derive.side_max",
    ),
    "width twice": ({"derive": {"widths": [320, 320]}}, {}, "derive.widths: expected 64 different widths at most"),
    "signed options without a key": (
        {"derive": {"allow": "signed"}},
        {},
        "derive.allow: 'signed' needs security.signing_keys; `imgkeep token` makes one",
    ),
    "no host": ({"server": {"host": []}}, {}, "server.host: expected an address, or a list of 16 at most"),
    "host with a port": (
        {"server": {"host": "127.0.0.1:80"}},
        {},
        "server.host: '127.0.0.1:80' is neither an address nor a name; the port is server.port",
    ),
    "URL for a host": ({"server": {"host": "http://a"}}, {}, "server.host: 'http://a' is neither an address nor a"),
    "host twice": ({"server": {"host": ["::1", "::1"]}}, {}, "server.host: '::1' stands there twice"),
}


@table(("file", "environment", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_gets_a_hint(file: dict[str, Any], environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}") as error:
        load(file, environment)
    assert len(error.value.messages) == 1


def test_error_lists_all_mistakes() -> None:
    file = {
        "server": {"port": 70_000, "prot": 1},
        "log": {"level": "loud"},
        "sources": {"deny": ["https://a"], "allow": [""]},
        "legacy": [{"mount": "images"}],
    }
    environment = {"IMGKEEP_STORE__HOT_BYTES_MAX": "1X", "IMGKEEP_SEVER__PORT": "1", "IMGKEEP_STORE__URL": "data"}
    with pytest.raises(ConfigError) as error:
        load(file, environment)
    told = [re.split(r"[ :]", message)[0] for message in error.value.messages]
    assert sorted(told) == [
        "IMGKEEP_SEVER__PORT",
        "legacy.mount",
        "log.level",
        "server.port",
        "server.prot",
        "sources.allow",
        "sources.deny",
        "store.hot_bytes_max",
        "store.url",
    ]


def test_error_lists_each_mistake_of_a_list() -> None:
    file = {
        "server": {"host": ["bad host", "127.0.0.1:80"], "trusted_proxies": ["a", "10.0.0.1/8"]},
        "sources": {"allow": ["https://a", "https://b"], "deny": ["known", "https://c"]},
        "legacy": [{"mount": "/a"}, {"mount": "api"}],
    }
    with pytest.raises(ConfigError) as error:
        load(file, {})
    told = Counter(message.partition(":")[0] for message in error.value.messages)
    assert told == dict.fromkeys(
        ("server.host", "server.trusted_proxies", "sources.allow", "sources.deny", "legacy.mount"), 2
    )


def test_further_check_joins_the_list() -> None:
    def look(config: Config) -> None:
        raise ConfigError(f"delivery.placeholder: {config.delivery.placeholder} does not exist")

    with pytest.raises(ConfigError) as error:
        load({"server": {"port": "x"}, "delivery": {"placeholder": "/a.png"}}, {}, check=look)
    assert [message.partition(":")[0] for message in error.value.messages] == ["server.port", "delivery.placeholder"]


def test_checks_of_wrong_settings_are_left_out() -> None:
    with pytest.raises(ConfigError) as error:
        load({"security": {"signature": "always", "signing_keys": 1}}, {})
    assert [message.partition(":")[0] for message in error.value.messages] == ["security.signing_keys"]


@table(
    ("variable", "value"),
    [
        ("IMGKEEP_SERVICE_HOST", "10.0.0.11"),
        ("IMGKEEP_SERVICE_PORT", "8080"),
        ("IMGKEEP_SERVICE_PORT_HTTP", "8080"),
        ("IMGKEEP_PORT", "tcp://10.0.0.11:8080"),
        ("IMGKEEP_PORT_8080_TCP", "tcp://10.0.0.11:8080"),
        ("IMGKEEP_PORT_8080_TCP_PROTO", "tcp"),
        ("IMGKEEP_PORT_8080_TCP_PORT", "8080"),
        ("IMGKEEP_PORT_8080_TCP_ADDR", "10.0.0.11"),
        ("IMGKEEP_WEB_SERVICE_HOST", "10.0.0.11"),
        ("IMGKEEP_WEB_PORT", "udp://10.0.0.11:8080"),
        ("IMGKEEP_WEB_PORT_53_UDP_ADDR", "10.0.0.11"),
        ("IMGKEEP_NAME", "/app/imgkeep"),
        ("IMGKEEP_ENV_PATH", "/usr/bin"),
        ("IMGKEEP_CONFIG", "x"),
        ("IMGKEEP_TEST_S3RVER", "x"),
    ],
)
def test_service_variables_pass(variable: str, value: str) -> None:
    assert load({}, {variable: value}) == Config()


def test_secrets_come_from_files(tmp_path: Path) -> None:
    keys, tokens, url = tmp_path / "keys", tmp_path / "tokens", tmp_path / "url"
    keys.write_text(f"{KEY}1\n{KEY}2\n")
    tokens.write_bytes(f"{KEY},3\r\n".encode())
    url.write_text("postgresql://u:p@db/images\n")
    environment = {
        "IMGKEEP_SECURITY__SIGNING_KEYS_FILE": str(keys),
        "IMGKEEP_SECURITY__API_TOKENS_FILE": str(tokens),
        "IMGKEEP_DATABASE__URL_FILE": str(url),
    }
    config = load({"security": {"api_tokens": [f"{KEY}0"]}}, environment)
    assert config.security.signing_keys == (f"{KEY}1", f"{KEY}2")
    assert config.security.api_tokens == (f"{KEY},3",)
    assert config.database.url == "postgresql://u:p@db/images"


def test_unusable_secret_file_is_named(tmp_path: Path) -> None:
    variable = "IMGKEEP_SECURITY__API_TOKENS_FILE"
    empty, large, binary = tmp_path / "empty", tmp_path / "large", tmp_path / "binary"
    empty.write_text("\n")
    large.write_text("x" * (SECRET_BYTES_MAX + 1))
    binary.write_bytes(b"\xff" * 32)
    for path, cause in (
        (tmp_path / "none", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        (empty, "is empty"),
        (large, "is larger than"),
        (binary, "is not UTF-8"),
    ):
        with pytest.raises(ConfigError, match=f"^{variable}: the file {re.escape(str(path))} {cause}"):
            load({}, {variable: str(path)})
    with pytest.raises(ConfigError, match=f"^{variable}: /dev/null is no regular file"):
        load({}, {variable: "/dev/null"})
    with pytest.raises(ConfigError, match=f"^{variable}: IMGKEEP_SECURITY__API_TOKENS is set too"):
        load({}, {variable: str(large), "IMGKEEP_SECURITY__API_TOKENS": KEY})


def test_error_quotes_no_secret(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush hush\n")
    for name in ("SECURITY__API_TOKENS", "SECURITY__SIGNING_KEYS", "DATABASE__URL"):
        for environment in ({f"IMGKEEP_{name}_FILE": str(secret)}, {f"IMGKEEP_{name}": "hush hush"}):
            with pytest.raises(ConfigError) as error:
                load({}, environment)
            assert "hush" not in str(error.value)


def test_malformed_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for data, message in (
        (b"[server]\nport = 1\nhost = \n", r"invalid value \(at line 3, column 8\)"),
        (b"[server]\nhost = '\xff'\n", r"is not UTF-8 \(at line 2\)"),
        (b"a = " + b"[" * 100_000, "is nested too deeply"),
        (b"#" * 2_000_000, "is larger than"),
    ):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: {message}"):
            read_config_file(str(path))
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}: cannot be read: Is a directory"):
        read_config_file(str(tmp_path))
    path.write_bytes(b"\xef\xbb\xbf[server]\r\nport = 1\r\n")
    assert read_config_file(str(path)) == {"server": {"port": 1}}


def test_addresses_are_one_or_several() -> None:
    assert load({"server": {"host": ["127.0.0.1", "::1"]}}, {}).server.hosts == ("127.0.0.1", "::1")
    assert load({}, {"IMGKEEP_SERVER__HOST": "127.0.0.1, ::1"}).server.hosts == ("127.0.0.1", "::1")
    assert load({}, {"IMGKEEP_SERVER__HOST": "::"}).server.hosts == ("::",)
    assert load({"server": {"host": ["127.0.0.1", "::1", "localhost"]}}, {}).server.loopback
    assert not load({"server": {"host": ["127.0.0.1", "192.0.2.1"]}}, {}).server.loopback
    assert not load({"server": {"host": ""}}, {}).server.loopback


@table(
    "address",
    [
        "9100",
        ":9100",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:000000080",
        "127.0.0.1:\u0661\u0662",
        "127.0.0.1:80 ",
        "::1:9100",
        "[::1:9100",
        "::1]:9100",
        "[127.0.0.1]:9100",
        "[::x]:9100",
        "a b:9100",
        "http://127.0.0.1:9100",
        "127.0.0.1:8080",
        "localhost:8080",
        "0.0.0.0:8080",
        "[::]:8080",
    ],
)
def test_metrics_address_must_be_free(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^server\.metrics_address: "):
        load({"server": {"metrics_address": address}}, {})


@pytest.mark.parametrize("address", ["127.0.0.2:8080", "[::1]:8080", "127.0.0.1:9100", "[::]:9100", "localhost:9100"])
def test_metrics_address_may_be_another_one_of_this_machine(address: str) -> None:
    assert load({"server": {"metrics_address": address}}, {}).server.metrics_host_and_port is not None

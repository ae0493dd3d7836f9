"""
The address guard refuses every case of `tests/cases/forbidden_sources.json`, and its neighbours, by `/img?src=`.

A socket factory records each address that is dialled. It leads to origins on loopback that would gladly give an image,
so a guard that fails shows as a 200 or as a dial, and nothing leaves this machine.
"""

# ruff: noqa: RUF001 - characters that look like others are what is tested

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from yarl import URL

from imgkeep.bootstrap.platform import Platform
from tests.support.images import make_image
from tests.support.network import PUBLIC, Dials, Names, client_context, look, nothing_kept, server_context
from tests.support.origins import FakeOrigin

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.origins import Exchange
    from tests.support.server import Imgkeep

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "cases" / "forbidden_sources.json").read_text("utf-8")
)
BLOCKED = [case for case in CASES if case["expect"] == "block"]
ALLOWED = [case for case in CASES if case["expect"] == "allow"]
OTHER = "93.184.215.15"
INNER = "10.0.0.5"

EXTRA_BLOCKED = (
    # The same numbers in other spellings.
    "http://0/",
    "http://0x0/",
    "http://00000000000/",
    "http://0X7f.1/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://127.0.0.0x1/",
    "http://127.0x000001/",
    "http://0177.1/",
    "http://2130706433/",
    "http://2130706433./",
    "http://3232235777/",
    "http://0xC0A80101/",
    "http://10.1/",
    "http://1.1/",
    "http://18446744073709551617/",
    "http://127.0.0.1.1/",
    "http://127.0.0.1../",
    "http://127..0.1/",
    "http://.127.0.0.1/",
    "http://127.0.0.1:/",
    "http://127.0.0.1:080/",
    "http://127.0.0.1:+80/",
    "http://127.0.0.1:８０/",
    "http://127.0.0.1:80:80/",
    "http://127.0.0.1?a=b",
    "http://127.0.0.1#a",
    "HTTP://127.0.0.1/",
    # Unicode that folds to digits, dots and letters.
    "http://①②⑦.⓪.⓪.①/",
    "http://１２７.０.０.１/",
    "http://127．0．0．1/",
    "http://127｡0｡0｡1/",
    "http://٠.٠.٠.٠/",
    "http://١٢٧.٠.٠.١/",
    "http://𝟙𝟞𝟡.𝟚𝟝𝟜.𝟙𝟞𝟡.𝟚𝟝𝟜/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "http://ＬＯＣＡＬＨＯＳＴ./",
    "http://lo\u200dcalhost/",
    "http://lo\u2060calhost/",
    "http://\ufefflocalhost/",
    "http://[::①]/",
    "http://[::１]/",
    "http://example.com⁄@127.0.0.1/",
    "http://127.0.0.1℁example.com/",
    "http://127.0.0.1\uff0fexample.com/",
    "http://127.0.0.1\uff1fexample.com/",
    "http://127.0.0.1\uff03example.com/",
    # Other places that only the inside should reach.
    "http://169.254.169.253/",
    "http://169.254.169.123/",
    "http://169.254.170.23/v1/credentials",
    "http://169.254.42.42/",
    "http://169.254.0.23/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fd00:42::42]/",
    "http://metadata/computeMetadata/v1/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://METADATA.GOOGLE.INTERNAL./computeMetadata/v1/",
    "http://host.docker.internal/",
    "http://gateway.docker.internal/",
    "http://kubernetes.default.svc/",
    "http://redis/",
    "http://router.lan/",
    "http://nas.home.arpa/",
    "http://1.0.0.127.in-addr.arpa/",
    "http://a.onion/",
    "http://a.localhost./",
    "http://localhost6/",
    "http://localhost4.localdomain4/",
    "http://ip6-loopback/",
    "http://xn--localhost/",
    "http://10.0.0.0/",
    "http://10.255.255.255/",
    "http://100.64.0.0/",
    "http://100.127.255.255/",
    "http://172.16.0.0/",
    "http://192.0.0.255/",
    "http://198.18.0.0/",
    "http://198.51.100.7/",
    "http://203.0.113.255/",
    "http://224.0.0.0/",
    "http://239.255.255.250/",
    "http://240.0.0.0/",
    "http://255.255.255.255/",
    # IPv6 in every dress.
    "http://[::]/",
    "http://[0::1]/",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]/",
    "http://[::0.0.0.1]/",
    "http://[::1]:80/",
    "http://[::1%251]/",
    "http://[::1%1]/",
    "http://[::1%lo]/",
    "http://[fe80::1]/",
    "http://[fe80::1%eth0]/",
    "http://[2606:4700:4700::1111%25eth0]/",
    "http://[::ffff:0.0.0.0]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]/",
    "http://[::FFFF:C0A8:101]/",
    "http://[::ffff:1.1.1.1]/",
    "http://[::10.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b:1::a00:1]/",
    "http://[64:ff9b:1:ffff::10.0.0.1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001::1]/",
    "http://[2001:0:0:0:0:0:80ff:fffe]/",
    "http://[2001:db8:ffff::]/",
    "http://[2001:2::1]/",
    "http://[2001:20::1]/",
    "http://[2607:f8b0::5efe:7f00:1]/",
    "http://[2607:f8b0::200:5efe:7f00:1]/",
    "http://[3fff::1]/",
    "http://[3ffe::1]/",
    "http://[5f00::1]/",
    "http://[8000::1]/",
    "http://[fc00::]/",
    "http://[fdff:ffff::1]/",
    "http://[feff::1]/",
    "http://[ff05::c]/",
    "http://[]/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]]/",
    "http://[[::1]]/",
    "http://[::1].example.com/",
    "http://[127.0.0.1]:80/",
    "http://[localhost]/",
    # Where parsers disagree about what the host is.
    "http://example.com@127.0.0.1/",
    "http://example.com:80@127.0.0.1/",
    "http://@127.0.0.1/",
    "http://@example.com/",
    "http://:@example.com/",
    "http://127.0.0.1@example.com/",
    "http://127.0.0.1\\@example.com/",
    "http://example.com\\@127.0.0.1/",
    "http://example.com\\.127.0.0.1/",
    "http:/\\127.0.0.1/",
    "http:\\/127.0.0.1/",
    "http:/127.0.0.1/",
    "http:///127.0.0.1/",
    "http:////127.0.0.1/",
    "https:127.0.0.1/",
    "//127.0.0.1/",
    "/\\127.0.0.1/",
    "://127.0.0.1/",
    "http ://127.0.0.1/",
    "ht\ntp://127.0.0.1/",
    "http://127.0.0.1\r\nHost: example.com/",
    "http://127.0.0.1%00.example.com/",
    "http://127.0.0.1\x00.example.com/",
    "http://127.0.0.1%0d%0a/",
    "http://127.0.0.1%2f@example.com/",
    "http://127.0.0.1;example.com/",
    "http://127.0.0.1,example.com/",
    "http://127.0.0.1 example.com/",
    "http://127.0.0.1 /",
    "http://\t127.0.0.1/",
    "\thttp://127.0.0.1/",
    "http://127.0.0.1/ ",
    "http://127%2e0%2e0%2e1/",
    "http://example.com%2f127.0.0.1/",
    "http://*.example.com/",
    "http://exa_mple..com/",
    "http://${HOST}/",
    # Not the web.
    "ftp://example.com/a.png",
    "ws://example.com/a.png",
    "javascript:alert(1)",
    "view-source:http://127.0.0.1/",
    "jar:http://127.0.0.1!/a.png",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "netdoc:///etc/passwd",
    "url:http://127.0.0.1/",
    "httpx://example.com/",
    "HTTPS+UNIX://example.com/",
    "about:blank",
    "/etc/passwd",
    "?src=http://127.0.0.1/",
    # Ports of other programs.
    "http://example.com:22/",
    "http://example.com:53/",
    "http://example.com:2375/",
    "http://example.com:9200/",
    "http://example.com:65536/",
    "http://example.com:000080x/",
    "https://example.com:444/",
    f"http://{PUBLIC}:6379/",
    "http://[2606:4700:4700::1111]:22/",
)

# What a name answers, and none of it may be dialled.
EXTRA_ANSWERS = {
    "loopback": ["127.0.0.1"],
    "unspecified": ["0.0.0.0"],
    "mapped": ["::ffff:127.0.0.1"],
    "mapped-public": ["::ffff:93.184.215.14"],
    "nat64": ["64:ff9b::5db8:d70e"],
    "6to4": ["2002:5db8:d70e::1"],
    "teredo": ["2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "scoped": ["fe80::1%1"],
    "scoped-public": ["2606:4700:4700::1111%1"],
    "cgnat": ["100.100.100.200"],
    "wireserver": ["168.63.129.16"],
    "multicast": ["224.0.0.251"],
    "public-then-private": [PUBLIC, "10.0.0.5"],
    "public-then-private-v6": [PUBLIC, "fd00::1"],
    "v6-then-loopback": ["2606:4700:4700::1111", "::1"],
    "last-of-many": ["93.184.215.14", "93.184.215.15", "93.184.215.16", "169.254.169.254"],
    "no-address-at-all": ["not-an-address"],
}

# From https://example.com/r.png on: chains of which the last hop must be refused and those before may be dialled.
EXTRA_CHAINS: dict[str, tuple[str, ...]] = {
    "two hops": ("https://example.com/2", "http://127.0.0.1/"),
    "four hops": ("/2", "https://b.example.com/3", "//b.example.com/4", "http://169.254.169.254/latest/meta-data/"),
    "down to http": ("http://example.com/2", "http://10.0.0.5/"),
    "to a name that answers inside": ("https://inside.example.com/",),
    "to a name that answers both": ("https://mixed.example.com/",),
    "to localhost": ("http://localhost/",),
    "to a single label": ("http://redis/",),
    "with user info": ("https://user:pass@b.example.com/",),
    "with the host in the user info": ("https://b.example.com@127.0.0.1/",),
    "protocol-relative": ("//10.0.0.5/x.png",),
    "protocol-relative v6": ("//[::1]/x.png",),
    "protocol-relative with user info": ("//a@b.example.com/",),
    "dword": ("http://2130706433/",),
    "hex": ("http://0x7f.1/",),
    "unicode": ("http://①②⑦.⓪.⓪.①/",),
    "fullwidth dots": ("http://127。0。0。1/",),
    "port": ("https://example.com:22/",),
    "port of the same host": ("//example.com:6379/",),
    "file": ("file:///etc/passwd",),
    "gopher": ("gopher://127.0.0.1:6379/_INFO",),
    "data": ("data:image/png;base64,iVBORw0KGgo=",),
    "javascript": ("javascript:alert(1)",),
    "ftp": ("ftp://b.example.com/a.png",),
    "nat64": ("http://[64:ff9b::7f00:1]/",),
    "zone": ("http://[fe80::1%25eth0]/",),
    "unclosed bracket": ("http://[::1/",),
    "tab in the host": ("http://127.0.\t0.1/",),
    "tab in the scheme": ("ht\ttp://127.0.0.1/",),
    "spaces around": (" \t http://127.0.0.1/ \t",),
    "slash and backslash": ("/\\127.0.0.1/",),
    "two backslashes": ("\\\\127.0.0.1\\",),
    "slash, tab and slash": ("/\t/127.0.0.1/",),
    "characters in circles": ("http://①②⑦.0.0.1/",),
    "percent-encoded local name": ("http://loc%61lhost/",),
    "backslashes for slashes": ("http:\\\\127.0.0.1\\",),
    "percent-encoded host": ("http://%31%32%37.0.0.1/",),
    "metadata by name": ("http://metadata.google.internal/",),
    "trailing dot": ("http://localhost./",),
}

# These look like leaving and stay: what they lead to is the host that redirected.
EXTRA_STAYING: dict[str, str] = {
    "a path that looks like a host": "/127.0.0.1/",
    "backslash before @": "https://example.com\\@127.0.0.1/",
    "a query": "?next=http://127.0.0.1/",
    "a relative path": "http/127.0.0.1",
    "a fragment": "/real.png#@127.0.0.1",
    "dots": "../../real.png",
}

EXTRA_ALLOWED: dict[str, tuple[str, list[str]]] = {
    "name": ("http://example.com/a.png", [PUBLIC]),
    "8080": ("http://example.com:8080/a.png", [PUBLIC]),
    "8443": ("https://example.com:8443/a.png", [PUBLIC]),
    "trailing dot": ("https://example.com./a.png", [PUBLIC]),
    "several addresses": ("http://example.com/a.png", [PUBLIC, "93.184.215.15"]),
    "dual stack": ("http://example.com/a.png", ["2606:4700:4700::1111", PUBLIC]),
    "above 172.31": ("http://172.32.0.0/", []),
    "below 172.16": ("http://172.15.255.255/", []),
    "above 100.127": ("http://100.128.0.1/", []),
    "beside WireServer": ("http://168.63.129.17/", []),
    "above 198.19": ("http://198.20.0.1/", []),
    "6to4's neighbour": ("http://[2003::1]/", []),
    "documentation's neighbour": ("http://[2001:db9::1]/", []),
    "a name like a number": ("http://0x7f000001.example.com/a.png", [PUBLIC]),
    "a name that ends like localhost": ("http://notlocalhost.example/a.png", [PUBLIC]),
    "underscores": ("http://my_bucket.example.com/a.png", [PUBLIC]),
}


TLS_NAMES = (
    "example.com",
    "*.example.com",
    "10.0.0.1.example.com",
    "xn--bcher-kva.example",
    "xn--r8jz45g.example",
    "storage.googleapis.com",
    "fal.media",
    "1.1.1.1",
    "2a00:1450:4001:831::200e",
)


@dataclass
class Internet:
    """Two origins that have an image at every path, the names, and the record of dials."""

    plain: FakeOrigin
    tls: FakeOrigin
    names: Names = field(default_factory=lambda: Names(default=[PUBLIC]))

    def __post_init__(self) -> None:
        self.dials = Dials(self.plain, self.tls)

    @property
    def dialled(self) -> list[str]:
        return [address for address, _ in self.dials.made]

    @property
    def answered(self) -> int:
        return len(self.plain.seen) + len(self.tls.seen)

    def forget(self) -> None:
        """Forget the requests so far."""
        self.plain.seen.clear()
        self.tls.seen.clear()

    def redirects(self, *chain: str) -> None:
        """Let each answered request lead to the next of the chain, whatever its path; behind it are images."""
        image = make_image()

        async def script(exchange: Exchange) -> None:
            number = self.answered - 1
            if number < len(chain):
                await exchange.answer(b"", status="302 Found", headers={"Location": chain[number]})
            else:
                await exchange.answer(image)

        self.plain.scripts = self.tls.scripts = _Everywhere(script)

    def platform(self, trust: ssl.SSLContext) -> Platform:
        return Platform(resolver=lambda: self.names, open_socket=self.dials, ssl_context=trust)


class _Everywhere(dict[str, Any]):
    """A script for every path."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self._script = script

    def get(self, _path: str, _default: Any = None) -> Any:
        return self._script


@pytest.fixture(scope="module")
def trust() -> ssl.SSLContext:
    return client_context()


@pytest.fixture(scope="module")
def identity() -> ssl.SSLContext:
    """One certificate for every host: what stops a request must be the guard and not TLS."""
    return server_context(*TLS_NAMES)


@pytest.fixture
async def internet(identity: ssl.SSLContext) -> AsyncIterator[Internet]:
    plain, tls = FakeOrigin(), FakeOrigin(ssl=identity)
    await plain.start()
    await tls.start()
    internet = Internet(plain, tls)
    internet.redirects()
    yield internet
    await plain.stop()
    await tls.stop()


@pytest.fixture
async def imgkeep(start: Callable[..., Awaitable[Imgkeep]], internet: Internet, trust: ssl.SSLContext) -> Imgkeep:
    """An imgkeep with the addresses that it allows by default: none that is special."""
    return await start(platform=internet.platform(trust), fetch={"allow_networks": []})


def _names(cases: list[dict[str, Any]]) -> list[str]:
    return [f"{number}-{case['cat']}-{case['url'][:50]}" for number, case in enumerate(cases)]


def _together(cases: list[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Return the cases by name: first those without redirects, each name of a host once, then each other by itself."""
    together: dict[str, dict[str, Any]] = {}
    alone: list[dict[str, dict[str, Any]]] = []
    hosts: set[str] = set()
    for name, case in zip(_names(cases), cases, strict=True):
        host = case["url"].partition("://")[2].partition("/")[0].partition(":")[0].lower()
        if "redirects" in case or ("dns" in case and host in hosts):
            alone.append({name: case})
        else:
            together[name] = case
            hosts.add(host)
    return [together, *alone]


BLOCKED_TOGETHER = _together(BLOCKED)


@pytest.mark.parametrize("cases", BLOCKED_TOGETHER, ids=lambda cases: next(iter(cases)))
async def test_forbidden_source_is_refused_and_not_dialled(
    imgkeep: Imgkeep, internet: Internet, subtests: pytest.Subtests, cases: dict[str, dict[str, Any]]
) -> None:
    for name, case in cases.items():
        with subtests.test(name):
            chain = case.get("redirects", ())
            internet.names.default = case.get("dns", [PUBLIC])
            internet.redirects(*chain)
            seen = await look(imgkeep, case["url"])
            if seen.status == 502:
                assert case["dns"] == []
            else:
                assert seen.status in {400, 403}
            # Only the hops before the forbidden one.
            assert internet.dialled == [PUBLIC for _ in chain]
    await nothing_kept(imgkeep)


@pytest.mark.parametrize("case", ALLOWED, ids=_names(ALLOWED))
async def test_public_source_is_fetched_from_its_own_address(
    imgkeep: Imgkeep, internet: Internet, case: dict[str, Any]
) -> None:
    chain = case.get("redirects", ())
    literal = (urlsplit(case["url"]).hostname or "").strip("[]")
    internet.names.default = case.get("dns", [])
    internet.redirects(*chain)
    seen = await look(imgkeep, case["url"])
    assert (seen.status, seen.body) == (200, make_image())
    assert set(internet.dialled) == {case["dns"][0] if "dns" in case else literal}
    assert internet.answered == len(chain) + 1


async def test_no_refused_spelling_is_even_asked_of_the_resolver(imgkeep: Imgkeep, internet: Internet) -> None:
    """In one go: they are many, and none leaves a trace that could help the next."""
    let_in = {}
    for url in EXTRA_BLOCKED:
        seen = await look(imgkeep, url)
        if seen.status not in {400, 403} or internet.names.asked or internet.dialled:
            let_in[url] = (seen.status, internet.names.asked.copy(), internet.dialled)
    assert let_in == {}
    await nothing_kept(imgkeep)


@pytest.mark.parametrize(("url", "answers"), EXTRA_ALLOWED.values(), ids=EXTRA_ALLOWED.keys())
async def test_source_that_only_looks_forbidden_is_fetched(
    imgkeep: Imgkeep, internet: Internet, url: str, answers: list[str]
) -> None:
    internet.names.default = answers
    seen = await look(imgkeep, url)
    assert (seen.status, seen.body) == (200, make_image())
    assert internet.dialled[0] == (answers[0] if answers else (urlsplit(url).hostname or ""))


async def test_name_with_one_forbidden_address_is_refused(
    imgkeep: Imgkeep, internet: Internet, subtests: pytest.Subtests
) -> None:
    for name, answers in EXTRA_ANSWERS.items():
        with subtests.test(name):
            internet.names.answers = {f"{name}.example.com": answers}
            seen = await look(imgkeep, f"https://{name}.example.com/a.png")
            assert (seen.status, seen.code) == (403, "source_forbidden")
            assert internet.names.asked.pop() == f"{name}.example.com"
            assert internet.dialled == []
    await nothing_kept(imgkeep)


async def test_redirect_to_a_forbidden_address_is_not_dialled(
    imgkeep: Imgkeep, internet: Internet, subtests: pytest.Subtests
) -> None:
    internet.names.default = [INNER]
    internet.names.answers |= {
        "example.com": [PUBLIC],
        "b.example.com": [OTHER],
        "mixed.example.com": [PUBLIC, INNER],
    }
    for number, (name, chain) in enumerate(EXTRA_CHAINS.items()):
        with subtests.test(name):
            internet.forget()
            internet.redirects(*chain)
            seen = await look(imgkeep, f"https://example.com/{number}.png")
            assert (seen.status, seen.code) == (403, "source_forbidden")
            assert set(internet.dialled) <= {PUBLIC, OTHER}
            assert internet.answered == len(chain)
    await nothing_kept(imgkeep)


@pytest.mark.parametrize(
    "sources",
    [{"deny": ["b.*"]}, {"allow": ["example.com"]}, {"allow": ["*.example.com", "example.com"], "deny": ["[ab].*"]}],
    ids=["denied", "not allowed", "allowed and denied"],
)
@pytest.mark.parametrize("first", ["https://b.example.com/a.png", "https://example.com/r.png"], ids=["direct", "hop"])
async def test_host_lists_hold_for_every_hop(
    start: Callable[..., Awaitable[Imgkeep]],
    internet: Internet,
    trust: ssl.SSLContext,
    *,
    sources: dict[str, Any],
    first: str,
) -> None:
    imgkeep = await start(platform=internet.platform(trust), fetch={"allow_networks": []}, sources=sources)
    internet.names.answers = {"b.example.com": [OTHER]}
    internet.redirects("https://b.example.com/a.png")
    seen = await look(imgkeep, first)
    assert (seen.status, seen.code) == (403, "source_forbidden")
    assert "b.example.com" not in internet.names.asked
    assert OTHER not in internet.dialled
    await nothing_kept(imgkeep)


@pytest.mark.parametrize("location", EXTRA_STAYING.values(), ids=EXTRA_STAYING.keys())
async def test_redirect_that_only_looks_like_another_host_is_followed(
    imgkeep: Imgkeep, internet: Internet, location: str
) -> None:
    internet.redirects(location)
    seen = await look(imgkeep, "https://example.com/a/r.png")
    assert seen.status == 200
    assert set(internet.dialled) == {PUBLIC}
    assert [exchange.headers["host"] for exchange in internet.tls.seen] == ["example.com"] * 2


@pytest.mark.parametrize("target", ["/img", "/img?src=", "/img?src", "/img?url=http%3A%2F%2Fexample.com%2F"])
async def test_request_without_a_source_dials_no_address(imgkeep: Imgkeep, internet: Internet, target: str) -> None:
    response = await imgkeep.client.get(target)
    assert response.status == 400
    assert (internet.names.asked, internet.dialled) == ([], [])


@pytest.mark.parametrize(
    "written",
    [
        "src=http%3A%2F%2F127.0.0.1%2F&src=http%3A%2F%2Fexample.com%2Fa.png",
        "src=http%3A%2F%2Fexample.com%2Fa.png&src=http%3A%2F%2F127.0.0.1%2F",
        "src=http://127.0.0.1/a.png?a=b",
        "src=http://127.0.0.1/a.png?a=http://example.com/",
        "src=http%253A%252F%252F127.0.0.1%252F",
        "src=http://127.0.0.1%2F@example.com/a.png?x=y",
    ],
)
async def test_no_way_of_writing_src_hides_an_address(imgkeep: Imgkeep, internet: Internet, written: str) -> None:
    response = await imgkeep.client.get(URL(f"/img?{written}", encoded=True))
    assert response.status in {400, 403}
    assert (internet.names.asked, internet.dialled) == ([], [])


async def test_allowed_network_opens_no_other(
    start: Callable[..., Awaitable[Imgkeep]], internet: Internet, trust: ssl.SSLContext
) -> None:
    imgkeep = await start(platform=internet.platform(trust), fetch={"allow_networks": ["10.0.0.0/24"]})
    internet.names.answers = {"inside": [INNER], "outside": ["10.0.1.5"], "both": [INNER, "127.0.0.1"]}
    statuses = {
        url: (await look(imgkeep, url)).status
        for url in (
            "http://inside:9000/",
            "http://10.0.0.5/",
            "http://outside/",
            "http://both/",
            "http://10.0.1.5/",
            "http://[::ffff:10.0.0.5]/",
            "http://0xa000005/",
            "http://localhost:9000/",
        )
    }
    assert statuses == dict.fromkeys(statuses, 403) | {"http://inside:9000/": 200, "http://10.0.0.5/": 200}
    assert set(internet.dialled) == {INNER}

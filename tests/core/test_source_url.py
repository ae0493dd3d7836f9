# ruff: noqa: RUF001 - letters that look like others are what is tested here
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from yarl import URL

from imgkeep.core.errors import InvalidOption, InvalidSource, SourceForbidden, SourceRejected
from imgkeep.core.records import Source
from imgkeep.core.source_url import (
    QUERY_CHARS_MAX,
    SOURCE_CHARS_MAX,
    own_path,
    read_base,
    read_img_query,
    read_picture_query,
    read_source,
)
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = json.loads((Path(__file__).parents[1] / "cases" / "forbidden_sources.json").read_text("utf-8"))


# --- read_source: what is taken


@table(
    ("text", "scheme", "host", "port", "target"),
    [
        pytest.param("https://example.com/a.png", "https", "example.com", 443, "/a.png", id="plain"),
        pytest.param("HTTP://EXAMPLE.com/A.png", "http", "example.com", 80, "/A.png", id="case"),
        pytest.param("https://example.com", "https", "example.com", 443, "/", id="no-path"),
        pytest.param("https://example.com?a=b", "https", "example.com", 443, "/?a=b", id="query-without-path"),
        pytest.param("https://example.com/?", "https", "example.com", 443, "/?", id="empty-query-stays"),
        pytest.param("https://example.com#f", "https", "example.com", 443, "/", id="fragment"),
        pytest.param("https://example.com/#@127.0.0.1", "https", "example.com", 443, "/", id="at-in-fragment"),
        pytest.param("https://example.com/@127.0.0.1/a", "https", "example.com", 443, "/@127.0.0.1/a", id="at-in-path"),
        pytest.param("https://example.com?@127.0.0.1", "https", "example.com", 443, "/?@127.0.0.1", id="at-in-query"),
        pytest.param("https://example.com:/a.png", "https", "example.com", 443, "/a.png", id="empty-port"),
        pytest.param("https://example.com:443/", "https", "example.com", 443, "/", id="own-port"),
        pytest.param("http://example.com:00080/", "http", "example.com", 80, "/", id="port-with-zeros"),
        pytest.param("http://example.com:65535/", "http", "example.com", 65535, "/", id="last-port"),
        pytest.param("http://example.com:1/", "http", "example.com", 1, "/", id="first-port"),
        pytest.param("https://example.com./a", "https", "example.com", 443, "/a", id="trailing-dot"),
        pytest.param("https://a_b.-x-.example.com/", "https", "a_b.-x-.example.com", 443, "/", id="wide-names"),
        pytest.param("https://r3---sn-x.example.com/", "https", "r3---sn-x.example.com", 443, "/", id="hyphens-3-4"),
        pytest.param("https://bücher.example/", "https", "xn--bcher-kva.example", 443, "/", id="idn"),
        pytest.param("https://XN--Bcher-KVA.example/", "https", "xn--bcher-kva.example", 443, "/", id="a-label"),
        pytest.param("https://faß.example/", "https", "xn--fa-hia.example", 443, "/", id="non-transitional"),
        pytest.param("https://FAẞ.example/", "https", "xn--fa-hia.example", 443, "/", id="capital-sharp-s"),
        pytest.param("https://💩.example/", "https", "xn--ls8h.example", 443, "/", id="emoji"),
        pytest.param("https://i❤️.example/", "https", "xn--i-7iq.example", 443, "/", id="emoji-with-selector"),
        pytest.param("https://i❤.example/", "https", "xn--i-7iq.example", 443, "/", id="emoji-without-selector"),
        pytest.param("https://xn--i-7iq.example/", "https", "xn--i-7iq.example", 443, "/", id="emoji-in-ascii"),
        pytest.param("https://1️⃣.🇩🇪.example/", "https", "xn--1-2sn.xn--h77hc.example", 443, "/", id="emoji-flags"),
        pytest.param("https://b%C3%BCcher.example/", "https", "xn--bcher-kva.example", 443, "/", id="escapes"),
        pytest.param("https://ex%61mple.com/", "https", "example.com", 443, "/", id="escaped-ascii"),
        pytest.param("https://ＥＸＡＭＰＬＥ．com/", "https", "example.com", 443, "/", id="full-width"),
        pytest.param("https://例え．example/", "https", "xn--r8jz45g.example", 443, "/", id="full-width-dot"),
        pytest.param("https://例え｡example。/", "https", "xn--r8jz45g.example", 443, "/", id="half-width-dot"),
        pytest.param("https://exam\u00adple.com/", "https", "example.com", 443, "/", id="soft-hyphen-in-ascii"),
        pytest.param("https://-ü.a_b.ü-.example/", "https", "xn----eha.a_b.xn----dha.example", 443, "/", id="hyphens"),
        pytest.param("https://אב.example/", "https", "xn--4dbc.example", 443, "/", id="right-to-left"),
        pytest.param(
            "https://ü.xn--bcher-kva.example/", "https", "xn--tda.xn--bcher-kva.example", 443, "/", id="mixed"
        ),
        pytest.param(
            "https://\u0915\u094d\u200d\u0937.example/", "https", "xn--11b2ezcw70k.example", 443, "/", id="joiner"
        ),
        pytest.param("https://xn--a.example/", "https", "xn--a.example", 443, "/", id="ascii-is-not-looked-into"),
        pytest.param("https://example.com:000080/", "https", "example.com", 80, "/", id="zeros-before-the-port"),
        pytest.param(" \t\r\nhttps://a.example/b\u3000\xa0\n", "https", "a.example", 443, "/b", id="white-space"),
        pytest.param("\ufeff\u200bhttps://a.example/b\u200b", "https", "a.example", 443, "/b", id="marks-around"),
        pytest.param("https://例え。example/", "https", "xn--r8jz45g.example", 443, "/", id="ideographic-dot"),
        pytest.param("https://ＥＸＡＭＰＬＥ.com./", "https", "example.com", 443, "/", id="fullwidth-and-dot"),
        pytest.param("https://exam\u00adple.com/", "https", "example.com", 443, "/", id="soft-hyphen"),
        pytest.param("http://1.1.1.1/", "http", "1.1.1.1", 80, "/", id="quad"),
        pytest.param("http://1.1.1.1./", "http", "1.1.1.1", 80, "/", id="quad-with-dot"),
        pytest.param("http://1.1.1.1.example/", "http", "1.1.1.1.example", 80, "/", id="quad-in-name"),
        pytest.param("http://0x7f.example.com/", "http", "0x7f.example.com", 80, "/", id="hex-not-last"),
        pytest.param("http://a.0xg/", "http", "a.0xg", 80, "/", id="not-hex-last"),
        pytest.param("http://[2606:4700::1111]:8080/", "http", "2606:4700::1111", 8080, "/", id="v6"),
        pytest.param("http://[2A00:0:0:0:0:0:0:1]/", "http", "2a00::1", 80, "/", id="v6-long"),
        pytest.param("http://[2a00::1.2.3.4]/", "http", "2a00::102:304", 80, "/", id="v6-dotted"),
        pytest.param("http://[::FFFF:7F00:1]/", "http", "::ffff:127.0.0.1", 80, "/", id="v6-mapped"),
    ],
)
def test_url_is_brought_into_its_one_form(text: str, scheme: str, host: str, port: int, target: str) -> None:
    source = read_source(text)
    assert source == Source(scheme, host, port, target)
    assert read_source(source.url) == source


@table(
    ("given_target", "target"),
    [
        ("/a%2Fb%2fc", "/a%2Fb%2fc"),
        ("/a+b;c,d//e", "/a+b;c,d//e"),
        ("/a/../b/./c", "/a/../b/./c"),
        ("/..", "/.."),
        ("/x[1].png?a[]=1", "/x[1].png?a[]=1"),
        ("/a~b!c$d'(e)*f", "/a~b!c$d'(e)*f"),
        ("/?a=b?c=d/e:f@g&&", "/?a=b?c=d/e:f@g&&"),
        ("/%E4%ff", "/%E4%ff"),
        ("/a b", "/a%20b"),
        ('/"<>^`{|}', "/%22%3C%3E%5E%60%7B%7C%7D"),
        ("/a\\b", "/a%5Cb"),
        ("/ü€😀", "/%C3%BC%E2%82%AC%F0%9F%98%80"),
        ("/?q=ü ü", "/?q=%C3%BC%20%C3%BC"),
        ("/100%", "/100%25"),
        ("/%zz%4", "/%25zz%254"),
        ("/%%41", "/%25%41"),
        ("/%٣٣", "/%25%D9%A3%D9%A3"),
        ("/\u0085x", "/%C2%85x"),
        ("/a%00b%0d%0A", "/a%00b%0d%0A"),
        ("?a", "/?a"),
        ("/a#b c", "/a"),
        ("/a%23b", "/a%23b"),
    ],
)
def test_target_is_sent_as_received_but_for_forbidden_characters(given_target: str, target: str) -> None:
    source = read_source(f"https://example.com{given_target}")
    assert source.target == target
    assert read_source(source.url) == source


# --- read_source: what is refused


INVALID = [
    "",
    "http",
    "http:",
    "http:/",
    "http://",
    "http:///a.png",
    "http:////a.png",
    "http:/example.com/",
    "http:example.com",
    "//example.com/",
    "/a.png",
    "example.com/a.png",
    "http:\\\\example.com\\",
    "http:/\\example.com/",
    "httpſ://example.com/",
    "ｈttp://example.com/",
    "https+x://example.com/",
    "ftp://example.com/",
    "data:image/png;base64,AA==",
    "view-source:https://example.com/",
    "http://exam ple.com/",
    "http://exam\tple.com/",
    "http://exam\u00a0ple.com/",
    "http://example.com\\.evil.example/",
    "http://example.com\\/a",
    "http://:80/",
    "http://?a",
    "http://./",
    "http://\u00ad/",
    "http://。/",
    "http://example.com../",
    "http://.example.com/",
    "http://a..example.com/",
    "http://a..bücher.example/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:99999/",
    "http://example.com:-1/",
    "http://example.com:+80/",
    "http://example.com:80a/",
    "http://example.com: 80/",
    "http://example.com:8_0/",
    "http://example.com:８０/",
    "http://example.com:80:80/",
    "http://example.com：80/",
    "http://example.com％2e/",
    "http://a%2Fb.example/",
    "http://a%00.example/",
    "http://a%40b.example/",
    "http://a%3A80/",
    "http://%FF.example/",
    "http://%C3%BC%2F.example/",
    "http://%5B::1%5D/",
    "http://%ED%A0%80.example/",
    "http://%2525.example/",
    "http://👩‍💻.example/",
    "http://a\u200cb.example/",
    "http://\u0301a.example/",
    "http://אa.example/",
    "http://1.א.example/",
    "http://ü.xn--a/",
    "http://ü.xn--a-/",
    "http://ü.xn--99999999/",
    "http://xn--Ü-tia.example/",
    "http://ﷺ.example/",
    "http://…com/",
    "http://ü..example/",
    "http://example.com／a/",
    "http://example.com？a/",
    "http://example.com℀a/",
    "http://a*b.example.com/",
    "http://a!b.example.com/",
    "http://local\u200dhost/",
    "http://١٢٧.٠.٠.١/",
    f"http://{'a' * 64}.example.com/",
    f"http://{'ü' * 63}.example.com/",
    f"http://{'ü' * 64}.example.com/",
    f"http://{'ü' * 255}/",
    f"http://{'a.' * 126}aa/",
    "http://[]/",
    "http://[::1/",
    "http://::1]/",
    "http://[::1]x/",
    "http://x[::1]/",
    "http://[[::1]]/",
    "http://[::1]:80a/",
    "http://[127.0.0.1]/",
    "http://[example.com]/",
    "http://[v1.fe80::a+en1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[1::2::3]/",
    "http://[12345::]/",
    "http://[::1.2.3]/",
    "http://[::127.0.0.01]/",
    "http://[：：1]/",
    "http://[::１]/",
    "https://example.com/a\x00b",
    "https://example.com/a\nb",
    "https://example.com/a\r\nHost: x",
    "https://example.com/a\tb",
    "https://example.com/a\x7fb",
    "https://example.com/\ud800",
    "https://example.com/?a=\udcff",
    "https://example.com/#\x1f",
    "https://exam\udcffple.com/",
]


@table("text", INVALID, ids=ascii)
def test_other_text_than_an_absolute_http_url_is_invalid(text: str) -> None:
    with pytest.raises(InvalidSource) as raised:
        read_source(text)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    "text",
    [
        "http://user:pass@example.com/",
        "http://token@example.com/",
        "http://@example.com/",
        "http://:@example.com/",
        "http://example.com%40@127.0.0.1/",
        "http://example.com:80@127.0.0.1/",
        "http://a\\@example.com/",
        "http://a@b@example.com/",
    ],
)
def test_user_information_is_forbidden(text: str) -> None:
    with pytest.raises(SourceForbidden, match="user information"):
        read_source(text)


@table(
    "host",
    [
        "127.1", "127.0.1", "0177.0.0.1", "127.0.0.01", "127.000.000.001", "0x7f.0.0.1", "0X7F000001", "0x7f000001",
        "2130706433", "017700000001", "4294967297", "0x100000000", "256.256.256.256", "1.2.3.4.5", "8.8.2056", "0x",
        "0", "00", "0x.0x.0", "0xA9.254.0251.254", "1.2.3.256", "a.1", "a.0x1", "example.com.0x", "example.com.1.",
        "%31%32%37.0.0.1", "127%2E0.0.1", "127.0.0.%31", "8.8.8.%38", "⑫⑦.0.0.1", "𝟏𝟐𝟕.0.0.1", "1\u00ad27.0.0.1",
        "１２７.０.０.１", "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "%EF%BC%91.1.1.1", "127.0.0.1。", "①②⑦.0.0.1",
        "１２７.1", "127。1", "①②⑦.⓪.⓪.①", "⑧.⑧.⑧.⑧", "8。8。8。8", "１.1.1.1", "127.0.0.\u00ad1", "0ｘ7f.1",
        "99999999999999999999", "1.1.1.0x1",
    ],
    ids=ascii,
)  # fmt: skip
def test_address_in_a_spelling_of_its_own_is_forbidden(host: str) -> None:
    with pytest.raises(SourceForbidden, match="non-canonical") as raised:
        read_source(f"http://{host}/a.png")
    assert raised.value.__context__ is None


def test_longest_url_is_read_and_one_more_character_is_not() -> None:
    url = "https://example.com/".ljust(SOURCE_CHARS_MAX, "a")
    assert read_source(url).url == url
    with pytest.raises(InvalidSource, match="longer than 8192"):
        read_source(url + "a")


def test_url_counts_as_it_goes_out() -> None:
    with pytest.raises(InvalidSource, match="longer than 8192"):
        read_source("https://example.com/" + "ü" * (SOURCE_CHARS_MAX // 6))


def test_longest_label_and_the_longest_name_are_read() -> None:
    name = ".".join(["a" * 63] * 3 + ["a" * 61])
    assert read_source(f"http://{name}/").host == name
    assert len(name) == 253
    assert read_source(f"http://{name}./").host == name


@table("text", [*INVALID, "https://user:s3cr3t@example.com/", "https://s3cr3t.1/"], ids=ascii)
def test_message_holds_nothing_of_the_url(text: str) -> None:
    with pytest.raises(SourceRejected) as raised:
        read_source(text.replace("example", "s3cr3t").replace("local", "s3cr3t"))
    assert "s3cr3t" not in str(raised.value)


def test_urls_of_all_cases_are_read_or_rejected() -> None:
    taken = {text for case in CASES for text in [case["url"]] if _is_read(text)}
    allowed = {case["url"] for case in CASES if case["expect"] == "allow"}
    assert allowed <= taken


def _is_read(text: str) -> bool:
    try:
        read_source(text)
    except SourceRejected:
        return False
    return True


# --- read_img_query: the same URL, however it is written

LINKS = {
    "plain": "https://example.com/a.png",
    "one-parameter": "https://example.com/a.png?w=100",
    "s3-sigv4": "https://acme.s3.amazonaws.com/out/x.webp?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA"
    "%2F20260110%2Fus-west-2%2Fs3%2Faws4_request&X-Amz-Date=20260110T120000Z&X-Amz-Expires=600"
    "&X-Amz-SignedHeaders=host&X-Amz-Security-Token=IQoJ%2B%2F%3D%3D&X-Amz-Signature=94a9f532",
    "azure-sas": "https://x.blob.core.windows.net/private/img-1.png?st=2026-01-10T11%3A00%3A00Z&se=2026-01-10T13%3A00"
    "%3A00Z&sp=r&sv=2024-08-04&sr=b&rscd=inline%3B%2520filename%253D%2522a%2522&sig=a/b%2Bc+d%3D",
    "discord": "https://cdn.discordapp.com/attachments/1/2/a.png?ex=66a1&is=669f&hm=00ff&",
    "cloudfront": "https://d1.cloudfront.net/i.jpg?size=large&Expires=1&Signature=a-b_c~d__&Key-Pair-Id=K",
    "oss": "http://x.oss-cn-shanghai.aliyuncs.com/prod%2F2026%2Fa.png?Expires=1&OSSAccessKeyId=L&Signature=a%2Bb%3D",
    "cos": "https://x.cos.ap-guangzhou.myqcloud.com/a.png?q-sign-time=1;2&q-key-time=1%3B2&imageMogr2/thumbnail/9x",
    "qiniu": "https://img.example.com/a.png?imageView2/2/w/200&e=1600000000&token=AK:sig=",
    "own-names": "https://ideogram.ai/api/images/ephemeral/a.png?exp=1&sig=2&src=3",
    "double-question": "https://example.com/a?b?c=d&e=f?g",
    "inner-url": "https://example.com/a?u=https://other.example/b?c=d&e",
    "plus-and-slashes": "https://example.com//a+b//c,d;e.png?f=g+h",
    "ampersand-in-path": "https://example.com/AT&T.png?v=1",
    "literal-percent": "https://example.com/100%25.png?a=%2525",
    "port": "https://example.com:8443/a.png?x=y",
    "v6": "https://[2606:4700::1111]:8443/a.png?x=y",
}

JS_COMPONENT = "!~*'()"


def in_address_bar(text: str) -> str:
    """The query percent-encode set of special URLs (WHATWG URL, 1.3)."""
    return re.sub(r"[^!$-&(-;=?-~]", lambda match: quote(match[0], safe=""), text)


def php_http_build_query(text: str) -> str:
    return quote_plus(text).replace("~", "%7E")


PROGRAMS: dict[str, Callable[[str], str]] = {
    "python-urlencode": lambda url: urlencode({"src": url}),
    "python-quote": lambda url: "src=" + quote(url),
    "python-quote-all": lambda url: "src=" + quote(url, safe=""),
    "python-quote-plus": lambda url: "src=" + quote_plus(url),
    "js-encode-uri-component": lambda url: "src=" + quote(url, safe=JS_COMPONENT),
    "js-url-search-params": lambda url: "src=" + quote_plus(url, safe="*").replace("~", "%7E"),
    "yarl-with-query": lambda url: URL("http://h/img").with_query({"src": url}).raw_query_string,
    "yarl-modulo": lambda url: (URL("http://h/img") % {"src": url}).raw_query_string,
    "yarl-signed": lambda url: URL("http://h/img").with_query({"src": url, "exp": "9", "sig": "s-_"}).raw_query_string,
    "php-rawurlencode": lambda url: "src=" + quote(url, safe="~"),
    "php-http-build-query": lambda url: "src=" + php_http_build_query(url),
    "lower-case-escapes": lambda url: "src=" + quote(url, safe="").replace("%3A", "%3a").replace("%2F", "%2f"),
    "own-parameters-around": lambda url: f"exp=9&src={quote(url, safe='')}&sig=s-_",
}


@table("program", PROGRAMS.values(), ids=PROGRAMS)
@table("url", LINKS.values(), ids=LINKS)
def test_encoded_source_is_the_same(url: str, program: Callable[[str], str]) -> None:
    assert read_img_query(program(url)).source == read_source(url)


@table("url", [url for name, url in LINKS.items() if name != "plain"])
def test_unencoded_source_is_the_same(url: str) -> None:
    for query in (f"src={url}", f"exp=1&sig=x&src={url}", f"src={in_address_bar(url)}"):
        assert read_img_query(query).source == read_source(url)


HARD_LINKS = {
    "space": "https://example.com/a b.png?c=d e",
    "non-ascii": "https://example.com/ü/😀.png?q=ü",
    "unwise": 'https://example.com/"<>^`{|}\\.png?a="<>^`{|}\\',
    "idn": "https://bücher.example/ü.png?a=b",
    "idn-wide": "https://例え。example:8443/a.png?a=b",
}


@table("program", PROGRAMS.values(), ids=PROGRAMS)
@table("url", HARD_LINKS.values(), ids=HARD_LINKS)
def test_characters_that_urls_may_not_hold_survive_programs(url: str, program: Callable[[str], str]) -> None:
    assert read_img_query(program(url)).source == read_source(url)


@pytest.mark.parametrize("url", HARD_LINKS.values(), ids=HARD_LINKS)
def test_characters_that_urls_may_not_hold_survive_a_browser(url: str) -> None:
    encode_uri = quote(url, safe=";,/?:@&=+$-_.!~*'()#")
    for query in (f"src={url}", f"src={in_address_bar(url)}", f"src={encode_uri}"):
        assert read_img_query(query).source == read_source(url)


def test_encode_uri_of_a_link_without_parameters_is_a_form_value() -> None:
    assert read_img_query("src=https://example.com/a%252Fb%20c.png").source.target == "/a%2Fb%20c.png"


def test_plus_is_a_space_only_in_a_form_value() -> None:
    assert read_img_query("src=https://example.com/a+b.png").source.target == "/a%20b.png"
    assert read_img_query("src=https://example.com/a+b.png?c=d+e").source.target == "/a+b.png?c=d+e"
    assert read_img_query("src=https%3A//example.com/a%2Bb.png").source.target == "/a+b.png"


def test_escapes_of_a_url_that_stands_as_it_is_are_its_own() -> None:
    assert read_img_query("src=https://example.com/%2520?a=%26%FF").source.target == "/%2520?a=%26%FF"


@table(
    ("query", "target", "options"),
    [
        pytest.param("exp=5&sig=a-_&src=https://h.example/a?b=c&exp=7", "/a?b=c&exp=7", [("exp", "5"), ("sig", "a-_")]),
        pytest.param("src=https%3A//h.example/a&sig=%41&exp=5", "/a", [("sig", "A"), ("exp", "5")]),
        pytest.param("&&src=https%3A//h.example/a&", "/a", []),
        pytest.param("sig&src=https%3A//h.example/a", "/a", [("sig", "")]),
        pytest.param("src=https://h.example/a?w%3D1&sig=x", "/a?w=1", [("sig", "x")]),
        pytest.param("src=https://h.example/a?thumb&sig=x", "/a?thumb", [("sig", "x")]),
        pytest.param("src=https://h.example/a?thumb", "/a?thumb", []),
        pytest.param("src=https://h.example/a?thumb&e=1&sig=x", "/a?thumb&e=1&sig=x", []),
        pytest.param("src=https://h.example/a?b=c&src=d", "/a?b=c&src=d", []),
        pytest.param("src=https://h.example/a?b=c&sig=x", "/a?b=c&sig=x", []),
    ],
)
def test_own_parameters_are_separated_from_the_source(query: str, target: str, options: list[tuple[str, str]]) -> None:
    read = read_img_query(query)
    assert read.source.target == target
    assert read.options == tuple(options)


@table(
    ("query", "message"),
    [
        ("", "src is missing"),
        ("url=https://example.com/", "src is missing"),
        ("s%72c=https://example.com/", "src is missing"),
        ("src", "src is empty"),
        ("src=", "src is empty"),
        ("src=&sig=x", "src is empty"),
        ("src=https%3A//a.example/&src=https%3A//b.example/", "src is given twice"),
        ("src=https://a.example/a&src=https://b.example/?c=d", "src is given twice"),
        ("src=https%3A//a.example/&sig=1&sig=2", "sig is given twice"),
        ("exp=1&exp=2&src=https://a.example/a?b=c", "exp is given twice"),
        ("src=https%253A%252F%252Fa.example%252Fa", "encoded twice"),
        ("src=HTTP%253a//a.example/a", "encoded twice"),
        ("src=https%25253A%25252F", "encoded twice"),
        ("src=https:%252F%252Fa.example/a", "encoded twice"),
        ("src=https:/%252Fa.example/a", "encoded twice"),
        ("src=%FF", "not UTF-8"),
        ("src=https%3A//a.example/%ED%A0%80", "not UTF-8"),
        ("src=https%3A//a.example/\udcff", "not UTF-8"),
        ("src=https%3A//a.example/&sig=%FF", "not UTF-8"),
        ("src=https://b%FFcher.example/a?b=c", "not a valid international name"),
        ("src=https://a.example/\udcff?b=c", "not Unicode"),
        ("src=https%3A//a.example/%00", "control character"),
        ("src=https%3A//a.example/%0D%0Ab", "control character"),
        ("src=ftp://a.example/a?b=c", "not an absolute http"),
        ("src=%2F%2Fa.example/a", "not an absolute http"),
        ("src=/a?b://c=d", "not an absolute http"),
        ("src=" + "a" * QUERY_CHARS_MAX, "longer than"),
    ],
    ids=lambda text: ascii(text)[:70],
)
def test_query_without_one_clear_source_is_invalid(query: str, message: str) -> None:
    with pytest.raises(InvalidSource, match=message) as raised:
        read_img_query(query)
    assert "example" not in str(raised.value)


@table(
    ("query", "message"),
    [
        ("src=https%3A//a.example/&width=1", "width is not a parameter of ours; percent-encode src"),
        ("width=1&src=https%3A//a.example/", "width is not a parameter"),
        ("width=1&src=https://a.example/?a=b", "width is not a parameter"),
        ("src=https://a.example/a?b%3Dc&width=1", "width is not a parameter"),
        ("W=1&src=https%3A//a.example/", "W is not a parameter"),
        ("%77=1&src=https%3A//a.example/", "one of the parameters is not"),
        ("src=https%3A//a.example/&width", "one of the parameters is not"),
        (f"src=https%3A//a.example/&{'w' * 41}=", "one of the parameters is not"),
        ("src=https%3A//a.example/&<b>=", "one of the parameters is not"),
        ("src=https%3A//a.example/&w=1&w=1", "w is given twice"),
        ("w=1&src=https%3A//a.example/&w=1", "w is given twice"),
        ("w=1&w=2&src=https://a.example/?w=3", "w is given twice"),
    ],
)
def test_query_with_an_unknown_or_repeated_option_is_invalid(query: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message) as raised:
        read_img_query(query)
    assert "example" not in str(raised.value)


@table(
    ("query", "target", "picture"),
    [
        pytest.param("src=https%3A%2F%2Fh.example%2Fa&w=400", "/a", "w=400", id="behind an encoded source"),
        pytest.param("w=400&src=https%3A%2F%2Fh.example%2Fa", "/a", "w=400", id="before an encoded source"),
        pytest.param("src=https%3A//h.example/a%3Fw%3D1&w=2", "/a?w=1", "w=2", id="the source has the name, encoded"),
        pytest.param("w=2&src=https://h.example/a?w=1&h=3", "/a?w=1&h=3", "w=2", id="before an unencoded source"),
        pytest.param("src=https://h.example/a?w=1&h=3", "/a?w=1&h=3", "", id="all of it is the source"),
        pytest.param("src=https://h.example/a?thumb&w=400", "/a?thumb&w=400", "", id="names of the source"),
        pytest.param("src=https://h.example/a?thumb&w=1&sig=x", "/a?thumb&w=1&sig=x", "", id="sig of the source"),
        pytest.param("w=400&src=https://h.example/a?thumb", "/a?thumb", "w=400", id="ahead of a bare query"),
        pytest.param("src=https://h.example/a&w=400", "/a", "w=400", id="no query of the source"),
        pytest.param("src=https://h.example/a?b%3Dc&w=400", "/a?b=c", "w=400", id="yarl"),
        pytest.param("src=https://h.example/a?b%26c&w=400", "/a?b&c", "w=400", id="yarl, an ampersand"),
        pytest.param("w=1&sig=s&exp=9&q=2&src=https%3A//h.example/a&bg=f%66f", "/a", "w=1&q=2&bg=fff", id="order"),
        pytest.param("src=https%3A//h.example/a&sig=s", "/a", "", id="a signature is no picture option"),
    ],
)
def test_picture_options_are_told_from_the_source(query: str, target: str, picture: str) -> None:
    read = read_img_query(query)
    assert read.source.target == target
    assert "&".join("=".join(option) for option in read.picture) == picture
    assert dict(read.options).items() >= dict(read.picture).items()


def test_other_endpoints_have_no_picture_options() -> None:
    with pytest.raises(InvalidOption, match="w is not a parameter"):
        read_img_query("src=https%3A//h.example/a&w=400", "/api/inspect")


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", ()),
        ("v=2", ()),
        ("sig=x&exp=1", ()),
        ("v=2&v=2&src=", ()),
        ("w=400", (("w", "400"),)),
        ("&w=4%30%30&", (("w", "400"),)),
        ("sig=s&w=1", (("sig", "s"), ("w", "1"))),
        ("preset", (("preset", ""),)),
    ],
)
def test_permanent_url_has_options(query: str, options: tuple[tuple[str, str], ...]) -> None:
    read = read_picture_query(query, "/images/a.png")
    assert (read.text, read.options) == ("/images/a.png", options)
    assert read.picture == tuple(option for option in options if option[0] != "sig")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("w=1&v=2", "v is not a parameter of ours$"),
        ("w=1&src=a", "src is not a parameter of ours$"),
        ("w=1&w=1", "w is given twice$"),
        ("w=1&sig=a&sig=b", "sig is given twice$"),
        ("w=%FF", "not UTF-8"),
        ("w" * (QUERY_CHARS_MAX + 1), "the query is longer than"),
    ],
    ids=lambda text: text[:20],
)
def test_query_of_a_permanent_url_is_refused(query: str, message: str) -> None:
    with pytest.raises((InvalidOption, InvalidSource), match=message):
        read_picture_query(query, "/images/a.png")


@pytest.mark.parametrize(
    "host", ["%E2%91%A0.%E2%91%A0.%E2%91%A0.%E2%91%A0", "127%E3%80%821", "user%C3%BC@a.example"], ids=str
)
def test_host_that_a_browser_encoded_is_seen_through(host: str) -> None:
    with pytest.raises(SourceForbidden):
        read_img_query(f"src=https://{host}/a?b=c")


def test_query_does_not_print_its_secrets() -> None:
    read = read_img_query("sig=s3cr3t&src=https://example.com/s3cr3t?sig=s3cr3t")
    assert repr(read) == "ImgQuery(source=<Source at example.com>)"


# --- properties

anything = st.text(st.characters(exclude_categories=[]), max_size=200)
rarities = '/?#@:\\[]%.&=+;,|^`"<>{} \t\n\x00\x7f\u00ad\u200d\u3002\uff0e\uff0f①ſßü😀\ud800\udcff0123456789abcdefx_-'
urlish = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP", "ftp", ""]),
    st.sampled_from(["://", ":", ":/", ":///", "%3A%2F%2F", ""]),
    st.one_of(st.sampled_from(["example.com", "[::1]", "127.0.0.1", "a@b", ""]), st.text(rarities, max_size=20)),
    st.text(rarities, max_size=80),
)
targets = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60)
urls = st.builds(
    "{}://{}{}{}{}".format,
    st.sampled_from(["http", "https"]),
    st.sampled_from(["example.com", "bücher.example", "a_b.example", "[2606::1]", "1.1.1.1"]),
    st.sampled_from(["", ":8080"]),
    st.sampled_from(["/", "?", "/a?b="]),
    targets,
).filter(lambda text: text == text.strip())


@settings(deadline=None)
@given(st.one_of(anything, urlish))
@example("http://" + "\u00ad" * 5000)
def test_any_text_is_rejected_or_read_into_its_final_form(text: str) -> None:
    try:
        source = read_source(text)
    except SourceRejected:
        return
    assert source.url.isascii()
    assert re.fullmatch(r"[!-~]+", source.target)
    assert re.search(r"%(?![0-9A-Fa-f]{2})", source.target) is None
    assert re.fullmatch(r"[a-z0-9._:-]+", source.host)
    assert read_source(source.url) == source


@settings(deadline=None)
@given(urls)
def test_any_url_survives_being_encoded_and_sent(url: str) -> None:
    source = read_source(url)
    for program in PROGRAMS.values():
        assert read_img_query(program(url)).source == source
        assert read_img_query(program(source.url)).source == source


@settings(deadline=None)
@given(urls)
def test_options_beside_an_encoded_source_are_ours(url: str) -> None:
    source, encoded = read_source(url), quote(url, safe="")
    for query in (f"src={encoded}&w=400&q=80", f"w=400&src={encoded}&q=80", f"w=400&q=80&src={encoded}"):
        read = read_img_query(query)
        assert (read.source, read.text, read.picture) == (source, url, (("w", "400"), ("q", "80")))


@settings(deadline=None)
@given(
    st.one_of(anything, urlish, urlish.map(lambda text: f"src={text}"), urlish.map(lambda text: f"sig=1&src={text}"))
)
def test_any_query_is_read_or_rejected(query: str) -> None:
    try:
        source = read_img_query(query).source
    except SourceRejected:
        return
    assert read_source(source.url) == source


@pytest.mark.parametrize(
    ("public", "url", "path"),
    [
        ("https://img.example.com", "https://img.example.com/images/a.png", "/images/a.png"),
        ("https://img.example.com/", "http://IMG.example.com/images/a.png?x=1", "/images/a.png?x=1"),
        ("https://example.com/kept/", "https://example.com/kept/images/a.png", "/images/a.png"),
        ("https://example.com/kept", "https://example.com/keptimages/a.png", None),
        ("https://img.example.com", "https://example.com/images/a.png", None),
        ("https://img.example.com:8443", "https://img.example.com/images/a.png", None),
        ("http://img.example.com:8080", "http://img.example.com:8080/images/a.png", "/images/a.png"),
    ],
)
def test_path_under_the_public_url_is_known(public: str, url: str, path: str | None) -> None:
    assert own_path(read_source(url), read_source(public)) == path


@pytest.mark.parametrize(
    "text", ["https://a.example/?", "https://a.example/x?b=1", "https://a.example/#", "https://a.example#b"]
)
def test_base_of_paths_has_neither_query_nor_fragment(text: str) -> None:
    assert read_base("https://a.example/keep") == read_source("https://a.example/keep")
    with pytest.raises(InvalidSource, match="neither a query nor a fragment"):
        read_base(text)

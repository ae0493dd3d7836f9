"""Which links are rewritten, to what, and what they mean in a page."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from imgkeep.core.errors import InvalidSource
from imgkeep.core.identity import BUILT_IN
from imgkeep.core.policy import Policy
from imgkeep.core.rewrite import Hosts, ImgLinks, Temporary, every, rewrite_html
from imgkeep.core.rewrite.links import Page
from imgkeep.core.rewrite.resolve_link import read, resolve, with_query_in
from imgkeep.core.signing import Signatures
from imgkeep.core.source_url import read_img_query
from tests.support.host_globs import GLOBS
from tests.support.tables import table

if TYPE_CHECKING:
    from imgkeep.core.records import Source

NOW = datetime(2026, 1, 10, 12, 30, tzinfo=UTC)
H = "https://h.example/a.png?x=1&y=ü"


def test_link_leads_to_img_with_the_source_encoded() -> None:
    assert ImgLinks(every)(H) == "/img?src=https%3A%2F%2Fh.example%2Fa.png%3Fx%3D1%26y%3D%C3%BC"
    assert (
        ImgLinks(every, public_url="https://i.example/kept/")(H)
        == f"https://i.example/kept/img?src={quote(H, safe='')}"
    )


def test_link_is_signed_with_a_key() -> None:
    made = ImgLinks(every, key="k" * 20)(H)
    assert made is not None
    query = read_img_query(made.partition("?")[2])
    assert query.text == H
    assert Signatures(["k" * 20]).judge(query.text, dict(query.options), 0) is None
    assert "kkk" not in repr(ImgLinks(every, key="k" * 20))


def test_public_url_has_to_be_a_url() -> None:
    with pytest.raises(InvalidSource):
        ImgLinks(every, public_url="i.example")


def test_unservable_link_stays() -> None:
    policy = Policy(("*.example",), (), frozenset({443}), (ip_network("10.0.0.0/8"),))
    linker = ImgLinks(every, policy=policy)
    assert linker("https://a.example/") is not None
    assert linker("https://a.test/") is None
    assert linker("https://user@a.example/") is None
    assert linker("https://a.example/" + "a" * 9000) is None


def test_links_that_die_are_those_of_the_provider_rules() -> None:
    linker = ImgLinks(Temporary(NOW))
    rules = [rule for rule in BUILT_IN.rules if rule.groups]
    assert sum(linker(url) is not None for rule in rules for url in rule.table.examples) > len(rules) / 2
    assert linker("https://cdn.example.com/a.png?X-Amz-Date=20200101T000000Z&X-Amz-Expires=60") is None
    assert linker(rules[0].table.examples[0]) is not None


def test_which_names_hosts_or_decides() -> None:
    assert ImgLinks(Hosts("*.a.example", "b.example"))("https://x.a.example/") is not None
    assert ImgLinks(Hosts("*.a.example"))("https://b.example/") is None

    def choose(source: Source) -> bool:
        return source.target.endswith(".png")

    assert ImgLinks(choose)("https://a.example/b.png") is not None
    assert ImgLinks(choose)("https://a.example/b.jpg") is None


@table(("glob", "host", "matches"), GLOBS["match"])
def test_glob_chooses_the_links_of_its_hosts(glob: str, host: str, *, matches: bool) -> None:
    page = Page(ImgLinks(Hosts("other.example", glob)))
    assert (page.replacement(f"https://{host}/a.png") is not None) == matches


@table("glob", GLOBS["refused"])
def test_glob_that_can_match_no_host_is_refused(glob: str) -> None:
    with pytest.raises(ValueError, match="can match no host"):
        Hosts("h.example", glob)


@table(
    "link",
    [
        "/img?src=https%3A%2F%2Fh.example%2F",
        " /img?src=x",
        "/images/x.png",
        "https://i.example/img?src=x",
        "HTTPS://I.example:443/images/x.png",
        "//i.example/img?src=x",
        "https://p.example/img?src=x",
        "data:image/png;base64,AAAA",
        "blob:https://h.example/x",
        "javascript:x",
        "ftp://h.example/",
        "#a",
        "",
        "https://",
        "http://user@h.example/",
        "https://h.example/\ud800",
        "https://h.example/\x01a",
    ],
)
def test_own_and_unfetchable_links_stay(link: str) -> None:
    page = Page(ImgLinks(every, public_url="https://i.example"), "https://p.example/d/")
    assert page.replacement(link) is None


def test_relative_link_needs_to_know_to_what() -> None:
    assert Page(ImgLinks(every)).replacement("a.png") is None
    assert Page(ImgLinks(every)).replacement("//h.example/a.png") is None
    assert (
        Page(ImgLinks(every), "https://p.example/d/e").replacement("a.png")
        == "/img?src=https%3A%2F%2Fp.example%2Fd%2Fa.png"
    )
    page = Page(ImgLinks(every), "about:blank")
    page.note_base("data:x")
    assert page.replacement("a.png") is None


@table(
    ("href", "url"),
    [
        ("/x/", "https://p.example/x/a.png"),
        ("//h.example/x/", "https://h.example/x/a.png"),
        ("http://h.example", "http://h.example/a.png"),
        (" jav\nascript:x", "https://p.example/d/a.png"),
        ("DATA:x", "https://p.example/d/a.png"),
        ("https://", "https://p.example/d/a.png"),
        ("", "https://p.example/d/a.png"),
        ("file:///x/", None),
        (" F\nTP://h.example/", None),
        ("about:blank", None),
        ("mailto:x", None),
    ],
)
def test_base_counts_unless_it_is_none_or_could_run(href: str, url: str | None) -> None:
    page = f'<base href="{href}"><base href=/n/><img src="a.png"><img src=https://h.example/b.png>'
    seen: list[str] = []
    rewrite_html(page, seen.append, url="https://p.example/d/e")
    assert seen == [*([url] if url else []), "https://h.example/b.png"]


def test_fragment_stays_where_the_browser_uses_it() -> None:
    assert (
        Page(ImgLinks(every)).replacement("https://h.example/a.svg#b") == "/img?src=https%3A%2F%2Fh.example%2Fa.svg#b"
    )


@table(
    ("link", "url"),
    [
        ("https://H.example/a b?c#d", "https://H.example/a b?c#d"),
        (" \n https://h.ex\tample/a\n.png \0", "https://h.example/a.png"),
        ("HTTPS:\\\\h.example\\a\\b?c\\d", "https://h.example/a/b?c\\d"),
        ("https:///h.example/a", "https://h.example/a"),
        ("http:h.example/a", "http://h.example/a"),
        ("https:a", "https://p.example/d/a"),
        ("https:/a", "https://p.example/a"),
        ("https://h.example/a/../b/./c/%2E%2e/d", "https://h.example/b/d"),
        ("https://h.example/../a/..", "https://h.example/"),
        ("HTTPS://h.example/a", "HTTPS://h.example/a"),
        ("https://h.example/a/%2E%2E/b", "https://h.example/b"),
        ("https://h.example/.a/b.", "https://h.example/.a/b."),
        ("https://h.example?../a", "https://h.example?../a"),
        ("http://h.example", "http://h.example"),
        ("http:\\h.example", "http://h.example/"),
        ("//h.example/a", "https://h.example/a"),
        ("\\/h.example", "https://h.example/"),
        ("/a", "https://p.example/a"),
        ("a", "https://p.example/d/a"),
        ("../a", "https://p.example/a"),
        ("?a#b", "https://p.example/d/e?a#b"),
        ("#a", None),
        ("", None),
        ("https:", None),
        ("https://", None),
        ("https://?a", None),
        ("mailto:a", None),
        ("a:b", None),
    ],
)
def test_links_resolve_as_in_a_browser(link: str, url: str | None) -> None:
    assert resolve(link, read("https://p.example/d/e?f#g", None)) == url


def test_old_encoding_applies_to_the_query_alone() -> None:
    assert with_query_in("https://h.example/é?é=я#é", "cp1252") == "https://h.example/é?%E9=%26%231103%3B#é"
    page = "<meta charset=latin1><img src='https://h.example/é?é'>"
    seen: list[str] = []
    rewrite_html(page.encode("cp1252"), seen.append)
    rewrite_html(page.replace("latin1", "utf-8").encode(), seen.append)
    rewrite_html(page.encode("utf-16"), seen.append)
    assert seen == ["https://h.example/é?%E9", "https://h.example/é?é", "https://h.example/é?é"]

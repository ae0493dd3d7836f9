"""How links stand in values: references, `srcset`, CSS, JSON-LD; and how new ones are written."""

from __future__ import annotations

import html
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.rewrite import ImgLinks, css, every, json_ld, rewrite_html, srcset
from imgkeep.core.rewrite import character_references as references
from tests.support.tables import table
from tests.support.tag_soup import HERE, THERE, move

H = "https://h.example/a.png"


@table(
    ("source", "text"),
    [
        ("a&amp;b", "a&b"),
        ("a&ampb", "a&ampb"),
        ("a&amp=b", "a&amp=b"),
        ("a&amp-b", "a&-b"),
        ("a&amp", "a&"),
        ("a&copy=1&copy;&copy", "a&copy=1©©"),
        ("&notit;&notin;&not;&no", "&notit;∉¬&no"),
        ("&#104;&#x68;&#X68&#104", "hhhh"),
        ("&#x80;&#0;&#x110000;&#xD800;&#99999999999999;", "€����"),
        ("&#;&#x;&;&& &Zz;", "&#;&#x;&;&& &Zz;"),
        ("&fjlig;&NotEqualTilde;", "fj≂̸"),
        ("&AMP;&AMP&lt", "&&<"),
    ],
)
def test_references_are_read_as_in_an_attribute(source: str, text: str) -> None:
    value = references.read(source)
    assert value.text == text
    assert value.source(0, len(text)) == (0, len(source))


def test_reference_without_semicolon_counts_in_text() -> None:
    assert references.read("a&copy=1&copyb&amp&no", in_text=True).text == "a©=1©b&&no"


@given(st.text(st.sampled_from("&#xX;abcdefgnopty10=<> \"'"), max_size=30))
def test_place_in_a_text_leads_back_to_its_source(source: str) -> None:
    value = references.read(source)
    for at in range(len(value.text)):
        start, end = value.source(at, at + 1)
        assert end == start or references.read(source[start:end]).text in (value.text[at], source[start:end])


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")), st.sampled_from(["'", '"', ""]))
def test_written_value_is_read_again(text: str, quote: str) -> None:
    written = references.write(text, quote)
    assert references.read(written).text == text
    assert html.unescape(written) == text or re.search(r"[\x01-\x1f]", text)
    assert quote == "" or quote not in written


def test_new_links_are_written_for_the_quotes_they_stand_in() -> None:
    def linker(_: str) -> str:
        return "/a?b=1&c='2'\"<>` é"

    page = f"<img src={H}><img src='{H}'><img src=\"{H}\">"
    assert rewrite_html(page, linker) == (
        "<img src=/a?b&#61;1&amp;c&#61;&#39;2&#39;%22%3C%3E%60%20%C3%A9>"
        "<img src='/a?b=1&amp;c=&#39;2&#39;%22%3C%3E%60%20%C3%A9'>"
        "<img src=\"/a?b=1&amp;c='2'%22%3C%3E%60%20%C3%A9\">"
    )


def test_unwritable_value_is_not_written() -> None:
    page = f"<img src={H}>"
    assert rewrite_html(page, lambda _: "/\ud800") == page
    assert rewrite_html(page, lambda url: url) == page


def links(text: str) -> list[str]:
    return [text[start:end] for start, end in srcset.find_links(text)]


@table(
    ("text", "found"),
    [
        ("", []),
        (" , ,", []),
        ("a", ["a"]),
        ("a 1x, b 2x", ["a", "b"]),
        ("a,b 1x", ["a,b"]),
        ("a, b", ["a", "b"]),
        ("a,, b", ["a", "b"]),
        ("a 1x,b 2x,c", ["a", "b", "c"]),
        (",a\n1w\t2h ,\fb", ["a", "b"]),
        ("a (1,b) 2x, c", ["a", "c"]),
        ("a (1,b 2x, c", ["a"]),
        ("a foo(, ) bar(,),b", ["a", "b"]),
        ("data:image/png;base64,AA== 1x, b 2x", ["data:image/png;base64,AA==", "b"]),
    ],
)
def test_srcset_is_cut_at_white_space_and_commas_as_browsers_do(text: str, found: list[str]) -> None:
    assert links(text) == found


def test_new_link_in_srcset_begins_and_ends_with_no_comma() -> None:
    assert rewrite_html(f"<img srcset='{H} 1x'>", lambda _: ",/a,b,,") == "<img srcset='%2C/a,b%2C%2C 1x'>"


def urls(text: str) -> list[str]:
    return [link for _, _, link in css.find_links(text)]


@table(
    ("text", "found"),
    [
        ("p{background:url(a)}", ["a"]),
        ("p{background:url( 'a' ),URL(\"b\"),url(\n\tc\n)}", ["a", "b", "c"]),
        ("p{background:u\\72l(a),\\75 rl(b),\\000055RL('c')}", ["a", "b", "c"]),
        ("p{background:url(a\\)b),url('\\'c\\\nd\\65 f'),url(\\0\\110000 \\d800)}", ["a)b", "'cdef", "���"]),
        ("p{background:url(a b),url(c(d),url(e'f),url(g\\\n)}q{background:url(h)}", ["h"]),
        ("p{background:url(a b\\)c) d;background:url(e)}", ["e"]),
        ("p{background:url('a\nb');background:url(c)}", []),
        ('p{background:url("a\nb");background:url(c)}', []),
        ("p{background:url('a' 'b')}", ["a"]),
        ("background:url(a", ["a"]),
        ("background:url('a", ["a"]),
        ("background:url('a\\'", ["a'"]),
        ("background:url('a\\\\'", ["a\\"]),
        ("background:url('a\\", ["a"]),
        ('background:url("a\\', ["a"]),
        ("background:url('", [""]),
        ("background:url(a\\", []),
        ("/* url(a) */p{background:/**/url(b)/*url(c)", ["b"]),
        ("p::before{content:'url(a)' \"url(b)\"}", []),
        ("p{background:image-set('a' 1x,url(b) 2x,\"c\" type('image/png') 3x)}", ["a", "b", "c"]),
        ("p{background:-webkit-image-set(url(a) 1x)}", ["a"]),
        ("p{background:foo('a'),(url(b)),[url(c)]}", ["b", "c"]),
        ("@import url(a);@import 'b' url(c);@namespace x url('d');p{background:url(e)}", ["e"]),
        ("<!-- @import url(a); --> @import 'b' url(c);<!--@namespace x url(d);-->p{a--:url(e)}", ["e"]),
        ("@media (min-width:1px){a:hover{background:url(a)}}", ["a"]),
        ("@font-face{font-family:x;src:url(a) format('b')}p{--src:url(c)}", ["c"]),
        ("@-moz-document url(a){p{b:url(c)}}p{filter:x(;url(a))}", ["c"]),
        ("p{filter:url(a);CLIP-PATH : url(b);mask-image:url(c)}", ["c"]),
        ("p{background:url(a;b{c}d)}p{background:url(e)}", ["a;b{c}d", "e"]),
        ("p{background:x(;url(a)}q{b:url(c)}", ["a", "c"]),
        ("p{color:#url;background:curl(a),my-url(b),url (c)}", []),
        ("p}{)]background:url(a)", ["a"]),
        ("p{a:b\\", []),
        ("é{background:url(é)}\x00{b:url(a\x01)}", ["é"]),
        ("p{background:-web\u212ait-image-set('a');mar\u212aer:url(b);-WEBKIT-FILTER:url(c)}", ["b"]),
        ("p{color:red}", []),
    ],
)
def test_css_has_its_links_where_the_specification_says(text: str, found: list[str]) -> None:
    assert urls(text) == found


@given(st.text(st.sampled_from("url(image-set)'\"\\ \n/*{};:@a1#é-"), max_size=40))
def test_any_css_is_read(text: str) -> None:
    for start, end, _ in css.find_links(text + "url(x)"):
        assert 0 <= start <= end <= len(text) + 6


def test_new_link_in_css_ends_no_url() -> None:
    assert rewrite_html(f'<p style="b:url({H})">', lambda _: "/('a')") == '<p style="b:url(/%28%27a%27%29)">'


def test_new_link_in_an_svg_style_is_the_same_in_cdata() -> None:
    page = f"<svg><style>p{{a:url({H}?a&copy=1&amp;b)}}<![CDATA[p{{a:url({H}?a&amp;b)}}]]></style>"
    seen: list[str] = []

    def linker(url: str) -> str:
        seen.append(url)
        return "/x?a&b"

    assert rewrite_html(page, linker) == ("<svg><style>p{a:url(/x?a\\26 b)}<![CDATA[p{a:url(/x?a\\26 b)}]]></style>")
    assert seen == [f"{H}?a©=1&b", f"{H}?a&amp;b"]
    assert urls("p{a:url(/x?a\\26 b)}") == ["/x?a&b"]


def test_style_attributes_with_other_functions_are_skipped() -> None:
    page = '<p style="color:rgb(1,2,3);width:calc(1px)">' + f"<p style='a:rgb(1);b:url({HERE})'>"
    assert rewrite_html(page, move) == page.replace(HERE, THERE)


@table(
    ("value", "found"),
    [
        ({"image": "a"}, ["a"]),
        ({"image": ["a", "b", ["c"]]}, ["a", "b", "c"]),
        ({"image": {"url": "a", "contentUrl": "b", "name": "c", "author": {"url": "d"}}}, ["a", "b"]),
        ({"image": [{"url": "a"}, {"@id": "b"}]}, ["a"]),
        ({"image": {"url": ["a", "b"], "name": ["c"]}}, ["a", "b"]),
        ({"logo": "a", "thumbnailUrl": ["b"], "url": "c", "name": "image"}, ["a", "b"]),
        ({"url": "a", "@type": "ImageObject"}, ["a"]),
        ({"@type": ["Thing", "ImageObject"], "contentUrl": "a"}, ["a"]),
        ({"@type": "Thing", "contentUrl": "a"}, []),
        ({"@graph": [{"@type": "ImageObject", "url": 'a"\\/é\u2028'}, 1, None]}, ['a"\\/é\u2028']),
        (["image", {"image": {}}], []),
        ("image", []),
        ("ImageObject", []),
        ({"a": {"@type": "ImageObject"}, "url": "b"}, []),
        ({"image": {"@list": ["a", {"url": "b"}]}, "logo": [{"@set": "c"}], "a": {"@list": ["d"]}}, ["a", "b", "c"]),
        ({"@list": ["a"], "image": {"@list": ["b"], "name": "c"}}, ["b"]),
        ({"image": ["a nice picture", " https://h/a b", " b\n", "/c d", "e\u3000f"]}, [" https://h/a b", " b\n"]),
        ({"image": {"url": "a b", "contentUrl": "c"}}, ["c"]),
    ],
)
def test_json_ld_has_its_links_under_names_of_images(value: object, found: list[str]) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert [link for _, _, link in json_ld.find_links(text)] == found
        for start, end, link in json_ld.find_links(text):
            assert json.loads(f'"{text[start:end]}"') == link


@pytest.mark.parametrize("text", ["", "{", '{"image": a}', "[" * 100_000, '{"image": "a",}', "<!-- {} -->"])
def test_invalid_json_has_no_links(text: str) -> None:
    assert json_ld.find_links(text) == []


def test_text_is_no_link_and_as_long_as_it_likes() -> None:
    text = "a" * 400_000
    page = '<script type="application/ld+json">{{"image":"{}"}}</script>'
    for value in ("a nice picture", text, f" {text}:", f"{text} {text}", " " * 1_000_000):
        whole = page.format(value)
        assert rewrite_html(whole, ImgLinks(every), url="https://p.example/") == whole
    assert rewrite_html(page.format("nice.png"), lambda _: "/x", url="https://p.example/") == page.format("/x")


def test_script_is_never_ended_by_a_link() -> None:
    page = f'<script type="application/ld+json">{{"image":"{H}"}}</script>'
    assert "</" not in rewrite_html(page, lambda _: "/</script>")[35:-9]

"""What the JavaScript module makes of links is what our own rewriter makes of them."""

from __future__ import annotations

import re
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from imgkeep.core.rewrite import ImgLinks, every, rewrite_html
from imgkeep.core.rewrite.links import Page
from imgkeep.core.signing import signed_images_path, signed_path
from imgkeep.core.source_url import read_img_query, read_source
from tests.support.host_globs import GLOBS
from tests.support.node import calling, copy_module
from tests.support.signing_vectors import KEY, VECTORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.node import Call

OURS = "https://i.example/kept"
PAGE = "https://p.example/d/e?f#g"
H = "https://h.example/a.png"


@pytest.fixture(scope="module")
def js(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Call functions of the module."""
    with calling(copy_module(tmp_path_factory.mktemp("module"))) as call:
        yield call


def ours(link: str, public_url: str = "", base: str | None = None, key: str | None = None) -> str:
    """Return what our own rewriter writes for a link in a page."""
    return Page(ImgLinks(every, public_url=public_url, key=key), base).replacement(link) or link


@pytest.mark.parametrize("public_url", ["", OURS, OURS + "/", "https://i.example"])
@pytest.mark.parametrize(
    "link",
    [
        H,
        f" \n{H}\0",
        "https://h.example/a'b(c)!*~-_.png?x=1&y=%2F&z=ü日 +%",
        "HTTPS://H.example:8443",
        "https://bücher.example/日本.png?sig=1&exp=2",
        f"{H}?a#b",
        f"{H}#'é<b> ",
        "https://h.example/?https://i.example/kept/img?src=x",
        "https://h.ex\tample/a\n.png",
        "https://h.example/" + "a" * 8174,
        "https://h.example/" + "a" * 8175,
        "https://h.example/" + "ü" * 2000,
        "http://[2001:db8::1]/a",
    ],
)
def test_module_rewrites_as_the_rewriter_does(js: Call, link: str, public_url: str) -> None:
    made = js("imgUrl", link, {"publicUrl": public_url})
    assert made == ours(link, public_url)
    assert js("imgUrl", made, {"publicUrl": public_url}) == made


@pytest.mark.parametrize(
    "link",
    [
        "/img?src=https%3A%2F%2Fh.example%2F",
        " /images/x.png",
        f"{OURS}/img?src=x",
        "HTTPS://I.example:443/kept/images/x.png",
        "data:image/png;base64,AAAA",
        "blob:https://h.example/x",
        "javascript:x",
        "ftp://h.example/",
        "//h.example/a.png",
        "a.png",
        "#a",
        "",
        "https://",
        "https://[",
        "http://user@h.example/",
        "http://user:password@h.example/",
        "https://h.example/\ud800",
        "https://h.example/\x01a",
    ],
)
def test_own_and_unfetchable_links_stay(js: Call, link: str) -> None:
    assert js("imgUrl", link, {"publicUrl": OURS}) == link == ours(link, OURS)


def test_with_a_base_relative_links_are_links(js: Call) -> None:
    for link in ("a.png", "../a", "/a", "//h.example/a", "?a#b", "https:a", "https://h.example/a/../b"):
        assert js("imgUrl", link, {"base": PAGE}) == ours(link, base=PAGE) != link
    for link in ("", "#a", "/img?src=x", "https://p.example/images/x", "mailto:a"):
        assert js("imgUrl", link, {"base": PAGE}) == ours(link, base=PAGE) == link
    assert js("imgUrl", "a.png", {"base": "about:blank"}) == "a.png"


def test_disguised_address_is_written_as_it_is_requested(js: Call) -> None:
    assert js("imgUrl", "http://0x8.8.2056/a") == "/img?src=http%3A%2F%2F8.8.8.8%2Fa"
    assert js("imgUrl", "http://8.8.8.8/a b") == ours("http://8.8.8.8/a b")


def test_link_that_the_server_refuses_is_written_as_browsers_do(js: Call) -> None:
    for link in ("https://h.example/a \u3000#b", "https://h.ex%61mple/a", "https://@h.example/a b"):
        target = js("imgUrl", link).partition("#")[0]
        assert read_img_query(target.partition("?")[2]).source.host == "h.example"


def test_nothing_makes_nothing(js: Call) -> None:
    for name in ("imgUrl", "srcset", "signedImgUrl", "signedSrcset"):
        assert js(name, None, {"key": KEY}) is None


STARTS = ["https://", "https://", "http://", "HTTPS:\\\\", "https:", "//", "/", "", "x:", "blob:https://"]
HOSTS = ["h.example", "H.example:8443", "i.example", "p.example", "8.8.8.8", "bücher.example", "h", "[::1]:80"]
PATHS = ["/", "//", "a", "é", ".", "..", "/..", "%2e", "%41", "img", "kept", "(", "'", "+", ",", "\\", " a", "%"]
TAILS = ["?", "#", "&", "=", "a", "ü", "%2F", " a", "/", "<", '"', "%"]


def make_link(random: Random) -> str:
    path = random.choices(PATHS, k=random.randrange(7))
    return "".join(
        (random.choice(STARTS), random.choice(HOSTS), "/", *path, *random.choices(TAILS, k=random.randrange(8)))
    )


def meaning(written: str) -> tuple[str, str]:
    """Return what a link of ours asks for, as the server reads it, and the fragment."""
    target, _, fragment = written.partition("#")
    return read_img_query(target.partition("?")[2]).source.url, unquote(fragment)


def test_links_of_all_kinds_mean_the_same_to_both(js: Call) -> None:
    random = Random(20260111)
    alike = 0
    for _ in range(3000):
        link = make_link(random)
        options: dict[str, Any] = random.choice(
            [{}, {"publicUrl": OURS}, {"base": PAGE}, {"publicUrl": OURS, "base": PAGE}]
        )
        made = js("imgUrl", link, options)
        expected = ours(link, options.get("publicUrl", ""), options.get("base"))
        alike += made == expected != link
        if made != expected:
            assert meaning(made) == meaning(expected), link
    assert alike > 500


SRCSETS = [
    "",
    " , ,",
    f"{H}",
    f"{H} 1x, https://h.example/b.png 2x",
    f"{H},b 1x",
    f"{H},, https://h.example/b",
    f",{H}\n1w\t2h ,\fhttps://h.example/c,d",
    f"{H} (1,b) 2x, https://h.example/c",
    f"{H} (1,https://h.example/b 2x, c",
    f"a 1x,{H} foo(, ) bar(,),https://h.example/b",
    f"data:image/png;base64,AA== 1x, {H} 2x",
    f"/img?src=x 1x,  {H}#a,b   2x  ",
]


@pytest.mark.parametrize("value", SRCSETS)
def test_in_srcset_only_the_links_change(js: Call, value: str) -> None:
    expected = re.findall(
        '"(.*)"', rewrite_html(f'<img srcset="{value}">', ImgLinks(every, public_url=OURS)), re.DOTALL
    )
    made = js("srcset", value, {"publicUrl": OURS})
    assert [made] == [text.replace("&amp;", "&") for text in expected]
    assert js("srcset", made, {"publicUrl": OURS}) == made


def test_srcset_takes_linear_time(js: Call) -> None:
    for piece in (" ,", ",,,x", "x 1x, ", "(", "a (", "x(),"):
        value = piece * 200_000
        assert js("srcset", value) == value
    assert js("imgUrl", " " * 8191 + "x") == " " * 8191 + "x"


def test_which_names_hosts_or_decides(js: Call) -> None:
    assert js("imgUrl", H, {"which": []}) == H
    assert js("imgUrl", H, {"which": 'url => url.pathname.endsWith(".png")'}) == ours(H)
    assert js("imgUrl", H, {"which": "url => false"}) == H


@pytest.mark.parametrize(("glob", "host", "matches"), GLOBS["match"])
def test_glob_matches_as_in_the_rewriter(js: Call, glob: str, host: str, *, matches: bool) -> None:
    link = f"https://{host}/a.png"
    assert js("imgUrl", link, {"which": ["other.example", glob]}) == (ours(link) if matches else link)


@pytest.mark.parametrize("glob", GLOBS["refused"])
def test_glob_that_matches_no_host_is_refused(js: Call, glob: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)TypeError: which: .* can match no host"):
        js("imgUrl", H, {"which": ["h.example", glob]})


def test_many_stars_do_not_hang(js: Call) -> None:
    link = f"https://{'a' * 60}.example/"
    assert js("imgUrl", link, {"which": ["*a" * 30 + "b"]}) == link
    assert js("imgUrl", link, {"which": ["*a" * 60 + "*"]}) == ours(link)


def test_options_that_mean_nothing_are_refused(js: Call) -> None:
    refused: list[dict[str, Any]] = [
        {"which": "temporary"},
        {"which": 1},
        {"publicUrl": "i.example"},
        {"publicUrl": "ftp://i.example"},
        {"base": "d/e"},
    ]
    for options in refused:
        with pytest.raises(ValueError, match="TypeError"):
            js("imgUrl", H, options)


@pytest.mark.parametrize(("src", "end", "sig"), VECTORS)
def test_documented_vectors_hold(js: Call, src: str, end: str, sig: str) -> None:
    expires = int(end) if end else None
    path = js("signedPath", KEY, src, expires)
    assert path == signed_path(KEY, src, expires=expires)
    assert path.endswith(f"&sig={sig}")


def test_links_are_signed_as_our_rewriter_signs_them(js: Call) -> None:
    for link in (H, f"{H}?a=b#c", "https://bücher.example/日本 (1).png", "data:x", f"{OURS}/img?src=x"):
        assert js("signedImgUrl", link, {"key": KEY, "publicUrl": OURS}) == ours(link, OURS, key=KEY)
    signed = signed_path(KEY, H, expires=1_800_000_000)
    assert js("signedImgUrl", H, {"key": KEY, "expires": 1_800_000_000}) == signed
    value = f"{H} 1x, data:x 2x, {H} 3x"
    assert js("signedSrcset", value, {"key": KEY}) == value.replace(H, signed_path(KEY, H))


def test_signing_needs_a_key_and_a_time(js: Call) -> None:
    for options in (
        {},
        {"key": ""},
        {"key": KEY, "expires": 1.5},
        {"key": KEY, "expires": 1_800_000_000_000},
        {"key": KEY, "expires": 0},
    ):
        with pytest.raises(ValueError, match="TypeError"):
            js("signedImgUrl", H, options)


def test_server_reads_the_intended_link(js: Call) -> None:
    link = "https://h.example/a (1)'!*.png?x=%2F&y=ü&z=a+b"
    query = read_img_query(js("imgUrl", link).partition("?")[2])
    assert (query.text, query.source) == (link, read_source(link))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"publicURL": OURS}, "publicURL: no option; did you mean publicUrl?"),
        ({"wich": "all"}, "wich: no option; did you mean which?"),
        ({"key": KEY}, "key: no option; signedImgUrl and signedSrcset take it"),
        ({"colour": 1}, "colour: no option; there are publicUrl, which, base, allow, deny"),
        ({"a" * 5000: 1}, "no option; there are"),
        ("https://i.example", "options: an object"),
        ({"allow": "*.example.com"}, "allow: a list of patterns"),
        ({"deny": ["https://h.example"]}, 'deny: "https://h.example" can match no host'),
    ],
)
def test_unknown_options_are_reported(js: Call, options: Any, message: str) -> None:
    for name in ("imgUrl", "srcset"):
        with pytest.raises(ValueError, match=re.escape(message)):
            js(name, H, options)


def test_unknown_options_of_signing_are_reported(js: Call) -> None:
    with pytest.raises(ValueError, match=re.escape("expire: no option; did you mean expires?")):
        js("signedImgUrl", H, {"key": KEY, "expire": 1})
    assert js("signedImgUrl", H, {"key": KEY, "publicUrl": OURS}).startswith(OURS)


@pytest.mark.parametrize(
    ("link", "options", "rewritten"),
    [
        (H, {"allow": ["h.example"]}, True),
        (H, {"allow": ["*.example.com"]}, False),
        (H, {"allow": []}, False),
        (H, {"deny": ["h.*"]}, False),
        (H, {"allow": ["*"], "deny": ["o.example"]}, True),
        ("https://h.example/x/a.png?s=1", {"allow": ["h.example/x/*"]}, True),
        ("https://h.example/y/a.png", {"allow": ["h.example/x/*"]}, False),
        ("https://h.example/y/../x/a.png", {"allow": ["h.example/x/*"]}, True),
        ("https://h.example/x/%2e%2e%2fy/a.png", {"allow": ["h.example/x/*"]}, False),
        ("https://h.example/x/a(1)+b.png", {"allow": ["h.example/x/a(1)+b.png"]}, True),
        ("https://h.example/X/a.png", {"deny": ["h.example/x/*"]}, False),
        ("https://h.example/z%2fa.png", {"deny": ["h.example/x/*"]}, False),
        ("http://10.0.0.1/a.png", {"allow": ["10.*"]}, True),
        (H, {"which": ["o.example"], "allow": ["h.example"]}, False),
    ],
)
def test_link_that_the_policy_denies_stays(js: Call, link: str, options: Any, rewritten: bool) -> None:  # noqa: FBT001
    made = js("imgUrl", link, options)
    assert (made != link) is rewritten


PICTURE = {"page": 0, "format": "auto", "w": 640, "preset": "a b&c'"}


def test_options_of_a_picture_are_parameters_sorted_by_name(js: Call) -> None:
    expected = f"{ours(H)}&format=auto&page=0&preset=a%20b%26c%27&w=640"
    assert js("imgUrl", H, PICTURE) == expected
    assert js("imgUrl", f"{H}#a", {"publicUrl": OURS, **PICTURE}) == f"{OURS}{expected}#a"
    assert js("imgUrl", expected, PICTURE) == expected
    assert js("imgUrl", H, {"w": None}) == ours(H)
    assert js("srcset", f"{H} 1x, {H} 2x", {"w": "64"}) == f"{ours(H)}&w=64 1x, {ours(H)}&w=64 2x"
    query = read_img_query(expected.partition("?")[2])
    assert dict(query.picture) == {name: str(value) for name, value in PICTURE.items()}


def test_stored_image_gets_options_too(js: Call) -> None:
    path = "/images/0a1b.png"
    assert js("imgUrl", path, {"w": 64}) == f"{path}?w=64"
    assert js("imgUrl", f"{path}?w=64", {"w": 32}) == f"{path}?w=64"
    assert js("imgUrl", path) == path
    assert js("imgUrl", f"{OURS}{path}", {"publicUrl": OURS, "w": 64}) == f"{OURS}{path}?w=64"
    assert js("srcset", path, [64, 128]) == f"{path}?format=auto&w=64 64w, {path}?format=auto&w=128 128w"


def test_srcset_names_each_width(js: Call) -> None:
    assert js("srcset", H, [320, 640], {"publicUrl": OURS, "q": 80}) == ", ".join(
        f"{OURS}{ours(H)}&format=auto&q=80&w={w} {w}w" for w in (320, 640)
    )
    assert js("srcset", H, [320], {"format": "webp", "w": 5}) == f"{ours(H)}&format=webp&w=320 320w"
    assert js("srcset", H, [320], {"format": None}) == f"{ours(H)}&w=320 320w"
    assert js("srcset", f"{H}#a,,", [320]) == f"{ours(H)}&format=auto&w=320#a,%2C 320w"
    assert js("srcset", None, [320]) is None
    assert js("srcset", H, []) == ""


def test_link_that_stays_makes_no_srcset(js: Call) -> None:
    for link in ("data:image/png;base64,AAAA", "a.png", "/images/a.png?w=64"):
        assert js("srcset", link, [320, 640]) == js("signedSrcset", link, [320], {"key": KEY}) == ""


def test_options_of_a_picture_are_under_the_signature(js: Call) -> None:
    options = [(name, str(value)) for name, value in PICTURE.items()]
    path = js("signedPath", KEY, H, 1_800_000_000, PICTURE)
    assert path == signed_path(KEY, H, expires=1_800_000_000, options=options)
    assert js("signedImgUrl", H, {"key": KEY, "expires": 1_800_000_000, **PICTURE}) == path
    stored = signed_images_path(KEY, "/images/a.png", options=[("w", "64")])
    assert js("signedImgUrl", "/images/a.png", {"key": KEY, "w": 64}) == stored
    signed = [js("signedPath", KEY, H, None, {"w": w, "format": "auto"}) for w in (320, 640)]
    assert js("signedSrcset", H, [320, 640], {"key": KEY}) == f"{signed[0]} 320w, {signed[1]} 640w"


def test_malformed_widths_and_options_are_refused(js: Call) -> None:
    for widths in ([0], [1.5], ["320"], [-1], [None]):
        with pytest.raises(ValueError, match="TypeError: widths: whole numbers"):
            js("srcset", H, widths)
    values: list[Any] = [[], {}, True]
    for value in values:
        with pytest.raises(ValueError, match="TypeError: w: a text or a number"):
            js("imgUrl", H, {"w": value})
    with pytest.raises(ValueError, match="TypeError: width: no option"):
        js("imgUrl", H, {"width": 64})

"""Pages in bytes: which encoding they are in, and that what is not understood stays."""

from __future__ import annotations

import json
from codecs import lookup
from pathlib import Path

import pytest

from imgkeep.core.rewrite import HtmlStream, rewrite_html
from imgkeep.core.rewrite.charset import OPAQUE, codec_of, find_codec, tells_codec
from tests.support.tables import table

LABELS = json.loads((Path(__file__).parents[2] / "cases" / "encoding_labels.json").read_text("utf-8"))
"""By encoding, all labels of the standard (https://encoding.spec.whatwg.org/#names-and-labels)."""

CODECS = {
    "iso-8859-8-i": "iso-8859-8",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac-cyrillic",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
}
"""Of encodings that Python knows by another name, or of which it knows less than browsers do."""


@table(("encoding", "label"), [(name, label) for name in LABELS for label in LABELS[name]])
def test_label_has_its_encoding_of_the_standard(encoding: str, label: str) -> None:
    codec = codec_of(f" {label.upper()}\n")
    if encoding in {"iso-2022-jp", "replacement", "x-user-defined"}:
        assert codec in OPAQUE
    else:
        assert codec is not None
        assert lookup(codec).name == lookup(CODECS.get(encoding, encoding)).name


def test_standard_has_all_labels_that_are_known() -> None:
    assert sum(map(len, LABELS.values())) == 228
    for label in ("klingon", "", "utf-7", "cp437", "latin10", "iso8859-16", "\u212aoi8-r", "\xa0utf-8"):
        assert codec_of(label) is None


@table(
    ("head", "told", "codec"),
    [
        (b"\xef\xbb\xbf<meta charset=latin1>", "koi8-r", "utf-8"),
        (b"\xfe\xff\0<", None, "utf-16-be"),
        (b"\xff\xfe<\0", None, "utf-16-le"),
        (b"<meta charset=latin1>", "koi8-r", "koi8_r"),
        (b"<meta charset=latin1>", "klingon", "cp1252"),
        (b"<p><META CharSet = 'koi8-r' ><meta charset=utf-8>", None, "koi8_r"),
        (b"<meta http-equiv=Content-Type content='text/html; CHARSET = \"big5\"'>", None, "big5hkscs"),
        (b"<meta http-equiv=content-type content='text/html'><meta charset>", None, None),
        (b"<meta http-equiv=content-type content=\"charset charset = ' koi8-r ';\">", None, "koi8_r"),
        (b"<meta http-equiv=content-type content='charset=koi8-r;charset=big5'>", None, "koi8_r"),
        (b'<meta http-equiv=content-type content="charset=\'koi8-r">', None, None),
        (b"<meta http-equiv=content-type content='charset=\"koi8-r; charset=big5'>", None, None),
        (b'<meta http-equiv=content-type content="charset=koi8-r\'">', None, None),
        (b"<meta http-equiv=content-type content='charset=;charset=big5'>", None, None),
        (b"<meta http-equiv=content-type content='charset='>", None, None),
        (b"<meta http-equiv=refresh content='charset=big5'><meta content='charset=big5'>", None, None),
        (b"<!-- <meta charset=koi8-r> --><meta charset=utf-16>", None, "utf-8"),
        (b"<!--> <meta charset=koi8-r>", None, "koi8_r"),
        (b"<!-- <meta charset=koi8-r>", None, None),
        (
            b"<p title='<meta charset=koi8-r>'></meta charset=koi8-r><meta charset=klingon>< <meta charset=koi8-r",
            None,
            None,
        ),
        (b" " * 1010 + b"<meta charset=koi8-r>", None, None),
        (b"<meta charset=X-User-Defined>", None, "cp1252"),
    ],
)
def test_encoding_is_found_where_a_browser_finds_it(head: bytes, told: str | None, codec: str | None) -> None:
    assert find_codec(head, told) == codec
    for end in range(len(head)):
        if tells_codec(head[:end]):
            assert find_codec(head[:end], None) == find_codec(head, None), "whatever follows"


@pytest.mark.parametrize(
    "head",
    [
        b"\xef\xbb\xbf<p>",
        b"\xff\xfe<\0p\0>\0",
        b"<!doctype html><html><head><meta charset=koi8-r>",
        b"<!-- < --><?xml 1 < 2?><title>a < b</title><meta charset=utf-8>",
    ],
)
def test_page_with_an_early_encoding_does_not_wait(head: bytes) -> None:
    assert HtmlStream(lambda _: None).feed(head) == head


@pytest.mark.parametrize("head", [b"<p>", b"<a title='<meta charset=koi8-r>", b"<!-", b"<", b"</", b"<meta charset=x>"])
def test_page_waits_for_its_encoding(head: bytes) -> None:
    assert not tells_codec(head)


@pytest.mark.parametrize(
    "charset", ["utf-8", "cp1252", "koi8-r", "shift_jis", "big5", "gb18030", "euc-kr", "utf-16le", "utf-16be"]
)
def test_page_in_any_encoding_changes_only_in_its_links(charset: str) -> None:
    word = {"cp1252": "é", "koi8-r": "я", "euc-kr": "한"}.get(charset, "表")
    page = (
        f"<title>{word}</title><img alt={word} src='https://h.example/{word}.png'>"
        f"<p style='--a:\"{word}\";background:url(https://h.example/{word})'><style>/*{word}*/p{{b:url(https://h.example/)}}</style>"
    )
    seen: list[str] = []

    def linker(url: str) -> str:
        seen.append(url)
        return "/x"

    after = rewrite_html(page.encode(charset), linker, charset=charset)
    assert seen == [f"https://h.example/{word}.png", f"https://h.example/{word}", "https://h.example/"]
    wanted = page
    for url in seen[:2]:
        wanted = wanted.replace(url, "/x", 1)
    assert after.decode(charset) == wanted.replace("https://h.example/", "/x")


def test_uncertain_text_stays() -> None:
    for page in (
        b"<img src=https://h.example/\xe9><style>/*\xe9*/p{b:url(https://h.example/)}</style>",
        b"<meta charset=shift_jis><img src='https://h.example/\x81\x20'>",
        b"<meta charset=koi8-r><style>\xff</style>\xff",
        b"<meta charset=iso-2022-jp><img src=https://h.example/>",
        b"<meta charset=hz-gb-2312><img src=https://h.example/>",
    ):
        assert rewrite_html(page, lambda _: "/x") == page
    page = b"<img src=https://h.example/>"
    assert rewrite_html(page, lambda _: "/x", charset="x-user-defined") == page
    assert rewrite_html("<img src=https://h.example/é>".encode(), lambda _: "/x") == b"<img src=/x>"
    assert rewrite_html(b"<img data-a=\xe9 src=https://h.example/>", lambda _: "/x") == b"<img data-a=\xe9 src=/x>"
    assert (
        rewrite_html(b"<link rel=\xe9 href=https://h.example/>", lambda _: "/x")
        == b"<link rel=\xe9 href=https://h.example/>"
    )


def test_text_that_does_not_round_trip_stays() -> None:
    # Big5 has two codes for some characters.
    page = b"<p style='--a:\"" + b"\xf9\xf9\xf9\xfe\xa2\xcc" + b"\";b:url(https://h.example/)'>"
    assert rewrite_html(page, lambda _: "/x", charset="big5") == page


def test_character_of_utf_16_may_be_cut() -> None:
    page = "<img src=https://h.example/\U0001f600><img src=https://h.example/\U0010ffff>"
    stream = HtmlStream(lambda _: "/x", charset="utf-16le")
    pieces = [stream.feed(bytes([byte])) for byte in page.encode("utf-16-le")]
    assert b"".join((*pieces, stream.close())).decode("utf-16-le") == "<img src=/x><img src=/x>"


def test_stream_waits_for_the_encoding_and_no_longer() -> None:
    told = HtmlStream(lambda _: None, charset="utf-8")
    assert told.feed(b"ab") == b""
    assert told.feed(b"c") == b"abc"
    assert told.feed(b"d") + told.close() == b"d"
    untold = HtmlStream(lambda _: None)
    assert untold.feed(b"a" * 1023) == b""
    assert untold.close() == b"a" * 1023

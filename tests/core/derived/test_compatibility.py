"""URLs of imageproxy, thumbor and Next.js ask for the pictures that these servers make, or are refused by a name."""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from functools import partial
from hashlib import sha1, sha256
from hmac import digest
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.derived.compatibility.imageproxy import read_imageproxy
from imgkeep.core.derived.compatibility.nextjs import read_nextjs
from imgkeep.core.derived.compatibility.thumbor import read_thumbor
from imgkeep.core.derived.options import read_options
from imgkeep.core.errors import ImgkeepError, InvalidOption, InvalidSource, NotSupported, SignatureInvalid
from imgkeep.core.signing import ForeignSignature
from imgkeep.core.source_url import QUERY_CHARS_MAX
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.derived.compatibility.foreign_request import ForeignRequest

SOURCE = "https://h.example/a.png"
KEY = "secretkey"


def parameters(request: ForeignRequest | None) -> str:
    assert request is not None
    read_options(request.parameters)  # each of them is one that /img takes
    return "&".join(f"{name}={value}" for name, value in request.parameters)


def sign(text: str, key: str = KEY) -> str:
    return urlsafe_b64encode(digest(key.encode(), text.encode(), sha256)).decode()


# --- imageproxy


@table(
    ("options", "expected"),
    [
        ("", ""),
        ("0x0", ""),
        ("x", ""),
        ("200x", "w=200"),
        ("x150", "h=150"),
        ("100x150", "w=100&h=150&fit=cover"),
        ("100", "w=100&h=100&fit=cover"),
        ("150,fit", "w=150&h=150"),
        ("150x,fit", "w=150"),
        ("0x0,fit,scaleUp", ""),
        ("100x150,r90", "w=150&h=100&fit=cover&rotate=270"),
        ("100x150,r180", "w=100&h=150&fit=cover&rotate=180"),
        ("100x,r-90", "h=100&rotate=90"),
        ("r0", ""),
        ("r360", ""),
        ("200x,q60", "w=200&q=60"),
        ("200x,q0", "w=200"),
        ("200x,png", "w=200&format=png"),
        ("200x,png,q60", "w=200&format=png"),
        ("q60,jpeg,200x", "w=200&format=jpeg&q=60"),
        ("150x300,sc", "w=150&h=300&fit=cover&gravity=attention"),
        ("150x300,sc,r90,fit", "w=300&h=150&fit=cover&gravity=attention&rotate=270"),
        ("200x,scaleUp", "w=200&fit=contain"),
        ("200x100,scaleUp", "w=200&h=100&fit=cover"),
        ("100,200x,q5,q60", "w=200&q=60"),
        (",,0200x", "w=200"),
        ("200x,", "w=200"),
    ],
)
def test_options_of_imageproxy_are_translated(options: str, expected: str) -> None:
    assert parameters(read_imageproxy(f"{options}/{SOURCE}", None, "")) == expected


@table(
    ("option", "name"),
    [
        *[(each, each) for each in ("fv", "fh", "tiff", "trim")],
        ("cx10", "cx"),
        ("cy-10", "cy"),
        ("cw100", "cw"),
        ("ch0.5", "ch"),
        ("x0.15", "a size as a part of the original"),
        ("0.5", "a size as a part of the original"),
        ("1.5x200", "a size as a part of the original"),
        ("200x100,fit,scaleUp", "scaleUp"),
    ],
)
def test_option_of_imageproxy_that_is_not_supported_is_named(option: str, name: str) -> None:
    with pytest.raises(NotSupported, match=rf"^{name}\b.* not supported"):
        read_imageproxy(f"{option},q80/{SOURCE}", None, "")


@table(
    ("options", "message"),
    [
        ("webpp", "webpp is not an option of imageproxy"),
        ("200\u00d7100", "one of the options is not an option"),
        ("<script>", "one of the options is not an option"),
        ("a" * 25, "one of the options is not an option"),
        ("fit,sc", "sc: needs a width and a height"),
        ("sc,200x", "sc: needs a width and a height"),
        ("r45", "r: expected a multiple of 90 degrees"),
        ("r", "r: expected a whole number"),
        ("r--90", "r: expected a whole number"),
        ("r1e9", "r: expected a whole number"),
        ("q", "q: expected a whole number"),
        ("q\u0663", "q: expected a whole number"),
        ("q" + "9" * 13, "q: expected a whole number"),
        ("vu", "vu: expected a whole number"),
        ("vunever", "vu: expected a whole number"),
        ("999999999x", "999999999x is not an option"),
        ("\u0663\u0660\u0660x", "one of the options is not an option"),
        ("1e9", "1e9 is not an option"),
        ("NaN", "NaN is not an option"),
        ("-5x", "-5x is not an option"),
        ("100x200x300", "100x200x300 is not an option"),
        (",".join(["fit"] * 300), "the options are longer than 1000 characters"),
    ],
)
def test_malformed_option_of_imageproxy_is_refused(options: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(message)):
        read_imageproxy(f"{quote(options)}/{SOURCE}", None, "")


def test_range_of_a_translated_option_is_that_of_img() -> None:
    for options, name in (("99999999x", "w"), ("x20000", "h"), ("q101", "q")):
        request = read_imageproxy(f"{options}/{SOURCE}", None, "")
        assert request is not None
        with pytest.raises(InvalidOption, match=f"^{name}: expected"):
            read_options(request.parameters)


def base64url(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


@table(
    ("path", "query", "source"),
    [
        (SOURCE, None, SOURCE),
        ("http://h.example", None, "http://h.example"),
        ("https:/h.example/a.png", None, SOURCE),
        ("https:///h.example/a.png", None, SOURCE),
        ("HTTPS://h.example/a%20b.png", None, "HTTPS://h.example/a%20b.png"),
        (SOURCE, "", f"{SOURCE}?"),
        (SOURCE, "sig=a%2Fb&w=5", f"{SOURCE}?sig=a%2Fb&w=5"),
        (quote(f"{SOURCE}?sig=a%2Fb", safe=""), None, f"{SOURCE}?sig=a%2Fb"),
        ("https%3a%2f%2fh.example/a.png", None, SOURCE),
        (base64url(f"{SOURCE}?x=ü"), None, f"{SOURCE}?x=ü"),
    ],
)
def test_source_of_imageproxy_is_read_in_each_of_its_forms(path: str, query: str | None, source: str) -> None:
    for options in ("", "/", "200x/"):
        request = read_imageproxy(options + path, query, "")
        assert request is not None
        assert request.source == source
        assert SOURCE not in repr(request)


@table(
    "path",
    [
        "",
        "favicon.ico",
        "200x",
        "200x/",
        "200x/images/a.png",
        "200x/ftp://h.example/a.png",
        "200x/http:",
        "200x/https://",
        "200x/" + base64url("ftp://h.example/"),
        "200x/" + base64url("/images/a.png"),
        "200x/aHR0cHM6Ly9oLmV4YW1wbGUv_w",  # not UTF-8
        "200x/aHR0c",  # of no length that base64 has
    ],
)
def test_path_of_another_form_is_none_of_imageproxy(path: str) -> None:
    assert read_imageproxy(path, None, "") is None


def test_query_that_is_no_part_of_the_source_is_refused() -> None:
    for path in (quote(SOURCE, safe=""), base64url(SOURCE)):
        with pytest.raises(InvalidSource, match="percent-encode the whole source URL"):
            read_imageproxy(f"200x/{path}", "v=2", "")


def test_documented_signature_of_imageproxy_is_valid() -> None:
    # docs/url-signing.md of imageproxy
    options = "400x400,q40,s0sR2kjyfiF1RQRj4Jm2fFa3_6SDFqdAaDEmy1oD2U-4="
    request = read_imageproxy(f"{options}/https://octodex.github.com/images/codercat.jpg", None, KEY)
    assert request is not None
    assert request.signature == ForeignSignature(covers_options=True)
    # its README
    options = "500,sXyMwWKIC5JPCtlYOQ2f4yMBTqpjtUsfI67Sp7huXIYY="
    request = read_imageproxy(f"{options}/https://octodex.github.com/images/codercat.jpg", None, "secret key")
    assert request is not None
    assert request.signature == ForeignSignature(covers_options=False)


@table(
    ("options", "signed"),
    [
        ("100,r90,q75", "100x100,q75,r90"),
        ("x500", "0x500"),
        ("jpeg,fit,200x,scaleUp", "200x0,fit,jpeg,scaleUp"),
        ("sc,20x30,r0,q0,r-90", "20x30,r-90,sc"),
        ("vu1800000000", "0x0,vu1800000000"),
    ],
)
def test_signature_covers_sorted_options(options: str, signed: str) -> None:
    for mac in (sign(f"{SOURCE}?a=b#{signed}"), sign(f"{SOURCE}?a=b#{signed}").rstrip("=")):
        request = read_imageproxy(f"{options},s{mac}/{SOURCE}", "a=b", KEY)
        assert request is not None
        assert request.signature is not None
        assert request.signature.covers_options
        assert request.signature.ends == request.ends == (1_800_000_000 if "vu" in options else None)


@table("signature", ["a", "!!", "aé", "A" * 5, "a=b", "", sign(f"{SOURCE}#201x0"), sign(SOURCE, "x")])
def test_wrong_signature_of_imageproxy_is_refused(signature: str) -> None:
    if signature:
        with pytest.raises(SignatureInvalid, match="does not fit"):
            read_imageproxy(f"200x,s{signature}/{SOURCE}", None, KEY)
    request = read_imageproxy(f"200x,s/{SOURCE}", None, KEY)
    assert request is not None
    assert request.signature is None


def test_signature_without_a_key_names_the_setting() -> None:
    with pytest.raises(SignatureInvalid, match=r"set derive\.imageproxy_key"):
        read_imageproxy(f"200x,s{sign(SOURCE)}/{SOURCE}", None, "")
    with pytest.raises(SignatureInvalid, match=r"set derive\.thumbor_key"):
        read_thumbor(f"{'a' * 27}=/200x0/{SOURCE}", None, "")


# --- thumbor


@table(
    ("options", "expected"),
    [
        ("", ""),
        ("0x0/", ""),
        ("x/", ""),
        ("origxorig/", ""),
        ("0x0:0x0/", ""),
        ("300x0/", "w=300&fit=contain"),
        ("x200/smart/", "h=200&fit=contain"),
        ("300x200/", "w=300&h=200&fit=cover"),
        ("300x200/smart/", "w=300&h=200&fit=cover&gravity=attention"),
        ("300x200/left/smart/", "w=300&h=200&fit=cover&gravity=attention"),
        ("300x200/left/top/", "w=300&h=200&fit=cover&gravity=northwest"),
        ("300x200/right/", "w=300&h=200&fit=cover&gravity=east"),
        ("300x200/bottom/", "w=300&h=200&fit=cover&gravity=south"),
        ("300x200/center/middle/", "w=300&h=200&fit=cover"),
        ("300x0/left/", "w=300&fit=contain"),
        ("fit-in/300x200/", "w=300&h=200"),
        ("fit-in/300x200/left/top/smart/", "w=300&h=200"),
        ("fit-in/300x0/", "w=300"),
        ("300x0/filters:no_upscale()/", "w=300"),
        ("fit-in/300x200/filters:no_upscale()/", "w=300&h=200"),
        ("fit-in/300x0/filters:upscale()/", "w=300&fit=contain"),
        ("300x200/filters:upscale()/", "w=300&h=200&fit=cover"),
        ("fit-in/300x200/filters:fill(f00)/", "w=300&h=200&fit=contain&bg=f00"),
        ("fit-in/300x200/filters:fill(white):upscale()/", "w=300&h=200&fit=contain&bg=ffffff"),
        ("fit-in/300x200/filters:fill(transparent,true)/", "w=300&h=200&fit=contain"),
        ("fit-in/300x0/filters:fill(f00)/", "w=300"),
        ("300x200/filters:fill(f00)/", "w=300&h=200&fit=cover"),
        ("300x200/filters:fill(%23FF0000, 1)/", "w=300&h=200&fit=cover&bg=ff0000"),
        ("300x200/filters:background_color(black)/", "w=300&h=200&fit=cover&bg=000000"),
        ("filters:quality(80)/", "q=80"),
        ("filters:quality(80):format(png)/", "format=png"),
        ("filters:format(JPG):quality(80):strip_exif():strip_icc()/", "format=jpeg&q=80"),
        ("filters:format(avif)/", "format=avif"),
        ("filters:blur(7)/", "blur=7"),
        ("filters:blur(7,0.0)/", "blur=7"),
        ("filters:blur(4, 2.5)/", "blur=2.5"),
        ("filters:cover()/", "page=0"),
        ("300x200/filters:rotate(90)/", "w=200&h=300&fit=cover&rotate=270"),
        ("300x200/left/filters:rotate(90)/", "w=200&h=300&fit=cover&gravity=south&rotate=270"),
        ("300x200/right/top/filters:rotate(-90)/", "w=200&h=300&fit=cover&gravity=southeast&rotate=90"),
        ("300x200/smart/filters:rotate(180)/", "w=300&h=200&fit=cover&gravity=attention&rotate=180"),
    ],
)
def test_options_of_thumbor_are_translated(options: str, expected: str) -> None:
    assert parameters(read_thumbor(f"unsafe/{options}{SOURCE}", None, "")) == expected


@table(
    ("options", "name"),
    [
        ("debug/300x200", "debug"),
        ("meta/300x200", "meta"),
        ("trim", "trim"),
        ("trim:bottom-right:10/300x200", "trim"),
        ("10x10:200x200/300x200", "crops of a rectangle"),
        ("full-fit-in/300x200", "full-fit-in"),
        ("adaptive-fit-in/300x200", "adaptive-fit-in"),
        ("adaptive-full-fit-in/300x200", "adaptive-full-fit-in"),
        ("-300x200", "a size with a minus sign: flips"),
        ("300x-200", "a size with a minus sign: flips"),
        ("-x", "a size with a minus sign: flips"),
        ("origx200", "orig"),
        ("300x200/filters:no_upscale()", "no_upscale"),
        ("fit-in/300x200/filters:fill(f00):no_upscale()", "no_upscale"),
        ("fit-in/300x200/filters:upscale()", "upscale"),
        ("filters:watermark(https://h.example/w.png,10,-10,50)", "watermark"),
        ("filters:quality(80):grayscale()", "grayscale"),
        ("filters:focal(1x2:3x4)", "focal"),
        ("filters:no_such_filter(1,2,3)", "no_such_filter"),
        ("filters:format(gif)", "format: gif"),
        ("filters:format(%3Cb%3E)", "format: one of the options"),
        ("filters:fill(blur)", "fill: blur"),
        ("filters:fill(auto,true)", "fill: auto"),
        ("filters:background_color(cornflowerblue)", "background_color: cornflowerblue"),
    ],
)
def test_option_of_thumbor_that_is_not_supported_is_named(options: str, name: str) -> None:
    with pytest.raises(NotSupported, match=rf"^{re.escape(name)}\b.* not supported"):
        read_thumbor(f"unsafe/{options}/{SOURCE}", None, "")


@table(
    ("options", "message"),
    [
        ("1e9x5/", "1e9x5 is not an option of thumbor"),
        ("smart/smart/", "smart is not an option of thumbor"),
        ("fit-in/", "fit-in: needs a size"),
        ("fit-in/0x0/", "fit-in: needs a size"),
        ("filters:/", "filters: expected name(arguments)"),
        ("filters:quality/", "filters: expected name(arguments)"),
        ("filters:quality(80/", "filters: expected name(arguments)"),
        ("filters:quality(80)x/", "filters: expected name(arguments)"),
        ("filters:quality(80)%0Ablur(3)/", "filters: expected name(arguments)"),
        ("filters:Quality(80)/", "filters: expected name(arguments)"),
        ("filters:blur(" + "9" * 1000 + ")/", "filters: expected name(arguments)"),
        ("filters:quality(80):quality(70)/", "quality is given twice"),
        ("filters:quality(80,70)/", "quality: it has too many arguments"),
        ("filters:cover(1)/", "cover: it has too many arguments"),
        ("filters:cover(,)/", "cover: it has too many arguments"),
        ("filters:rotate(45)/", "rotate: expected a multiple of 90"),
        ("filters:rotate(1e9)/", "rotate: expected a whole number"),
        ("filters:blur(x,2)/", "blur: expected a whole number"),
        ("filters:fill(white,maybe)/", "fill: expected a colour"),
    ],
)
def test_malformed_option_of_thumbor_is_refused(options: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=re.escape(message)):
        read_thumbor(f"unsafe/{options}{SOURCE}", None, "")


@table("value", ["quality(0)", "quality(101)", "quality()", "blur(251)", "blur(1,300.5)", "blur(1,é)"])
def test_range_of_a_filter_is_that_of_img(value: str) -> None:
    request = read_thumbor(f"unsafe/300x200/filters:{quote(value, safe='(),')}/{SOURCE}", None, "")
    assert request is not None
    with pytest.raises(InvalidOption, match="expected"):
        read_options(request.parameters)


@table(
    ("path", "source"),
    [
        (SOURCE, SOURCE),
        ("https:/h.example/a.png", SOURCE),
        ("h.example/a.png", "http://h.example/a.png"),
        (quote(f"{SOURCE}?sig=a%2Fb", safe=""), f"{SOURCE}?sig=a%2Fb"),
        (quote(f"{SOURCE}?x=1"), f"{SOURCE}?x=1"),
        ("httpbin.example/a", "http://httpbin.example/a"),
        (f"h.example/{SOURCE}", f"http://h.example/{SOURCE}"),
        ("localhost/a", "http://localhost/a"),
    ],
)
def test_source_of_thumbor_is_decoded_once(path: str, source: str) -> None:
    request = read_thumbor(f"unsafe/300x200/{path}", None, "")
    assert request is not None
    assert request.source == source


@table("path", ["", "favicon.ico", "300x200/h.example/a.png", f"unsafely/{SOURCE}", f"{'a' * 28}/x"])
def test_path_of_another_form_is_none_of_thumbor(path: str) -> None:
    assert read_thumbor(path, None, KEY) is None


@table(
    ("path", "message"),
    [
        ("unsafe", "missing"),
        ("unsafe/", "missing"),
        ("unsafe/300x200/", "missing"),
        ("unsafe/filters:cover()/", "missing"),
        ("unsafe/%FF", "not UTF-8"),
        ("unsafe/\udcff", "not UTF-8"),
    ],
)
def test_url_of_thumbor_without_a_usable_source_is_refused(path: str, message: str) -> None:
    with pytest.raises(InvalidSource, match=message):
        read_thumbor(path, None, "")


def test_query_of_thumbor_is_refused() -> None:
    with pytest.raises(InvalidSource, match="percent-encode the whole source URL"):
        read_thumbor(f"unsafe/300x200/{SOURCE}", "sig=a", "")


@table(
    "path",
    [
        # tests/test_cryptourl.py of libthumbor
        "8ammJH8D-7tXy6kU3lTvoXlhu4o=/300x200/my.server.com/some/path/to/image.jpg",
        "8ammJH8D-7tXy6kU3lTvoXlhu4o%3D/300x200/my.server.com/some/path/to/image.jpg",
    ],
)
def test_signature_of_libthumbor_is_valid(path: str) -> None:
    request = read_thumbor(path, None, "my-security-key")
    assert request is not None
    assert request.signature == ForeignSignature(covers_options=True)
    assert parameters(request) == "w=300&h=200&fit=cover"
    for wrong in (path.replace("300", "301"), path.replace(".jpg", ".jpeg"), f"x{path[1:]}"):
        with pytest.raises(SignatureInvalid, match="does not fit"):
            read_thumbor(wrong, None, "my-security-key")


def test_signature_of_thumbor_covers_the_text_of_the_url() -> None:
    rest = f"fit-in/300x0/filters:quality(80)/{quote(SOURCE, safe='')}"
    mac = urlsafe_b64encode(digest(KEY.encode(), rest.encode(), sha1)).decode()
    request = read_thumbor(f"{mac}/{rest}", None, KEY)
    assert request is not None
    assert request.source == SOURCE
    with pytest.raises(InvalidSource, match="query"):
        read_thumbor(f"{mac}/{rest}", "x=1", KEY)


# --- Next.js


@table(
    ("query", "expected"),
    [
        ({"url": SOURCE, "w": "640", "q": "75"}, "w=640&format=auto"),
        ({"url": SOURCE, "w": "640"}, "w=640&format=auto"),
        ({"url": SOURCE, "w": "3840", "q": "90", "dpl": "dpl_1"}, "w=3840&format=auto&q=90"),
    ],
)
def test_parameters_of_nextjs_are_translated(query: dict[str, str], expected: str) -> None:
    request = read_nextjs(urlencode(query))
    assert parameters(request) == expected
    assert request.source == SOURCE


@table(
    ("query", "error", "message"),
    [
        (None, InvalidSource, "url is missing"),
        ("w=640", InvalidSource, "url is missing"),
        (f"url={SOURCE}", InvalidOption, "w is missing"),
        (f"url={SOURCE}&w=640&w=640", InvalidOption, "w is given twice"),
        (f"url={SOURCE}&w=640&h=2", InvalidOption, "h is not a parameter of Next.js"),
        (f"url={SOURCE}&%3Cb=2", InvalidOption, "one of the options is not a parameter"),
        ("url=%2Fphoto.png&w=640&q=75", NotSupported, "url: a path of the Next.js server is not supported"),
        ("url=%2F%2Fh.example%2Fa&w=640", InvalidSource, "url is missing, or"),
        ("url=%FF&w=640", InvalidSource, "not UTF-8"),
        (f"url={SOURCE}&w=" + "1" * QUERY_CHARS_MAX, InvalidSource, "longer than"),
    ],
)
def test_unusable_query_of_nextjs_is_refused(query: str | None, error: type[ImgkeepError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        read_nextjs(query)


# --- all of them


def test_long_targets_are_refused_unread() -> None:
    for read in (read_imageproxy, read_thumbor):
        with pytest.raises(InvalidSource, match="longer than"):
            read(f"unsafe/{'a' * QUERY_CHARS_MAX}", None, "")
        with pytest.raises(InvalidSource, match="longer than"):
            read(f"unsafe/{SOURCE}", "a" * QUERY_CHARS_MAX, "")


def read_code(read: Callable[[], object]) -> str:
    """Return the code of the error that reading raises; nothing if it raises none."""
    try:
        read()
    except ImgkeepError as error:
        return error.code if len(str(error)) < 200 else "long"
    return ""


@table("piece", ["/", "0x0:0x0/", "filters:", "filters:a(", "),(", "https:/", "s,", "%41", "trim", "-x"])
def test_hostile_target_costs_little(piece: str) -> None:
    text = (piece * QUERY_CHARS_MAX)[: QUERY_CHARS_MAX - 20]
    for path in (text, f"unsafe/{text}", f"unsafe/filters:{text}", f"200x/{text}"):
        for read in (read_imageproxy, read_thumbor):
            assert read_code(partial(read, path, None, KEY)) in CODES


PIECES = (
    *("unsafe/", "300x200", "fit-in/", "smart/", "filters:", "fill(", ")", ":", "f00", "r90", "q80", "sc", "vu9", "s"),
    *("https://", "h.example/", "%2F", "%", "a", "=", "-", ",", "/", "\xe9", "\udc80", "\n", "orig", "x", "0"),
)
CODES = {"", "invalid_option", "invalid_source", "not_supported", "signature_invalid", "source_forbidden"}


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.none() | st.text(max_size=5))
def test_any_target_is_read_or_refused(path: str, query: str | None) -> None:
    def read_all(read: Callable[[str, str | None, str], ForeignRequest | None], key: str) -> None:
        request = read(path, query, key)
        if request is not None:
            read_options(request.parameters)
            assert request.query().picture == request.parameters

    for key in ("", KEY):
        assert read_code(partial(read_all, read_imageproxy, key)) in CODES
        assert read_code(partial(read_all, read_thumbor, key)) in CODES


@given(st.text(max_size=40))
def test_any_query_of_nextjs_is_read_or_refused(query: str) -> None:
    assert read_code(lambda: read_options(read_nextjs(query).parameters)) in CODES

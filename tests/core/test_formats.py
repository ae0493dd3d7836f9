"""What a file is, its size and its end, for good files, cut files, liars and noise."""

from __future__ import annotations

import mmap
import struct
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.formats import (
    HEAD_BYTES_MAX,
    UNDECIDED,
    bmp,
    gif,
    heif,
    ico,
    is_whole,
    jpeg,
    jxl,
    measure,
    png,
    sniff,
    svg,
    tiff,
    webp,
)
from imgkeep.core.formats import (
    iso_boxes as boxes,
)
from imgkeep.core.records import Format, PixelSize
from tests.support import image_files as images
from tests.support.tables import table

if TYPE_CHECKING:
    from types import ModuleType

SAMPLES = images.samples()
NEVER_PROVED = {"jxl", "jxl small", "jxl by ratio"}
PROVED = [name for name in SAMPLES if name not in NEVER_PROVED]
LESS_KNOWN = {
    "avif that is heic too": {Format.HEIC},
    "avif of tiles": {Format.HEIF},
    "heic by its item": {Format.HEIF},
}
"""What a file is by its first bytes alone, without its items."""
IGNORABLE = {"tiff of pages": 4}
"""Bytes at the end that are no part of the image: Pillow aligns its pages."""

HTML = b'<!DOCTYPE html><html><head><title>Expired</title></head><body><svg xmlns="http://www.w3.org/2000/svg"/></body></html>'

every_sample = table("name", SAMPLES)
every_proved_sample = table("name", PROVED)


@every_sample
def test_good_file_is_recognised(name: str) -> None:
    sample = SAMPLES[name]
    assert sniff(sample.body, ended=True) is sample.fmt
    assert sniff(bytearray(sample.body), ended=True) is sample.fmt
    assert sniff(memoryview(sample.body), ended=False) is sample.fmt


@every_sample
def test_good_file_is_measured(name: str) -> None:
    sample = SAMPLES[name]
    assert measure(sample.fmt, sample.body) == sample.size
    assert measure(sample.fmt, bytearray(sample.body)) == sample.size


@every_proved_sample
def test_good_file_is_whole(name: str) -> None:
    sample = SAMPLES[name]
    assert is_whole(sample.fmt, sample.body)
    assert is_whole(sample.fmt, bytearray(sample.body))


@every_proved_sample
def test_mapped_file_is_read_like_bytes(name: str) -> None:
    sample = SAMPLES[name]
    with tempfile.TemporaryFile() as file:
        file.write(sample.body)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
            assert measure(sample.fmt, body) == sample.size
            assert is_whole(sample.fmt, body)


@every_sample
def test_file_that_is_cut_is_not_whole(name: str) -> None:
    sample = SAMPLES[name]
    size = len(sample.body) - IGNORABLE.get(name, 0)
    cuts = {size // 100, size // 2, size * 99 // 100, *range(0, size, size // 300 + 1), *range(max(size - 40, 0), size)}
    assert [cut for cut in sorted(cuts) if is_whole(sample.fmt, sample.body[:cut])] == []


@table("name", [name for name in PROVED if SAMPLES[name].fmt is not Format.SVG and "open" not in name])
@table("tail", [b"\0" * 40, b"\n", b"<!-- 12 ms -->", b"\xff\xd8\xff\xe0", b"MotionPhoto_Data"])
def test_bytes_behind_a_whole_image_are_tolerated(name: str, tail: bytes) -> None:
    sample = SAMPLES[name]
    assert is_whole(sample.fmt, sample.body + tail)
    assert measure(sample.fmt, sample.body + tail) == sample.size


@pytest.mark.parametrize(
    ("tail", "whole"),
    [(b"\n", True), (b"<!-- 12 ms -->\n<?a b?>", True), (b"garbage", False), (b"<svg/>", False), (b"<!-- ", False)],
)
def test_svg_may_be_followed_by_xml_misc(tail: bytes, *, whole: bool) -> None:
    assert is_whole(Format.SVG, images.svg().encode() + tail) is whole


@every_sample
def test_decision_never_changes_as_bytes_come_in(name: str) -> None:
    sample = SAMPLES[name]
    sizes = [*range(min(len(sample.body), 1200)), len(sample.body)]
    answers = [sniff(sample.body[:size], ended=False) for size in sizes]
    decided = [answer for answer in answers if answer is not UNDECIDED]
    assert answers == [UNDECIDED] * (len(answers) - len(decided)) + decided
    assert set(decided) == {sample.fmt}


@every_sample
def test_size_never_changes_as_bytes_come_in(name: str) -> None:
    sample = SAMPLES[name]
    found = {measure(sample.fmt, sample.body[:size]) for size in range(len(sample.body))}
    of_directory = {PixelSize(256, 256)} if name in {"ico with a large png", "ico of pngs"} else set()
    assert found - of_directory <= {None, sample.size}


@every_sample
def test_ended_body_is_decided(name: str) -> None:
    sample = SAMPLES[name]
    assert {sniff(sample.body[:size], ended=True) for size in range(0, len(sample.body), 7)} <= {
        None,
        sample.fmt,
        *LESS_KNOWN.get(name, {Format.PNG}),
    }


@table(
    ("name", "enough"),
    [
        *(("png", 41), ("apng", 41), ("jpeg baseline", 4), ("gif 87a", 14), ("webp lossy", 26), ("avif", 12)),
        *(("heic", 24), ("jxl in a box", 24), ("bmp", 34), ("ico", 46), ("cur", 26), ("tiff big", 24)),
    ],
)
def test_few_dozen_bytes_are_enough(name: str, enough: int) -> None:
    sample = SAMPLES[name]
    assert sniff(sample.body[:enough], ended=False) is sample.fmt
    assert sniff(sample.body[: enough - 1], ended=False) is UNDECIDED


def test_png_is_distinguished_from_apng_up_to_a_limit() -> None:
    far = images.png_with(images.png_chunk(b"caBX", bytes(HEAD_BYTES_MAX)), images.png_chunk(b"acTL", bytes(8)))
    assert sniff(far[: HEAD_BYTES_MAX - 1], ended=False) is UNDECIDED
    assert sniff(far, ended=False) is Format.PNG
    assert sniff(images.png_header(), ended=True) is Format.PNG
    assert sniff(images.png_header() + b"\0\0\0\0 no chunk", ended=False) is Format.PNG


def test_svg_is_recognised_up_to_a_limit() -> None:
    body = f"<!--{'x' * HEAD_BYTES_MAX * 3}-->{images.svg()}".encode()
    assert sniff(body[: HEAD_BYTES_MAX - 1], ended=False) is UNDECIDED
    assert sniff(body, ended=False) is None
    assert measure(Format.SVG, body) is None
    assert not is_whole(Format.SVG, body)


ISPE_0 = (images.ispe(PixelSize(0, 12)),)
NEGATIVES = {
    "nothing": b"",
    "one byte": b"\xff",
    "text": b"The link has expired.",
    "html": HTML,
    "html in upper case": HTML.upper(),
    "html without doctype": b"<html><svg></svg></html>",
    "html fragment": b"<div><svg xmlns='http://www.w3.org/2000/svg'></svg></div>",
    "xhtml": b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body/></html>',
    "s3 error": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
    "json": b'{"error": "expired"}',
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(40),
    "zip": b"PK\x03\x04" + bytes(40),
    "shell script": b"#!/bin/sh\necho GIF89a\n",
    "jpeg 2000": images.saved("JPEG2000"),
    "icon of type 3": images.ico((16, 16, images.DIB), kind=3),
    "mp4": images.ftyp(b"isom", b"iso2", b"avc1", b"mp41") + images.box(b"moov"),
    "h.264 in a still": images.ftyp(b"avci", b"avcs") + images.meta(),
    "quicktime": images.ftyp(b"qt  ", b"qt  ") + images.box(b"wide"),
    "heif with a brand too short": images.box(b"ftyp", b"heic") + bytes(40),
    "heif with half a brand": images.box(b"ftyp", b"heic\0\0\0\0mi") + bytes(40),
    "heif with endless brands": b"\0\0\x40\0ftypheic" + bytes(0x4000),
    "png signature alone": b"\x89PNG\r\n\x1a\n",
    "png signature and a script": b"\x89PNG\r\n\x1a\n<script>alert(1)</script>" + bytes(40),
    "png of no width": images.png_header(width=0),
    "png of no height": images.png_header(height=0),
    "png too wide": images.png_header(width=2**31),
    "png of odd depth": images.png_header(tail=(3, 2, 0, 0, 0)),
    "png of odd colour": images.png_header(tail=(8, 5, 0, 0, 0)),
    "png of odd filtering": images.png_header(tail=(8, 2, 0, 1, 0)),
    "png of odd interlacing": images.png_header(tail=(8, 2, 0, 0, 2)),
    "png with a wrong sum": images.png_header()[:-1] + b"!" + bytes(40),
    "jpeg and a script": b"\xff\xd8\xff/*<script>*/",
    "jpeg that ends": b"\xff\xd8\xff\xd9",
    "jpeg that begins with a scan": b"\xff\xd8\xff\xda\0\x0c" + bytes(40),
    "jpeg-ls": b"\xff\xd8\xff\xf7\0\x0b" + bytes(40),
    "jpeg that begins twice": b"\xff\xd8" + images.saved("JPEG"),
    "jpeg of stuffed bytes": b"\xff\xd8" + b"\xff\0" * 400,
    "jpeg of fill bytes": b"\xff\xd8" + b"\xff" * 400,
    "gif and a script": b"GIF89a/*" + bytes(5) + b"*/=1;alert(1)//",
    "gif of no width": images.gif((0, 12), (0, 0, 0, 12)),
    "gif of no size": b"GIF89a\0\0\0\0\0\0\0;",
    "gif 88a": b"GIF88a\1\0\1\0\0\0\0,",
    "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
    "webp of odd kind": b"RIFF\x24\0\0\0WEBPVP8Z" + bytes(40),
    "webp chunk beyond its file": b"RIFF\x24\0\0\0WEBPVP8L\x24\0\0\0\x2f" + bytes(40),
    "webp without start code": b"RIFF\x24\0\0\0WEBPVP8 \x18\0\0\0" + bytes(40),
    "webp that begins with no key frame": b"RIFF\x24\0\0\0WEBPVP8 \x18\0\0\0\1\0\0\x9d\x01\x2a" + bytes(40),
    "webp without its mark": b"RIFF\x24\0\0\0WEBPVP8L\x18\0\0\0" + bytes(40),
    "webp with an odd extension": b"RIFF\x24\0\0\0WEBPVP8X\x09\0\0\0" + bytes(40),
    "jxl beyond level 10": images.jxl_codestream((0, 1), (3, 2), (2**30 - 1, 30), (1, 3)),
    "jxl by ratio of nothing": images.jxl_container()[:12] + images.ftyp(b"jxs ") + bytes(40),
    "bmp of odd age": b"BM" + bytes(12) + b"\x29\0\0\0" + bytes(40),
    "bmp of no width": images.bmp(width=0),
    "bmp of negative width": images.bmp(width=-20),
    "bmp of odd depth": images.bmp(depth=25),
    "bmp of odd compression": images.bmp(compression=9),
    "bmp of runs of odd depth": images.bmp(compression=1),
    "bmp of text": b"BMW is a car maker from Munich, Bavaria.",
    "ico of nothing": images.ico(),
    "ico of too many": b"\0\0\1\0\xff\xff" + bytes(2000),
    "ico of an empty image": images.ico((16, 16, b""), (16, 16, b"<script>")),
    "ico in its directory": images.ico((16, 16, images.DIB), gap=-8),
    "ico of no image": images.ico((16, 16, b"<script>")),
    "tiff in its header": b"II*\0\4\0\0\0" + bytes(40),
    "tiff of no fields": b"MM\0*\0\0\0\x08" + bytes(40),
    "bigtiff in its header": b"II+\0\x08\0\0\0\x08" + bytes(47),
    "svg in another namespace": b'<svg xmlns="urn:other"/>',
    "svg in capitals": b'<SVG xmlns="http://www.w3.org/2000/svg"/>',
    "svg without its prefix": b"<s:svg/>",
    "svg behind text": b"hello <svg/>",
    "svg in broken markup": b"<!-- -- --><svg/>",
    "svg whose root is cut": b'<svg xmlns="http://www.w3.org/2000/svg" width=',
    "svg with an entity bomb": b'<!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><svg/>',
    "svg with many entities": b"<!DOCTYPE svg [" + b'<!ENTITY a%d "b">' * 300 % (*range(300),) + b"]><svg/>",
    "svg with many attributes": b"<!DOCTYPE svg [<!ATTLIST svg "
    + b'a%d CDATA "" ' * 300 % (*range(300),)
    + b">]><svg/>",
}


@table("body", NEGATIVES.values(), ids=NEGATIVES)
def test_other_bytes_than_an_image_are_refused(body: bytes) -> None:
    assert sniff(body, ended=True) is None
    answers = [sniff(body[:size], ended=False) for size in range(min(len(body), 500))]
    assert set(answers) <= {UNDECIDED, None}
    assert None not in answers or set(answers[answers.index(None) :]) == {None}


def test_text_is_refused_at_its_first_byte() -> None:
    assert sniff(b"", ended=False) is UNDECIDED
    assert sniff(b"e", ended=False) is None


@table(
    ("attributes", "size"),
    [
        ('width="20" height="12"', (20, 12)),
        ('width="20.4px" height=" 12.5PX "', (20, 12)),
        ('width="15pt" height="9pt"', (20, 12)),
        ('width="25.4mm" height="2.54cm"', (96, 96)),
        ('width="1in" height="6pc"', (96, 96)),
        ('width="2e1" height=".12e2"', (20, 12)),
        ('width="100%" height="12" viewBox="0 0 20 12"', (20, 12)),
        ('width="2em" height="1em" viewBox="0,0,20,12"', (20, 12)),
        ('viewBox="-5 -5 20.2, 11.9"', (20, 12)),
        ('width="99999999999" height="12"', None),
        ('width="9e99" height="12"', None),
        ('width="0" height="12"', None),
        ('viewBox="0 0 20"', None),
        ('viewBox="a b c d"', None),
        ('viewBox="0 0 -20 12"', None),
        ('width="20"', None),
    ],
)
def test_svg_states_its_size_in_many_ways(attributes: str, size: tuple[int, int] | None) -> None:
    assert measure(Format.SVG, images.svg(attributes).encode()) == (PixelSize(*size) if size else None)


def heif_of(*children: bytes) -> bytes:
    return images.ftyp(b"mif1") + images.meta(*children) + images.MDAT


@pytest.mark.parametrize(
    ("children", "size"),
    [
        pytest.param((images.PITM, images.iprp(images.IPMA)), images.SIZE, id="the primary item's"),
        pytest.param((images.iprp(images.IPMA),), PixelSize(200, 100), id="the largest without a primary item"),
        pytest.param((images.PITM, images.iprp()), PixelSize(200, 100), id="the largest without associations"),
        pytest.param((images.PITM,), None, id="none without properties"),
        pytest.param((images.PITM, images.box(b"iprp", images.IPMA)), None, id="none without a property container"),
        pytest.param((images.PITM, images.iprp(images.IPMA, properties=())), None, id="none without ispe"),
        pytest.param((images.iprp(properties=ISPE_0),), None, id="none if a side is zero"),
        pytest.param(
            (
                full_pitm := images.full_box(b"pitm", struct.pack(">I", 70_000), version=1),
                images.iprp(
                    images.full_box(b"ipma", struct.pack(">IIBHH", 1, 70_000, 2, 0x8002, 3), version=1, flags=1),
                    properties=(*images.PROPERTIES, images.IROT_90),
                ),
            ),
            images.TURNED,
            id="turned by irot, with long numbers",
        ),
        pytest.param(
            (full_pitm, images.iprp(images.full_box(b"ipma", struct.pack(">IHBB", 1, 1, 1, 1)))),
            PixelSize(200, 100),
            id="the largest if the primary item has none",
        ),
    ],
)
def test_heif_has_the_size_of_its_primary_item(children: tuple[bytes, ...], size: PixelSize | None) -> None:
    assert measure(Format.HEIF, heif_of(*children)) == size


def test_heif_without_meta_has_no_size() -> None:
    assert measure(Format.AVIF, images.ftyp(b"avif") + images.MDAT) is None


AT_END = (0, 10_000)
WITHOUT_PROOF = {
    "png without pixels": (Format.PNG, images.png_header() + images.png_chunk(b"IEND")),
    "png with a chunk of no kind": (Format.PNG, images.png_header() + images.png_chunk(b"1234")),
    "png with a chunk too long": (Format.PNG, images.png_header() + b"\xff\xff\xff\xffIDAT"),
    "jpeg without scan": (Format.JPEG, b"\xff\xd8\xff\xe0\0\2\xff\xd9"),
    "gif without image": (Format.GIF, b"GIF89a\1\0\1\0\0\0\0;"),
    "gif with a block of no kind": (Format.GIF, b"GIF89a\1\0\1\0\0\0\0A"),
    "webp without pixels": (Format.WEBP, b"RIFF\x0c\0\0\0WEBPVP8X\0\0\0\0"),
    "webp with a chunk beyond its end": (Format.WEBP, b"RIFF\x0c\0\0\0WEBPVP8L\x08\0\0\0" + bytes(40)),
    "heif of nothing": (Format.HEIF, b""),
    "heif without meta": (Format.HEIF, images.ftyp(b"mif1") + images.MDAT),
    "heif without data": (Format.HEIF, images.ftyp(b"mif1") + images.meta(images.PITM)),
    "heif without iloc and with an open end": (
        Format.HEIF,
        images.ftyp(b"mif1") + images.meta(images.PITM) + images.open_box(b"mdat", bytes(50)),
    ),
    "heif sequence with an open end": (
        Format.HEIF,
        images.ftyp(b"msf1") + images.box(b"moov") + images.open_box(b"mdat", bytes(50)),
    ),
    "heif with an item beyond its end": (Format.HEIF, heif_of(images.iloc(AT_END))),
    "jxl of nothing": (Format.JXL, b"\0" * 40),
    "jxl container of nothing": (Format.JXL, images.jxl_container()),
    "jxl with an open end": (Format.JXL, images.jxl_container(images.open_box(b"jxlc", b"\xff\x0a" + bytes(40)))),
    "jxl without its last part": (Format.JXL, images.jxl_container(images.box(b"jxlp", bytes(40)))),
    "bmp without size": (Format.BMP, images.bmp(width=0)),
    "bmp of odd age": (Format.BMP, b"BM" + bytes(12) + b"\x29\0\0\0" + bytes(40)),
    "bmp of odd depth": (Format.BMP, images.bmp(depth=25)),
    "bmp of a png without sizes": (Format.BMP, images.bmp(depth=0, compression=5)),
    "bmp of huffman's code": (Format.BMP, images.bmp(depth=1, compression=3)),
    "bmp without its colours": (Format.BMP, images.bmp(depth=8)),
    "bmp whose runs end early": (Format.BMP, images.bmp_of_runs(b"\x14\7\0\0" * 11 + b"\x14\7")),
    "bmp whose last run is cut": (Format.BMP, images.bmp_of_runs(b"\0\0" * 11 + b"\0\5abc")),
    "bmp whose last jump is cut": (Format.BMP, images.bmp_of_runs(b"\0\0" * 11 + b"\0\2\0")),
    "ico of half a picture": (Format.ICO, images.ico((20, 12, images.DIB[:-1]), size=1)),
    "ico without its mask": (Format.ICO, images.ico((20, 12, images.dib(24, mask=False)), size=1)),
    "ico with half a mask": (Format.ICO, images.ico((20, 12, images.dib(32)))[:-1]),
    "ico of half a png": (Format.ICO, images.ico((20, 12, images.saved("PNG")[:-20]), size=1)),
    "ico of something cut": (Format.ICO, images.ico((20, 12, images.DIB), (8, 8, b"something"))[:-1]),
    "gif of an image without pixels": (Format.GIF, images.saved("GIF")[:-1] + b",\0\0\0\0\1\0\1\0\0\2\0;"),
    "png with a wrong sum of its pixels": (Format.PNG, images.saved("PNG").replace(b"IDAT", b"IDAT\1", 1)),
    "png whose pixels are other ones": (Format.PNG, images.saved("PNG")[:-20] + b"abcd" + images.saved("PNG")[-16:]),
    "apng without its first control": (Format.APNG, images.animation((1, b"fcTL"), (2, b"fdAT"))),
    "apng with a gap": (Format.APNG, images.animation((0, b"fcTL"), (2, b"fdAT"))),
    "apng that repeats itself": (Format.APNG, images.animation((0, b"fcTL"), (1, b"fdAT"), (1, b"fcTL"), (2, b"fdAT"))),
    "apng of a frame without data": (Format.APNG, images.animation((0, b"fcTL"))),
    "apng of two controls": (Format.APNG, images.animation((0, b"fcTL"), (1, b"fcTL"), (2, b"fdAT"))),
    "apng of data alone": (Format.APNG, images.animation((0, b"fdAT"))),
    "avif minimal with an open end": (
        Format.AVIF,
        images.box(b"ftyp", b"mif3avif") + images.open_box(b"mini", bytes(40)),
    ),
    "heif with an item in no idat": (Format.HEIF, heif_of(images.iloc((0, 6), version=1, method=1))),
    "heif with an item behind its idat": (
        Format.HEIF,
        images.ftyp(b"mif1") + images.meta(images.iloc((0, 7), version=1, method=1), images.box(b"idat", b"pixels")),
    ),
    "ico of nothing": (Format.ICO, images.ico()),
    "tiff of no kind": (Format.TIFF, bytes(40)),
    "tiff without pixels": (Format.TIFF, images.tiff("<", pixels=(1, 2))),
    "tiff with a value beyond its end": (Format.TIFF, images.tiff("<", images.Field(700, 1, 9999, 20))),
    "tiff with counts that are no integers": (
        Format.TIFF,
        images.tiff("<").replace(struct.pack("<HH", 279, 3), struct.pack("<HH", 279, 12)),
    ),
    "svg of no kind": (Format.SVG, b"\xff\xd8\xff\xe0"),
    "xml of another kind": (Format.SVG, b"<html/>"),
}


@table(("fmt", "body"), WITHOUT_PROOF.values(), ids=WITHOUT_PROOF)
def test_unproved_image_is_not_whole(fmt: Format, body: bytes) -> None:
    assert not is_whole(fmt, body)


@pytest.mark.parametrize(
    "children",
    [
        pytest.param((images.iloc(AT_END, version=1, method=2),), id="made of other items"),
        pytest.param((images.iloc(AT_END, reference=1),), id="in another file"),
        pytest.param((images.iloc((0, 0)),), id="of unsaid length"),
        pytest.param((), id="without iloc"),
    ],
)
def test_item_that_lies_elsewhere_does_not_count(children: tuple[bytes, ...]) -> None:
    assert is_whole(Format.HEIF, heif_of(*children))


def test_open_meta_is_whole_when_its_items_are_there() -> None:
    children = (images.iloc((0, 6), version=1, method=1), images.box(b"idat", b"pixels"))
    body = images.ftyp(b"avif") + images.open_box(b"meta", images.meta(*children)[8:])
    assert is_whole(Format.AVIF, body)
    assert not is_whole(Format.AVIF, body[:-1])


@table("size", [None, 1, 10**6, images.DIB.__len__() + 48])
@table("depth", [1, 4, 8, 24, 32])
def test_length_of_an_icon_image_follows_from_its_header(depth: int, size: int | None) -> None:
    assert is_whole(Format.ICO, images.ico((20, 12, images.dib(depth)), size=size))


def test_icon_image_with_alpha_needs_no_mask() -> None:
    assert is_whole(Format.ICO, images.ico((20, 12, images.dib(32, mask=False))))
    assert is_whole(Format.ICO, images.ico((20, 12, images.dib(32, mask=False)), size=1))


@pytest.mark.parametrize("frames", [(), ((0, b"fcTL"), (1, b"fdAT"), (2, b"fdAT"), (3, b"fcTL"), (4, b"fdAT"))])
def test_animation_may_begin_behind_its_still_image(frames: tuple[tuple[int, bytes], ...]) -> None:
    assert is_whole(Format.APNG, images.animation(*frames))


@pytest.mark.parametrize("profile", [b"DEBM", b"KNIL", b"sRGB"])
def test_colour_profile_is_a_part_of_the_image(profile: bytes) -> None:
    colours = b"\0" * 16 + profile + bytes(52) + struct.pack("<III", 844, 100, 0)
    fields = struct.pack("<IiiHHIIIIII", 124, 20, 12, 1, 24, 0, 0, 0, 0, 0, 0) + colours
    body = struct.pack("<2sIII", b"BM", 0, 0, 138) + fields + bytes(720) + bytes(100)
    icon = images.ico((20, 6, fields + bytes(720) + bytes(100)))
    assert is_whole(Format.BMP, body)
    assert is_whole(Format.ICO, icon)
    assert is_whole(Format.BMP, body[:-1]) is is_whole(Format.ICO, icon[:-1]) is (profile == b"sRGB")


def test_control_chunks_of_a_still_image_mean_nothing() -> None:
    late = images.png_chunk(b"acTL", bytes(8)) + images.png_chunk(b"fcTL", b"\0\0\0\7")
    body = images.saved("PNG")
    assert is_whole(Format.PNG, body[:-12] + late + body[-12:])


@table(
    ("brands", "fmt"),
    [
        *(((major, b"mif1", b"avif"), Format.AVIF) for major in (b"miaf", b"mif2", b"MA1A", b"isom", b"mp42", b"qt  ")),
        *(((major, b"mif1", b"heix"), Format.HEIC) for major in (b"miaf", b"mif2", b"isom", b"avci")),
        *(((major, b"miaf"), Format.HEIF) for major in (b"mif2", b"isom", b"j2ki")),
        ((b"avif", b"heic"), Format.AVIF),
        ((b"mif1", b"heic", b"avif"), Format.HEIC),
        ((b"isom", b"mp42", b"avc1"), None),
    ],
)
def test_brand_counts_wherever_it_stands(brands: tuple[bytes, ...], fmt: Format | None) -> None:
    assert sniff(images.heif(*brands), ended=True) is fmt


@pytest.mark.parametrize(
    ("children", "fmt"),
    [
        ((images.PITM, images.items(b"hvc1", b"av01")), Format.HEIC),
        ((images.items(b"Exif", b"av01"),), Format.AVIF),
        ((images.PITM, images.items(b"jpeg", b"mime")), Format.HEIF),
        ((images.PITM,), Format.HEIF),
    ],
)
def test_coding_of_the_primary_item_decides_an_open_brand(children: tuple[bytes, ...], fmt: Format) -> None:
    assert sniff(heif_of(*children), ended=True) is fmt


def test_items_that_are_not_there_yet_are_waited_for() -> None:
    body = heif_of(images.PITM, images.items(b"av01"))
    assert sniff(body[:40], ended=False) is UNDECIDED
    assert sniff(body[:40], ended=True) is Format.HEIF
    assert sniff(images.ftyp(b"mif1") + images.box(b"free"), ended=True) is Format.HEIF
    assert sniff(images.ftyp(b"msf1") + images.box(b"moov"), ended=False) is Format.HEIF
    assert (
        sniff(images.ftyp(b"mif1") + images.open_box(b"meta", b"\0\0\0\0", images.items(b"av01")), ended=False)
        is Format.AVIF
    )


def test_walk_beyond_its_limit_trusts_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bmp, "RUNS_MAX", 2)
    runs = [b"\x14\7\0\0"] * 12
    assert is_whole(Format.BMP, images.bmp_of_runs(*runs, image_bytes=48))
    assert not is_whole(Format.BMP, images.bmp_of_runs(*runs, image_bytes=49))
    assert not is_whole(Format.BMP, images.bmp_of_runs(*runs))


WITHOUT_SIZE = {
    "png of another first chunk": (Format.PNG, images.png_header().replace(b"IHDR", b"CgBI")),
    "heif with a box shorter than its header": (Format.HEIF, images.ftyp(b"mif1") + b"\0\0\0\4meta"),
    "jpeg without frame": (Format.JPEG, b"\xff\xd8\xff\xe0\0\2\xff\xd9"),
    "webp of another kind": (Format.WEBP, b"RIFF\x24\0\0\0WEBPVP8Z" + bytes(40)),
    "jxl container without codestream": (Format.JXL, images.jxl_container()),
    "jxl container of something else": (Format.JXL, images.jxl_container(images.box(b"jxlc", b"something"))),
    "tiff of no kind": (Format.TIFF, bytes(40)),
    "tiff without height": (Format.TIFF, images.tiff("<").replace(struct.pack("<H", 257), struct.pack("<H", 258), 1)),
    "ico of nothing": (Format.ICO, images.ico()),
    "gif without image or side": (Format.GIF, b"GIF89a\0\0\1\0\0\0\0;"),
    "svg of no kind": (Format.SVG, b"text"),
    "svg in broken markup": (Format.SVG, b"<!-- -- --><svg/>"),
}


@table(("fmt", "body"), WITHOUT_SIZE.values(), ids=WITHOUT_SIZE)
def test_file_without_a_size_has_none(fmt: Format, body: bytes) -> None:
    assert measure(fmt, body) is None


def test_icon_whose_png_is_broken_has_the_size_of_its_directory() -> None:
    broken = images.saved("PNG").replace(b"IHDR", b"JHDR")
    assert measure(Format.ICO, images.ico((20, 12, broken))) == images.SIZE


LIMITS = {
    "chunks of a png": (png, "CHUNKS_MAX", 3, "apng"),
    "segments of a jpeg": (jpeg, "SEGMENTS_MAX", 5, "jpeg baseline"),
    "blocks of a gif": (gif, "BLOCKS_MAX", 1, "gif of comments"),
    "sub-blocks of a gif": (gif, "BLOCKS_MAX", 2, "gif animated"),
    "chunks of a webp": (webp, "CHUNKS_MAX", 3, "webp animated"),
    "boxes": (boxes, "BOXES_MAX", 2, "avif"),
    "directories of a tiff": (tiff, "DIRECTORIES_MAX", 2, "tiff of pages"),
    "fields of a tiff": (tiff, "FIELDS_MAX", 3, "tiff"),
    "values of a tiff": (tiff, "VALUES_MAX", 1, "tiff"),
    "open elements of an svg": (svg, "OPEN_MAX", 2, "svg"),
    "names of an svg": (svg, "NAMES_MAX", 2, "svg"),
    "prefixes of an svg": (svg, "NAMES_MAX", 0, "svg by illustrator"),
    "length of an svg's names": (svg, "NAME_CHARS_MAX", 3, "svg without namespace"),
    "length of an svg's attributes": (svg, "NAME_CHARS_MAX", 4, "svg without namespace"),
    "declarations of an svg": (svg, "DECLARATIONS_MAX", 2, "svg by illustrator"),
    "length of an svg's entities": (svg, "ENTITY_CHARS_MAX", 20, "svg by illustrator"),
    "quotes of an svg's tag": (svg, "QUOTES_MAX", 0, "svg of a long tag"),
    "bytes of an svg's entities": (svg, "EXPANSION_BYTES_MAX", 50, "svg by illustrator"),
}


@pytest.mark.parametrize(("module", "limit", "value", "name"), LIMITS.values(), ids=LIMITS)
def test_beyond_a_limit_nothing_is_proved(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, limit: str, value: int, name: str
) -> None:
    assert is_whole(SAMPLES[name].fmt, SAMPLES[name].body)
    monkeypatch.setattr(module, limit, value)
    assert not is_whole(SAMPLES[name].fmt, SAMPLES[name].body)


def test_associations_and_extents_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    body = SAMPLES["heif"].body
    monkeypatch.setattr(heif, "ASSOCIATIONS_MAX", 1)
    assert measure(Format.HEIF, body) is None
    monkeypatch.setattr(heif, "EXTENTS_MAX", 1)
    assert not is_whole(Format.HEIF, body)


def test_tag_that_does_not_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "PIECE_BYTES", 16)
    body = images.svg(content=f'<path class="{"a &amp; b " * 100}"/>').encode()
    assert is_whole(Format.SVG, body)
    monkeypatch.setattr(svg, "TOKEN_BYTES_MAX", 500)
    assert not is_whole(Format.SVG, body)


def test_photograph_in_base64_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "PIECE_BYTES", 16)
    monkeypatch.setattr(svg, "PROLOG_PIECE_BYTES", 16)
    monkeypatch.setattr(svg, "PASS_OVER_AFTER_BYTES", 64)
    monkeypatch.setattr(svg, "TOKEN_BYTES_MAX", 500)
    body = images.svg(content=f'<image href="data:image/png;base64,{"AZaz09+/=" * 1000}"/>').encode()
    assert is_whole(Format.SVG, body)
    assert not any(is_whole(Format.SVG, body[:cut]) for cut in range(0, len(body), 97))


@pytest.mark.parametrize("value", ["&amp;&lt;b&gt; &#38; ", "\u4e2d\u6587 &quot;", "a - b -- c "])
def test_text_in_a_long_value_is_passed_over(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """As drawing programs write it that keep their own document in an attribute."""
    body = images.svg(content=f'<g content="{value * 600}"/><path d="M0 0"/>').encode()
    monkeypatch.setattr(svg, "PIECE_BYTES", 16)
    monkeypatch.setattr(svg, "PROLOG_PIECE_BYTES", 16)
    monkeypatch.setattr(svg, "PASS_OVER_AFTER_BYTES", 64)
    for size in range(16, 40):
        monkeypatch.setattr(svg, "TOKEN_PIECE_BYTES_MAX", size)
        monkeypatch.setattr(svg, "TOKEN_BYTES_MAX", 500)
        assert is_whole(Format.SVG, body)
        assert not any(is_whole(Format.SVG, body[:cut]) for cut in range(0, len(body) - 1, 997))


def test_markup_in_a_long_comment_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "PIECE_BYTES", 16)
    monkeypatch.setattr(svg, "PROLOG_PIECE_BYTES", 16)
    monkeypatch.setattr(svg, "PASS_OVER_AFTER_BYTES", 64)
    monkeypatch.setattr(svg, "TOKEN_BYTES_MAX", 500)
    for size in range(16, 40):
        monkeypatch.setattr(svg, "TOKEN_PIECE_BYTES_MAX", size)
        body = images.svg(content="<!-- " + '<g class="a - b">it</g> ' * 300 + " --><path/>").encode()
        assert is_whole(Format.SVG, body)
        assert not is_whole(Format.SVG, body.replace(b"a - b", b"a -- b"))


def test_svg_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in range(1, 40):
        monkeypatch.setattr(svg, "PIECE_BYTES", size)
        monkeypatch.setattr(svg, "PROLOG_PIECE_BYTES", size)
        for name in ("svg", "svg in utf-16 be", "svg by illustrator"):
            sample = SAMPLES[name]
            assert sniff(sample.body, ended=True) is Format.SVG
            assert is_whole(Format.SVG, sample.body)


def test_marker_is_found_wherever_a_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in range(1, 40):
        monkeypatch.setattr(jpeg, "WINDOW_BYTES", size)
        for name in ("jpeg progressive", "jpeg with fill bytes"):
            assert is_whole(Format.JPEG, SAMPLES[name].body)


def test_boxes_before_a_jxl_codestream_are_bounded() -> None:
    padding = [images.box(b"free")] * jxl.BOXES_BEFORE_MAX
    codestream = images.box(b"jxlc", images.jxl_codestream(*images.JXL_SIZE))
    assert measure(Format.JXL, images.jxl_container(*padding, codestream)) is None


def test_images_of_an_icon_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    body = SAMPLES["ico of 256"].body
    monkeypatch.setattr(ico, "IMAGES_MAX", 1)
    assert measure(Format.ICO, body) == PixelSize(16, 16)
    assert sniff(body, ended=True) is None


def test_expat_limits_entity_expansion() -> None:
    """Entities are refused by us once a piece is read; within it expat's own limit holds (2.4.1 and newer)."""
    levels = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE svg [<!ENTITY a0 "ha">{levels}]><svg a="&a9;"/>'.encode()
    assert sniff(bomb, ended=True) is None
    assert not is_whole(Format.SVG, bomb)


formats = st.sampled_from(Format)


@given(body=st.binary(max_size=400), fmt=formats, ended=st.booleans())
def test_noise_raises_nothing(body: bytes, fmt: Format, *, ended: bool) -> None:
    sniff(body, ended=ended)
    measure(fmt, body)
    is_whole(fmt, body)


@given(data=st.data())
def test_damaged_file_raises_nothing(data: st.DataObject) -> None:
    sample = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))]
    body = bytearray(sample.body)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(body), 400)))
        body[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    sniff(body, ended=True)
    measure(sample.fmt, body)
    is_whole(sample.fmt, body)


@given(body=st.sampled_from(sorted(sample.body for sample in SAMPLES.values())), fmt=formats)
def test_file_of_another_kind_raises_nothing(body: bytes, fmt: Format) -> None:
    measure(fmt, body)
    is_whole(fmt, body)


@given(
    body=st.binary(max_size=60),
    cut=st.integers(0, 60),
    magic=st.sampled_from(sorted(s.body[:12] for s in SAMPLES.values())),
)
def test_decision_on_noise_never_changes(body: bytes, cut: int, magic: bytes) -> None:
    whole = magic + body
    early = sniff(whole[:cut], ended=False)
    assert early is UNDECIDED or early is sniff(whole, ended=True)

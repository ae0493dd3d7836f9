"""
Makes tiny valid files of each format, by Pillow where it can and by hand elsewhere.

Every image is 20 pixels wide and 12 high, unless its maker says otherwise.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image

from imgkeep.core.records import Format, PixelSize

SIZE = PixelSize(20, 12)
TURNED = PixelSize(12, 20)


class Sample(NamedTuple):
    """A complete file, and what is to be found in it."""

    fmt: Format
    body: bytes
    size: PixelSize | None = SIZE


def make_image(mode: str = "RGB", size: tuple[int, int] = (20, 12), shade: int = 0) -> Image.Image:
    """An image that does not compress to nothing."""
    canvas = Image.new(mode, size)
    bands = len(canvas.getbands())
    dots = [
        bytes((x * 7 + y * 13 + band * 31 + shade) % 256 for band in range(bands))
        for y in range(size[1])
        for x in range(size[0])
    ]
    return Image.frombytes(mode, size, b"".join(dots))


def saved(fmt: str, image: Image.Image | None = None, **options: Any) -> bytes:
    stream = BytesIO()
    (image or make_image()).save(stream, fmt, **options)
    return stream.getvalue()


def animated(fmt: str, mode: str = "RGB", **options: Any) -> bytes:
    more = [make_image(mode, shade=50), make_image(mode, shade=100)]
    return saved(fmt, make_image(mode), save_all=True, append_images=more, duration=100, **options)


# PNG


def png_chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png_header(*, width: int = 20, height: int = 12, tail: tuple[int, int, int, int, int] = (8, 2, 0, 0, 0)) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">II5B", width, height, *tail))


def png_with(*chunks: bytes) -> bytes:
    """A PNG with chunks before its first IDAT."""
    body = saved("PNG")
    return body[:33] + b"".join(chunks) + body[33:]


def animation(*frames: tuple[int, bytes]) -> bytes:
    """An APNG whose image is no frame, with numbered chunks behind it."""
    body = png_with(png_chunk(b"acTL", b"\0\0\0\1" * 2))
    chunks = [png_chunk(kind, struct.pack(">I", number) + bytes(22)) for number, kind in frames]
    return body[:-12] + b"".join(chunks) + body[-12:]


# GIF


def gif(screen: tuple[int, int], image: tuple[int, int, int, int], blocks: bytes = b"!\xfe\1a\0") -> bytes:
    """A GIF of one image at a place, with blocks before it."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0, 0, 0)
    return head + blocks + struct.pack("<BHHHHB", 0x2C, *image, 0) + b"\2\2\x4c\1\0;"


# ISO-BMFF


def box(kind: bytes, *payload: bytes) -> bytes:
    content = b"".join(payload)
    return struct.pack(">I", 8 + len(content)) + kind + content


def large_box(kind: bytes, *payload: bytes) -> bytes:
    content = b"".join(payload)
    return struct.pack(">I4sQ", 1, kind, 16 + len(content)) + content


def open_box(kind: bytes, *payload: bytes) -> bytes:
    return b"\0\0\0\0" + kind + b"".join(payload)


def full_box(kind: bytes, *payload: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *payload)


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    return box(b"ftyp", major, b"\0\0\0\0", *compatible)


def ispe(size: PixelSize) -> bytes:
    return full_box(b"ispe", struct.pack(">II", size.width, size.height))


IROT_90 = box(b"irot", b"\1")
MDAT = box(b"mdat", b"pixels" * 20)
PITM = full_box(b"pitm", struct.pack(">H", 1))
IPMA = full_box(b"ipma", struct.pack(">IHBBHBB", 2, 2, 1, 0x81, 1, 1, 0x82))
"""Item 2, a thumbnail, has property 1; item 1 has property 2."""
PROPERTIES = (ispe(PixelSize(200, 100)), ispe(SIZE))


def meta(*children: bytes) -> bytes:
    return full_box(b"meta", full_box(b"hdlr", b"\0\0\0\0pict", bytes(13)), *children)


def iprp(*children: bytes, properties: tuple[bytes, ...] = PROPERTIES) -> bytes:
    return box(b"iprp", box(b"ipco", *properties), *children)


def iloc(*extents: tuple[int, int], version: int = 0, method: int = 0, reference: int = 0) -> bytes:
    """An `iloc` of one item with these extents."""
    item = struct.pack(">H", 1) if version < 2 else struct.pack(">I", 1)
    head = b"\x44\x00" + item + item + (struct.pack(">H", method) if version else b"")
    lines = [struct.pack(">II", *extent) for extent in extents]
    return full_box(b"iloc", head, struct.pack(">HH", reference, len(lines)), *lines, version=version)


def heif(major: bytes, *compatible: bytes, mdat: bytes = MDAT, version: int = 0) -> bytes:
    """A HEIF with one item whose bytes are the last 100 of `mdat`."""
    brands = ftyp(major, *compatible)

    def with_extent(start: int) -> bytes:
        return brands + meta(PITM, iloc((start, 100), version=version), iprp(IPMA)) + mdat

    return with_extent(len(with_extent(0)) - 100)


def items(*types: bytes, version: int = 0, entry_version: int = 2) -> bytes:
    """An `iinf` of items with these types, counted from 1."""
    entries = [
        full_box(
            b"infe", struct.pack(">HH" if entry_version == 2 else ">IH", number, 0), kind, b"\0", version=entry_version
        )
        for number, kind in enumerate(types, 1)
    ]
    return full_box(b"iinf", struct.pack(">I" if version else ">H", len(entries)), *entries, version=version)


def minimal(brand: bytes, width: int = 20, height: int = 12, *, long: bool = False, orientation: int = 1) -> bytes:
    """A file of `ftyp` and `mini` whose other fields are noise."""
    bits = 0b00_0_0_1_0_0_0_0_0_0 << 5 | 0b01 << 3 | orientation - 1
    side = 15 if long else 7
    bits = ((bits << 1 | long) << side | width - 1) << side | height - 1
    bits <<= (31 if long else 15) - 2 * side
    size = 6 if long else 4
    return box(b"ftyp", b"mif3", brand) + box(b"mini", bits.to_bytes(size, "big") + b"pixels" * 9)


# JPEG XL


def jxl_codestream(*fields: tuple[int, int]) -> bytes:
    """A naked codestream that begins with these (value, bits) and goes on with something."""
    bits, at = 0, 0
    for value, count in fields:
        bits |= value << at
        at += count
    return b"\xff\x0a" + (bits | 0x155 << at).to_bytes(at // 8 + 2, "little") + bytes(range(40))


JXL_SIZE = ((0, 1), (0, 2), (11, 9), (0, 3), (0, 2), (19, 9))
"""Not small; 9 bits of height; no ratio; 9 bits of width."""


def jxl_container(*boxes: bytes) -> bytes:
    return box(b"JXL ", b"\r\n\x87\n") + ftyp(b"jxl ", b"jxl ") + b"".join(boxes)


# BMP and ICO


def bmp_os2() -> bytes:
    rows = bytes(60 * 12)
    return struct.pack("<2sIIIIHHHH", b"BM", 26 + len(rows), 0, 26, 12, 20, 12, 1, 24) + rows


def bmp(
    *,
    width: int = 20,
    height: int = 12,
    depth: int = 24,
    compression: int = 0,
    image_bytes: int = 0,
    file_bytes: int = 0,
    planes: int = 1,
    rows_at: int = 54,
    pixels: bytes = bytes(720),
) -> bytes:
    """A BMP whose rows are `pixels`, whatever it says."""
    dib = struct.pack("<IiiHHIIIIII", 40, width, height, planes, depth, compression, image_bytes, 0, 0, 0, 0)
    return struct.pack("<2sIII", b"BM", file_bytes, 0, rows_at) + dib + pixels


def bmp_of_runs(*runs: bytes, compression: int = 1, size: int = 40, **fields: int) -> bytes:
    """A BMP of 20 by 12 pixels in runs, without sizes that would tell their end."""
    depth = {1: 8, 2: 4, 4: 24}[compression]
    colours = bytes(4 << depth if depth <= 8 else 0)
    dib = struct.pack("<IIIHHI", size, 20, 12, 1, depth, compression).ljust(size, b"\0")
    dib = dib[:20] + struct.pack("<I", fields.get("image_bytes", 0)) + dib[24:]
    head = struct.pack("<2sIII", b"BM", fields.get("file_bytes", 0), 0, 14 + size + len(colours))
    return head + dib + colours + b"".join(runs)


def bmp_second(size: int) -> bytes:
    """A BMP of OS/2's second age, whose header ends after `size` bytes."""
    dib = struct.pack("<IIIHH", size, 20, 12, 1, 24).ljust(size, b"\0")
    return struct.pack("<2sIII", b"BM", 0, 0, 14 + size) + dib + bytes(720)


def ico(*entries: tuple[int, int, bytes], gap: int = 0, kind: int = 1, size: int | None = None) -> bytes:
    """An icon, or with kind 2 a cursor, of images with the width, height and size that the directory says."""
    at = 6 + 16 * len(entries) + gap
    lines, images = [], []
    for width, height, image in entries:
        said = len(image) if size is None else size
        lines.append(struct.pack("<BBBBHHII", width, height, 0, 0, 1, 32, said, at))
        images.append(image)
        at += len(image)
    return struct.pack("<HHH", 0, kind, len(entries)) + b"".join(lines) + bytes(max(gap, 0)) + b"".join(images)


def dib(depth: int, *, mask: bool = True, height: int = 24, compression: int = 0, colours: int = 0) -> bytes:
    """An image of an icon: header, colours, rows, and a mask of twelve rows."""
    head = struct.pack("<IiiHHIIIIII", 40, 20, height, 1, depth, compression, 0, 0, 0, colours, 0)
    table = bytes(4 * (colours or 1 << depth) if depth <= 8 else 0)
    return head + table + b"\xff" * ((20 * depth + 31) // 32 * 4 * 12) + bytes(48 if mask else 0)


DIB = dib(32, mask=False)


# TIFF


class Field(NamedTuple):
    """A TIFF field with one value."""

    tag: int
    type: int
    value: int
    values: int = 1


def tiff_directory(order: str, *fields: Field, big: bool = False, successor: int = 0) -> bytes:
    word = "Q" if big else "I"
    lines = []
    for field in fields:
        short = "H" if field.type == 3 and field.values == 1 else word
        value = struct.pack(order + short, field.value).ljust(8 if big else 4, b"\0")
        lines.append(struct.pack(f"{order}HH{word}", field.tag, field.type, field.values) + value)
    return (
        struct.pack(order + ("Q" if big else "H"), len(fields)) + b"".join(lines) + struct.pack(order + word, successor)
    )


def tiff(
    order: str, *more: Field, big: bool = False, pixels: tuple[int, int] = (273, 279), successor: int = 0
) -> bytes:
    """A TIFF with its pixels before its only directory; `<` is little-endian, `>` big-endian."""
    head = 16 if big else 8
    mark = {"<": b"II", ">": b"MM"}[order]
    at = head + 240
    start = mark + (struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HI", 42, at))
    kind = 16 if big else 4
    fields = (Field(256, 3, 20), Field(257, kind, 12), Field(pixels[0], kind, head), Field(pixels[1], 3, 240), *more)
    return start + bytes(240) + tiff_directory(order, *fields, big=big, successor=successor)


# SVG


def svg(attributes: str = 'width="20" height="12"', *, content: str = '<path d="M0 0h9"/>', prefix: str = "") -> str:
    name = f"{prefix}:svg" if prefix else "svg"
    namespace = f"xmlns:{prefix}" if prefix else "xmlns"
    return f'<{name} {namespace}="http://www.w3.org/2000/svg" {attributes}>{content}</{name}>'


ILLUSTRATOR = (
    '<?xml version="1.0" encoding="iso-8859-1"?>\n<!-- Generator: Adobe Illustrator -->\n'
    '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd" [\n'
    '<!ENTITY ns_svg "http://www.w3.org/2000/svg">\n<!ATTLIST svg xmlns:x CDATA #FIXED "urn:x">\n'
    '<!ENTITY % later "">\n<!ENTITY logo SYSTEM "file:///etc/passwd">\n]>\n'
    '<svg xmlns="&ns_svg;" viewBox="0 0 20 12"><text>caf\u00e9 &logo;</text></svg>'
).encode("latin-1")


@cache
def samples() -> dict[str, Sample]:
    """A file of each kind by name; all but naked JPEG XL can be proved whole."""
    codestream = jxl_codestream(*JXL_SIZE)
    return {
        "png": Sample(Format.PNG, saved("PNG")),
        "png grey": Sample(Format.PNG, saved("PNG", make_image("L"))),
        "png with provenance": Sample(Format.PNG, png_with(png_chunk(b"caBX", bytes(3000)))),
        "apng": Sample(Format.APNG, animated("PNG")),
        "apng after provenance": Sample(
            Format.APNG,
            png_with(
                png_chunk(b"caBX", bytes(500)), png_chunk(b"acTL", b"\0\0\0\1" * 2), png_chunk(b"fcTL", bytes(26))
            ),
        ),
        "png with a chunk of a number": Sample(Format.PNG, png_with(png_chunk(b"ab1d", b"c"))),
        "jpeg baseline": Sample(Format.JPEG, saved("JPEG")),
        "jpeg progressive": Sample(Format.JPEG, saved("JPEG", progressive=True)),
        "jpeg with restarts": Sample(Format.JPEG, saved("JPEG", restart_marker_blocks=1)),
        "jpeg with thumbnail": Sample(
            Format.JPEG, saved("JPEG", exif=b"Exif\0\0" + saved("JPEG", make_image(size=(8, 8))))
        ),
        "jpeg with fill bytes": Sample(Format.JPEG, saved("JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1)),
        "jpeg with fill in front": Sample(Format.JPEG, saved("JPEG").replace(b"\xff\xe0", b"\xff\xff\xe0", 1)),
        "jpeg with junk in front": Sample(
            Format.JPEG, saved("JPEG").replace(b"\xff\xe0", b"\xff\0a\xff\x01\xff\xd0\xff\xe0", 1)
        ),
        "jpeg with a segment of no length": Sample(
            Format.JPEG, saved("JPEG").replace(b"\xff\xdb", b"\xff\xe1\0\0\xff\xdb", 1)
        ),
        "jpeg with junk": Sample(Format.JPEG, saved("JPEG").replace(b"\xff\xdb", b"junk\xff\x00\xff\xdb", 1)),
        "jpeg with a marker alone": Sample(Format.JPEG, saved("JPEG").replace(b"\xff\xdb", b"\xff\x01\xff\xdb", 1)),
        "gif": Sample(Format.GIF, saved("GIF", make_image("L"))),
        "gif animated": Sample(Format.GIF, animated("GIF", "L", loop=0)),
        "gif 87a": Sample(Format.GIF, b"GIF87a\x14\0\x0c\0\0\0\0,\0\0\0\0\x14\0\x0c\0\x80\1\2\3\4\5\6\2\2\x4c\1\0;"),
        "gif of comments": Sample(Format.GIF, b"GIF87a\x14\0\x0c\0\0\0\0!\xfe\0,\0\0\0\0\x14\0\x0c\0\0\2\1\5\0;"),
        "gif without a screen": Sample(Format.GIF, gif((0, 0), (0, 0, 20, 12))),
        "gif without a side": Sample(Format.GIF, gif((20, 0), (0, 0, 9, 12))),
        "gif wider than its screen": Sample(Format.GIF, gif((9, 9), (15, 2, 5, 10))),
        "webp lossy": Sample(Format.WEBP, saved("WEBP")),
        "webp lossless": Sample(Format.WEBP, saved("WEBP", lossless=True)),
        "webp with alpha": Sample(Format.WEBP, saved("WEBP", make_image("RGBA"))),
        "webp animated": Sample(Format.WEBP, animated("WEBP")),
        "webp of odd size": Sample(
            Format.WEBP, b"RIFF\x21\0\0\0WEBPVP8L\x07\0\0\0\x2f\x13\xc0\x02\0ab\0XMP \x05\0\0\0abcde"
        ),
        "avif": Sample(Format.AVIF, saved("AVIF")),
        "avif animated": Sample(Format.AVIF, animated("AVIF")),
        "avif by compatible brand": Sample(Format.AVIF, heif(b"mif1", b"miaf", b"avif")),
        "avif of a profile": Sample(Format.AVIF, heif(b"MA1B", b"mif1", b"miaf", b"avif")),
        "avif of a film's brand": Sample(Format.AVIF, heif(b"iso8", b"isom", b"avis")),
        "avif that is heic too": Sample(
            Format.AVIF, ftyp(b"heic", b"mif1", b"avif") + meta(PITM, items(b"av01", b"hvc1"), iprp(IPMA)) + MDAT
        ),
        "avif of tiles": Sample(
            Format.AVIF, ftyp(b"mif1", b"miaf") + meta(PITM, items(b"grid", b"av01"), iprp(IPMA)) + MDAT
        ),
        "avif minimal": Sample(Format.AVIF, minimal(b"avif")),
        "avif minimal, turned": Sample(Format.AVIF, minimal(b"avif", orientation=6), TURNED),
        "heic minimal": Sample(Format.HEIC, minimal(b"heic", 2000, 1200, long=True), PixelSize(2000, 1200)),
        "heif minimal": Sample(Format.HEIF, minimal(b"vvic")),
        "heic by its item": Sample(
            Format.HEIC,
            ftyp(b"mif2", b"miaf") + meta(PITM, items(b"hvc1", version=1, entry_version=3), iprp(IPMA)) + MDAT,
        ),
        "heif of another coding": Sample(
            Format.HEIF, ftyp(b"avci", b"mif1", b"miaf") + meta(PITM, items(b"avc1"), iprp(IPMA)) + MDAT
        ),
        "heic": Sample(Format.HEIC, heif(b"heic", b"mif1", b"heic")),
        "heic by compatible brand": Sample(Format.HEIC, heif(b"msf1", b"hevc", b"iso8", version=1)),
        "heif": Sample(Format.HEIF, heif(b"mif1", b"miaf", version=2)),
        "heif with a large mdat": Sample(Format.HEIF, heif(b"mif1", mdat=large_box(b"mdat", b"pixels" * 20))),
        "heif with an open mdat": Sample(Format.HEIF, heif(b"mif1", mdat=open_box(b"mdat", b"pixels" * 20))),
        "heif in idat": Sample(Format.HEIF, ftyp(b"mif1") + meta(box(b"idat", b"pixels"), PITM, iprp(IPMA))),
        "heic sequence": Sample(Format.HEIC, ftyp(b"hevc", b"msf1") + box(b"moov", bytes(20)) + MDAT, None),
        "jxl": Sample(Format.JXL, codestream),
        "jxl small": Sample(Format.JXL, jxl_codestream((1, 1), (1, 5), (0, 3), (4, 5)), PixelSize(40, 16)),
        "jxl by ratio": Sample(Format.JXL, jxl_codestream((0, 1), (1, 2), (899, 13), (5, 3)), PixelSize(1600, 900)),
        "jxl in a box": Sample(Format.JXL, jxl_container(box(b"jxlc", codestream))),
        "jxl in parts": Sample(
            Format.JXL,
            jxl_container(
                box(b"Exif", bytes(20)),
                box(b"jxlp", bytes(4), codestream[:20]),
                box(b"jxlp", b"\x80\0\0\1", codestream[20:]),
            ),
        ),
        "svg": Sample(Format.SVG, svg().encode()),
        "svg with prefix": Sample(Format.SVG, svg(prefix="s").encode()),
        "svg without namespace": Sample(Format.SVG, b'<svg width="20" height="12"/>'),
        "svg in utf-16 le": Sample(Format.SVG, svg().encode("utf-16")),
        "svg in utf-16 be": Sample(Format.SVG, ('<?xml version="1.0" encoding="UTF-16"?>' + svg()).encode("utf-16-be")),
        "svg by illustrator": Sample(Format.SVG, ILLUSTRATOR),
        "svg of a long tag": Sample(
            Format.SVG, svg(content=f"<path class='{'a ' * 9_000}' d='M0 0' id='b'/>").encode()
        ),
        "svg after much": Sample(
            Format.SVG, f"\ufeff\r\n <?xml version='1.0'?><?a b?><!--{'long ' * 400}-->\n{svg()}".encode()
        ),
        "bmp": Sample(Format.BMP, saved("BMP")),
        "bmp with colours": Sample(Format.BMP, saved("BMP", make_image("L"))),
        "bmp os/2": Sample(Format.BMP, bmp_os2()),
        "bmp top-down": Sample(Format.BMP, bmp(height=-12)),
        "bmp of three planes": Sample(Format.BMP, bmp(planes=3)),
        "bmp whose rows are nowhere": Sample(Format.BMP, bmp(rows_at=0)),
        "bmp whose rows are far away": Sample(Format.BMP, bmp(rows_at=100_054, pixels=bytes(100_720))),
        "bmp with masks": Sample(Format.BMP, bmp(depth=32, compression=3, rows_at=0, pixels=bytes(12 + 960))),
        "bmp with more masks": Sample(Format.BMP, bmp(depth=16, compression=6, rows_at=0, pixels=bytes(16 + 480))),
        "bmp os/2 second": Sample(Format.BMP, bmp_second(16)),
        "bmp os/2 second, half": Sample(Format.BMP, bmp_second(42)),
        "bmp in runs": Sample(Format.BMP, bmp_of_runs(*[b"\x14\7\0\0"] * 12)),
        "bmp in runs with a mark": Sample(Format.BMP, bmp_of_runs(b"\x14\7", b"\0\2\0\3", b"\0\3abc\0", b"\0\1")),
        "bmp in runs of half bytes": Sample(Format.BMP, bmp_of_runs(b"\0\5abc\0", b"\0\1", compression=2)),
        "bmp in runs of 24 bits": Sample(
            Format.BMP, bmp_of_runs(b"\x14abc", b"\0\3abcabcabc\0", b"\0\1", compression=4, size=64)
        ),
        "bmp that ends by a jump": Sample(Format.BMP, bmp_of_runs(b"\0\2\0\x0c")),
        "bmp of a png": Sample(Format.BMP, bmp(depth=0, compression=5, image_bytes=720)),
        "bmp of a png by file size": Sample(Format.BMP, bmp(depth=0, compression=5, file_bytes=774)),
        "ico": Sample(
            Format.ICO, saved("ICO", make_image("RGBA", (48, 48)), sizes=[(16, 16), (48, 48)]), PixelSize(48, 48)
        ),
        "ico of bmp": Sample(
            Format.ICO,
            saved("ICO", make_image("RGBA", (32, 32)), bitmap_format="bmp", sizes=[(32, 32)]),
            PixelSize(32, 32),
        ),
        "ico of 256": Sample(Format.ICO, ico((16, 16, DIB), (0, 0, DIB)), PixelSize(256, 256)),
        "ico of few colours": Sample(Format.ICO, ico((20, 12, dib(4, colours=3)))),
        "ico of pngs": Sample(Format.ICO, ico((0, 0, saved("PNG")), (20, 12, saved("PNG")))),
        "ico of another coding": Sample(Format.ICO, ico((20, 12, dib(8, compression=1)))),
        "ico of something and a png": Sample(Format.ICO, ico((8, 8, b"something"), (20, 12, saved("PNG")))),
        "cur": Sample(Format.CUR, ico((20, 12, dib(1)), kind=2)),
        "cur of png": Sample(Format.CUR, ico((20, 12, saved("PNG")), kind=2)),
        "ico with a large png": Sample(
            Format.ICO, ico((0, 0, saved("PNG", make_image(size=(300, 280))))), PixelSize(300, 280)
        ),
        "tiff": Sample(Format.TIFF, saved("TIFF")),
        "tiff of pages": Sample(Format.TIFF, saved("TIFF", save_all=True, append_images=[make_image(), make_image()])),
        "tiff with lzw": Sample(Format.TIFF, saved("TIFF", compression="tiff_lzw")),
        "tiff big": Sample(Format.TIFF, saved("TIFF", big_tiff=True)),
        "tiff little-endian": Sample(Format.TIFF, tiff("<")),
        "tiff big-endian": Sample(Format.TIFF, tiff(">")),
        "tiff big little-endian": Sample(Format.TIFF, tiff("<", big=True)),
        "tiff big big-endian": Sample(Format.TIFF, tiff(">", big=True)),
        "tiff of tiles": Sample(Format.TIFF, tiff("<", pixels=(324, 325))),
        "tiff that loops": Sample(Format.TIFF, tiff(">", Field(330, 13, 248), successor=248)),
    }

"""
The worst file for each parser: as much structure as its bytes can hold, in as many ways as there are to hold it.

`WORST` has a maker for each of them, by format and trick. It makes a file of about `size` bytes that begins like an
image and never comes to its point, or only at its end.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from imgkeep.core.records import Format
from tests.support import image_files as images

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[[int], bytes]

HEADS: Final = {Format.AVIF: b"avif", Format.HEIC: b"heic", Format.HEIF: b"mif1"}
SVG: Final = b'<svg xmlns="http://www.w3.org/2000/svg">'


def fill(opening: bytes, unit: bytes, size: int, end: bytes = b"") -> bytes:
    """Repeat `unit` between the two up to `size` bytes."""
    return opening + unit * ((size - len(opening) - len(end)) // len(unit)) + end


def numbered(opening: bytes, unit: str, size: int, end: bytes = b"") -> bytes:
    """As `fill`, with a number in each unit, so that no two are the same."""
    parts, length, number = [opening], len(opening) + len(end), 0
    while length < size:
        parts.append((unit % number).encode())
        length += len(parts[-1])
        number += 1
    return b"".join([*parts, end])


def png_chunks(size: int, first: bytes = b"") -> bytes:
    return fill(images.png_header() + first, b"\0\0\0\0teXt\0\0\0\0", size)


def jpeg(unit: bytes) -> Make:
    return lambda size: fill(b"\xff\xd8\xff\xe0\0\2", unit, size)


def gif(unit: bytes, opening: bytes = b"") -> Make:
    return lambda size: fill(b"GIF89a\x14\0\x0c\0\0\0\0" + opening, unit, size)


def webp_chunks(size: int) -> bytes:
    riff = struct.pack("<4sI4s", b"RIFF", size - 8, b"WEBP")
    return fill(riff + b"VP8X\x0a\0\0\0\0\0\0\0\x13\0\0\x0b\0\0", b"XMP \0\0\0\0", size).ljust(size, b"\0")


def heif_boxes(brand: bytes) -> Make:
    """Boxes side by side at the top."""
    return lambda size: fill(images.ftyp(brand), images.box(b"free"), size)


def heif_in_meta(brand: bytes, box: Callable[[int], bytes], *more: bytes) -> Make:
    """A `meta` whose only large box has `size` bytes."""
    return lambda size: images.ftyp(brand) + images.meta(images.PITM, *more, box(size)) + images.MDAT


def ipma(size: int, count: int = 255) -> bytes:
    items = size // (3 + count)
    lines = (struct.pack(">HB", 1, count) + b"\1" * count) * items
    return images.box(
        b"iprp", images.box(b"ipco", *images.PROPERTIES), images.full_box(b"ipma", struct.pack(">I", items), lines)
    )


def ipco(size: int) -> bytes:
    return images.iprp(properties=(images.IROT_90,) * (size // len(images.IROT_90)))


def iloc(size: int) -> bytes:
    """Items with one extent each, whose offsets and lengths have no bytes."""
    items = min(size // 6, 65_535)
    return images.full_box(b"iloc", b"\0\0", struct.pack(">H", items), struct.pack(">HHH", 1, 0, 0) * items)


def extents(size: int) -> bytes:
    """One item after the other with as many extents as it may have, of a byte and of none."""
    items = max(size // 65_536, 1)
    line = struct.pack(">HHH", 1, 0, min(size, 65_535)) + bytes(min(size, 65_535))
    return images.full_box(b"iloc", b"\x10\x00", struct.pack(">H", items), line * items)


def jxl_boxes(size: int) -> bytes:
    return fill(images.jxl_container(), images.box(b"free"), size)


def svg(unit: bytes, end: bytes = b"") -> Make:
    return lambda size: fill(SVG, unit, size, end)


def svg_names(unit: str, opening: bytes = SVG, end: bytes = b"") -> Make:
    return lambda size: numbered(opening, unit, size, end)


def svg_doctype(declarations: bytes, unit: bytes) -> Make:
    return lambda size: fill(b"<!DOCTYPE svg [" + declarations + b"]>" + SVG, unit, size)


def svg_prolog(unit: bytes, opening: bytes = b"<!DOCTYPE svg [") -> Make:
    return lambda size: fill(opening, unit, size)


ATTRIBUTES: Final = b"<!ATTLIST a " + b"".join(b'a%d CDATA "%s" ' % (n, b"x" * 9) for n in range(250)) + b">"
ENTITY: Final = b'<!ENTITY e "' + b"<a/>" * 9 + b'">'
TEXT: Final = b'<!ENTITY e "' + b"x" * 90 + b'">'
LONG: Final = b'<!ENTITY e "' + b"x" * 65_000 + b'">'


def png_data(size: int) -> bytes:
    """Pixels whose sum is to be formed."""
    return images.png_header() + images.png_chunk(b"IDAT", bytes(size - 100))


def apng_frames(size: int) -> bytes:
    """Frames without end, each as it should be."""
    parts = [images.png_header(), images.png_chunk(b"acTL", bytes(8)), images.png_chunk(b"IDAT", b"")]
    for number in range(0, size // 32, 2):
        parts.append(images.png_chunk(b"fcTL", struct.pack(">I", number)))
        parts.append(images.png_chunk(b"fdAT", struct.pack(">I", number + 1)))
    return b"".join(parts)


def bmp(_size: int) -> bytes:
    return images.bmp(width=2**31 - 1, height=2**31 - 1)


def bmp_runs(run: bytes) -> Make:
    return lambda size: fill(
        images.bmp_of_runs().replace(struct.pack("<i", 12), struct.pack("<i", 2**31 - 1)), run, size
    )


def ico(size: int) -> bytes:
    """As many images as there may be, each a PNG of its own."""
    return images.ico(*[(16, 16, images.png_header())] * min(size // 60, 1_024))


def ico_of_one(size: int) -> bytes:
    """As many images as there may be, and each goes on to the end of the last: chunks without a number."""
    count = min(size // 128, 1_024)
    end = 6 + 16 * count
    opening = b"".join(struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, 100, end + 45 * number) for number in range(count))
    image = images.png_header() + images.png_chunk(b"abCD")
    return struct.pack("<HHH", 0, 2, count) + opening + image * count


def heif_items(size: int) -> bytes:
    """Items of no coding that we know."""
    entries = images.items(*[b"abcd"] * min(size // 21, 65_535))
    return images.ftyp(b"mif1") + images.meta(images.PITM, entries)


def tiff_fields(size: int) -> bytes:
    """One directory with as many fields as it can have."""
    count = min(size // 12 - 2, 65_535)
    return struct.pack("<2sHIH", b"II", 42, 8, count) + struct.pack("<HHII", 700, 4, 1, 0) * count + bytes(4)


def tiff_chain(size: int) -> bytes:
    """Directories that lead to one another."""
    each = 2 + 4 * 12 + 4
    parts = []
    for number in range((size - 8) // each):
        at = 8 + number * each
        fields = (images.Field(256, 3, 20), images.Field(257, 3, 12), images.Field(273, 4, 8), images.Field(279, 4, 1))
        parts.append(images.tiff_directory("<", *fields, successor=at + each))
    return struct.pack("<2sHI", b"II", 42, 8) + b"".join(parts)


def tiff_children(size: int) -> bytes:
    """Directories that lead to one another, and each to hundreds that come to nothing."""
    each = 2 + 5 * 12 + 4 + 250 * 4
    parts = []
    for number in range(max((size - 8) // each, 1)):
        at = 8 + number * each
        fields = (
            *(images.Field(256, 3, 20), images.Field(257, 3, 12), images.Field(273, 4, 8), images.Field(279, 4, 1)),
            images.Field(330, 4, at + 66, 250),
        )
        children = struct.pack("<250I", *range(2**31 + number * 250, 2**31 + number * 250 + 250))
        # The next one is read first: it comes last of all that wait.
        parts.append(
            images.tiff_directory("<", *fields, successor=at + each) + children[:-4] + struct.pack("<I", at + each)
        )
    return struct.pack("<2sHI", b"II", 42, 8) + b"".join(parts)


def tiff_values(size: int) -> bytes:
    """Strips without end, that many directories share."""
    values = max(min((size - 70_000) // 4, 60_000), 100)
    values_at = 8
    first = values_at + values * 4
    each = 2 + 4 * 12 + 4
    parts = []
    for number in range(1_000):
        fields = (
            *(images.Field(256, 3, 20), images.Field(257, 3, 12)),
            *(images.Field(273, 4, values_at, values), images.Field(279, 4, values_at, values)),
        )
        parts.append(images.tiff_directory("<", *fields, successor=first + (number + 1) * each))
    return struct.pack("<2sHI", b"II", 42, first) + bytes(values * 4) + b"".join(parts)


WORST: Final[dict[tuple[Format, str], Make]] = {
    (Format.PNG, "chunks"): png_chunks,
    (Format.PNG, "pixels"): png_data,
    (Format.APNG, "frames"): apng_frames,
    (Format.APNG, "chunks"): lambda size: png_chunks(size, images.png_chunk(b"acTL", bytes(8))),
    (Format.JPEG, "segments"): jpeg(b"\xff\xe0\0\2"),
    (Format.JPEG, "markers"): jpeg(b"\xff\x01"),
    (Format.JPEG, "stuffed bytes"): jpeg(b"\xff\0"),
    (Format.JPEG, "fill bytes"): jpeg(b"\xff"),
    (Format.JPEG, "restarts"): jpeg(b"\xff\xd0\xff\xd7"),
    (Format.GIF, "blocks"): gif(b"!\xfe\0"),
    (Format.GIF, "sub-blocks"): gif(b"\1!", b"!\xfe"),
    (Format.GIF, "images"): gif(b",\0\0\0\0\1\0\1\0\0\2\0"),
    (Format.WEBP, "chunks"): webp_chunks,
    **{(fmt, "boxes"): heif_boxes(brand) for fmt, brand in HEADS.items()},
    **{(fmt, "associations"): heif_in_meta(brand, ipma) for fmt, brand in HEADS.items()},
    (Format.AVIF, "associations of none"): heif_in_meta(b"avif", lambda size: ipma(size, 0)),
    (Format.AVIF, "properties"): heif_in_meta(b"avif", ipco),
    (Format.AVIF, "items"): heif_in_meta(b"avif", iloc),
    (Format.AVIF, "extents"): heif_in_meta(b"avif", extents),
    (Format.AVIF, "boxes in meta"): heif_in_meta(b"avif", lambda size: fill(b"", images.box(b"free"), size)),
    (Format.HEIF, "items"): heif_items,
    (Format.GIF, "blocks before the image"): gif(b"!\xfe\0"),
    (Format.JXL, "boxes"): jxl_boxes,
    (Format.SVG, "open elements"): svg(b"<a>"),
    (Format.SVG, "elements"): svg(b"<a/>"),
    (Format.SVG, "named elements"): svg_names("<a%x/>"),
    (Format.SVG, "namespaces"): svg_names('<a xmlns:b%x="c"/>'),
    (Format.SVG, "open namespaces"): svg(b'<a xmlns:b="c">'),
    (Format.SVG, "attributes"): svg(b'<a b="" c="" d="" e=""/>'),
    (Format.SVG, "attributes of a tag"): svg_names(' a%x=""', SVG + b"<a", b"/>"),
    (Format.SVG, "attributes of the root"): svg_names(' a%x=""', b"<svg", b"/>"),
    (Format.SVG, "quotes"): svg(b"'\" "),
    (Format.SVG, "a comment"): lambda size: fill(SVG + b"<!--", b"x'<", size),
    (Format.SVG, "a value"): lambda size: fill(SVG + b'<a b="', b"x>", size),
    (Format.SVG, "comments"): svg(b"<!---->"),
    (Format.SVG, "instructions"): svg(b"<?a?>"),
    (Format.SVG, "references"): svg(b"&lt;"),
    (Format.SVG, "references in a value"): lambda size: fill(SVG + b'<a b="', b"&lt;'", size),
    (Format.SVG, "declared attributes"): svg_doctype(ATTRIBUTES, b"<a/>"),
    (Format.SVG, "markup in an entity"): svg_doctype(ENTITY, b"&e;"),
    (Format.SVG, "text in an entity"): svg_doctype(TEXT, b"&e;"),
    (Format.SVG, "a long entity"): svg_doctype(LONG, b"&e;"),
    (Format.SVG, "element declarations"): svg_prolog(b"<!ELEMENT a ANY>"),
    (Format.SVG, "groups"): svg_prolog(b"(", b"<!DOCTYPE svg [<!ELEMENT a "),
    (Format.SVG, "blanks"): svg_prolog(b"\n", b"<?a?>"),
    (Format.SVG, "a long opening comment"): svg_prolog(b"- ", b"<!--"),
    (Format.BMP, "sides"): bmp,
    (Format.BMP, "runs"): bmp_runs(b"\1\1"),
    (Format.BMP, "jumps"): bmp_runs(b"\0\2\0\0"),
    (Format.ICO, "images"): ico,
    (Format.CUR, "images in one another"): ico_of_one,
    (Format.TIFF, "fields"): tiff_fields,
    (Format.TIFF, "directories"): tiff_chain,
    (Format.TIFF, "children"): tiff_children,
    (Format.TIFF, "values"): tiff_values,
}


def laughs() -> bytes:
    """Return an SVG whose groups show the one before them ten times each."""
    text = '<g id="a0"><path d="M0 0h9v9z"/></g>'
    for number in range(1, 12):
        use = f'<use xlink:href="#a{number - 1}"/>'
        text += f'<g id="a{number}">{use * 10}</g>'
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} width="99" height="99"><defs>{text}</defs><use xlink:href="#a11"/></svg>'.encode()

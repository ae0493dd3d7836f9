"""The names of pictures, and their paths in a store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.derived.names import FORMATS, PictureName, name_of, parameters_of, read_path
from imgkeep.core.derived.options import PictureFormat, PictureOptions, read_options, stem_of
from imgkeep.core.records import Digest, Format

DIGEST = Digest("ab" * 32)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("negotiated", [False, True])
def test_path_leads_back_to_the_name(format_: Format, *, negotiated: bool) -> None:
    name = name_of(DIGEST, PictureOptions(400), format_, negotiated=negotiated)
    assert name.path == f"v1/derived/{DIGEST}/w400{'-auto' if negotiated else ''}.{format_.extension}"
    assert read_path(name.path) == name == PictureName(DIGEST, "w400", format_, negotiated)


def test_original_size_has_a_name() -> None:
    assert name_of(DIGEST, PictureOptions(), Format.WEBP, negotiated=True).file_name == "full-auto.webp"


@pytest.mark.parametrize("stem", ["full", "w400", "w4-h5-cover-north-q80-bgffffff-r90-b1.5-p0-keep", "h5-contain-p2"])
@pytest.mark.parametrize("format_", [Format.WEBP, Format.GIF])
def test_parameters_ask_for_the_same_picture(stem: str, format_: Format) -> None:
    options = read_options(parameters_of(PictureName(DIGEST, stem, format_)))
    assert stem_of(options) == stem
    assert options.format is (PictureFormat.WEBP if format_ is Format.WEBP else None)


@pytest.mark.parametrize(
    "path",
    [
        "",
        f"v1/derived/{DIGEST}/",
        f"v1/derived/{DIGEST}/w400",
        f"v1/derived/{DIGEST}/w400.bmp",
        f"v1/derived/{DIGEST}/w400.webp.part",
        f"v1/derived/{DIGEST}/-auto.webp",
        f"v1/derived/{DIGEST}/w0400.webp",
        f"v1/derived/{DIGEST}/w400-auto-auto.webp",
        f"v1/derived/{DIGEST[:-1]}/w400.webp",
        f"v1/derived/{DIGEST.upper()}/w400.webp",
        f"v1/derived/../{DIGEST}/w400.webp",
        f"v1/objects/{DIGEST}/w400.webp",
        f"v1/derived/{DIGEST}/w400.webp\n",
    ],
)
def test_other_path_has_no_name(path: str) -> None:
    assert read_path(path) is None


@given(st.text())
def test_any_text_is_no_path_or_that_of_its_name(text: str) -> None:
    for path in (text, f"v1/derived/{DIGEST}/{text}"):
        name = read_path(path)
        assert name is None or name.path == path

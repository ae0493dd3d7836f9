"""The sweep of folders of images against Chromium: what it calls whole, in part, cut and wrong."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from bench import sweep
from bench.chromium import Shown, type_of, viewing
from bench.sweep import File
from imgkeep.core.formats import measure
from imgkeep.core.records import Format
from tests.support import image_files as images

if TYPE_CHECKING:
    from pathlib import Path

JPEG = images.saved("JPEG", images.make_image(size=(64, 64)))
PNG = images.saved("PNG", images.make_image(size=(64, 64)))
AVIF = images.saved("AVIF")
HEAD_BYTES = int.from_bytes(AVIF[:4], "big")


def avif_of(*brands: bytes) -> bytes:
    """An AVIF with as many brands as it had, so that its offsets stay."""
    names = (*brands, *[b"miaf"] * 9)[: (HEAD_BYTES - 16) // 4 + 1]
    return images.ftyp(*names) + AVIF[HEAD_BYTES:]


WHOLE = {
    "png": PNG,
    "gif": images.saved("GIF", images.make_image("L")),
    "jpeg": JPEG,
    "jpeg with junk in front": b"\xff\xd8\xff\0a\xff\x01" + JPEG[2:],
    "cursor": images.ico((20, 12, images.dib(1)), kind=2),
    "icon": images.ico((20, 12, images.dib(24)), size=1),
    "bmp of three planes": images.bmp(planes=3),
    "bmp of its second age": images.bmp_second(42),
    "bmp in runs": images.bmp_of_runs(*[b"\x14\7\0\0"] * 12),
    "svg": images.svg().encode(),
    "svg in utf-16": images.svg().encode("utf-16"),
    "avif": AVIF,
    **{f"avif of {major.decode()}": avif_of(major, b"avif") for major in (b"miaf", b"mif2", b"MA1A", b"MA1B")},
    **{f"avif in {major.decode()}": avif_of(major, b"avif") for major in (b"isom", b"iso8")},
}
IN_PART = {
    "half a png": PNG[: len(PNG) // 2],
    "png with a wrong sum": PNG[:-20] + b"abcd" + PNG[-16:],
    "half a jpeg": JPEG[: len(JPEG) // 2],
    "jpeg without end": JPEG[:-2],
    "icon without its mask": images.ico((20, 12, images.dib(24, mask=False))),
    "half a bmp": images.bmp()[:400],
    "bmp in runs, cut": images.bmp_of_runs(*[b"\x14\7\0\0"] * 6),
}


async def test_verdicts_agree_with_chromium(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus").mkdir()
    for name, body in (WHOLE | IN_PART).items():
        (tmp_path / "corpus" / name).write_bytes(body)
    (tmp_path / "corpus" / "text").write_text("No image.")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "png again").write_bytes(PNG)
    report = tmp_path / "report.json"
    status = await sweep.run(Namespace(folders=[tmp_path], cuts=True, program=True, json=report))
    told = capsys.readouterr().out
    files = {file["path"].rpartition("/")[2]: file for file in json.loads(report.read_text())}
    assert status == 0, told
    assert len(files) == len(WHOLE) + len(IN_PART)
    for name in WHOLE:
        file = files[name]
        assert (file["shown"]["whole"], file["whole"], file["program"]) == (True, True, "stored"), name
    for name in IN_PART:
        file = files[name]
        assert (file["shown"]["shown"], file["shown"]["whole"], file["whole"]) == (True, False, False), name
    assert "wrong" not in told
    assert f"| corpus | {len(WHOLE)} | {len(IN_PART)} |" in told


async def test_gif_has_the_size_that_chromium_shows(tmp_path: Path) -> None:
    data = images.saved("GIF", images.make_image("L"))
    at = data.index(b",\0\0\0\0\x14\0\x0c\0")
    files = []
    for number, screen in enumerate([(0, 0), (0, 12), (1, 1), (10, 30), (100, 100)]):
        path = tmp_path / str(number)
        path.write_bytes(data[:6] + screen[0].to_bytes(2, "little") + screen[1].to_bytes(2, "little") + data[10:])
        files.append(File("corpus", path, "image/gif", 0))
        sweep.judge(files[-1])
    assert at > 0
    async with sweep.serving(files) as origin, viewing(origin) as viewer:
        await sweep.show(files, viewer)
    assert [file.theirs for file in files] == ["whole"] * 5
    assert [file.pixel_size for file in files] == [
        (file.shown.width, file.shown.height) for file in files if file.shown
    ]


@pytest.mark.parametrize(
    ("body", "type_"),
    [
        (PNG, "image/png"),
        (b"\xef\xbb\xbf <?xml version='1.0'?><a:svg/>", "image/svg+xml"),
        (b"<html><p>", None),
        (b"text <svg", None),
        (b"", None),
    ],
)
def test_type_of_a_file_is_that_of_its_bytes(body: bytes, type_: str | None) -> None:
    assert type_of(body) == type_


def test_every_sample_of_a_format_has_a_type() -> None:
    assert {name for name, sample in images.samples().items() if type_of(sample.body) is None} == set()


def test_disagreements_are_reported(tmp_path: Path) -> None:
    def said(*, whole: bool, is_open: bool = False) -> Shown:
        return Shown(shown=True, whole=whole, ended=False, open=is_open, width=1, height=1)

    def file(shown: Shown, fmt: str, *, whole: bool, program: str = "stored", width: int = 1) -> File:
        return File("c", tmp_path, "image/png", 1, shown, fmt, whole, (width, 50_000), program)

    assert sweep.faults(file(said(whole=True), "PNG", whole=True)) == []
    assert sweep.faults(file(said(whole=True), "", whole=False)) == ["shown whole and refused"]
    assert sweep.faults(file(said(whole=True), "PNG", whole=True, program="altered")) == [
        "shown whole and answered with altered"
    ]
    assert sweep.faults(file(said(whole=False, is_open=True), "PNG", whole=True)) == ["cut and taken for whole"]
    damaged = file(said(whole=False), "PNG", whole=True)
    assert (sweep.faults(damaged), sweep.notes(damaged)) == ([], ["not cut, but its decoder ends early"])
    large = file(said(whole=True), "PNG", whole=True, program="422", width=50_000)
    assert (sweep.faults(large), sweep.notes(large)) == ([], ["more pixels than fetch.pixels_max"])
    incomplete = file(said(whole=True), "PNG", whole=False)
    assert (sweep.faults(incomplete), sweep.notes(incomplete)) == ([], ["shown whole and held incomplete"])


def test_table_has_no_empty_columns() -> None:
    counted = sweep.count([("a", "x"), ("b", "x"), ("b", "z")])
    assert counted["all"] == Counter(x=2, z=1)
    assert sweep.table(counted, ["x", "y", "z"], "t").splitlines() == [
        "| t | x | z |",
        "|---|---:|---:|",
        "| a | 1 | 0 |",
        "| b | 1 | 1 |",
        "| all | 2 | 1 |",
    ]


def test_cursor_is_measured_as_an_icon() -> None:
    assert measure(Format.CUR, WHOLE["cursor"]) == images.SIZE

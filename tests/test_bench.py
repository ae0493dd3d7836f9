"""The comparison with other servers: what thumbor is given and held to, and where its figures go."""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from bench import crowds, report, seed
from bench.rows import BYTES_OFF_MAX, Plan, Row, alternate, check
from bench.servers import Server
from bench.wrk import InvalidRun
from tests.support.images import make_image

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin

PLAN = Plan(Path(), rounds=3, seconds=1, records=0)
NOISE = seed.noise(1)
PNG = {"Content-Type": "image/png"}


def written_anew(body: bytes, form: str = "PNG") -> bytes:
    file = BytesIO()
    Image.open(BytesIO(body)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("size", [seed.SMALL, seed.LARGE])
def test_noise_has_the_requested_size_also_after_reencoding(size: int) -> None:
    body = seed.noise(1, size)
    assert len(body) == pytest.approx(size, rel=0.01)
    assert len(written_anew(body)) == pytest.approx(len(body), rel=BYTES_OFF_MAX)


def test_no_two_numbers_have_the_same_noise() -> None:
    assert len({seed.noise(n) for n in range(20)}) == 20


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
async def test_reencoded_image_is_accepted(origin: FakeOrigin, form: str) -> None:
    body = written_anew(NOISE, form)
    assert form == "PNG" or body != NOISE
    origin.gives("/1.png", body, headers=PNG)
    assert await _check(origin) == len(body)


@pytest.mark.parametrize(
    ("body", "how", "reason"),
    [
        (NOISE, {"headers": PNG, "status": "500 Internal Server Error"}, "answers 500"),
        (NOISE, {}, "calls a picture nothing"),
        (NOISE, {"headers": {"Content-Type": "text/html"}}, "calls a picture text/html"),
        (NOISE[:-5000], {"headers": PNG}, "does not decode"),
        (b"<html>", {"headers": PNG}, "does not decode"),
        (b"", {"headers": PNG}, "does not decode"),
        (make_image(), {"headers": PNG}, "another picture"),
        (seed.noise(2), {"headers": PNG}, "another picture"),
        (written_anew(NOISE, "BMP") + b"\0" * 1000, {"headers": PNG}, "bytes for"),
    ],
    ids=["status", "no type", "type", "cut", "page", "nothing", "other size", "other number", "larger"],
)
async def test_wrong_reencoded_image_is_reported(
    origin: FakeOrigin, body: bytes, how: dict[str, object], reason: str
) -> None:
    origin.gives("/1.png", body, **how)
    with pytest.raises(InvalidRun, match=reason):
        await _check(origin)


async def _check(origin: FakeOrigin) -> int:
    server = Server("thumbor", origin.port, (), exact=False)
    return await asyncio.to_thread(check, server, "/1.png", NOISE)


async def test_other_servers_are_held_to_every_byte(origin: FakeOrigin) -> None:
    origin.gives("/1.png", written_anew(NOISE) + b"\0", headers=PNG)
    with pytest.raises(InvalidRun, match="other bytes"):
        await asyncio.to_thread(check, Server("nginx", origin.port, ()), "/1.png", NOISE)


async def test_only_whole_answers_count_where_a_client_drops_their_bytes(origin: FakeOrigin) -> None:
    origin.gives("/1.png", NOISE)
    server = Server("nginx", origin.port, ())
    assert await asyncio.to_thread(crowds.drain, server, "/1.png", 0.2, 2) >= len(NOISE)
    with pytest.raises(InvalidRun, match="404"):
        await asyncio.to_thread(crowds.drain, server, "/2.png", 0.2, 2)


def test_thumbor_is_measured_beside_and_the_ratio_is_that_to_nginx() -> None:
    row = alternate(PLAN, Row("row", "requests/s", at_least=0.8, aim=1.0), lambda: 900, lambda: 1000, lambda: 100)
    assert (row.ratio, row.good) == (0.9, True)
    told = dict(zip(report.HEADINGS, report.cells(row), strict=True))
    assert (told["imgkeep"], told["nginx"], told["thumbor"], told["ratio"]) == ("900", "1,000", "100", "0.90")


def test_without_thumbor_its_cell_is_empty() -> None:
    row = alternate(PLAN, Row("row", "requests/s"), lambda: 900, lambda: 1000, None)
    assert dict(zip(report.HEADINGS, report.cells(row), strict=True))["thumbor"] == ""


def test_figures_of_a_failing_thumbor_are_dropped() -> None:
    answers = iter([100.0])

    def errs_the_second_time() -> float:
        if (figure := next(answers, None)) is None:
            raise InvalidRun("thumbor answers 500")
        return figure

    row = Row("row", "requests/s", at_least=0.8, aim=1.0)
    alternate(PLAN, row, lambda: 900, lambda: 1000, errs_the_second_time)
    assert (row.ours, row.theirs, row.thumbors) == ([900] * 3, [1000] * 3, [])
    assert (row.good, row.notes) == (True, ["thumbor does not count: thumbor answers 500"])


def test_results_lie_where_thumbor_looks_for_them(tmp_path: Path) -> None:
    pictures = seed.files(tmp_path / "pictures", 3, seed.noise)
    folder = seed.results(tmp_path / "thumbor", pictures, 3)
    # The SHA-1 of /unsafe/http://127.0.0.1:1/2.png.
    place = folder / "results" / "default" / "e9" / "6d" / "9ac9bd490e3032ce892c4abc86ba8a24fc2c"
    assert place.read_bytes() == seed.noise(2)

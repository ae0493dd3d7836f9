"""What failed, and why: in `/api/failures`, in records and in metrics, and never with a link."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from proxy import __version__
from tests.faults.network import counted, look, until
from tests.images import picture
from tests.program import serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.conftest import Imgkeep
    from tests.origins import FakeOrigin

    Start = Callable[..., Awaitable[Imgkeep]]

SECRET = "X-Amz-Signature=0123456789abcdef"


async def failures(imgkeep: Imgkeep, **query: str) -> list[dict[str, Any]]:
    response = await imgkeep.client.get("/api/failures", params=query)
    assert response.status == 200
    told = await response.json()
    assert told["success"] is True
    found: list[dict[str, Any]] = told["failures"]
    return found


async def test_a_failure_is_listed_with_host_code_and_detail_and_without_its_link(
    imgkeep: Imgkeep, origin: FakeOrigin
) -> None:
    assert await failures(imgkeep) == []
    url = origin.gives("/gone.png", b"", status="404 Not Found")
    assert (await look(imgkeep, f"{url}?{SECRET}")).status == 404
    assert (await look(imgkeep, "http://10.0.0.1/a.png")).status == 403
    refused, gone = await failures(imgkeep)
    assert (refused["host"], refused["code"], refused["count"]) == ("10.0.0.1", "source_forbidden", 1)
    assert (gone["host"], gone["code"], gone["origin_status"]) == ("127.0.0.1", "source_not_found", 404)
    assert gone["detail"] == "the origin says 404"
    assert gone["first_at"].endswith("Z")
    assert await failures(imgkeep, host="127.0.0.1") == [gone]
    assert await failures(imgkeep, code="source_forbidden", limit="1") == [refused]
    assert SECRET not in json.dumps([refused, gone])


async def test_a_stranger_reads_no_failures(imgkeep: Imgkeep) -> None:
    async with imgkeep.stranger.get("/api/failures") as response:
        assert response.status == 401


async def test_limits_are_whole_numbers(imgkeep: Imgkeep) -> None:
    for limit in ("0", "501", "-1", "x", "", "9" * 5000):
        assert (await imgkeep.client.get("/api/failures", params={"limit": limit})).status == 400


async def test_an_image_that_cannot_be_stored_is_a_failure_too(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    folder = imgkeep.folder / "v1" / "objects"
    url = origin.gives("/a.png", picture())
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()
    folder.write_text("no folder")
    assert (await look(imgkeep, url)).body == picture()
    await until(lambda: imgkeep.client.app is not None)
    assert [entry["code"] for entry in await failures(imgkeep)] == ["storage_unavailable"]


async def test_metrics_tell_of_the_stock_the_build_and_the_process(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    assert (await look(imgkeep, origin.gives("/a.png", picture()))).status == 200
    page = await (await imgkeep.client.get("/metrics")).text()
    assert 'imgkeep_build_info{python="' in page
    assert f'version="{__version__}"}} 1.0' in page
    assert await counted(imgkeep, "imgkeep_ready") == 1
    assert await counted(imgkeep, "imgkeep_degraded") == 0
    assert await counted(imgkeep, 'imgkeep_fills_total{outcome="stored",provider="other"}') == 1
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert await counted(imgkeep, name) > 0
    assert "imgkeep_images " in page


async def test_workers_tell_their_failures_together(tmp_path: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/gone.png", b"", status="404 Not Found")
    async with serving(tmp_path / "data", server__workers="2") as program:
        for number in range(20):
            assert (await program.img(f"{url}?{number}")).status == 404
        told = json.loads((await program.get("/api/failures?limit=500")).body)
    assert sum(entry["count"] for entry in told["failures"]) == 20
    assert {entry["code"] for entry in told["failures"]} == {"source_not_found"}


async def test_metrics_have_an_address_of_their_own(tmp_path: Path, unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    for workers in ("1", "2"):
        async with serving(tmp_path / "data", server__workers=workers, server__metrics_address=address) as program:
            assert (await program.get("/metrics")).status == 404
            async with program.session.get(f"http://{address}/metrics") as apart:
                assert apart.status == 200
                assert "imgkeep_ready" in await apart.text()
            async with program.session.get(f"http://{address}/metrics", headers={"Host": "evil.example"}) as rebound:
                assert rebound.status == 403
            async with program.session.get(f"http://{address}/img?src=x") as other:
                assert other.status == 404

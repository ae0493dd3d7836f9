"""What failed, and why: in `/api/failures`, in records and in metrics, and never with a link."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep import __version__
from imgkeep.cluster.progress import read_fill, write_failure
from imgkeep.core.errors import StorageError
from imgkeep.images.peer_fill import FillFailure
from tests.support.images import make_image
from tests.support.network import counted, look
from tests.support.program import environment, serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import FakeOrigin
    from tests.support.program import Program
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

SECRET = "X-Amz-Signature=0123456789abcdef"


async def failures(imgkeep: Imgkeep, **query: str) -> list[dict[str, Any]]:
    response = await imgkeep.client.get("/api/failures", params=query)
    assert response.status == 200
    reply = await response.json()
    assert reply["success"] is True
    found: list[dict[str, Any]] = reply["failures"]
    return found


async def test_failure_is_listed_without_its_link(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
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


async def test_failures_need_access(imgkeep: Imgkeep) -> None:
    async with imgkeep.stranger.get("/api/failures") as response:
        assert response.status == 401


async def test_limits_are_whole_numbers(imgkeep: Imgkeep) -> None:
    for limit in ("0", "501", "-1", "x", "", "9" * 5000):
        assert (await imgkeep.client.get("/api/failures", params={"limit": limit})).status == 400


async def test_image_that_is_not_stored_is_a_failure(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    folder = imgkeep.folder / "v1" / "objects"
    url = origin.gives("/a.png", make_image())
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()
    folder.write_text("no folder")
    assert (await look(imgkeep, url)).body == make_image()
    await until(lambda: imgkeep.client.app is not None)
    assert [entry["code"] for entry in await failures(imgkeep)] == ["storage_unavailable"]


async def test_metrics_state_totals_build_and_process(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    assert (await look(imgkeep, origin.gives("/a.png", make_image()))).status == 200
    page = await (await imgkeep.client.get("/metrics")).text()
    assert 'imgkeep_build_info{python="' in page
    assert f'version="{__version__}"}} 1.0' in page
    assert await counted(imgkeep, "imgkeep_ready") == 1
    assert await counted(imgkeep, "imgkeep_degraded") == 0
    assert await counted(imgkeep, 'imgkeep_fills_total{outcome="stored",provider="other"}') == 1
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert await counted(imgkeep, name) > 0
    assert "imgkeep_images " in page


async def test_failures_of_all_workers_are_listed(tmp_path: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/gone.png", b"", status="404 Not Found")
    async with serving(tmp_path / "data", server__workers="2") as program:
        for number in range(20):
            assert (await program.img(f"{url}?{number}")).status == 404
        reply = json.loads((await program.get("/api/failures?limit=500")).body)
    assert sum(entry["count"] for entry in reply["failures"]) == 20
    assert {entry["code"] for entry in reply["failures"]} == {"source_not_found"}


async def test_metrics_have_their_own_address(tmp_path: Path, unused_tcp_port: int) -> None:
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


def records_of(program: Program) -> list[dict[str, Any]]:
    read = (json.loads(line) for line in program.log if line.startswith("{"))
    return [record for record in read if record["message"] == "request"]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_record_of_a_failure_states_what_happened(tmp_path: Path, origin: FakeOrigin, workers: str) -> None:
    """Not for links alone, and by whichever way a request takes."""
    dead = origin.gives("/gone.png", b"", status="404 Not Found")
    async with serving(tmp_path / "data", server__workers=workers) as program:
        await program.img(f"{dead}?{SECRET}")
        for path in ("/nowhere", f"/images/{'0' * 64}.png", "/img", "/img?src=x"):
            assert (await program.get(path)).status >= 400
        for path, body in (
            ("/api/save-image", {"url": f"{dead}?{SECRET}"}),
            ("/api/refetch", {"url": f"{dead}?{SECRET}"}),
            ("/api/restore", {"url": f"{dead}?{SECRET}"}),
            ("/api/rewrite", {"html": "<img>", "which": ["a.example/" + "ü" * 5000 + "#"]}),
        ):
            async with program.session.post(f"http://{program.address}{path}", json=body) as response:
                assert response.status in {400, 404}, await response.text()
        await until(lambda: len(records_of(program)) >= 9)
        records = records_of(program)
    assert all(record["detail"] for record in records)
    assert max(len(record["detail"]) for record in records) <= 300
    about = [record for record in records if record["host"] == "127.0.0.1"]
    assert len(about) == 4, "those that concern a link"
    assert all(record["key"] for record in about)
    assert SECRET not in "".join(program.log)


async def test_record_of_an_unsigned_link_states_its_provider(tmp_path: Path) -> None:
    keys = "0123456789abcdef0123456789abcdef"
    async with serving(tmp_path / "data", security__signature="always", security__signing_keys=keys) as program:
        assert (await program.img("https://cdn.discordapp.com/attachments/1/2/a.png?ex=1&is=2&hm=3")).status == 403
        await until(lambda: bool(records_of(program)))
        (record,) = records_of(program)
    assert (record["host"], record["provider"]) == ("cdn.discordapp.com", "Discord")
    assert record["key"]


async def test_follower_in_another_worker_notes_the_storage_error() -> None:
    stream = asyncio.StreamReader()
    error = StorageError("the disk of the store failed", place="/srv/images", cause="No space left on device")
    stream.feed_data(write_failure(FillFailure(None, error)))
    reply = await read_fill(stream)  # type: ignore[arg-type]  # reads alike
    assert isinstance(reply, FillFailure)
    assert isinstance(reply.error, StorageError)
    assert reply.error.in_full == error.in_full


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_metrics_address_in_use_ends_the_start(tmp_path: Path, workers: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another imgkeep with workers
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, complaint = await start_in_vain(tmp_path, server__workers=workers, server__metrics_address=address)
    assert status == 1
    assert f"server.metrics_address: another program listens at {address} already" in complaint


async def test_metrics_address_of_another_machine_is_a_mistake(tmp_path: Path) -> None:
    for workers in ("1", "2"):
        status, complaint = await start_in_vain(
            tmp_path, server__workers=workers, server__metrics_address="192.0.2.1:9100"
        )
        assert (status, "server.metrics_address: 192.0.2.1:9100 is not an address of this machine" in complaint) == (
            2,
            True,
        )


async def start_in_vain(folder: Path, **settings: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imgkeep", "serve"), env=environment(folder, **settings), stderr=asyncio.subprocess.PIPE
    )
    _, complaint = await process.communicate()
    return process.returncode, complaint.decode()


async def test_metrics_survive_a_reload(tmp_path: Path, unused_tcp_port: int) -> None:
    """Also on all addresses of the machine, and under the names of this machine only where no other can ask."""
    async with serving(
        tmp_path / "data", server__workers="2", server__metrics_address=f"[::]:{unused_tcp_port}"
    ) as program:
        await ask_metrics(program, unused_tcp_port)
        program.process.send_signal(signal.SIGHUP)
        await until(lambda: any('"reloaded"' in line for line in program.log))
        await ask_metrics(program, unused_tcp_port)


async def ask_metrics(program: Program, port: int) -> None:
    for host in ("127.0.0.1", "[::1]"):
        async with program.session.get(f"http://{host}:{port}/metrics", headers={"Host": "metrics.internal"}) as page:
            assert page.status == 200
            assert re.search(r"^imgkeep_workers_counted [2-4]\.0$", await page.text(), re.MULTILINE)


async def test_metrics_on_loopback_answer_own_names_alone(tmp_path: Path, unused_tcp_port: int) -> None:
    async with serving(tmp_path / "data", server__metrics_address=f"127.0.0.5:{unused_tcp_port}") as program:
        for host, status in (("127.0.0.5", 200), ("localhost:1", 200), ("evil.example", 403)):
            url = f"http://127.0.0.5:{unused_tcp_port}/metrics"
            async with program.session.get(url, headers={"Host": host}) as page:
                assert page.status == status

"""Acknowledged images survive: the order of the system calls, and `kill -9` under load."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.crash import crash
from tests.support.images import make_image
from tests.support.program import need_strace, run, serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin

ROUNDS = 4
CALLS = (
    "openat,mkdir,write,pwrite64,writev,sendto,sendmsg,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,link"
)


async def test_image_received_whole_survives_a_kill(tmp_path: Path) -> None:
    tally = await crash(tmp_path / "data", rounds=ROUNDS, seed=7)
    assert tally.good, tally
    assert tally.rounds == ROUNDS
    assert tally.acknowledged >= ROUNDS  # the kill waits for one whole response at least


async def test_drafts_of_dead_processes_are_swept(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "partial").mkdir(parents=True)
    (folder / "partial" / "left-by-a-crash").write_bytes(b"half an ima")
    async with serving(folder):
        assert not list((folder / "partial").iterdir())


async def test_maintenance_leaves_a_running_server_alone(tmp_path: Path, origin: FakeOrigin) -> None:
    body = make_image("PNG", width=400, height=300)
    first = 100_000  # a smaller draft has no file before it is stored

    statuses: list[int] = []

    async def in_two_halves(exchange: Exchange) -> None:
        await exchange.send_head(f"Content-Length: {len(body)}")
        await exchange.send(body[:first])
        await until(lambda: bool(list((folder / "partial").iterdir())))
        status, _, _ = await run(folder, "reindex")  # opens the store, and sweeps
        statuses.append(status)
        await exchange.send(body[first:])

    folder = tmp_path / "data"
    async with serving(folder) as program:
        url = origin.on("/a.png", in_two_halves)
        answer = await program.img(url)
        assert (answer.status, answer.body, statuses) == (200, body, [0])
        await origin.stop()
        assert (await program.img(url)).cache_status == "imgkeep; hit"


# --- the order of the system calls


@dataclass
class Call:
    """
    One system call as strace saw it.

    Attributes:
        begin: Number of the line on which it began.
        end: Number of the line on which it returned.
    """

    name: str
    text: str
    begin: int
    end: int

    def touches(self, path: str) -> bool:
        """Whether its first descriptor is this file: `fsync(12</path>)`."""
        return re.match(rf"\d+<{path}>", self.text) is not None


def read_trace(lines: list[str]) -> list[Call]:
    """Read the output of `strace -f -yy` without failed calls; a call that another thread interrupts has two lines."""
    calls: list[Call] = []
    unfinished: dict[str, Call] = {}
    for number, line in enumerate(lines):
        thread, _, rest = line.partition(" ")
        rest = rest.strip()
        resumed = re.match(r"<\.\.\. (\w+) resumed>(.*)", rest)
        started = re.match(r"(\w+)\((.*)", rest)
        if resumed:
            call = unfinished.pop(thread)
            call.end = number
            call.text += resumed[2]
        elif started:
            call = Call(started[1], started[2], number, number)
            calls.append(call)
            if rest.endswith("<unfinished ...>"):
                unfinished[thread] = call
    return [call for call in calls if " = -1 " not in call.text]


def only(calls: list[Call]) -> Call:
    assert len(calls) == 1, calls
    return calls[0]


async def test_response_ends_only_when_the_image_is_durable(tmp_path: Path, origin: FakeOrigin) -> None:
    need_strace()
    body = make_image("PNG", width=200, height=150)
    folder, trace = tmp_path / "data", tmp_path / "trace"
    url = origin.gives("/a.png", body)
    tracing = ("strace", "-f", "-yy", "-s", "16", "-o", str(trace), "-e", f"trace={CALLS}")
    async with serving(folder, under=tracing) as program:
        answer = await program.img(url)
        assert (answer.status, answer.body) == (200, body)
        port = program.address.rpartition(":")[2]
    calls = read_trace(trace.read_text("utf-8", "replace").splitlines())

    # The record is linked and not renamed, because a rename would replace the record of another process.
    renames = [call for call in calls if call.name.startswith(("rename", "link")) and f"{folder}/v1/" in call.text]
    to_object = only([call for call in renames if "/v1/objects/" in call.text])
    to_record = only([call for call in renames if "/v1/records/" in call.text])
    ends: dict[str, int] = {}
    for kind, rename in (("object", to_object), ("record", to_record)):
        partial, final = re.findall(r'"([^"]+)"', rename.text)[:2]
        assert partial.startswith(f"{folder}/partial/")
        written = [call for call in calls if "write" in call.name and call.touches(partial)]
        assert written, f"no byte of the {kind} was written under its partial name"
        synced = only([call for call in calls if call.name in {"fsync", "fdatasync"} and call.touches(partial)])
        assert max(call.end for call in written) < synced.begin, f"the {kind} is complete before its fsync"
        assert synced.end < rename.begin, f"the {kind} is durable before it gets its name"
        parent = final.rpartition("/")[0]
        named = [call for call in calls if call.name == "fsync" and call.touches(parent) and call.begin > rename.end]
        assert named, f"the name of the {kind} is durable"
        assert not any(call.touches(final) for call in calls if "write" in call.name), (
            "a final file is never written to"
        )
        ends[kind] = named[0].end
        made = [call for call in calls if call.name == "mkdir" and f'"{parent}"' in call.text]
        for call in made:
            above = parent.rpartition("/")[0]
            assert any(
                other.name == "fsync" and other.touches(above) and other.begin > call.end and other.end < ends[kind]
                for other in calls
            ), f"the folder of the {kind} is durable in its own"
    assert ends["object"] < to_record.begin, "the object is durable before its record has a name"

    # Every write to the client is on a connection whose local port is ours.
    sent = [call for call in calls if re.match(rf"\d+<TCP:\[127\.0\.0\.1:{port}->", call.text)]
    assert len(sent) >= 2, "head and body came in one write, so nothing was held back"
    assert sent[0].end < to_object.begin, "the client waits for no fsync before its first bytes"
    assert sent[-1].begin > ends["record"], "the last byte goes out when the record is durable"

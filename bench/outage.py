"""
Take the bucket away under load, in every way a bucket can be away, give it back, and count what clients noticed.

    python -m bench.outage                      ten minutes of outage at fifty requests a second
    python -m bench.outage --outage-s 30
    python -m bench.outage --store gs           the same of a bucket of Google, or `az`: of a container of Azure

Half of the requests ask for images that were stored before, half for new ones. During the outage the bucket refuses,
hangs, answers 503 and resets connections in turn. Afterwards everything has to be in the bucket by itself, byte for
byte and once. `tests/storage/test_outage.py` runs short ones.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from bench.crash import body_of
from tests.support.azure.azurite import Azurite, azurite_in
from tests.support.gcs.fake_gcs_server import FakeGcsServer, fake_gcs_server_in
from tests.support.origins import FakeOrigin
from tests.support.program import serving
from tests.support.remote_services import SERVICES
from tests.support.s3.gate import Gate
from tests.support.s3.servers import NAMES, S3Server, S3Servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.support.program import Program

    Bucket = S3Server | FakeGcsServer | Azurite

STORED = 50
SERVICE_OF = {S3Server: "s3", FakeGcsServer: "gcs", Azurite: "azure"}
PHASES = ("refuse", "hang", "overloaded", "reset")
ANSWER_TIMEOUT_S = 20
WAIT_INTERVAL_S = 0.5
AT_ONCE_MAX = 1000


def settings_for(bucket: Bucket, endpoint: str) -> Mapping[str, str]:
    """Return the settings of imgkeep for a bucket behind a gate at `endpoint`."""
    match bucket:
        case S3Server():
            return {
                "store__url": f"s3://{bucket.bucket}?region=us-east-1",
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": bucket.key,
                "AWS_SECRET_ACCESS_KEY": bucket.secret,
            }
        case FakeGcsServer():
            return {"store__url": f"gs://{bucket.bucket}", "STORAGE_EMULATOR_HOST": endpoint}
        case Azurite():
            connection = bucket.through(endpoint).connection_string
            return {"store__url": f"az://{bucket.container}", "AZURE_STORAGE_CONNECTION_STRING": connection}


@contextmanager
def started(kind: str, server: str, folder: Path) -> Iterator[Bucket]:
    """Start a server of a service until the end of the block, and give a new bucket on it."""
    if kind == "s3":
        servers = S3Servers(folder)
        try:
            yield servers.with_bucket(server)
        finally:
            servers.stop()
    elif kind == "gs":
        google = fake_gcs_server_in(folder)
        google.start()
        try:
            yield google.with_bucket()
        finally:
            google.stop()
    else:
        azurite = azurite_in(folder)
        azurite.start()
        try:
            yield azurite.with_container()
        finally:
            azurite.stop()


@dataclass
class Tally:
    """What the run came to. Milliseconds are those of requests during the outage."""

    asked: Counter[str] = field(default_factory=Counter)
    good: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    """By kind of image, and status or error."""
    milliseconds: dict[str, list[float]] = field(default_factory=lambda: {"stored": [], "new": []})
    replicated_after_s: float = 0
    lacking: int = 0
    wrong: int = 0
    objects: int = 0
    records: int = 0
    images: int = 0

    def availability(self, kind: str) -> float:
        return self.good[kind] / max(1, self.asked[kind])

    def quantile(self, kind: str, share: float) -> float:
        values = sorted(self.milliseconds[kind])
        return values[min(len(values) - 1, int(share * len(values)))] if values else 0

    @property
    def whole(self) -> bool:
        exactly_once = self.objects == self.records == self.images
        return self.availability("stored") == 1 and self.availability("new") >= 0.99 and exactly_once and not self.wrong


async def outage(  # noqa: PLR0913 - one number a knob
    folder: Path,
    bucket: Bucket,
    *,
    outage_s: float,
    rate: float,
    timeout_s: float = 5,
    seed: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Run one outage of `outage_s` seconds at `rate` requests a second."""
    overloaded = SERVICES[SERVICE_OF[type(bucket)]].refusals["overloaded"].answer
    origin, gate = FakeOrigin(), Gate("127.0.0.1", bucket.port)
    await origin.start()
    await gate.start()
    draw = random.Random(seed)
    tally = Tally()
    bodies: dict[str, bytes] = {}

    def publish(number: int) -> str:
        body = body_of(number)
        url = origin.gives(f"/{number}.png", body)
        bodies[url] = body
        return url

    settings = {
        **settings_for(bucket, gate.endpoint),
        "store__timeout_s": str(timeout_s),
        "limits__fills_per_minute": "0",  # all clients of the run are one
        "store__fallback": f"file:{folder}",
    }
    try:
        async with serving(folder, prepare=None, **settings) as program:
            stored = [publish(number) for number in range(STORED)]
            for url in stored:
                assert (await program.img(url)).body == bodies[url]
            load = asyncio.create_task(_load(program, bodies, stored, publish, draw, rate, tally))
            for number in range(max(len(PHASES), round(outage_s / 60))):
                phase = PHASES[number % len(PHASES)]
                say(f"{phase}: {dict(tally.asked)} asked, {dict(tally.good)} good")
                await (gate.do(overloaded) if phase == "overloaded" else getattr(gate, phase)())
                await asyncio.sleep(outage_s / max(len(PHASES), round(outage_s / 60)))
            load.cancel()
            await asyncio.wait([load])
            await gate.open()
            await _wait_until_replicated(program, tally, say)
    finally:
        await gate.stop()
        await origin.stop()
    await _compare(bucket, bodies, tally)
    return tally


async def _load(  # noqa: PLR0913, PLR0917 - a step of `outage`, and all that it knows
    program: Program,
    bodies: dict[str, bytes],
    stored: list[str],
    publish: Callable[[int], str],
    draw: random.Random,
    rate: float,
    tally: Tally,
) -> None:
    """Ask at a fixed rate, whether answers come or not, until cancelled; then wait for those under way."""
    under_way: set[asyncio.Task[None]] = set()
    number = STORED
    start = time.monotonic()
    try:
        while True:
            kind = draw.choice(("stored", "new"))
            url = draw.choice(stored) if kind == "stored" else publish(number)
            number += 1
            task = asyncio.create_task(_ask(program, kind, url, bodies[url], tally))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            await asyncio.sleep(max(0, start + (number - STORED) / rate - time.monotonic()))
    finally:
        if under_way:
            await asyncio.wait(under_way)


async def _ask(program: Program, kind: str, url: str, body: bytes, tally: Tally) -> None:
    tally.asked[kind] += 1
    start = time.monotonic()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await program.img(url)
    except (aiohttp.ClientError, TimeoutError) as error:
        tally.failed[f"{kind}: {type(error).__name__}"] += 1
        return
    tally.milliseconds[kind].append((time.monotonic() - start) * 1000)
    if answer.status == HTTPStatus.OK and answer.body == body:
        tally.good[kind] += 1
    else:
        tally.failed[f"{kind}: {answer.status}"] += 1


async def _wait_until_replicated(program: Program, tally: Tally, say: Callable[[str], None]) -> None:
    start = time.monotonic()
    while True:
        report = await program.ready()
        fallback = report["fallback"]
        assert isinstance(fallback, dict)
        if report["status"] == "ready" and fallback["waiting"] == 0:
            break
        say(f"waiting: {fallback['waiting']}")
        await asyncio.sleep(WAIT_INTERVAL_S)
    tally.replicated_after_s = time.monotonic() - start


async def _compare(bucket: Bucket, bodies: dict[str, bytes], tally: Tally) -> None:
    wanted = {sha256(body).hexdigest() for body in bodies.values()}
    tally.images = len(bodies)
    found: dict[str, str] = {}
    # Many are read in pieces, for they are a gigabyte or more; few at once, for a listing costs more than they do.
    folders = [f"{number:02x}/" for number in range(256)] if tally.images > AT_ONCE_MAX else [""]
    for folder in folders:
        objects = await bucket.objects(f"v1/objects/{folder}")
        found |= {name.rpartition("/")[2].partition(".")[0]: sha256(body).hexdigest() for name, body in objects.items()}
        tally.objects += len(objects)
        tally.records += len(await bucket.objects(f"v1/records/{folder}"))
    tally.wrong = sum(name != digest for name, digest in found.items())
    tally.lacking = len(wanted - set(found))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.outage", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--outage-s", type=float, default=600)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--store", choices=["s3", "gs", "az"], default="s3")
    parser.add_argument("--server", choices=NAMES, default="rclone", help="of --store s3")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as temporary,
        started(arguments.store, arguments.server, Path(temporary)) as bucket,
    ):
        folder = Path(temporary) / "data"
        tally = asyncio.run(outage(folder, bucket, outage_s=arguments.outage_s, rate=arguments.rate, say=print))
    for kind in ("stored", "new"):
        print(
            f"{kind}: {tally.good[kind]} of {tally.asked[kind]} good ({tally.availability(kind):.2%}), "
            f"p50 {tally.quantile(kind, 0.5):.0f} ms, p99 {tally.quantile(kind, 0.99):.0f} ms, "
            f"most {tally.quantile(kind, 1):.0f} ms"
        )
    if tally.failed:
        print(f"failed: {', '.join(f'{number} {what}' for what, number in tally.failed.most_common())}")
    print(f"replicated after {tally.replicated_after_s:.1f} s; {tally.lacking} lacking, {tally.wrong} wrong")
    print(f"{tally.images} images, {tally.objects} objects, {tally.records} records")
    return 0 if tally.whole else 1


if __name__ == "__main__":
    sys.exit(main())

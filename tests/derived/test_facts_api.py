"""The facts of pictures over HTTP: in the API, as a placeholder, and what is answered without them."""

from __future__ import annotations

import asyncio
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from imgkeep.bootstrap.platform import Platform
from imgkeep.bootstrap.server import SERVICES
from imgkeep.core.picture_facts import PictureFacts
from imgkeep.core.records import Digest, Key
from imgkeep.maintenance.verify_reindex import reindex
from tests.support import derive_program
from tests.support.api_calls import data_url, problem_code, remove, save
from tests.support.images import make_image
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="2" height="3"/>'
NOWHERE = "0" * 64
PROGRAM = str(Path(derive_program.__file__).resolve())
FACTS = PictureFacts(
    width=48, height=64, frames=1, has_alpha=False, orientation=6, colour="aa10ff", thumbhash="2gcKFIJ5eHg4h4eHdw=="
)


def turned_image() -> bytes:
    """Return a JPEG of 64 x 48 pixels in one colour that people see upright: 48 x 64."""
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), (200, 30, 40)).save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


async def show(imgkeep: Imgkeep, path: str) -> dict[str, Any]:
    response = await imgkeep.client.get(f"/api/images{path}")
    assert response.status == 200
    facts: dict[str, Any] = await response.json()
    return facts


async def test_facts_of_a_filled_image(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(derive={"facts": True})
    services = imgkeep.client.app[SERVICES]
    url = origin.gives("/a.jpg", turned_image())
    assert await (await imgkeep.img(url)).read() == turned_image()
    (record,) = await services.storage.database.image_index.page(limit=1)
    await until(lambda: not services.derived.facts.waiting)
    facts = await show(imgkeep, f"/{record.key}")
    picture = facts["picture"]
    assert (facts["width"], facts["height"], picture["orientation"]) == (48, 64, 6)
    assert (picture["frames"], picture["has_alpha"]) == (1, False)
    red, green, blue = bytes.fromhex(picture["colour"].removeprefix("#"))
    assert abs(red - 200) < 16 > abs(green - 30)
    assert abs(blue - 40) < 16
    (listed,) = (await show(imgkeep, ""))["images"]
    assert listed["picture"] == picture
    status, saved = await save(imgkeep, {"url": url})
    assert (status, saved["picture"]) == (200, picture)

    placeholder = await show(imgkeep, f"/{record.key}/placeholder")
    kind, _, data = placeholder["placeholder"].partition(",")
    image = Image.open(BytesIO(b64decode(data)))
    assert (kind, image.height, image.width < image.height) == ("data:image/png;base64", 32, True)
    pixel = image.convert("RGB").getpixel((10, 10))
    assert isinstance(pixel, tuple)
    assert all(abs(ours - theirs) < 16 for ours, theirs in zip(pixel, (200, 30, 40), strict=True))
    assert {name: placeholder[name] for name in ("key", "digest", "width", "height", "colour", "thumbhash")} == {
        "key": record.key,
        "digest": record.digest,
        "width": 48,
        "height": 64,
        "colour": picture["colour"],
        "thumbhash": picture["thumbhash"],
    }

    page = await (await imgkeep.client.get("/metrics")).text()
    assert 'imgkeep_derive_jobs_total{format="facts",outcome="done"} 1' in page
    assert "imgkeep_derive_facts_waiting 0" in page
    assert "imgkeep_derive_facts_dropped_total 0" in page

    assert await remove(imgkeep, f"/{record.key}") == 200
    assert await services.storage.database.picture_facts.find([record.digest]) == {}
    response = await imgkeep.client.get(f"/api/images/{record.key}/placeholder")
    assert await problem_code(response) == (410, "removed")


async def test_reindex_restores_the_facts_of_records(imgkeep: Imgkeep) -> None:
    _, saved = await save(imgkeep, {"data": data_url(make_image())})
    services = imgkeep.client.app[SERVICES]
    database, digest = services.storage.database, Digest(saved["digest"])
    record = await services.storage.store.find(Key(saved["key"]))
    assert record is not None
    await services.derived.facts._put_into_record(record, FACTS)
    assert await database.picture_facts.find([digest]) == {}
    await reindex(services.storage.archives, database.image_index)
    assert await database.picture_facts.find([digest]) == {digest: FACTS}
    facts = await show(imgkeep, f"/{saved['key']}")
    assert (facts["width"], facts["height"], facts["picture"]["colour"]) == (48, 64, "#aa10ff")
    assert (await imgkeep.client.get(f"/images/{digest}.png")).status == 200


async def test_placeholder_of_what_has_none(start: Start) -> None:
    imgkeep = await start(platform=Platform(derive_command=(sys.executable, PROGRAM, "ok")))
    services = imgkeep.client.app[SERVICES]

    async def ask(key: str) -> tuple[int, str]:
        return await problem_code(await imgkeep.client.get(f"/api/images/{key}/placeholder"))

    assert (await ask(NOWHERE))[0] == 404
    assert await ask("x") == (400, "invalid_request")
    _, drawing = await save(imgkeep, {"data": data_url(SVG, "image/svg+xml")})
    assert await ask(drawing["key"]) == (501, "not_supported")
    _, saved = await save(imgkeep, {"data": data_url(make_image())})
    assert await ask(saved["key"]) == (422, "derive_failed"), "the program tells no ThumbHash"
    damaged = PictureFacts(1, 1, 1, has_alpha=False, orientation=1, colour="000000", thumbhash="AAAAAAAA")
    await services.storage.database.picture_facts.put({Digest(saved["digest"]): damaged})
    assert await ask(saved["key"]) == (422, "derive_failed")
    assert (await imgkeep.stranger.get(imgkeep.client.make_url(f"/api/images/{NOWHERE}/placeholder"))).status == 401


async def test_without_the_extra_all_else_works(start: Start, origin: FakeOrigin) -> None:
    platform = Platform(derive_command=(sys.executable, PROGRAM, "unusable"))
    imgkeep = await start(platform=platform, derive={"facts": True})
    services = imgkeep.client.app[SERVICES]
    url = origin.gives("/a.png", make_image())
    assert await (await imgkeep.img(url)).read() == make_image()
    await until(lambda: not services.derived.facts.waiting)
    _, saved = await save(imgkeep, {"url": url})
    assert saved["picture"] is None
    assert (saved["width"], saved["height"]) == (64, 48)
    response = await imgkeep.client.get(f"/api/images/{saved['key']}/placeholder")
    assert await problem_code(response) == (501, "not_supported")


async def test_slow_decoder_delays_no_answer(start: Start, origin: FakeOrigin) -> None:
    platform = Platform(derive_command=(sys.executable, PROGRAM, "hang"))
    imgkeep = await start(platform=platform, derive={"facts": True})
    async with asyncio.timeout(10):
        for number in range(3):
            _, saved = await save(imgkeep, {"url": origin.gives(f"/{number}.png", make_image(seed=number))})
            assert saved["picture"] is None
            assert (await show(imgkeep, f"/{saved['key']}"))["picture"] is None

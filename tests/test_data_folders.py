"""
Data folders that an older version wrote are served by this one.

`data_folders/` holds what the program wrote before its modules, its database file and its settings got their present
names: database `catalog.db` at revision 0006. `local` has images of every standing, removals, a job that waits and
names of an import; `outbox` has images that wait for a bucket. Nothing in them depends on the day of a test run.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

import pytest

from tests.support.program import run, serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.s3.remote import Remote

FOLDERS = Path(__file__).with_name("data_folders")
ORIGIN = "http://127.0.0.1:41999"
"""The origin of those images; nothing listens there."""
SIGNED = (
    "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAEXAMPLE%2F20261101%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20261101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=" + "a" * 64
)
IMAGES = {
    "/plain.png": "be2e9925040a690f7e350af79592c7e89e7765279888f34065c3e9ab8f61648d",
    "/photo.jpg": "d9e4dfc23ac7885c79e4cf6a2ed72b6df2dac024a6870187dd5670461744367c",
    "/anim.gif": "a7593c879efc13f78043842fe493441df5f11d197deeae2ff1f7e4148b69b526",
    "/drawing.svg": "2fdcd08c022b0ca82574a4399b5b4e694a9158207c5199830693d65fb30a54e9",
    "/half.png": "c580c4010370d6b9d60186c58297f2751bff490e3f875f5bb780a85284b83960",
    f"/signed.png{SIGNED}": "a545e00f2f0602d24f5377e9b0ec60ed717757f7e69b4b1e72dbaa0fda8ba19a",
}
PROVISIONAL = {"/half.png", f"/signed.png{SIGNED}"}
JOB = "21ec1c8bd04c6c33ee2e4a81b0c17635"


async def test_local_folder_of_older_version_is_served(tmp_path: Path) -> None:
    data = tmp_path / "data"
    copytree(FOLDERS / "local", data)
    (tmp_path / "config.toml").write_text('[[legacy]]\nmount = "old"\n')
    async with serving(data, fetch__retries_max="0") as program:
        for path, digest in IMAGES.items():
            answer = await program.img(ORIGIN + path)
            assert (answer.status, answer.cache_status) == (200, "imgkeep; hit"), path
            assert sha256(answer.body).hexdigest() == digest
            assert ("immutable" in answer.headers["Cache-Control"]) == (path not in PROVISIONAL), path
        assert (await program.get("/old/old-name.png")).status == 200
        assert (await program.get("/old/sub/zweites%20bild.jpg")).status == 200
        assert json.loads((await program.img(f"{ORIGIN}/removed.png")).body)["code"] == "removed"
        assert json.loads((await program.img(f"{ORIGIN}/restored.png")).body)["code"] == "origin_error"
        job = json.loads((await program.get(f"/api/jobs/{JOB}")).body)
        assert (job["total"], job["saved"]) == (1, 0)
        listed = json.loads((await program.get("/api/images?limit=100")).body)["images"]
        assert {image["digest"] for image in listed} >= set(IMAGES.values())
    assert not (data / "catalog.db").exists()
    status, told, _ = await run(data, "verify", "--json")
    assert status == 0, told


@pytest.mark.usefixtures("s3_servers")
async def test_outbox_of_older_version_is_replicated(remote: Remote, tmp_path: Path) -> None:
    copytree(FOLDERS / "outbox", tmp_path / "a")
    await remote.node("a")
    expected = {IMAGES["/plain.png"], IMAGES["/photo.jpg"]}

    async def are_replicated() -> bool:
        return {path.rpartition("/")[2].partition(".")[0] for path in await remote.stored("objects")} >= expected

    await until(are_replicated)

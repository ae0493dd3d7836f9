"""The examples of docs/api.md, run as they stand there by the shell, against a running server."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.images import make_image
from tests.support.program import cannot, serving

if TYPE_CHECKING:
    from tests.support.origins import FakeOrigin

PAGE = Path("docs/api.md").read_text("utf-8")
EXAMPLES = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "curl" in block]
TOKEN = re.findall(r"^token=.*", PAGE, re.MULTILINE)[0].partition("=")[2]
"""As a shell reads it."""
README = next(
    block
    for block in re.findall(r"```sh\n(.*?)```", Path("README.md").read_text("utf-8"), re.DOTALL)
    if "/api/" in block
)
DIGEST = sha256(make_image()).hexdigest()


async def shell(script: str, folder: Path, **variables: str) -> str:
    """Run a script as people would paste it; `--json` is in curl from 7.82 on."""
    settings = "\n".join(f"{name}={value}" for name, value in variables.items())
    if not await _knows_json():
        script = script.replace("--json ", '-H "Content-Type: application/json" --data-binary ')
    process = await asyncio.create_subprocess_exec(
        "sh", "-ec", f"{settings}\n{script}", cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def _knows_json() -> bool:
    process = await asyncio.create_subprocess_exec("curl", "--help", "all", stdout=asyncio.subprocess.PIPE)
    return b"--json" in (await process.communicate())[0]


def shapes(reply: object) -> object:
    """Names and types, for comparing with an example."""
    if isinstance(reply, dict):
        return {name: shapes(value) for name, value in reply.items()}
    return type(reply).__name__


async def test_every_example_works_as_written(tmp_path: Path, origin: FakeOrigin) -> None:  # noqa: PLR0915 - a page
    if shutil.which("curl") is None:
        cannot("curl is not installed")
    (tmp_path / "picture.png").write_bytes(make_image())
    origin.gives("/picture.png", make_image(seed=1))
    origin.gives("/other.png", make_image(seed=2))
    examples = [block.replace("https://example.com", origin.url("")) for block in EXAMPLES]
    examples = [re.sub(r'(host=|which": \[")example\.com', r"\g<1>127.0.0.1", block) for block in examples]
    by_link, upload, body, data, many, job, jobs, cancelling, events, images, one, *examples = examples
    removal, undo, undos, placeholder, again, inspect, policy, text, page = examples
    settings: dict[str, Any] = {"server__public_url": "http://127.0.0.1:8080"}
    async with serving(tmp_path / "data", **settings) as program:
        known = {"base": f"http://{program.address}", "token": TOKEN}

        async def reply(example: str, **more: str) -> dict[str, Any]:
            facts: dict[str, Any] = json.loads(await shell(example, tmp_path, **known, **more))
            assert facts["success"] is True
            return facts

        saved = await reply(by_link)
        documented = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
        assert shapes(saved) == shapes(documented)
        assert saved["url"] == f"http://127.0.0.1:8080/images/{sha256(make_image(seed=1)).hexdigest()}.png"
        first = README.replace("https://example.com", origin.url("")).replace("127.0.0.1:8080", program.address)
        assert (await reply(first))["key"] == saved["key"]
        assert (await reply(upload))["created"] is True
        assert (await reply(body))["created"] is False
        assert (await reply(data))["created"] is False
        taken = await reply(many)
        assert (taken["total"], len(taken["id"])) == (2, 32)
        assert (await shell(events, tmp_path, **known, job=taken["id"])).rstrip().splitlines()[-2] == "event: done"
        results = (await reply(job, job=taken["id"]))["results"]
        documented = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])["results"]
        assert [sorted(result) for result in results] == [sorted(result) for result in documented]
        assert results[1]["error"] == documented[1]["error"]
        assert [each["id"] for each in (await reply(jobs))["jobs"]] == [taken["id"]]
        assert (await reply(cancelling, job=taken["id"]))["state"] == "done"
        assert (await reply(policy))["allow"] == ["*"]
        assert [image["key"] for image in (await reply(images))["images"]] == [saved["key"]]
        assert (await reply(one, key=saved["key"]))["digest"] == saved["digest"]
        assert (await program.img(origin.url("/other.png"))).status == 200
        answers = (await shell(removal, tmp_path, **known, key=saved["key"], digest=DIGEST)).replace("}{", "}\n{")
        assert [json.loads(line)["success"] for line in answers.splitlines()] == [True] * 3
        for path in (f"/images/{saved['digest']}.png", f"/images/{DIGEST}.png"):
            assert (await program.get(path)).status == 410
        assert (await program.img(origin.url("/other.png"))).status == 410
        restored = await reply(undo, key=saved["key"])
        assert shapes(restored) == shapes(json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[-4]))
        assert restored["keys"] == [saved["key"]]
        assert (await shell(undos, tmp_path, **known, digest=DIGEST)).count('"restored":true') == 2
        assert (await program.img(origin.url("/other.png"))).status == 200
        assert ((await reply(by_link))["created"], (await reply(again, key=saved["key"]))["replaced"]) == (True, False)
        documented = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[-3])
        assert shapes(await reply(placeholder, key=saved["key"])) == shapes(documented)
        assert (await reply(inspect))["key"] == saved["key"]
        kept = "http://127.0.0.1:8080/img?src="
        assert (await shell(text, tmp_path, **known)).startswith(f"![a picture]({kept}http%3A%2F%2F127.0.0.1")
        rewritten = await reply(page)
        documented = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[-1])
        assert shapes(rewritten) == shapes(documented)
        assert rewritten["html"].startswith(f'<img src="{kept}http%3A%2F%2F127.0.0.1')
        assert program.token not in "".join(program.log)

"""A whole noisy run, and then a search: no log line, counter or error holds a token, a key or a link."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from imgkeep.core.signing import signed_path
from tests.support.images import make_image
from tests.support.program import run, serving
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.program import Program

KEY, OLD_KEY = "signing-key-s3cr3t-one", "signing-key-s3cr3t-two"
TOKEN, OTHER_TOKEN = "api-token-s3cr3t-one", "api-token-s3cr3t-two"
MARK = "s3cr3t"
"""Stands in everything that must not be told."""


async def test_no_secret_leaks(tmp_path: Path, origin: FakeOrigin) -> None:
    async def breaks_off(exchange: Exchange) -> None:
        await exchange.send_head("Content-Length: 100000")
        await exchange.send(make_image()[:40])
        exchange.reset()

    paths = {
        "good": origin.gives("/good.png", make_image()),
        "page": origin.gives("/page", b"<html>"),
        "refused": origin.gives("/refused", b"", status="403 Forbidden"),
        "error": origin.gives("/error", b"", status="500 Error"),
        "redirect": origin.gives(
            "/redirect", b"", status="302 Found", headers={"Location": "http://10.0.0.1/?t=s3cr3t"}
        ),
        "broken": origin.on("/broken", breaks_off),
        "missing": origin.url("/missing"),
    }
    links = [f"{url}?sig={MARK}" for url in paths.values()]
    links += [
        f"http://127.0.0.1:1/{MARK}",
        f"http://user:{MARK}@a.example/",
        f"ftp://a.example/{MARK}",
        f"{MARK}",
        "https://",
    ]
    settings: dict[str, Any] = {
        "security__signature": "always",
        "security__signing_keys": f"{KEY},{OLD_KEY}",
        "security__api_tokens": f"{TOKEN},{OTHER_TOKEN}",
        "log__level": "debug",
        "fetch__total_timeout_s": "5",
        "fetch__retries_max": "0",
    }
    reply: list[str] = []
    async with serving(tmp_path / "data", **settings) as program:
        for link in links:
            for path in (
                signed_path(KEY, link),
                signed_path(OLD_KEY, link, expires=1),
                signed_path("a-wrong-key-s3cr3t", link),
                f"/img?src={quote(link, safe='')}",
                f"/img?sig={MARK}&src={link}",
            ):
                answer = await program.get(path.replace(" ", "%20"))
                if answer.headers.get("Content-Type") == "application/problem+json":
                    reply.append(answer.body.decode())
        reply += await abuse_the_api(program, links, origin)
        reply.append((await program.get("/metrics")).body.decode())
        reply.append((await program.get("/readyz")).body.decode())
    for words in (["stats"], ["save", *links[:3]], ["check", "--live"]):
        _, out, err = await run(tmp_path / "data", *words, **settings)
        reply += [out.replace(f"images/{MARK}", ""), err]
    reply += program.log
    assert len(program.log) > 100
    guilty = [line for line in reply if MARK in line]
    assert guilty == []
    with sqlite3.connect(tmp_path / "data" / "imgkeep.db") as database:
        assert database.execute("SELECT count(*) FROM items WHERE link IS NOT NULL").fetchone() == (0,)
        assert MARK not in str(database.execute("SELECT * FROM items").fetchall())


async def abuse_the_api(program: Program, links: list[str], origin: FakeOrigin) -> list[str]:
    reply = []

    async def ask(method: str, path: str, token: str = TOKEN, **how: Any) -> str:
        headers = {"Authorization": f"Bearer {token}"}
        async with program.session.request(
            method, f"http://{program.address}{path}", headers=headers, **how
        ) as response:
            text = await response.text()
            if response.status >= 400 or "/jobs/" in path:
                reply.append(text)
            return text

    for token in (f"wrong-{MARK}", TOKEN, OTHER_TOKEN):
        for link in links:
            await ask("POST", "/api/save-image", token, json={"url": link})
            await ask("DELETE", f"/api/images?src={quote(link + '&other', safe='')}", token)
    await ask("POST", "/api/save-image", json={f"https://a.example/?t={MARK}": 1})
    await ask("POST", "/api/save-image", json={"data": f"data:image/png;base64,{MARK}!"})
    await ask("GET", f"/api/images?cursor={MARK}&{MARK}=1")
    hook = origin.gives("/hook", b"", status="500 No") + f"?t={MARK}"
    settled = [link for link in links if not any(part in link for part in ("/error", "/broken", ":1/"))]
    job = json.loads(await ask("POST", "/api/save-images", json={"urls": [*settled, 7], "webhook": hook}))["id"]

    async def is_done() -> bool:
        return bool(json.loads(await ask("GET", f"/api/jobs/{job}"))["state"] == "done")

    await until(is_done, within_s=60)
    await ask("GET", f"/api/jobs/{job}/events")
    return reply

"""Where redirects lead, and what cookies they take along, as Chromium (156) follows them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.images import make_image
from tests.support.network import look, nothing_kept

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

LOCATIONS = {
    "Latin-1": (b"/t/caf\xe9.png", "/t/caf%E9.png"),
    "Latin-1 in a query": (b"/t/a.png?n=caf\xe9", "/t/a.png?n=caf%E9"),
    "UTF-8": ("/t/café 猫.png".encode(), "/t/caf%C3%A9%20%E7%8C%AB.png"),
    "UTF-8 in a query": ("/t/a.png?n=café".encode(), "/t/a.png?n=caf%C3%A9"),
    "both": ("/t/猫.png?x=".encode() + b"\xe9", "/t/%E7%8C%AB.png?x=%E9"),
    "no encoding": (b"/t/\xed\xa0\x80\xff\xfe.png", "/t/%ED%A0%80%FF%FE.png"),
    "control bytes": (b"/t/a\x01b\x7fc.png", "/t/a%01b%7Fc.png"),
    "escapes": (b"/t/a%e9%2f.png", "/t/a%e9%2f.png"),
    "a space": (b"/t/a b.png", "/t/a%20b.png"),
    "spaces around": (b"   /t/a.png  \t", "/t/a.png"),
    "a tab inside": (b"/t/a\tb.png", "/t/ab.png"),
    "no-break space before": ("\u00a0/t/a.png".encode(), "/start/%C2%A0/t/a.png"),
    "backslashes": (b"\\t\\a.png", "/t/a.png"),
    "backslashes and dots": (b"/t\\..\\t/./a.png", "/t/a.png"),
    "backslash in a query": (b"/t/a.png?x=\\y", "/t/a.png?x=%5Cy"),
    "two slashes and a host": (b"//HOST/t/a.png", "/t/a.png"),
    "two backslashes and a host": (b"\\\\HOST/t/a.png", "/t/a.png"),
    "slash, backslash and a host": (b"/\\HOST/t/a.png", "/t/a.png"),
    "three slashes and a host": (b"http:///HOST/t/a.png", "/t/a.png"),
    "backslashes throughout": (b"http:\\\\HOST\\t\\a.png", "/t/a.png"),
    "capitals": (b"HTTP://HOST/t/a.png", "/t/a.png"),
    "zeros before the port": (b"http://127.0.0.1:000PORT/t/a.png", "/t/a.png"),
    "scheme without slashes": (b"http:a.png", "/start/a.png"),
    "scheme with a path": (b"http:/t/a.png", "/t/a.png"),
    "relative": (b"a.png", "/start/a.png"),
    "up": (b"../t/a.png", "/t/a.png"),
    "encoded dots": (b"/t/%2e%2E/t/a.png", "/t/a.png"),
    "empty segments": (b"/t//a.png", "/t//a.png"),
    "query alone": (b"?y=2", "/start/here?y=2"),
    "fragment": (b"/t/a.png#there", "/t/a.png"),
    "in angle brackets": (b"</t/a.png>", "/start/%3C/t/a.png%3E"),
    "in quotes": (b'"/t/a.png"', "/start/%22/t/a.png%22"),
    "two in a list": (b"/t/a.png, /t/b.png", "/t/a.png,%20/t/b.png"),
    "the same twice": (b"/t/a.png\r\nLocation: /t/a.png", "/t/a.png"),
}


def redirect(location: bytes, *fields: bytes, status: bytes = b"302 Found") -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Location: " + location, *fields, b"Content-Length: 0"]
    return b"\r\n".join([*lines, b"", b""])


async def test_redirect_leads_where_chromium_goes(
    imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests
) -> None:
    host, port = f"127.0.0.1:{origin.port}".encode(), str(origin.port).encode()
    for number, (name, (location, target)) in enumerate(LOCATIONS.items()):
        start = f"/start/here?x={number}"

        async def script(exchange: Exchange, start: str = start, location: bytes = location) -> None:
            if exchange.target == start:
                await exchange.send(redirect(location.replace(b"HOST", host).replace(b"PORT", port)))
            else:
                await exchange.answer(make_image())

        with subtests.test(name):
            origin.seen.clear()
            origin.scripts.clear()
            origin.gives(target.partition("?")[0], make_image())
            origin.on("/start/here", script)
            seen = await look(imgkeep, origin.url(start))
            assert (seen.status, seen.body) == (200, make_image())
            assert [exchange.target for exchange in origin.seen] == [start, target]


@pytest.mark.parametrize(
    ("location", "status"),
    [
        pytest.param(b"/t/a.png\r\nLocation: /t/b.png", 502, id="two that differ"),
        pytest.param(b"", 502, id="empty"),
        pytest.param(b" \t", 502, id="white space"),
        pytest.param(b"http://u:p@HOST/t/a.png", 403, id="user information"),
        pytest.param(b"data:image/png;base64,iVBORw0KGgo=", 403, id="data"),
        pytest.param(b"file:///etc/passwd", 403, id="file"),
        pytest.param(b"\\\\169.254.169.254\\a.png", 403, id="metadata behind backslashes"),
        pytest.param("http://①⑥⑨.254.169.254/".encode(), 403, id="metadata in circles"),
        pytest.param(b"http://169.254.169.%32%35%34/", 403, id="metadata in escapes"),
        pytest.param(b"//[::1%25lo]/", 403, id="address with a zone"),
        pytest.param(b"http://\xff/", 403, id="host in no encoding"),
        pytest.param(b"http:///", 403, id="no host"),
    ],
)
async def test_redirect_to_nowhere_or_inside_is_refused(
    start: Start, origin: FakeOrigin, location: bytes, status: int
) -> None:
    imgkeep = await start()
    location = location.replace(b"HOST", f"127.0.0.1:{origin.port}".encode())

    async def script(exchange: Exchange) -> None:
        await exchange.send(redirect(location))

    seen = await look(imgkeep, origin.on("/a.png", script))
    assert seen.status == status
    assert len(origin.seen) == 1
    await nothing_kept(imgkeep)


# --- cookies


def wall(*fields: bytes, wanted: str, location: bytes = b"/a.png") -> Callable[[Exchange], Awaitable[None]]:
    """Return a script that gives its image to a request with these cookies, and else sets them and redirects."""

    async def script(exchange: Exchange) -> None:
        if exchange.headers.get("cookie", "") == wanted:
            await exchange.answer(make_image())
        else:
            await exchange.send(redirect(location, *fields))

    return script


COOKIES = {
    "one": ([b"Set-Cookie: a=b"], "a=b"),
    "two": ([b"Set-Cookie: a=b", b"Set-Cookie: c=d; HttpOnly; SameSite=Strict"], "a=b; c=d"),
    "with a path": ([b"Set-Cookie: a=b; Path=/", b"Set-Cookie: c=d; path=/a.png"], "a=b; c=d"),
    "for another path": ([b"Set-Cookie: a=b", b"Set-Cookie: c=d; Path=/other"], "a=b"),
    "for a longer path": ([b"Set-Cookie: a=b", b"Set-Cookie: c=d; Path=/a"], "a=b"),
    "for its own domain": ([b"Set-Cookie: a=b; Domain=127.0.0.1"], "a=b"),
    "for another domain": ([b"Set-Cookie: a=b", b"Set-Cookie: c=d; Domain=example.com"], "a=b"),
    "for https": ([b"Set-Cookie: a=b", b"Set-Cookie: c=d; Secure", b"Set-Cookie: __Host-e=f; Path=/"], "a=b"),
    "that ended": ([b"Set-Cookie: a=b; Max-Age=60", b"Set-Cookie: c=d; Max-Age=0"], "a=b"),
    "that ended long ago": (
        [b"Set-Cookie: a=b", b"Set-Cookie: c=d; Expires=Thu, 01-Jan-1970 00:00:01 GMT"],
        "a=b",
    ),
    "set again": ([b"Set-Cookie: a=b", b"Set-Cookie: a=c"], "a=c"),
    "in quotes": ([b'Set-Cookie: a="b c"'], 'a="b c"'),
    "of JSON": ([b'Set-Cookie: a={"b": [1, 2]}'], 'a={"b": [1, 2]}'),
    "with odd characters": ([b"Set-Cookie: a=b/c=d+e%20f,g h; Path=/"], "a=b/c=d+e%20f,g h"),
    "with an empty value": ([b"Set-Cookie: a="], "a="),
    "with a line that is none": ([b"Set-Cookie: a=b", b"Set-Cookie", b"X Y: z"], "a=b"),
}


async def test_cookie_wall_opens(imgkeep: Imgkeep, origin: FakeOrigin, subtests: pytest.Subtests) -> None:
    for number, (name, (fields, wanted)) in enumerate(COOKIES.items()):
        with subtests.test(name):
            origin.seen.clear()
            seen = await look(imgkeep, f"{origin.on('/a.png', wall(*fields, wanted=wanted))}?x={number}")
            assert (seen.status, seen.body) == (200, make_image())
            assert origin.asked("/a.png") == 2


async def test_cookie_wall_with_a_fragment_opens(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    seen = await look(imgkeep, origin.on("/a.png", wall(b"Set-Cookie: a=b", wanted="a=b", location=b"#")))
    assert seen.status == 200


async def test_closed_cookie_wall_costs_the_limit(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"redirects_max": 4, "retries_max": 2})
    seen = await look(imgkeep, origin.on("/a.png", wall(b"Set-Cookie: a=b", wanted="no such")))
    assert (seen.status, seen.code) == (502, "origin_error")
    assert origin.asked("/a.png") == 5


async def test_cookies_do_not_outlive_a_fetch(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    await look(imgkeep, origin.on("/a.png", wall(b"Set-Cookie: a=b; Path=/", wanted="a=b")))
    assert (await look(imgkeep, origin.gives("/b.png", make_image(seed=2)))).status == 200
    assert [exchange.headers.get("cookie") for exchange in origin.seen] == [None, "a=b", None]


async def test_cookies_go_to_the_host_that_set_them(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    """127.0.0.1 sets cookies and redirects to 127.0.0.2, which sets its own and redirects back."""
    server = await asyncio.start_server(origin._serve, "127.0.0.2", origin.port)
    there = f"http://127.0.0.2:{origin.port}/b.png".encode()
    back = origin.url("/c.png").encode()

    async def first(exchange: Exchange) -> None:
        await exchange.send(redirect(there, b"Set-Cookie: a=1; Path=/", b"Set-Cookie: x=1; Domain=127.0.0.2; Path=/"))

    async def second(exchange: Exchange) -> None:
        await exchange.send(redirect(back, b"Set-Cookie: b=2; Path=/", b"Set-Cookie: a=3; Domain=127.0.0.1; Path=/"))

    origin.on("/b.png", second)
    origin.gives("/c.png", make_image())
    assert (await look(imgkeep, origin.on("/a.png", first))).status == 200
    assert [exchange.headers.get("cookie") for exchange in origin.seen] == [None, None, "a=1"]
    server.close()


async def test_cookies_last_over_the_retries_of_a_fetch(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(fetch={"retries_max": 1})

    async def script(exchange: Exchange) -> None:
        if exchange.headers.get("cookie") == "a=b":
            await exchange.answer(make_image())
        else:
            await exchange.answer(b"", status="503 Busy", headers={"Set-Cookie": "a=b", "Retry-After": "0"})

    assert (await look(imgkeep, origin.on("/a.png", script))).status == 200


async def test_cookies_have_a_limit(start: Start, origin: FakeOrigin) -> None:
    """However many a chain sets, a request stays small, and a cookie that comes too late is not taken."""
    imgkeep = await start(fetch={"redirects_max": 3})

    async def script(exchange: Exchange) -> None:
        number = exchange.number
        fields = [f"Set-Cookie: c{number}x{n}={'v' * 200}".encode() for n in range(200)]
        await exchange.send(redirect(b"/a.png", *fields))

    assert (await look(imgkeep, origin.on("/a.png", script))).status == 502
    cookies = [exchange.headers.get("cookie", "") for exchange in origin.seen]
    assert all(7_000 < len(value) < 8_192 for value in cookies[1:])
    assert "c1x" not in cookies[2] + cookies[3]


async def test_too_long_cookies_are_ignored(imgkeep: Imgkeep, origin: FakeOrigin) -> None:
    fields = [b"Set-Cookie: a=b", b"Set-Cookie: c=" + b"d" * 5000, b"Set-Cookie: e=" + b"f" * 100_000]
    assert (await look(imgkeep, origin.on("/a.png", wall(*fields, wanted="a=b")))).status == 200

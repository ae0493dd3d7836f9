"""
What a stranger can have fetched and shown: `sources.allow`, `sources.deny` and `sources.permanent`.

The attacker knows the lists. He puts files on hosts that many share, spells paths so that they look like another
account's, hides a denied host behind a redirect, a proxy or another name of the same image, and uses the server's good
name to send people elsewhere.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.config import ConfigError, load
from imgkeep.core.identity import BUILT_IN
from imgkeep.core.policy import judge
from imgkeep.core.source_url import read_source
from tests.support.images import make_image
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

IMAGE = make_image(seed=1)


async def code(imgkeep: Imgkeep, url: str) -> tuple[int, str]:
    response = await imgkeep.img(url, allow_redirects=False)
    if response.status < 400:
        await response.read()
        return response.status, ""
    return response.status, (await response.json())["code"]


REFUSED = (403, "source_forbidden")


# --- an open server is not filled from hosts where strangers put files

STRANGERS = [
    "https://raw.githubusercontent.com/evil/repo/main/a.png",
    "https://camo.githubusercontent.com/abc/68747470733a2f2f6576696c",
    "https://avatars.githubusercontent.com/u/1?v=4",
    "https://private-user-images.githubusercontent.com/1/2-a.png?jwt=x",
    "https://firebasestorage.googleapis.com/v0/b/evil.appspot.com/o/a.png?alt=media",
    "https://storage.googleapis.com/evil/a.png",
    "https://cdn.discordapp.com/attachments/1/2/a.png",
    "https://media.discordapp.net/attachments/1/2/a.png",
    "https://dl.dropboxusercontent.com/scl/fi/x/a.png?rlkey=k",
    "https://ucdb30.dl.dropboxusercontent.com/cd/0/inline/x/file",
    "https://lh3.googleusercontent.com/pw/x=w100",
    "https://encrypted-tbn0.gstatic.com/images?q=x",
    "https://api.telegram.org/file/bot1:A/photos/file_1.jpg",
    "https://i.pinimg.com/originals/a.png",
    "https://i.redd.it/a.png",
    "https://preview.redd.it/a.png",
    "https://pbs.twimg.com/media/x?name=large",
    "https://scontent-iad3-1.xx.fbcdn.net/v/a.jpg",
    "https://scontent.cdninstagram.com/v/a.jpg",
    "https://lookaside.fbsbx.com/ig_messaging_cdn/?asset_id=1",
    "https://p16-common-sign.tiktokcdn-us.com/a.jpeg",
    "https://p3-dreamina-sign.byteimg.com/a.jpeg",
    "https://sns-webpic-qc.xhscdn.com/a",
    "https://media.licdn.com/dms/image/a",
    "https://files.slack.com/files-pri/T1-F1/a.png?pub_secret=1",
    "https://prod-files-secure.s3.us-west-2.amazonaws.com/a.png",
    "https://file.notion.so/f/a.png",
    "https://img.notionusercontent.com/s3/a.png",
    "https://v5.airtableusercontent.com/v3/u/1/1/1/a",
    "https://figma-alpha-api.s3.us-west-2.amazonaws.com/images/a",
    "https://image.mux.com/x/thumbnail.png",
    "https://abc.files.1drv.com/y4mX/a.png",
    "https://api.twilio.com/2010-04-01/a",
    "https://mms.twiliocdn.com/a",
    "https://images-wixmp-ed30.wixmp.com/f/a.png",
    "https://cdn-lfs.huggingface.co/repos/a",
    "https://cas-bridge.xethub.hf.co/a",
    "https://evil-space.hf.space/file=/tmp/gradio/a.png",
    "https://files.oaiusercontent.com/file-a",
    "https://chatgpt.com/backend-api/estuary/content?id=file_1",
    "https://image.civitai.com/a.png",
    "https://z-cdn-media.chatglm.cn/files/a.jpg",
    "https://wsrv.nl/?url=evil.example/a.png",
    "https://evil.imgix.net/a.png",
    "https://evil.b-cdn.net/a.png",
]


@table("url", STRANGERS)
def test_open_server_fetches_no_upload_of_a_stranger(url: str) -> None:
    for host in ("0.0.0.0", "::"):
        policy = load({"server": {"host": host}}, {}).policy(BUILT_IN)
        assert judge(read_source(url), policy) == "host is not in sources.allow"
    shared = load({"server": {"host": "::"}, "sources": {"allow": ["known", "shared"]}}, {}).policy(BUILT_IN)
    wanted = not url.startswith(("https://storage.googleapis.com", "https://evil.b-cdn.net"))
    assert (judge(read_source(url), shared) is None) is wanted, "those who want the group can have it"


REVIEWED = {
    "oaidalleapiprodscus.blob.core.windows.net", "videos.openai.com", "dalleprodsec.blob.core.windows.net",
    "weights.replicate.delivery", "replicate.delivery", "*.replicate.delivery", "fal.media", "*.fal.media",
    "delivery-*.bfl.ai", "delivery.bfl.ai", "bfldeliveryprod.blob.core.windows.net", "ideogram.ai",
    "dnznrvs05pmza.cloudfront.net", "img.recraft.ai", "api.together.ai", "pre-signed-firefly-prod.s3.amazonaws.com",
    "pre-signed-firefly-prod.s3-accelerate.amazonaws.com", "imgen.x.ai",
    "dashscope-result-wlcb-acdr-1.oss-cn-wulanchabu-acdr-1.aliyuncs.com", "aigc-files.bigmodel.cn",
    "sfile.chatglm.cn", "hailuo-image-algeng-data.oss-cn-wulanchabu.aliyuncs.com", "*.klingai.com", "cdn.klingai.com",
    "qianfan-modelbuilder-img-gen.bj.bcebos.com", "sc-maas.oss-cn-shanghai.aliyuncs.com", "s3.siliconflow.cn",
    "orchestration.civitai.com", "img.theapi.app", "tempfile.aiquickdraw.com", "cdn.leonardo.ai",
    "cdn.midjourney.com", "storage.cdn-luma.com", "cdn.pika.art", "cdn-magnific.freepik.com", "api.deepai.org",
    "flow-content.google", "faas-output-image.s3.ap-southeast-1.amazonaws.com", "faas-output-image.s3.amazonaws.com",
    "d-id-talks-prod.s3.us-west-2.amazonaws.com", "d-id-talks-prod.s3.amazonaws.com", "d1q70pf5vjeyhc.cloudfront.net",
    "im.runware.ai", "images.prodia.xyz", "cdn-icons.flaticon.com",
}  # fmt: skip
"""
Hosts on which lies what a service made for its customers. Before a host is added here: can a stranger put a file there
with a free account or none, or get a name under the glob? Then it belongs to `shared_hosts`.
"""


def test_every_known_host_was_reviewed() -> None:
    assert set(BUILT_IN.known_hosts) == REVIEWED


def test_no_host_is_known_and_shared() -> None:
    shared = load({"sources": {"allow": ["shared"]}}, {}).policy(BUILT_IN)
    for glob in BUILT_IN.known_hosts:
        if "dashscope" not in glob and "hailuo" not in glob:  # a bucket that is theirs, out of a pattern that is not
            assert shared.host_refusal(glob.replace("*", "x")) is not None, glob


@pytest.mark.parametrize(
    "path",
    [
        "/evil/a.png", "/acme/../evil/a.png", "/acme/%2e%2e/evil/a.png", "/acme/..%2fevil/a.png",
        "/acme%2f..%2fevil/a.png", "/acme//../../evil/a.png", "/acme/..%5cevil/a.png", "/acme\\..\\evil\\a.png",
        "/acme/..;/evil/a.png", "/acme/%252e%252e/evil/a.png", "//acme/../evil/a.png", "/ACME/a.png", "/acme",
        "/acmeevil/a.png",
    ],
)  # fmt: skip
async def test_allowed_account_admits_no_other(start: Start, origin: FakeOrigin, path: str) -> None:
    imgkeep = await start(sources={"allow": ["127.0.0.1/acme/*"]})
    good = origin.gives("/acme/a.png", IMAGE)
    origin.gives("/hop.png", b"", status="302 Found", headers={"Location": path})
    origin.gives("/acme/hop.png", b"", status="302 Found", headers={"Location": origin.url(path)})
    assert await code(imgkeep, origin.url(path)) == REFUSED
    assert await code(imgkeep, origin.url("/hop.png")) == REFUSED
    assert await code(imgkeep, origin.url("/acme/hop.png")) == REFUSED
    assert [exchange.target for exchange in origin.seen] == ["/acme/hop.png"], "nothing but the allowed hop was asked"
    assert await code(imgkeep, good) == (200, "")


# --- a denied host is denied under every name


async def test_denied_account_is_denied_in_every_spelling(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(sources={"deny": ["127.0.0.1/evil/*"]})
    for path in (
        "/evil/a.png",
        "//evil/a.png",
        "/x/../evil/a.png",
        "/%65vil/a.png",
        "/EVIL/a.png",
        "/x/%2e%2e/evil/a.png",
    ):
        assert await code(imgkeep, origin.url(path)) == REFUSED
    assert origin.seen == []
    assert await code(imgkeep, origin.gives("/good/a.png", IMAGE)) == (200, "")


PROXY: dict[str, Any] = {
    "name": "Own proxy", "hosts": ["127.0.0.1"], "paths": ["/proxy*"], "keep": ["url"], "nested": "url",
}  # fmt: skip


PROXIED = [
    "url=http://denied.example/a.png",
    "url=http%3A%2F%2Fdenied.example%2Fa.png",
    "url=denied.example/a.png",
    "url=//DENIED.example./a.png",
    "url=ssl:denied.example/a.png",
    "url=https://u:p@denied.example:8443/a.png",
    "url=https:%5C%5Cdenied.example%5Ca.png",
    "url=https%253A%252F%252Fdenied.example%252Fa.png",
    "url=aHR0cHM6Ly9kZW5pZWQuZXhhbXBsZS9h",
    "url=http://good.example/a.png&url=http://denied.example/a.png",
    "url=http://good.example/a.png&default=http://denied.example/a.png",
    "url=http%3A%2F%2F127.0.0.1%2Fproxy%3Furl%3Dhttp%3A%2F%2Fdenied.example%2Fa.png",
    "url=http://127.0.0.1/proxy?url=127.0.0.1/proxy?url=http://127.0.0.1/proxy?url=http://denied.example/a.png",
    "url=https://wsrv.nl/?url=denied.example/a.png",
    "url=" + "https://wsrv.nl/?url=" * 40 + "denied.example/a.png",
    "url=https://images.weserv.nl/?url=https%3A%2F%2Fapp.example%2F_next%2Fimage%3Furl%3Dhttps%253A%252F%252Fdenied.example%252Fa",
]  # fmt: skip


async def test_denied_host_behind_a_known_proxy_is_denied(
    start: Start, origin: FakeOrigin, subtests: pytest.Subtests
) -> None:
    imgkeep = await start(sources={"deny": ["denied.example"], "providers": [PROXY]})
    origin.gives("/proxy", IMAGE)
    for number, query in enumerate(PROXIED):
        with subtests.test(query):
            hop = origin.gives(f"/{number}.png", b"", status="302 Found", headers={"Location": f"/proxy?{query}"})
            assert await code(imgkeep, origin.url(f"/proxy?{query}")) == REFUSED
            assert await code(imgkeep, hop) == REFUSED
            assert origin.asked("/proxy") == 0
    assert await code(imgkeep, origin.url("/proxy?url=http://good.example/a.png")) == (200, "")


ALIASES: dict[str, Any] = {
    "name": "Two names", "hosts": ["127.0.0.1", "127.0.0.2"], "permission": False,
    "place": r"127\.0\.0\.[12](?P<path>/pictures/.+)", "becomes": "pictures.example{path}",
}  # fmt: skip


@pytest.fixture
async def other(origin: FakeOrigin) -> AsyncIterator[str]:
    """The same origin under another address."""
    server = await asyncio.start_server(origin._serve, "127.0.0.2", origin.port)
    yield f"http://127.0.0.2:{origin.port}"
    server.close()


@pytest.mark.parametrize(
    ("deny", "shown"),
    [
        pytest.param("127.0.0.1", [], id="the host that the record came from, and its alias"),
        pytest.param("127.0.0.2", ["127.0.0.1"], id="the alias"),
        pytest.param("pictures.example", [], id="the host that both are folded to"),
        pytest.param("pictures.example/pictures/a*", [], id="a path of that"),
        pytest.param("127.0.0.1/pictures/*", [], id="a path of the host that the record came from"),
        pytest.param("127.0.0.1/pictures/b*", ["127.0.0.1", "127.0.0.2"], id="another path"),
        pytest.param("other.example", ["127.0.0.1", "127.0.0.2"], id="another host"),
    ],
)
async def test_alias_shows_no_denied_image(
    start: Start, origin: FakeOrigin, other: str, *, deny: str, shown: list[str]
) -> None:
    link, alias = origin.gives("/pictures/a.png", IMAGE), f"{other}/pictures/a.png"
    before = await start(sources={"providers": [ALIASES]})
    assert [(await code(before, url))[0] for url in (link, alias)] == [200, 200]
    assert origin.asked("/pictures/a.png") == 1, "the two are one picture"
    strict = await start(sources={"providers": [ALIASES], "deny": [deny]})
    for url in (link, alias):
        allowed = read_source(url).host in shown
        assert (await code(strict, url))[0] == (200 if allowed else 403)
        saved = await strict.client.post("/api/save-image", json={"url": url})
        assert saved.status == (200 if allowed else 403)
    assert origin.asked("/pictures/a.png") == 1


async def test_image_of_a_denied_host_is_not_shown_by_another_link(
    start: Start, origin: FakeOrigin, other: str
) -> None:
    """The record alone tells: the rule that made the two one is gone from the lists, and the link names neither."""
    link = origin.gives("/pictures/a.png", IMAGE)
    assert (await code(await start(sources={"providers": [ALIASES]}), link))[0] == 200
    folded = {**ALIASES, "hosts": ["127.0.0.2"], "place": r"127\.0\.0\.2(?P<path>/pictures/.+)"}
    strict = await start(sources={"providers": [folded], "deny": ["127.0.0.1"]})
    assert await code(strict, f"{other}/pictures/a.png") == REFUSED
    assert origin.asked("/pictures/a.png") == 1


# --- no client is sent elsewhere in our name

OPEN: list[dict[str, Any]] = [
    {"server": {"host": "0.0.0.0"}},
    {"server": {"host": "::"}},
    {"server": {"host": "img.example.com"}},
    {"server": {"public_url": "https://img.example.com"}},
    {"server": {"trusted_proxies": ["10.0.0.0/8"]}},
]


@pytest.mark.parametrize("reach", OPEN, ids=lambda reach: str(reach["server"]))
def test_open_server_is_no_open_redirect(reach: dict[str, Any]) -> None:
    for allow in (["auto"], ["*"], ["known"], ["shared"], ["*.example.com"], ["img.example.com", "a?.example.com"]):
        sections = {**reach, "sources": {"permanent": "redirect", "allow": allow}}
        with pytest.raises(ConfigError, match=r"^sources\.permanent: 'redirect' sends clients .*security\.signature"):
            load(sections, {})
    for allow in (["img.example.com"], ["img.example.com/acme/*", "b.example"], []):
        load({**reach, "sources": {"permanent": "redirect", "allow": allow}}, {})
    for signature in ("misses", "always"):
        signed = {"signature": signature, "signing_keys": ["k" * 32]}
        load({**reach, "sources": {"permanent": "redirect"}, "security": signed}, {})
    load({**reach, "sources": {"permanent": "store"}}, {})


async def test_redirect_needs_its_signature(start: Start, origin: FakeOrigin) -> None:
    for signature in ("misses", "always"):
        imgkeep = await start(
            sources={"permanent": "redirect"}, security={"signature": signature, "signing_keys": ["k" * 32]}
        )
        status, _ = await code(imgkeep, origin.gives("/page.html", b"<h1>log in</h1>"))
        assert status == 403


async def test_only_hosts_that_are_written_out_are_redirected_to(start: Start, origin: FakeOrigin) -> None:
    imgkeep = await start(
        server={"trusted_proxies": ["10.0.0.0/8"]}, sources={"permanent": "redirect", "allow": ["127.0.0.1/acme/*"]}
    )
    assert (await code(imgkeep, origin.url("/acme/a.png")))[0] == 302
    assert await code(imgkeep, origin.url("/acme/../evil/login")) == REFUSED
    assert await code(imgkeep, "https://evil.example/a.png") == REFUSED
    assert origin.seen == []


@pytest.mark.parametrize("entry", ["acme.s3.eu-central-1.amazonaws.com", "s3.eu-central-1.amazonaws.com/acme/*"])
def test_bucket_pattern_admits_one_bucket(entry: str) -> None:
    policy = load({"sources": {"allow": [entry]}}, {}).policy(BUILT_IN)
    for url in (
        "https://acme.s3.evil.s3.eu-central-1.amazonaws.com/a.png",
        "https://evil.s3.eu-central-1.amazonaws.com/acme.s3.eu-central-1.amazonaws.com/acme/a.png",
        "https://s3.eu-central-1.amazonaws.com/evil/../acme/a.png",
        "https://s3.eu-central-1.amazonaws.com/acme/../evil/a.png",
        "https://s3.eu-central-1.amazonaws.com/acme%2f..%2fevil/a.png",
        "https://acme.s3.eu-central-1.amazonaws.com.evil.example/acme/a.png",
    ):
        assert judge(read_source(url), policy) is not None, url


async def test_hop_of_the_origin_is_judged_like_a_link(start: Start, origin: FakeOrigin) -> None:
    """A chain of hops that are allowed one by one leads to no place that is not."""
    imgkeep = await start(sources={"allow": ["127.0.0.1/a/*", "127.0.0.1/b/*"], "deny": ["127.0.0.1/b/no/*"]})

    def hop(path: str, to: str) -> str:
        return origin.gives(path, b"", status="302 Found", headers={"Location": to})

    async def end(exchange: Exchange) -> None:
        await exchange.answer(IMAGE)

    origin.on("/b/yes/2.png", end)
    origin.on("/b/no/2.png", end)
    hop("/b/1", "no/2.png")
    assert (await code(imgkeep, hop("/a/1", "../b/yes/2.png")))[0] == 200
    assert await code(imgkeep, hop("/a/2", "../b/1")) == REFUSED
    assert origin.asked("/b/no/2.png") == 0

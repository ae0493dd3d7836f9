"""The filters for Jinja."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from jinja2 import Environment
from markupsafe import Markup

from imgkeep.core.rewrite import Hosts
from imgkeep.core.signing import signed_path
from imgkeep.integrations.jinja import img_url, install
from imgkeep.integrations.links import LinkRewriter
from tests.support.pages import LINK, NEW_LINK
from tests.support.tables import table

if TYPE_CHECKING:
    from imgkeep.core.records import Source
    from imgkeep.integrations.links import PictureDict

HTML = f'<img src="{LINK}">'
REWRITTEN = f'<img src="{NEW_LINK}">'


def rendered(source: str, *, autoescape: bool = True, **values: Any) -> str:
    env = Environment(autoescape=autoescape)
    install(env, public_url="https://k.example", which=["h.example"])
    return env.from_string(source).render(**values)


def test_single_link() -> None:
    assert rendered("{{ url|img_url }}", url=LINK) == NEW_LINK
    other = "https://k.example/img?src=https%3A%2F%2Fo.example%2F%3Fa%3D1%26b%3D2"
    assert rendered("{{ url|img_url }}", url="https://o.example/?a=1&b=2") == other
    assert rendered("{{ url|img_url }}", url="a.png?a&b") == "a.png?a&amp;b"
    assert rendered("{{ url|img_url }}", url="a.png?a&b", autoescape=False) == "a.png?a&b"
    assert rendered("{{ url|img_url }}", url=NEW_LINK) == NEW_LINK


def test_escaped_link() -> None:
    assert rendered("{{ url|img_url }}", url=Markup(f"{LINK}?a=1&amp;b=2")) == f"{NEW_LINK}%3Fa%3D1%26b%3D2"
    assert rendered("{{ url|img_url }}", url=Markup("a.png?a=1&amp;b=2")) == "a.png?a=1&amp;b=2"


def test_html() -> None:
    assert rendered("{{ html|safe|imgkeep }}", html=HTML) == REWRITTEN
    assert rendered("{{ html|imgkeep }}", html=Markup(HTML)) == REWRITTEN
    assert rendered("{{ html|imgkeep }}", html=HTML, autoescape=False) == REWRITTEN
    assert rendered("{% filter imgkeep %}<p>{{ 1 }}</p>" + HTML + "{% endfilter %}") == "<p>1</p>" + REWRITTEN


def test_nothing_becomes_safe() -> None:
    assert rendered("{{ html|imgkeep }}", html="<script>") == "&lt;script&gt;"


def test_empty_link_stays_empty() -> None:
    assert rendered("{{ missing|img_url }}{{ missing|imgkeep }}") == ""


def test_link_to_a_picture() -> None:
    assert rendered('{{ url|img_url("w=400&format=auto") }}', url=LINK) == f"{NEW_LINK}&amp;format=auto&amp;w=400"
    assert rendered('{{ url|img_url("preset=thumb") }}', url=Markup(LINK)) == f"{NEW_LINK}&amp;preset=thumb"
    key = "a-key-that-signs-links"
    signed = img_url(LINK, "w=5", public_url="https://k.example", signing_key=key)
    assert signed == f"https://k.example{signed_path(key, LINK, options=[('w', '5')])}"
    for wrong in ("w=0", "width=1", "="):
        with pytest.raises(ValueError, match="rules: "):
            img_url(LINK, wrong)


def test_html_gets_pictures_when_asked() -> None:
    env = Environment(autoescape=True)
    pictures: PictureDict = {
        "rules": {"h.example/*": "format=auto"},
        "widths": [100, 200],
        "sizes": "50vw",
        "lazy": True,
    }
    install(env, public_url="https://k.example", which=["h.example"], pictures=pictures)
    made = env.from_string("{{ html|safe|imgkeep }}").render(html=HTML)
    assert made == (
        f'<img src="{NEW_LINK}&amp;w=200&amp;format=auto" srcset="{NEW_LINK}&amp;w=100&amp;format=auto 100w, '
        f'{NEW_LINK}&amp;w=200&amp;format=auto 200w" sizes="50vw" loading="lazy">'
    )


# --- what options mean


@pytest.mark.parametrize(
    ("which", "rewritten"),
    [
        ("temporary", {"s3"}),
        ("all", {"s3", "plain"}),
        (["h.*"], {"plain"}),
        (Hosts("nobody.example"), set()),
        (lambda source: source.scheme == "https", {"s3", "plain"}),
    ],
)
def test_which_links(which: Any, rewritten: set[str]) -> None:
    signed = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20261126%2Fus-east-1%2Fs3%2Faws4_request"
    signed += f"&X-Amz-Date=20261126T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
    links = {"s3": f"https://b.s3.amazonaws.com/a.png?{signed}", "plain": LINK}
    site = LinkRewriter(public_url="https://k.example", which=which, allow=["*"])
    assert {name for name, link in links.items() if site.of_page(None)(link)} == rewritten
    assert all(site.img_url(link) != link for link in links.values())


def test_links_that_only_you_know_to_die() -> None:
    provider = {"name": "Ours", "hosts": ["h.example"], "temporary": True}
    assert LinkRewriter(public_url="https://k.example", providers=[provider]).rewrite(HTML) == REWRITTEN


def test_links_are_signed() -> None:
    site = LinkRewriter(public_url="https://k.example", which="all", signing_key="k" * 16)
    assert site.img_url(LINK).startswith(f"{NEW_LINK}&sig=")
    assert site.rewrite(HTML).startswith(f'<img src="{NEW_LINK}&amp;sig=')


def test_failing_function_leaves_the_link(caplog: pytest.LogCaptureFixture) -> None:
    def choose(source: Source) -> bool:
        raise LookupError(source.url)

    site = LinkRewriter(public_url="https://k.example", which=choose, allow=["*"])
    assert site.rewrite(HTML) == HTML
    assert "link not rewritten: LookupError at test_jinja.py" in caplog.text
    assert "h.example" not in caplog.text


@table(
    ("options", "message"),
    [
        ({"public_url": "img.example.com"}, "public_url: it is not an absolute http:// or https:// URL"),
        ({"public_url": "", "site_url": "https://u:p@h.example"}, "site_url: it carries user information"),
        ({"public_url": "https://k.example/#f"}, "public_url: it must have neither a query nor a fragment"),
        ({"public_url": "https://k.example/?a=b"}, "public_url: it must have neither a query nor a fragment"),
        ({"public_url": "", "which": "temporry"}, "which: is temporary, all"),
        ({"public_url": "", "which": ["https://h.example"]}, "which: "),
        ({"public_url": "", "signing_key": "short"}, "signing_key: has to have 16 characters"),
        ({"public_url": "", "token": "t"}, "token: is for save"),
        ({"public_url": "", "allow": "known"}, "allow: is a list of patterns"),
        ({"public_url": "", "allow": ["https://h.example"]}, "allow: .*h.example"),
        ({"public_url": "", "allow": ["auto"]}, "allow: 'auto' is no pattern of hosts"),
        ({"public_url": "", "allow": [1]}, "allow: 1 is no pattern"),
        ({"public_url": "", "deny": "h.example"}, "deny: is a list of patterns"),
        ({"public_url": "", "deny": ["Known"]}, "deny: 'Known' is no pattern of hosts"),
        ({"public_url": "", "allow_networks": ["10.0.0.1/8"]}, "allow_networks: "),
        ({"public_url": "https://k.example", "allow": "ask"}, 'allow: "ask" needs a token'),
        ({"public_url": "", "allow": "ask", "token": "t"}, "allow: to ask, imgkeep's absolute"),
        ({"public_url": "", "save": "127.0.0.1:8080"}, "save: is not an absolute"),
        ({"public_url": "", "pictures": {"width": 1}}, "pictures: width is unknown; there are rules, widths"),
        ({"public_url": "", "pictures": {"rules": "w=0"}}, "pictures: rules: w: expected a whole number"),
        ({"public_url": "", "pictures": {"rules": {"https://a": "w=1"}}}, "pictures: rules: 'https://a' can match no"),
        ({"public_url": "", "pictures": {"widths": "640"}}, "pictures: widths: expected auto"),
        ({"public_url": "", "pictures": {"sizes": "\n"}}, "pictures: sizes: expected"),
    ],
)
def test_invalid_option_is_reported(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinkRewriter(**options)

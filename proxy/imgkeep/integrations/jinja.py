"""
Filters for Jinja templates.

    install(env, public_url="https://img.example.com")

`{{ picture.url|img_url }}` is for a single link and means this one, whatever the options say of others;
`{{ post.body|imgkeep }}` is for HTML, whose links are chosen as in a page. What is marked as safe stays so,
and nothing becomes it: `{{ post.body|safe|imgkeep }}` for HTML that you trust.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from imgkeep.integrations.links import LinkRewriter, img_url

if TYPE_CHECKING:
    from typing import Unpack

    from jinja2 import Environment

    from imgkeep.integrations.links import Options

__all__ = ["img_url", "install"]


def install(env: Environment, **options: Unpack[Options]) -> None:
    """Give an environment the filters `img_url` and `imgkeep`; see `Options`."""
    rewriter = LinkRewriter(**options)

    def one(value: Any) -> Any:
        if not value:
            return value
        if isinstance(value, Markup):
            return escape(rewriter.img_url(value.unescape()))
        return rewriter.img_url(str(value))

    def imgkeep(value: Any) -> Any:
        if not value:
            return value
        html = rewriter.rewrite(str(value))
        return Markup(html) if hasattr(value, "__html__") else html  # noqa: S704 - it was marked before

    env.filters["img_url"] = one
    env.filters["imgkeep"] = imgkeep

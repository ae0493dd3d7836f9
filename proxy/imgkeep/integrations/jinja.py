"""
Filters for Jinja templates.

    install(env, public_url="https://img.example.com")

`{{ image.url|img_url }}` rewrites a single link, whatever the options say about others, and
`{{ image.url|img_url("preset=thumb") }}` makes it one to a derived picture. `{{ post.body|imgkeep }}` rewrites the
chosen links in HTML. The filters keep the mark of safe values, and mark no other value as safe:
`{{ post.body|safe|imgkeep }}` for HTML that you trust.
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
    """Add the filters `img_url` and `imgkeep` to an environment; see `Options`."""
    rewriter = LinkRewriter(**options)

    def one(value: Any, options: str = "") -> Any:
        if not value:
            return value
        if isinstance(value, Markup):
            return escape(rewriter.img_url(value.unescape(), options))
        return rewriter.img_url(str(value), options)

    def imgkeep(value: Any) -> Any:
        if not value:
            return value
        html = rewriter.rewrite(str(value))
        return Markup(html) if hasattr(value, "__html__") else html  # noqa: S704 - it was marked before

    env.filters["img_url"] = one
    env.filters["imgkeep"] = imgkeep

"""
Filters for Jinja templates.

    install(env, public_url="https://img.example.com")

`{{ picture.url|img_url }}` is for a single link, `{{ post.body|imgkeep }}` for HTML. What is marked as safe stays so,
and nothing becomes it: `{{ post.body|safe|imgkeep }}` for HTML that you trust.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from proxy.sites.links import SiteLinks

if TYPE_CHECKING:
    from typing import Unpack

    from jinja2 import Environment

    from proxy.sites.links import Options


def install(env: Environment, **options: Unpack[Options]) -> None:
    """Give an environment the filters `img_url` and `imgkeep`; see `Options`."""
    site = SiteLinks(**options)

    def img_url(value: Any) -> Any:
        if not value:
            return value
        if isinstance(value, Markup):
            return escape(site.img_url(value.unescape()))
        return site.img_url(str(value))

    def imgkeep(value: Any) -> Any:
        if not value:
            return value
        html = site.rewrite(str(value))
        return Markup(html) if hasattr(value, "__html__") else html  # noqa: S704 - it was marked before

    env.filters["img_url"] = img_url
    env.filters["imgkeep"] = imgkeep

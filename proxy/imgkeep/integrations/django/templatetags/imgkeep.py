"""
Filters for Django's templates: `{% load imgkeep %}`.

`{{ image.url|img_url }}` is for a single link, `{{ image.url|img_url:"preset=thumb" }}` for one to a derived picture,
`{{ post.body|safe|imgkeep }}` for HTML. The filters keep the mark of safe values, and mark no other value as safe.
"""

from __future__ import annotations

from html import unescape
from typing import Any

from django import template
from django.utils.html import escape
from django.utils.safestring import SafeData

from imgkeep.integrations.django.links import configured

register = template.Library()


@register.filter
def img_url(value: Any, options: str = "") -> Any:
    """Return imgkeep's link for any link to an image; `options` are those of a derived picture."""
    if not value:
        return value
    if isinstance(value, SafeData):
        return escape(configured().img_url(unescape(str(value)), options))
    return configured().img_url(str(value), options)


@register.filter(is_safe=True)
def imgkeep(value: Any) -> Any:
    """Return HTML with its links to images rewritten."""
    return configured().rewrite(str(value)) if value else value

"""
Filters for Django's templates: `{% load imgkeep %}`.

`{{ picture.url|img_url }}` is for a single link, `{{ post.body|safe|imgkeep }}` for HTML. What is marked as safe
stays so, and nothing becomes it.
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
def img_url(value: Any) -> Any:
    """Return what a page has to say in the place of a link to an image."""
    if not value:
        return value
    if isinstance(value, SafeData):
        return escape(configured().img_url(unescape(str(value))))
    return configured().img_url(str(value))


@register.filter(is_safe=True)
def imgkeep(value: Any) -> Any:
    """Return HTML with its links to images rewritten."""
    return configured().rewrite(str(value)) if value else value

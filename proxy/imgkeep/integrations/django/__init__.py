"""
The integration for Django: a middleware and template filters, with their options in the dictionary `settings.IMGKEEP`.

    MIDDLEWARE = ["imgkeep.integrations.django.ImgkeepMiddleware", ...]
    INSTALLED_APPS = ["imgkeep.integrations.django", ...]  # for {% load imgkeep %}
    IMGKEEP = {"public_url": "https://img.example.com"}

In views and models, `img_url(link)` returns imgkeep's link for an image.
"""

from __future__ import annotations

from imgkeep.integrations.django.links import img_url
from imgkeep.integrations.django.middleware import ImgkeepMiddleware

__all__ = ["ImgkeepMiddleware", "img_url"]

"""
For Django: a middleware, and template filters. Both read the options from `settings.IMGKEEP`, a dictionary.

    MIDDLEWARE = ["imgkeep.integrations.django.ImgkeepMiddleware", ...]
    INSTALLED_APPS = ["imgkeep.integrations.django", ...]  # for {% load imgkeep %}
    IMGKEEP = {"public_url": "https://img.example.com"}

In views and models, `img_url(link)` gives the link to ask imgkeep for.
"""

from __future__ import annotations

from imgkeep.integrations.django.links import img_url
from imgkeep.integrations.django.middleware import ImgkeepMiddleware

__all__ = ["ImgkeepMiddleware", "img_url"]

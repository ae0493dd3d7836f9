"""
For Django: a middleware, and template filters. Both read the options from `settings.IMGKEEP`, a dictionary.

    MIDDLEWARE = ["proxy.sites.django.ImgkeepMiddleware", ...]
    INSTALLED_APPS = ["proxy.sites.django", ...]  # for {% load imgkeep %}
    IMGKEEP = {"public_url": "https://img.example.com"}

In views and models, `img_url(link)` gives the link to ask imgkeep for.
"""

from __future__ import annotations

from proxy.sites.django.middleware import ImgkeepMiddleware
from proxy.sites.django.site import img_url

__all__ = ["ImgkeepMiddleware", "img_url"]

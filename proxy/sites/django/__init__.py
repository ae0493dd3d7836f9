"""
For Django: a middleware, and template filters. Both read the options from `settings.IMGKEEP`, a dictionary.

    MIDDLEWARE = ["proxy.sites.django.ImgkeepMiddleware", ...]
    INSTALLED_APPS = ["proxy.sites.django", ...]  # for {% load imgkeep %}
    IMGKEEP = {"public_url": "https://img.example.com"}
"""

from __future__ import annotations

from proxy.sites.django.middleware import ImgkeepMiddleware

__all__ = ["ImgkeepMiddleware"]

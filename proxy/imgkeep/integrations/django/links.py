"""The link rewriter with the options in `settings.IMGKEEP`."""

from __future__ import annotations

from functools import cache

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from imgkeep.integrations.links import LinkRewriter


@cache
def configured() -> LinkRewriter:
    """
    Return the link rewriter of this site.

    Raises:
        ImproperlyConfigured: `IMGKEEP` is missing or invalid.
    """
    options = getattr(settings, "IMGKEEP", None)
    if not isinstance(options, dict):
        raise ImproperlyConfigured('IMGKEEP is missing: {"public_url": "https://img.example.com"}')
    try:
        return LinkRewriter(**options)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"IMGKEEP: {error}") from error


def img_url(url: str, options: str = "") -> str:
    """
    Return imgkeep's link for any link to an image; `options` are those of a derived picture, as `preset=thumb`.

    Raises:
        ValueError: An option is malformed.
        ImproperlyConfigured: `IMGKEEP` is missing or invalid.
    """
    return configured().img_url(url, options) if url else url


def _forget(*, setting: str, **_: object) -> None:
    if setting == "IMGKEEP":
        configured.cache_clear()


setting_changed.connect(_forget)

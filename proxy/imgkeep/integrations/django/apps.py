"""The application that `INSTALLED_APPS` names."""

from __future__ import annotations

from django.apps import AppConfig


class ImgkeepConfig(AppConfig):
    """Has template filters and nothing else: no models, no URLs."""

    name = "imgkeep.integrations.django"
    label = "imgkeep"
    verbose_name = "imgkeep"

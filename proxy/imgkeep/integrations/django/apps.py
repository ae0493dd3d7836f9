"""The application that `INSTALLED_APPS` names."""

from __future__ import annotations

from django.apps import AppConfig


class ImgkeepConfig(AppConfig):
    """The application with the template filters; it has no models and no URLs."""

    name = "imgkeep.integrations.django"
    label = "imgkeep"
    verbose_name = "imgkeep"

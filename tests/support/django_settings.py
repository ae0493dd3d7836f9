"""The settings of Django in tests, made once for the process."""

from __future__ import annotations

import django
from django.conf import settings


def configure() -> None:
    """Configure Django, unless another test module has done so."""
    if settings.configured:
        return
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tests.integrations.test_django",
        MIDDLEWARE=["imgkeep.integrations.django.ImgkeepMiddleware"],
        INSTALLED_APPS=["imgkeep.integrations.django"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        USE_TZ=True,
    )
    django.setup()

"""
A page by Django that asks imgkeep for its images. Beside examples/origin.py and imgkeep:

    python examples/django/app.py runserver 8000
"""

from __future__ import annotations

import os
import sys
from functools import cache
from urllib.request import urlopen

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path

PAGE = os.environ.get("PAGE", "http://127.0.0.1:9000/page.html")

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["imgkeep.integrations.django.ImgkeepMiddleware"],
    IMGKEEP={
        "public_url": os.environ.get("IMGKEEP_URL", "http://127.0.0.1:8080"),
        # What this imgkeep may fetch: all hosts, and this machine. Leave both out for one that others can reach.
        "allow": ["*"],
        "allow_networks": ["127.0.0.1/32"],
    },
)


def show(_: HttpRequest) -> HttpResponse:
    """Return the page with its link that dies."""
    return HttpResponse(load())


@cache
def load() -> str:
    """Return a page as a database would hold it: once made, with a link that dies."""
    with urlopen(PAGE) as page:  # noqa: S310 - ours
        return str(page.read(), "utf-8")


urlpatterns = [path("", show)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)

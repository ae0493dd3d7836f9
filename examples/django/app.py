"""
A page by Django that asks imgkeep for its images.

    imgkeep serve
    python examples/django/app.py runserver 8000
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path

PAGE = Path(os.environ.get("PAGE", Path(__file__).parents[1] / "page.html"))
TOKEN = os.environ.get("IMGKEEP_TOKEN")
"""With it imgkeep tells what it may fetch. Without, all: so is an imgkeep that only this machine can reach."""

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["proxy.sites.django.ImgkeepMiddleware"],
    IMGKEEP={
        "public_url": os.environ.get("IMGKEEP_URL", "http://127.0.0.1:8080"),
        "allow": "ask" if TOKEN else ["*"],
        "token": TOKEN,
    },
)


def show(_: HttpRequest) -> HttpResponse:
    """Return the page as it is stored, with links that die."""
    return HttpResponse(PAGE.read_text("utf-8"))


urlpatterns = [path("", show)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)

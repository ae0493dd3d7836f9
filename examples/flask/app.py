"""
A page by Flask that asks imgkeep for its images.

    imgkeep serve
    flask --app examples/flask/app.py run
"""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask

from proxy.sites.wsgi import Imgkeep

PAGE = Path(os.environ.get("PAGE", Path(__file__).parents[1] / "page.html"))
TOKEN = os.environ.get("IMGKEEP_TOKEN")
"""With it imgkeep tells what it may fetch. Without, all: so is an imgkeep that only this machine can reach."""

app = Flask(__name__)
app.wsgi_app = Imgkeep(  # type: ignore[method-assign] # as Flask's documentation says
    app.wsgi_app,
    public_url=os.environ.get("IMGKEEP_URL", "http://127.0.0.1:8080"),
    allow="ask" if TOKEN else ["*"],
    token=TOKEN,
)


@app.get("/")
def show() -> str:
    """Return the page as it is stored, with links that die."""
    return PAGE.read_text("utf-8")

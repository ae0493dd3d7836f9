"""
A page by Flask that asks imgkeep for its images. Beside examples/origin.py and imgkeep:

    flask --app examples/flask/app.py run
"""

from __future__ import annotations

import os
from functools import cache
from urllib.request import urlopen

from flask import Flask

from imgkeep.integrations.wsgi import Imgkeep

PAGE = os.environ.get("PAGE", "http://127.0.0.1:9000/page.html")

app = Flask(__name__)
app.wsgi_app = Imgkeep(  # type: ignore[method-assign] # as Flask's documentation says
    app.wsgi_app,
    public_url=os.environ.get("IMGKEEP_URL", "http://127.0.0.1:8080"),
    # What this imgkeep may fetch: all hosts, and this machine. Leave both out for one that others can reach.
    allow=["*"],
    allow_networks=["127.0.0.1/32"],
)


@app.get("/")
def show() -> str:
    """Return the page with its link that dies."""
    return load()


@cache
def load() -> str:
    """Return a page as a database would hold it: once made, with a link that dies."""
    with urlopen(PAGE) as page:  # noqa: S310 - ours
        return str(page.read(), "utf-8")

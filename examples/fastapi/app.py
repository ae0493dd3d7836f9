"""
A page by FastAPI that asks imgkeep for its images.

    imgkeep serve
    uvicorn --app-dir examples/fastapi app:app
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from proxy.sites.asgi import Imgkeep

PAGE = Path(os.environ.get("PAGE", Path(__file__).parents[1] / "page.html"))
TOKEN = os.environ.get("IMGKEEP_TOKEN")
"""With it imgkeep tells what it may fetch. Without, all: so is an imgkeep that only this machine can reach."""

app = FastAPI()
app.add_middleware(
    Imgkeep,
    public_url=os.environ.get("IMGKEEP_URL", "http://127.0.0.1:8080"),
    allow="ask" if TOKEN else ["*"],
    token=TOKEN,
)


@app.get("/", response_class=HTMLResponse)
def show() -> str:
    """Return the page as it is stored, with links that die."""
    return PAGE.read_text("utf-8")

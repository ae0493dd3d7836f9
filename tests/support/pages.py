"""A page with one link that is rewritten, and what becomes of it."""

from __future__ import annotations

from imgkeep.integrations.links import LinkRewriter

LINK = "https://h.example/a.png"
NEW_LINK = "https://k.example/img?src=https%3A%2F%2Fh.example%2Fa.png"

PAGE = f"<!doctype html><meta charset=utf-8><p>one</p><img src='{LINK}'><p>two</p>".encode()
WANTED = PAGE.replace(LINK.encode(), NEW_LINK.encode())
PLAIN = b"<!doctype html><p>no image</p>"

HTML = ("Content-Type", "text/html; charset=utf-8")
OPTIONS = {"public_url": "https://k.example", "which": ["h.example"]}


def rewriter() -> LinkRewriter:
    return LinkRewriter(public_url="https://k.example", which=["h.example"])

"""
Integrations for web applications in Python: one line makes their pages load images from imgkeep.

Rules:
- An integration never breaks a page. Doubtful responses stay unchanged; it logs a fault of its own, and the rest of the
  page stays unchanged.
- A page never waits: not for imgkeep, and only for the rest of one incomplete tag.
- A link that imgkeep would refuse stays (`policy`), unless the application names this single link.
- The integrations run in other people's processes. So they import only the core, and a framework only in the module for
  it; they have no global state beyond their objects, one thread for saving, and a short-lived one to fetch the policy.
- The decisions are the same everywhere: `responses` decides which responses to rewrite and with which headers,
  `response_body` rewrites a body. `asgi`, `wsgi` and `django` carry that out; `jinja` and Django's filters are for
  single values.

    from imgkeep.integrations import img_url
"""

from __future__ import annotations

from imgkeep.integrations.links import img_url

__all__ = ["img_url"]

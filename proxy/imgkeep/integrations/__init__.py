"""
Puts imgkeep into web applications that are written in Python: their pages ask us for images, by one line.

Rules:
- A page is never broken. What is doubtful goes out as the application made it; a fault in here is logged, and the rest
  of the page goes out as it is.
- A page never waits: not for imgkeep, and not for more of itself than the tag it is in.
- A link that imgkeep would refuse is left alone (`policy`), but where an application writes out that it means this one.
- All of this runs in other people's processes. So nothing but the core is imported, a framework only by the module that
  is for it; there is no state but in objects of theirs, one thread where saving is wanted, and one for a moment where
  imgkeep is asked what it would refuse.
- What is decided is the same everywhere: `responses` says which are rewritten and with which headers, `body` rewrites
  one. `asgi`, `wsgi` and `django` carry that out, `jinja` and Django's tags are for single values.

    from imgkeep.integrations import img_url
"""

from __future__ import annotations

from imgkeep.integrations.links import img_url

__all__ = ["img_url"]

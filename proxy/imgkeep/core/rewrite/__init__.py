"""
Rewrites links to images in HTML and Markdown so that they lead through us, and changes nothing else.

Rules:
- What a browser would take for an image's link is one, and nothing else is: `places` lists where, `tags`, `foreign`,
  `references`, `srcset` and `css` read as the specifications say.
- The value of a link changes, and not one character else: quotes, case, white space, broken markup stay.
- Whatever comes in, something comes out: in linear time, in bounded memory where it comes in pieces, and without an
  exception. What is doubtful stays as it is.
- Rewriting twice changes nothing: links of ours are left alone.

A linker decides about each link. `ImgLinks` is the one that leads to `/img`, and `SourceLinks` the way back; any
callable will do.
"""

from __future__ import annotations

from imgkeep.core.rewrite.links import Choice, Hosts, ImgLinks, Linker, SourceLinks, Temporary, every
from imgkeep.core.rewrite.markdown import rewrite_markdown
from imgkeep.core.rewrite.stream import HtmlStream, rewrite_html

__all__ = [
    "Choice",
    "Hosts",
    "HtmlStream",
    "ImgLinks",
    "Linker",
    "SourceLinks",
    "Temporary",
    "every",
    "rewrite_html",
    "rewrite_markdown",
]

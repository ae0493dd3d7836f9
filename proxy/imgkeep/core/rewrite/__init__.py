"""
The rewriter of links to images in HTML and Markdown: the new links lead to imgkeep, and all other text stays.

Rules:
- A link to an image is one by the rules of browsers: `html_attributes` lists the attributes; `tags`, `foreign_content`,
  `character_references`, `srcset` and `css` parse by the specifications.
- Only the value of a link changes: quotes, case, white space and broken markup stay.
- The rewriter accepts any input, takes linear time, and bounded memory for input in pieces, and raises no exception.
  Doubtful input stays unchanged.
- Rewriting twice changes nothing: imgkeep's own links stay.

A linker decides about each link. `ImgLinks` writes links to `/img`, `SourceLinks` writes the source URLs back; a linker
may be any callable. With `Pictures` the links of `<img>` get options, and the elements `srcset` and other attributes.
"""

from __future__ import annotations

from imgkeep.core.rewrite.links import Choice, Hosts, ImgLinks, Linker, SourceLinks, Temporary, every
from imgkeep.core.rewrite.markdown import rewrite_markdown
from imgkeep.core.rewrite.pictures import Pictures, PictureSettings
from imgkeep.core.rewrite.stream import HtmlStream, rewrite_html

__all__ = [
    "Choice",
    "Hosts",
    "HtmlStream",
    "ImgLinks",
    "Linker",
    "PictureSettings",
    "Pictures",
    "SourceLinks",
    "Temporary",
    "every",
    "rewrite_html",
    "rewrite_markdown",
]

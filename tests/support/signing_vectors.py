"""The key and the vectors of `docs/signing.md`."""

from __future__ import annotations

import re

from tests.support.program import ROOT

KEY = "an-example-key-of-32-characters!"
PAGE = (ROOT / "docs" / "signing.md").read_text("utf-8")
VECTORS = re.findall(r"^\| `(http[^`]*)` \| (?:`(\d+)`)? \| `([\w-]+)` \|$", PAGE, re.MULTILINE)
"""Link, end or empty, and signature."""
OPTION_VECTORS = re.findall(r"^\| `(http[^`]*)` \| `(\w+=[^`]*)` \| (?:`(\d+)`)? \| `([\w-]+)` \|$", PAGE, re.MULTILINE)
"""Link, options of a picture, end or empty, and signature."""

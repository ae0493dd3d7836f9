"""Host globs, and the hosts that they match: one table for the rewriter and for imgkeep.js."""

from __future__ import annotations

import json
from pathlib import Path

GLOBS = json.loads((Path(__file__).parents[1] / "cases" / "host_globs.json").read_text("utf-8"))
"""Under `match` rows of glob, host and whether they match; under `refused` globs that can match no host."""

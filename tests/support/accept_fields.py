"""The `Accept` fields of browsers."""

from __future__ import annotations

TAB = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
FIREFOX_TAB = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
IMG = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"

"""Marks tests that hold with the fast path and without it."""

from __future__ import annotations

import pytest

WITH_AND_WITHOUT_FAST_PATH = pytest.mark.parametrize(
    "has_fast_path", [True, False], ids=["fast path", "aiohttp"], indirect=True
)
"""
Each test runs twice, on servers with and without the fast path. Its requests have to keep their connections open, as
those of `raw_http.get` do: a request that closes its connection is aiohttp's in any case.
"""

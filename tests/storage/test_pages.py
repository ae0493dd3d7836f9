"""Lists that never end."""

from __future__ import annotations

import pytest

from imgkeep.storage.bucket.errors import BucketError
from imgkeep.storage.bucket.pages import EMPTY_PAGES_MAX, Pages


def test_last_page_has_no_token() -> None:
    pages = Pages()
    assert [pages.go_on(token, is_empty=False) for token in ("a", "b", "", None)] == [True, True, False, False]


def test_list_that_goes_round_in_a_circle_is_a_failure() -> None:
    pages = Pages()
    pages.go_on("a", is_empty=False)
    pages.go_on("b", is_empty=False)
    with pytest.raises(BucketError, match="never ends"):
        pages.go_on("a", is_empty=False)


def test_list_of_empty_pages_is_a_failure() -> None:
    pages = Pages()
    for number in range(EMPTY_PAGES_MAX):
        assert pages.go_on(f"a{number}", is_empty=True)
    assert pages.go_on("b", is_empty=False)
    for number in range(EMPTY_PAGES_MAX):
        assert pages.go_on(f"c{number}", is_empty=True)
    with pytest.raises(BucketError, match="never ends"):
        pages.go_on("d", is_empty=True)

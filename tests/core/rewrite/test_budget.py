"""What is left of a document stays when its budget is spent."""

from __future__ import annotations

import pytest

from imgkeep.core.rewrite import HtmlStream, rewrite_html, rewrite_markdown
from imgkeep.core.rewrite.budget import CHARS_PER_STEP, Budget
from imgkeep.core.rewrite.commonmark import TooManySteps
from imgkeep.core.rewrite.markdown import MARKDOWN_CHARS_MAX, STEPS_MAX, STEPS_MIN, STEPS_PER_CHAR, steps_max

IMAGE = "<img src='http://h.example/a'>"
MOVED = "<img src='https://moved.example/http://h.example/a'>"


def move(url: str) -> str:
    return f"https://moved.example/{url}"


def test_budget_counts_steps_and_characters() -> None:
    budget = Budget(2)
    budget.spend()
    budget.spend_on(CHARS_PER_STEP)
    assert not budget.is_spent
    budget.spend()
    assert budget.is_spent
    assert not Budget(None).is_spent


@pytest.mark.parametrize("as_bytes", [False, True])
def test_rest_of_a_page_stays(*, as_bytes: bool) -> None:
    steps = 10 * (1 + len(IMAGE) // CHARS_PER_STEP)
    wanted = MOVED * 10 + IMAGE * 90
    if as_bytes:
        assert rewrite_html((IMAGE * 100).encode(), move, steps_max=steps) == wanted.encode()
    else:
        assert rewrite_html(IMAGE * 100, move, steps_max=steps) == wanted


@pytest.mark.parametrize(
    "page",
    [
        "<style>" + "a{b:url(http://h.example/a)}" * 10 + "</style>",
        "<svg><style>" + "a{b:url(http://h.example/a)}" * 10 + "</style>",
        f"<noscript>{IMAGE * 10}</noscript>",
    ],
)
def test_raw_text_that_costs_too_much_stays(page: str) -> None:
    assert rewrite_html(page, move, steps_max=10) == page
    assert rewrite_html(page, move, steps_max=1000) != page


@pytest.mark.parametrize("page", [IMAGE.encode(), IMAGE.encode("utf-16"), b"\x1b$B"])
def test_bytes_held_back_are_counted(page: bytes) -> None:
    stream = HtmlStream(move, charset="iso-2022-jp" if page.startswith(b"\x1b") else None)
    assert stream.held_chars == 0
    stream.feed(page[:-4])
    assert stream.held_chars == len(stream.held())
    stream.feed(page[-4:] + b" " * 2000 + "<img".encode("utf-16-le" if page.startswith(b"\xff\xfe") else "ascii"))
    assert stream.held_chars == (0 if page.startswith(b"\x1b") else 4)


def test_text_may_take_steps_by_its_length() -> None:
    assert steps_max(0) == STEPS_MIN
    assert steps_max(10_000) == STEPS_PER_CHAR * 10_000
    assert steps_max(MARKDOWN_CHARS_MAX) == STEPS_MAX


@pytest.mark.parametrize(
    "text",
    ["![" * 10_000, "<style>" + "url(" * 20_000, "<div><math>" + "<a></x>" * 60_000],
    ids=["brackets", "a style sheet", "tags"],
)
def test_text_that_takes_too_many_steps_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgkeep.core.rewrite.markdown.STEPS_PER_CHAR", 0)
    assert rewrite_markdown(text, move) == text
    with pytest.raises(TooManySteps):
        rewrite_markdown(text.encode(), move, insists=True)

"""Signatures: the vectors of the documentation, and that nothing but the right one is let through."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.derived.options import split_options
from imgkeep.core.errors import SignatureExpired, SignatureInvalid, SignatureRequired
from imgkeep.core.signing import Signatures, sign, signed_images_path, signed_path
from imgkeep.core.source_url import read_img_query, read_picture_query
from tests.support.signing_vectors import KEY, OPTION_VECTORS, PAGE, VECTORS

OLD_KEY = "the-key-before-it-was-rotated"
URL = "https://example.com/a.png?b=c"
NOW_S = 1_700_000_000.5


@pytest.mark.parametrize(("src", "end", "sig"), VECTORS)
def test_documented_vectors_hold(src: str, end: str, sig: str) -> None:
    assert sign(KEY, src, expires=int(end) if end else None) == sig


@pytest.mark.parametrize(("src", "line", "end", "sig"), OPTION_VECTORS)
def test_documented_vectors_with_options_hold(src: str, line: str, end: str, sig: str) -> None:
    options = split_options(line)
    assert sign(KEY, src, expires=int(end) if end else None, options=options) == sig
    path = signed_path(KEY, src, expires=int(end) if end else None, options=reversed(options))
    assert path.endswith(f"&{line}{end and f'&exp={end}'}&sig={sig}")
    query = read_img_query(path.partition("?")[2])
    assert (query.text, list(query.picture)) == (src, options)
    assert Signatures([KEY]).judge(query.text, dict(query.options), NOW_S) == (int(end) if end else None)


def test_vectors_exist() -> None:
    assert (len(VECTORS), len(OPTION_VECTORS)) == (4, 4)


def test_signed_path_of_a_stored_image_is_valid() -> None:
    path = "/images/ab12.png"
    signed = signed_images_path(KEY, path, expires=1_800_000_000, options=[("w", "5"), ("q", "80")])
    assert signed.startswith("/images/ab12.png?q=80&w=5&exp=1800000000&sig=")
    query = read_picture_query(signed.partition("?")[2], path)
    assert Signatures([KEY]).judge(query.text, dict(query.options), NOW_S) == 1_800_000_000


def test_documented_function_agrees() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    names: dict[str, object] = {}
    exec(code, names)
    theirs = names["signed_path"]
    assert callable(theirs)
    for src, end, _ in VECTORS:
        expires = int(end) if end else None
        assert theirs(KEY, src, expires) == signed_path(KEY, src, expires=expires)
    for src, line, end, _ in OPTION_VECTORS:
        options, expires = split_options(line), int(end) if end else None
        assert theirs(KEY, src, expires, dict(options)) == signed_path(KEY, src, expires=expires, options=options)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"])), st.integers(1_700_000_001, 10**11))
def test_own_signed_path_is_valid(tail: str, expires: int) -> None:
    src = f"https://example.com/{tail}".strip()
    query = read_img_query(signed_path(KEY, src, expires=expires).partition("?")[2])
    assert Signatures([KEY]).judge(query.text, dict(query.options), NOW_S) == expires
    assert query.text == src


def test_any_of_the_keys_will_do() -> None:
    signatures = Signatures([KEY, OLD_KEY])
    for key in (KEY, OLD_KEY):
        assert signatures.judge(URL, {"sig": sign(key, URL)}, NOW_S) is None


def test_signature_covers_parameters_in_order_of_names() -> None:
    sig = sign(KEY, URL, options=[("a", "1"), ("b", "2")])
    assert Signatures([KEY]).judge(URL, {"b": "2", "sig": sig, "a": "1"}, NOW_S) is None
    with pytest.raises(SignatureInvalid):
        Signatures([KEY]).judge(URL, {"b": "1", "sig": sig, "a": "2"}, NOW_S)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        pytest.param({}, SignatureRequired, id="none"),
        pytest.param({"sig": ""}, SignatureRequired, id="empty"),
        pytest.param({"sig": "x"}, SignatureInvalid, id="nonsense"),
        pytest.param({"sig": "ü"}, SignatureInvalid, id="not ASCII"),
        pytest.param({"sig": sign("another-key-of-a-stranger", URL)}, SignatureInvalid, id="another key"),
        pytest.param({"sig": sign(KEY, URL + "&d=e")}, SignatureInvalid, id="another link"),
        pytest.param({"sig": sign(KEY, URL) + "="}, SignatureInvalid, id="padding"),
        pytest.param({"sig": sign(KEY, URL), "exp": "1800000000"}, SignatureInvalid, id="an end that was not signed"),
        pytest.param({"sig": sign(KEY, URL, expires=1_800_000_000)}, SignatureInvalid, id="an end that was taken away"),
        pytest.param({"sig": sign(KEY, URL, expires=1_700_000_000), "exp": "1700000000"}, SignatureExpired, id="over"),
        pytest.param({"sig": sign(KEY, URL, expires=-5), "exp": "-5"}, SignatureInvalid, id="no time"),
        pytest.param({"sig": sign(KEY, URL, expires=10**12), "exp": str(10**12)}, SignatureInvalid, id="too long"),
    ],
)
def test_whatever_was_not_signed_so_is_refused(options: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        Signatures([KEY]).judge(URL, options, NOW_S)


def test_key_never_prints() -> None:
    assert KEY not in repr(Signatures([KEY]))

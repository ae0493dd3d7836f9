"""Images that come without a link."""

from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgkeep.core.data_url import identify_bytes, identify_legacy, read_data_url
from imgkeep.core.errors import InvalidRequest
from imgkeep.core.records import Digest


def test_bytes_are_named_as_rfc_6920_names_them() -> None:
    info = identify_bytes(Digest(sha256(b"Hello World!").hexdigest()))
    assert info.identity == "ni:///sha-256;f4OxZX_x_FO5LcGBSKHWXfwtSx-j1ncoSt3SABJtkGk"
    assert info.key == sha256(info.identity.encode()).hexdigest()
    assert (info.provider, info.temporary, info.expires_at) == (None, False, None)


@given(st.binary(max_size=100))
def test_encoded_bytes_come_back(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert read_data_url(f"data:image/png;base64,{text}") == data
    assert read_data_url(f"data:;BASE64,{text.rstrip('=')}") == data
    assert read_data_url("data:," + "".join(f"%{byte:02x}" for byte in data)) == data


@given(st.text(max_size=50))
def test_anything_else_is_a_typed_error(text: str) -> None:
    for candidate in (text, f"data:{text}", f"data:image/png;base64,{text}"):
        try:
            read_data_url(candidate)
        except InvalidRequest:
            continue


def test_head_without_end_is_no_data_url() -> None:
    with pytest.raises(InvalidRequest):
        read_data_url("data:" + "x" * 1000 + ",")


def test_old_name_is_a_name_under_its_mount() -> None:
    info = identify_legacy("generated-images", "2025/a b.png")
    assert info.identity == "legacy:generated-images/2025/a b.png"
    assert info.key != identify_legacy("other", "2025/a b.png").key

"""Messages that an ASGI application sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence


def body_of(messages: Sequence[MutableMapping[str, Any]]) -> bytes:
    """Return the body of a response; each piece but the last must announce another."""
    assert [message["more_body"] for message in messages[1:]] == [True] * (len(messages) - 2) + [False]
    return b"".join(message["body"] for message in messages[1:])

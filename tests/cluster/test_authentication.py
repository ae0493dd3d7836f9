"""Authentication between nodes: the form of a request's proof, the time, the nonces, and their budget."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from imgkeep.cluster.nodes.authentication import WINDOW_S, RequestRefused, RequestSigner, RequestVerifier
from imgkeep.core.errors import StorageError
from tests.support.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "0123456789abcdef0123456789abcdef"
NODE = "http://10.0.0.2:8081"
TARGET = f"/fills/{'a' * 64}"
NOW = 1_764_530_000.25


def make_signer(*, secret: str = SECRET, member: str = "a/1", now: Callable[[], float] = lambda: NOW) -> RequestSigner:
    numbers = count()
    return RequestSigner(secret, member, now=now, draw_nonce=lambda: f"{next(numbers):032x}")


def make_verifier(now: Callable[[], float] = lambda: NOW, *, nonces_max: int = 100) -> RequestVerifier:
    return RequestVerifier(SECRET, NODE, now=now, nonces_max=nonces_max)


def sign(signer: RequestSigner) -> list[str]:
    return [signer.sign(NODE, "GET", TARGET).field]


def reason_of(verifier: RequestVerifier, fields: list[str], *, method: str = "GET", target: str = TARGET) -> str | None:
    """Return why a request is refused; `None`: it is not."""
    try:
        verifier.verify(method, target, fields)
    except RequestRefused as refusal:
        return refusal.reason
    return None


@pytest.mark.parametrize(
    ("target", "body", "mac"),
    [
        (
            TARGET,
            b"",
            "bbdf44772885f5d3eed140ea9d162e7cb9d15a4357d69a56a0d64740d98ff7f7",
        ),
        (
            "/objects/ab.png?a=b%20c",
            b"body",
            "154947790169975191868b54505d22cbccb8d7006eea8e6979e4901aeb51b149",
        ),
    ],
    ids=["without body", "query and body"],
)
def test_vectors_of_the_form(target: str, body: bytes, mac: str) -> None:
    field = f"v1 a/1 1764530000.250 {'0' * 32} {mac}"
    assert make_signer().sign(NODE, "GET", target, body).field == field
    assert make_verifier().verify("GET", target, [field], body) == mac


def test_vector_of_the_answer() -> None:
    signed = make_signer().sign(NODE, "GET", TARGET)
    proof = make_verifier().prove(signed.mac, 200)
    assert proof == "d6b649c8c5a59d57ac659f4e88a44d310471d592205f8ced5ebccd31afda7444"
    assert make_signer().is_answer(signed, 200, proof)
    for status, given in ((204, proof), (200, ""), (200, "é"), (200, proof[:-1] + "x")):
        assert not make_signer().is_answer(signed, status, given)


@table(
    "change",
    [
        lambda field: field.replace("a/1", "a/2"),
        lambda field: field.replace("a/1", "a/1 "),
        lambda field: field.replace(".250", ".251"),
        lambda field: field.replace("00 ", "01 ", 1),
        lambda field: field[:-1] + ("0" if field[-1] != "0" else "1"),
        lambda field: field.upper(),
        lambda field: field.replace("v1", "v2"),
        lambda field: field + " ",
        lambda _: "",
        lambda _: "v1" + " " * 4,
        lambda _: "\udcff" * 100,
    ],
    ids=["member", "space", "time", "nonce", "mac", "case", "version", "end", "empty", "blanks", "bytes"],
)
def test_altered_field_is_refused(change: Callable[[str], str]) -> None:
    [field] = sign(make_signer())
    assert reason_of(make_verifier(), [change(field)]) == "signature"


def test_field_counts_once_for_one_request_to_one_node() -> None:
    fields = sign(make_signer())
    verifier = make_verifier()
    assert reason_of(verifier, []) == "signature"
    assert reason_of(verifier, fields * 2) == "signature"
    assert reason_of(verifier, fields, method="POST") == "signature"
    assert reason_of(verifier, fields, target=f"{TARGET}/end") == "signature"
    assert reason_of(verifier, sign(make_signer(secret=SECRET[::-1]))) == "signature"
    other = RequestVerifier(SECRET, "http://10.0.0.3:8081", now=lambda: NOW)
    assert reason_of(other, fields) == "signature"
    assert reason_of(verifier, fields) is None
    assert reason_of(verifier, fields) == "replay"


@pytest.mark.parametrize(
    ("offset", "reason"), [(0, None), (WINDOW_S, None), (-WINDOW_S, None), (WINDOW_S + 1, "time"), (-300, "time")]
)
def test_time_is_good_for_a_window_in_both_directions(offset: float, reason: str | None) -> None:
    assert reason_of(make_verifier(), sign(make_signer(now=lambda: NOW + offset))) == reason


def test_unknown_time_signs_and_verifies_nothing() -> None:
    def unknown() -> float:
        raise StorageError("not known")

    with pytest.raises(StorageError):
        make_signer(now=unknown).sign(NODE, "GET", TARGET)
    with pytest.raises(StorageError):
        make_verifier(unknown).verify("GET", TARGET, sign(make_signer()))


def test_full_memory_of_nonces_lets_no_replay_in() -> None:
    """Beyond the budget the oldest nonces are forgotten, and all requests of their time are refused."""
    now = NOW

    def tick() -> float:
        return now

    signer, verifier = make_signer(now=tick), make_verifier(tick, nonces_max=3)
    accepted = []
    for _ in range(10):
        now += 0.001
        accepted.append(sign(signer))
        assert reason_of(verifier, accepted[-1]) is None, "a request of this moment is never refused"
    assert {reason_of(verifier, fields) for fields in accepted} == {"replay"}
    late = make_signer(now=lambda: NOW, member="b/1")
    assert reason_of(verifier, sign(late)) == "replay", "a request from before what is remembered"


def test_nonces_are_forgotten_after_their_time() -> None:
    now = NOW
    signer, verifier = make_signer(now=lambda: now), make_verifier(lambda: now, nonces_max=2)
    for _ in range(4):
        assert reason_of(verifier, sign(signer)) is None
        now += WINDOW_S + 1

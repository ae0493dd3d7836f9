"""Who may ask for which picture."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import quote

import pytest

from imgkeep.core.derived.derive_policy import DerivePolicy, read_presets
from imgkeep.core.derived.options import Fit, PictureFormat, PictureOptions
from imgkeep.core.errors import InvalidOption, OptionsForbidden, SignatureExpired, SignatureInvalid
from imgkeep.core.signing import ForeignSignature, Signatures, sign
from imgkeep.core.source_url import ImgQuery, PictureQuery, read_img_query, read_picture_query

KEY = "a-key-of-the-operator"
SIGNATURES = Signatures([KEY])
SRC = "https://example.com/a.png?w=1"
NOW_S = 1_700_000_000.0
PRESETS = {
    "thumb": PictureOptions(320, 320, Fit.COVER, format=PictureFormat.AUTO),
    "full": PictureOptions(format=PictureFormat.AUTO),
}

Allow = Literal["presets", "signed", "any"]


def policy(allow: Allow, widths: tuple[int, ...] = (320, 640)) -> DerivePolicy:
    return DerivePolicy(allow, widths, PRESETS, side_max=2000)


def query(options: str, *, sig: str = "") -> ImgQuery:
    return read_img_query("&".join(filter(None, [f"src={quote(SRC, safe='')}", options, sig])))


def signature_of(options: str, expires: int | None = None) -> str:
    pairs = sorted((name, value) for name, _, value in (part.partition("=") for part in options.split("&")))
    end = f"&exp={expires}" if expires is not None else ""
    return f"sig={sign(KEY, SRC, expires=expires, options=pairs)}{end}"


OPEN = [
    *("w=320", "w=640&format=webp", "w=320&dpr=2", "w=640&fit=inside&format=auto", "w=160&dpr=2&metadata=strip"),
    *("preset=thumb", "preset=thumb&dpr=2", "preset=thumb&format=webp&dpr=4", "preset=full"),
]
"""Options for any client."""
CLOSED = [
    *("w=321", "w=320&h=320", "h=320", "w=320&q=80", "w=320&bg=fff", "w=320&blur=1", "w=320&page=0", "w=320&rotate=90"),
    *("w=320&metadata=keep", "w=320&fit=contain", "format=webp", "w=640&dpr=2", "w=320&dpr=1.5", "q=80", "rotate=0"),
    *("preset=thumb&w=320", "preset=thumb&dpr=1.5", "preset=thumb&q=1", "preset=thumb&dpr=2.0"),
]
"""Options that each make a picture of which the operator has not heard."""


@pytest.mark.parametrize("options", OPEN)
@pytest.mark.parametrize("allow", ["presets", "signed", "any"])
def test_listed_pictures_are_for_any_client(allow: Allow, options: str) -> None:
    permission = policy(allow).judge(query(options), Signatures(()), NOW_S)
    assert permission.options == policy(allow).read(query(options).picture)
    assert permission.ends is None
    assert policy(allow).judge(query(options, sig="sig=wrong"), SIGNATURES, NOW_S) == permission


@pytest.mark.parametrize("options", CLOSED)
def test_other_pictures_are_not(options: str) -> None:
    signed = query(options, sig=signature_of(options))
    for forbidding in (policy("presets"), policy("signed")):
        with pytest.raises(OptionsForbidden, match=r"derive\.allow does not permit these options: ask for a preset"):
            forbidding.judge(query(options), SIGNATURES, NOW_S)
    with pytest.raises(OptionsForbidden):
        policy("presets").judge(signed, SIGNATURES, NOW_S)
    permission = policy("any").judge(query(options), Signatures(()), NOW_S)
    assert policy("signed").judge(signed, SIGNATURES, NOW_S) == permission
    with pytest.raises(SignatureInvalid):
        policy("signed").judge(query(options, sig="sig=wrong"), SIGNATURES, NOW_S)
    with pytest.raises(SignatureInvalid):
        policy("signed").judge(query(f"{options}&exp=1", sig=signature_of(options)), SIGNATURES, NOW_S)
    with pytest.raises(SignatureInvalid):
        policy("signed").judge(query(options, sig=signature_of("w=1999")), SIGNATURES, NOW_S)


def test_signature_of_options_ends() -> None:
    later, over = int(NOW_S) + 60, int(NOW_S)
    assert policy("signed").judge(query("w=5", sig=signature_of("w=5", later)), SIGNATURES, NOW_S).ends == later
    with pytest.raises(SignatureExpired):
        policy("signed").judge(query("w=5", sig=signature_of("w=5", over)), SIGNATURES, NOW_S)
    # What any client may ask for does not end with a signature that stands beside it.
    assert policy("signed").judge(query("w=320", sig=signature_of("w=320", over)), SIGNATURES, NOW_S).ends is None


def test_signature_covers_the_path_of_a_permanent_url() -> None:
    path = f"/images/{'ab' * 32}.png"
    sig = sign(KEY, path, options=[("q", "80"), ("w", "5")])
    read = read_picture_query(f"w=5&q=80&sig={sig}", path)
    assert policy("signed").judge(read, SIGNATURES, NOW_S).options == PictureOptions(5, quality=80)
    other = read_picture_query(f"w=5&q=80&sig={sig}", f"/images/{'cd' * 32}.png")
    with pytest.raises(SignatureInvalid):
        policy("signed").judge(other, SIGNATURES, NOW_S)


def test_signature_of_another_server_counts_if_it_covers_the_options() -> None:
    def foreign(signature: ForeignSignature) -> PictureQuery:
        return PictureQuery("", (), (("w", "5"),), signature)

    permitted = policy("signed").judge(foreign(ForeignSignature(covers_options=True)), SIGNATURES, NOW_S)
    assert (permitted.options, permitted.ends) == (PictureOptions(5), None)
    later = foreign(ForeignSignature(covers_options=True, ends=int(NOW_S) + 1))
    assert policy("signed").judge(later, SIGNATURES, NOW_S).ends == int(NOW_S) + 1
    with pytest.raises(SignatureExpired):
        policy("signed").judge(foreign(ForeignSignature(covers_options=True, ends=int(NOW_S))), SIGNATURES, NOW_S)
    for forbidding, covers in ((policy("signed"), False), (policy("presets"), True)):
        with pytest.raises(OptionsForbidden):
            forbidding.judge(foreign(ForeignSignature(covers_options=covers)), SIGNATURES, NOW_S)


@pytest.mark.parametrize("options", ["w=2001", "w=1001&dpr=2", "h=2001", "preset=thumb&w=2001", "w=1&h=16383"])
def test_side_has_a_maximum_whatever_the_permission(options: str) -> None:
    for each in (policy("presets"), policy("signed"), policy("any")):
        with pytest.raises(InvalidOption, match=r"^[wh]: is \d+ device pixels, and derive.side_max allows 2000"):
            each.judge(query(options, sig=signature_of(options)), SIGNATURES, NOW_S)


def test_refusal_says_what_is_open() -> None:
    for given, words in (
        (policy("presets"), "ask for a preset (full, thumb), or ask for w of derive.widths (320, 640), alone or with"),
        (policy("signed", ()), "ask for a preset (full, thumb), or sign the URL (docs/signing.md)"),
        (DerivePolicy("presets", (), {}, 9), "derive.presets and derive.widths are empty, so ask for the original"),
    ):
        with pytest.raises(OptionsForbidden) as raised:
            given.judge(query("w=5&q=80"), SIGNATURES, NOW_S)
        assert words in str(raised.value)
    many = DerivePolicy("presets", tuple(range(1000, 2000)), {f"p{n}": PRESETS["thumb"] for n in range(999)}, 2000)
    with pytest.raises(OptionsForbidden) as raised:
        many.judge(query("w=5"), SIGNATURES, NOW_S)
    assert len(str(raised.value)) < 500


def test_link_that_imgkeep_writes_has_to_be_permitted() -> None:
    for permitting, picture, is_signed in (
        (policy("presets"), (("w", "320"),), False),
        (policy("signed"), (("w", "5"),), True),
        (policy("any"), (("w", "5"),), False),
    ):
        permitting.require(picture, is_signed=is_signed)
    for forbidding, is_signed in ((policy("presets"), True), (policy("signed"), False)):
        with pytest.raises(OptionsForbidden):
            forbidding.require((("w", "5"),), is_signed=is_signed)
    with pytest.raises(InvalidOption):
        policy("any").require((("w", "2001"),), is_signed=True)


def test_presets_are_read() -> None:
    assert read_presets({"thumb": "w=320&h=320&fit=cover&format=auto", "full": "format=auto"}, 320) == PRESETS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("thumb", "w=x", "thumb: w: expected a whole number from 1 to 16383"),
        ("thumb", "w=321", "thumb: a side is longer than derive.side_max, 320"),
        ("thumb", "h=321", "thumb: a side is longer than derive.side_max, 320"),
        ("thumb", "", "thumb: names no options, and would be the original"),
        ("a b", "w=1", "'a b' is no name: expected letters, digits, - and _, 64 at most"),
        ("", "w=1", "'' is no name"),
        ("\u0664", "w=1", "'\u0664' is no name"),
        ("x" * 65, "w=1", f"'{'x' * 64}' is no name"),
    ],
)
def test_malformed_preset_is_told_by_its_name(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        read_presets({name: text}, 320)

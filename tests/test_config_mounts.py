"""Mounts of other image servers: each path has one meaning, and their keys are secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.config import ConfigError, load
from tests.support.tables import table

if TYPE_CHECKING:
    from pathlib import Path

KEY = "a-key-of-thumbor-that-is-long"


@table("mount", ["", "/", "/thumbor", "/a/b.c/d-e_f"])
def test_path_is_a_mount(mount: str) -> None:
    assert load({"derive": {"thumbor": mount, "nextjs": "/_next/image"}}, {}).derive.thumbor == mount


@table(
    ("derive", "message"),
    [
        ({"thumbor": "thumbor"}, "derive.thumbor: expected a path like /thumbor, or / alone, got 'thumbor'"),
        ({"thumbor": "/thumbor/"}, "derive.thumbor: expected a path"),
        ({"thumbor": "//"}, "derive.thumbor: expected a path"),
        ({"thumbor": "/../a"}, "derive.thumbor: expected a path"),
        ({"thumbor": "/{name}"}, "derive.thumbor: expected a path"),
        ({"thumbor": "/ä"}, "derive.thumbor: expected a path"),
        ({"imageproxy": "/img"}, "derive.imageproxy: /img is a path of imgkeep's own"),
        ({"imageproxy": "/api/x"}, "derive.imageproxy: /api/x is a path of imgkeep's own"),
        ({"nextjs": "/"}, "derive.nextjs: / is the home page"),
        ({"imageproxy": "/a", "thumbor": "/a"}, "derive.thumbor: derive.imageproxy begins with the same part"),
        ({"imageproxy": "/a/b", "thumbor": "/a/c"}, "derive.thumbor: derive.imageproxy begins with the same part"),
        ({"imageproxy": "/", "thumbor": "/"}, "derive.thumbor: derive.imageproxy begins with the same part"),
        ({"imageproxy": "/old/a"}, "derive.imageproxy: legacy.mount begins with the same part"),
        ({"thumbor_key": "MY_SECURE_KEY"}, "derive.thumbor_key: needs 16 printable ASCII characters or more"),
        ({"imageproxy_key": "a key with spaces in it"}, "derive.imageproxy_key: needs 16 printable ASCII"),
    ],
)
def test_mount_that_cannot_be_is_refused(derive: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load({"derive": derive, "legacy": [{"mount": "old"}]}, {})
    assert [message in each for each in refused.value.messages] == [True]
    assert "MY_SECURE_KEY" not in str(refused.value)


def test_key_comes_from_a_file_and_never_prints(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    config = load({}, {"IMGKEEP_DERIVE__THUMBOR_KEY_FILE": str(file)})
    assert config.derive.thumbor_key == KEY
    assert KEY not in repr(config)
    assert "side_max=8192" in repr(config.derive)


def test_key_of_another_server_can_permit_options() -> None:
    with pytest.raises(ConfigError, match="needs security"):
        load({"derive": {"allow": "signed"}}, {})
    assert load({"derive": {"allow": "signed", "thumbor_key": KEY}}, {}).derive_policy().allow == "signed"

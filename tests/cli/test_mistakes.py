"""Mistakes of operators: one line each with the remedy, exit status 2, and no traceback."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import shutil
import socket
import sqlite3
import sys
from contextlib import closing
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.bootstrap.preflight import check_machine
from imgkeep.cli.health import health
from imgkeep.config import ConfigError, Server, load
from imgkeep.observability.logs import describe_crash
from imgkeep.storage.s3.settings import explain as refuse_aws
from tests.support.program import ROOT, cannot, environment, run, run_here, serving
from tests.support.stores import local_store
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OTHER_USER = 65_534


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def owners_of(folder: Path) -> dict[Path, int]:
    """Return everything below a folder, with its owner."""
    return {path: path.stat().st_uid for path in folder.rglob("*")}


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


async def refuse(folder: Path, commands: Sequence[str], told: str, **settings: Any) -> None:
    """Check that each command ends with status 2 and one line that matches `told`."""
    for command in commands:
        # Only a process of its own reads relative paths from the folder where it is started, and hears signals.
        perform = run if settings or command == "serve" else run_here
        status, out, err = await perform(folder, *command.split(), **settings)
        assert (status, out) == (2, ""), (command, err)
        assert re.fullmatch(rf"(?s)imgkeep: {told}[^\n]*\n", err), (command, err)


AWS = "store.url: the AWS settings of this machine are not usable: "


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"AWS_ENDPOINT_URL": "minio:9000"}, f"{AWS}the endpoint is no URL like https://.*AWS_ENDPOINT_URL"),
        ({"AWS_PROFILE": "nope"}, rf"{AWS}there is no profile nope \(AWS_PROFILE\)"),
        ({"AWS_CONFIG_FILE": "[default\nx = 1"}, rf"{AWS}the file \S+ cannot be parsed \(at line 1\)"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "[default\nhush"}, rf"{AWS}the file \S+ cannot be parsed \(at line 1\)"),
        ({"AWS_ACCESS_KEY_ID": "hush"}, f"{AWS}Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY"),
        ({"AWS_DEFAULT_REGION": "a b"}, f"{AWS}.*region_name 'a b'"),
        ({"AWS_CA_BUNDLE": "/nowhere"}, f"{AWS}AWS_CA_BUNDLE"),
        ({"AWS_ENDPOINT_URL_S3": "ftp://minio"}, f"{AWS}the endpoint is no URL like https://.*AWS_ENDPOINT_URL_S3"),
    ],
    ids=["endpoint", "profile", "configuration", "credentials", "half a key", "region", "bundle", "scheme"],
)
async def test_wrong_aws_setting_is_named_without_network(
    folder: Path, settings: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in settings.items():
        monkeypatch.setenv(name, write(folder.parent / "aws", text) if name.endswith("_FILE") else text)
    region = "" if "AWS_DEFAULT_REGION" in settings else "?region=eu-central-1"
    config = load({"store": {"url": f"s3://images{region}", "fallback": f"file:{folder}"}}, {})
    with pytest.raises(ConfigError, match=f"^{told}") as error:
        await check_machine(config)
    assert len(error.value.messages) == 1
    assert "hush" not in str(error.value)


async def test_wrong_aws_setting_ends_every_start(folder: Path) -> None:
    bucket = {"store__url": "s3://images?region=eu-central-1", "store__fallback": f"file:{folder}"}
    told = f"{AWS}there is no profile nope"
    await refuse(folder, ["check"], told, AWS_PROFILE="nope", **bucket)
    await refuse(folder, ["serve"], told, AWS_PROFILE="nope", server__workers="2", **bucket)


async def test_malformed_database_url_is_named(folder: Path) -> None:
    await refuse(folder, ["serve"], "database.url: expected", database__url="mysql://u:hush@h/d")
    text = write(folder.parent / "photo.jpg", "no database" * 100)
    make_folder(folder)
    for path, told in ((text, "is no SQLite database"), (folder, "is a folder")):
        with pytest.raises(ConfigError, match=f"^database.url: {path} {told}"):
            await check_machine(load({"store": {"url": f"file:{folder}"}, "database": {"url": f"sqlite:{path}"}}, {}))


async def test_missing_driver_is_named(folder: Path) -> None:
    hidden = folder.parent / "hidden"
    write(make_folder(hidden / "psycopg") / "__init__.py", "raise ModuleNotFoundError(name='psycopg')")
    settings = {"database__url": "postgresql://u:hush@127.0.0.1:1/d", "PYTHONPATH": f"{hidden}:{ROOT}/proxy"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imgkeep", "check"),
        cwd=folder.parent,
        env={**environment(folder, **settings), "PYTHONPATH": settings["PYTHONPATH"]},
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert err.decode() == (
        "imgkeep: database.url: postgresql: needs psycopg (it is not installed): pip install 'imgkeep[postgresql]'\n"
    )
    assert process.returncode == 2


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
        connection.commit()


async def test_check_names_a_newer_schema(folder: Path) -> None:
    path = make_folder(folder) / "imgkeep.db"
    make_newer(path)
    await refuse(folder, ["check"], rf"database.url: {path} was written by a newer version of imgkeep \(schema 9999\)")
    assert [each.name for each in owners_of(folder)] == ["imgkeep.db"]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_newer_schema_ends_a_running_server(folder: Path, workers: str) -> None:
    database = make_folder(folder.parent / "elsewhere" / "imgkeep.db")  # in the way until the server runs
    settings: dict[str, Any] = {"database__url": f"sqlite:{database}", "server__workers": workers}
    async with serving(folder, **settings) as imgkeep:
        shutil.rmtree(database)
        make_newer(database)
        assert await asyncio.wait_for(imgkeep.process.wait(), 40) == 2
        await until(lambda: any(line.startswith("imgkeep: ") for line in imgkeep.log))
    told = [line for line in imgkeep.log if line.startswith("imgkeep: ")]
    newer = "imgkeep: the database was written by a newer version of imgkeep (schema 9999), or by another program"
    newer += ": run that version, or name another database in database.url"
    assert set(told) == {f"{newer} (file {database})\n"}
    assert "Traceback" not in "".join(imgkeep.log)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_bad_address_is_named(folder: Path, workers: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = await run(folder, "serve", server__port=str(port), server__workers=workers)
    last = err.splitlines()[-1]
    assert status == 1, err
    assert last.startswith(f"imgkeep: server.port: another program listens at 127.0.0.1:{port} already"), err
    assert "Traceback" not in err


async def test_file_in_place_of_the_folder_is_named(folder: Path) -> None:
    write(folder, "in the way")
    await refuse(folder, ["check"], f"store.url: {folder} is a file, not a folder", database__url="sqlite:imgkeep.db")


@pytest.mark.parametrize("name", ["list", "stats"])
async def test_unreachable_database_gets_no_other_remedy(folder: Path, name: str) -> None:
    status, out, err = await run(folder, name, database__url="postgresql://u:hush@127.0.0.1:1/images")
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert re.match(r"imgkeep: the database failed: .*\(database images at 127\.0\.0\.1:1\)", err), err
    assert "hush" not in err


@pytest.mark.parametrize("name", ["list", "export"])
async def test_reading_command_creates_nothing(folder: Path, name: str) -> None:
    settings = {"store__url": "", "database__url": ""}
    here = folder.parent
    await refuse(folder, [name], f"store.url: there is no store in {here}/data: run this in the folder", **settings)
    assert owners_of(here) == {}


async def test_reading_command_creates_no_database(folder: Path) -> None:
    store = local_store(folder)
    await store.open()
    await store.aclose()
    before = owners_of(folder)
    await refuse(folder, ["list"], f"database.url: there is no file {folder}/imgkeep.db: .*`imgkeep reindex` makes one")
    assert owners_of(folder) == before


def test_malformed_aws_number_names_its_variable() -> None:
    with pytest.raises(ValueError, match="invalid literal") as raised:
        int("many")
    assert str(refuse_aws(raised.value)).startswith(f"{AWS}a setting that is a number is none: AWS_MAX_ATTEMPTS, ")


@pytest.mark.parametrize("command", ["verify", "reindex", f"remove {'0' * 64}", f"restore {'0' * 64}", "refetch a"])
async def test_maintenance_creates_no_store(folder: Path, command: str) -> None:
    await refuse(folder, [command], f"store.url: there is no store in {folder}: run this in the folder where")
    assert not folder.exists()  # noqa: ASYNC240 - quick


async def test_store_of_another_user_is_refused_with_the_remedy(folder: Path) -> None:
    if os.geteuid() != 0:
        cannot("only root can give files to another user")
    async with serving(folder):
        pass
    for path in (folder, *owners_of(folder)):
        shutil.chown(path, OTHER_USER)
    remedy = r"sudo -u \S+ imgkeep \.\.\."
    told = f"the store in {folder} belongs to user .*{remedy}.*--server URL"
    await refuse(folder, ["save http://127.0.0.1:1/a.png"], told)
    told = f"the store in {folder} belongs to user .*{remedy}"
    await refuse(folder, ["verify"], told)
    other = folder.parent / "other"
    make_folder(other / "v1")
    await refuse(folder, [f"migrate file:{other} file:{folder}"], told)
    status, _, err = await run(folder, "list")
    assert status == 0, err
    assert set(owners_of(folder).values()) == {OTHER_USER}, "nothing is root's"


async def test_root_creates_no_store_in_a_foreign_folder(folder: Path) -> None:
    if os.geteuid() != 0:
        cannot("only root can give files to another user")
    home = folder.parent / "home"
    make_folder(home)
    shutil.chown(home, OTHER_USER)
    told = rf"the folder {home} belongs to user .*sudo -u \S+ imgkeep \.\.\..*--server URL"
    await refuse(home / "data", ["save http://127.0.0.1:1/a.png"], told)
    assert owners_of(home) == {}


async def ask_health(host: str | tuple[str, ...], port: int) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    status = await asyncio.to_thread(partial(health, Server(host=host, port=port), as_json=False, out=out, err=err))
    return status, out.getvalue(), err.getvalue()


async def test_health_asks_the_configured_server(folder: Path) -> None:
    async with serving(folder, server__host="127.0.0.1,127.0.0.2") as imgkeep:
        port = int(imgkeep.address.rpartition(":")[2])
        status, out, err = await run(folder, "health", server__host="0.0.0.0", server__port=str(port))
        assert (status, out, err) == (0, "ready\n", "")
        status, out, err = await ask_health(("127.0.0.3", "127.0.0.2"), port)
        assert (status, out) == (0, "ready\n")
        assert err.startswith(f"imgkeep: nothing answers at 127.0.0.3:{port} ")
        imgkeep.process.terminate()
        await imgkeep.becomes("draining")
        assert await ask_health("127.0.0.1", port) == (1, "draining\n", "")
        await imgkeep.process.wait()
    told = f"imgkeep: nothing answers at 127.0.0.1:{port} (server.host, server.port): Connection refused\n"
    assert await ask_health("127.0.0.1", port) == (1, "", told)
    with pytest.raises(ConfigError, match=r"^server.port: is 0"):
        await ask_health("127.0.0.1", 0)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\n\r\n\x89PNG\r\n", b"HTTP/1.1 200 OK\r\n\r\n{}", b"220 mail.example.com\r\n"]
)
async def test_health_names_another_program(answer: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        status, out, err = await ask_health("127.0.0.1", port)
    assert (status, out) == (1, "")
    assert err.startswith(f"imgkeep: another program answers at 127.0.0.1:{port} (server.host, server.port): ")
    assert "codec" not in err


async def test_missing_token_names_its_folder(folder: Path) -> None:
    told = f"the file api-token cannot be read: No such file or directory in {folder}; run this where imgkeep runs"
    await refuse(folder, ["token --local"], told)


def test_unexpected_error_is_one_line() -> None:
    secret = "hush"
    with pytest.raises(ValueError, match=secret) as raised:
        int(secret)
    line, whole = (describe_crash(raised.value, in_full=in_full) for in_full in (False, True))
    assert re.fullmatch(r"unexpected error: ValueError \(test_mistakes.py:\d+\); log.level = .*", line)
    assert "\n" in whole
    assert "hush" not in line
    assert "invalid literal" not in whole


# --- the banner


def start_in_terminal(folder: Path, **settings: str) -> str:
    """Start a server on a terminal, and return its output up to the line that says how to end it."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder.parent)
        os.execve(sys.executable, [sys.executable, "-m", "imgkeep", "serve"], environment(folder, **settings))
    shown = b""
    try:
        while b"Ctrl-C" not in shown and b"imgkeep: " not in shown:
            shown += os.read(terminal, 65_536)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)
    return shown.decode()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_terminal_shows_addresses_and_openness(folder: Path, workers: str) -> None:
    settings = {"TERM": "xterm-256color", "log__format": "text", "server__workers": workers}
    shown = start_in_terminal(folder, **settings)
    assert re.search(r"\x1b]8;id=\d+;(http://127\.0\.0\.1:\d+/)\x1b\\\x1b\[4m\1\x1b\[0m\x1b]8;;\x1b\\\r\n", shown)
    first = re.search(r"imgkeep [0-9.]+.*?\r\n(.*?)\r\n", shown)
    assert first is not None
    assert re.match(r"open +\x1b]8;id=\d+;http://127\.0\.0\.1:\d+/login\?ticket=", first[1]), "the link to open"
    assert f"images   {folder}\r\n" in shown
    assert "open to  this machine only\r\n" in shown
    assert "listening address=" in shown, "records stay for logs"


@pytest.mark.parametrize("settings", [{"TERM": "dumb"}, {"TERM": "xterm-256color", "NO_COLOR": "1"}])
def test_terminal_without_colours_gets_plain_text(folder: Path, settings: dict[str, str]) -> None:
    shown = start_in_terminal(folder, log__format="text", **settings)
    assert "\x1b" not in shown
    assert re.search(r"address  http://127\.0\.0\.1:\d+/\r\n", shown)


async def test_pipe_gets_records_alone(folder: Path) -> None:
    async with serving(folder, log__level="info") as imgkeep:
        assert not any("Ctrl-C" in line for line in imgkeep.log)

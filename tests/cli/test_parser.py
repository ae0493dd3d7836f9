"""What all commands share: help, imports, configuration, data folder, server and token, completion."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from imgkeep.__main__ import main
from imgkeep.cli.dispatch import MODULES
from imgkeep.cli.parser import SHELLS, make_parser
from tests.support.images import make_image
from tests.support.program import ROOT, cannot, environment, run, run_here, serving
from tests.support.tables import table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.origins import FakeOrigin

COMMANDS = next(action.choices for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
TOKEN = "a-token-of-this-test"


# --- help


@table("name", COMMANDS)
def test_help_has_examples_that_parse_and_statuses(name: str) -> None:
    command = COMMANDS[name]
    assert re.fullmatch(r"[A-Z].*\w\.", command.description)
    examples = re.findall(r"^  (imgkeep .+)$", command.epilog, re.MULTILINE)
    examples += re.findall(r'"\$\((imgkeep .+)\)"', command.epilog)
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" >")[0])
        assert make_parser().parse_args(words[1:]).command == name
    told = set(re.findall(r"^  (\d+) ", command.epilog, re.MULTILINE))
    assert {"0", "2"} <= told
    assert ({"130", "143"} <= told) != (name in {"serve", "demo", "token", "completion"}), "what signals end tells so"
    assert all(action.help for action in command._actions), "each argument is explained"


def test_help_hides_the_worker_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["keep"], ["completion", "bash"]):
        with suppress(SystemExit):
            main(words)
        shown = "".join(capsys.readouterr())
        assert "worker" not in re.sub("server.workers|of all workers", "", shown), words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("lst", "there is no command 'lst'; did you mean list?"),
        ("sav http://a.example/", "there is no command 'sav'; did you mean save?"),
        ("frobnicate", "there is no command 'frobnicate'; `imgkeep --help` lists them"),
        ("x" * 100_000, "`imgkeep --help` lists them"),
        ("--confg c.toml list", "there is no option --confg; did you mean --config?"),
        ("list --limt=3", "imgkeep list: error: there is no option --limt; did you mean --limit?"),
        ("serve --prot 80", "imgkeep serve: error: there is no option --prot; did you mean --port?"),
        ("export --format xml", "there is no choice 'xml'; there are csv, jsonl"),
        ("completion fich", "there is no choice 'fich'; did you mean fish?"),
        ("check now", "imgkeep check: error: one argument too many: 'now'"),
    ],
)
def test_misspelt_word_gets_a_suggestion(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert told in err


FEW = 80
"""Maximum number of modules that a parser of arguments needs besides those of every Python program."""
MANY = 300
"""Maximum number for a command that reads the configuration and links; the server takes over a thousand."""


@pytest.mark.parametrize(
    ("words", "modules_max", "heavy"),
    [
        ("-V", FEW, {"asyncio", "msgspec"}),
        ("--version", FEW, {"asyncio", "msgspec"}),
        ("list -V", FEW, {"asyncio", "msgspec"}),
        ("--help", FEW, {"asyncio", "msgspec"}),
        ("save --help", FEW, {"asyncio", "msgspec"}),
        ("health", MANY, {"asyncio", "shtab"}),
        ("inspect https://a.example/a.png", MANY, {"asyncio", "shtab"}),
        ("sign https://a.example/a.png", MANY, {"asyncio", "shtab"}),
        ("token", MANY, {"asyncio", "shtab"}),
    ],
)
def test_command_imports_only_what_it_needs(tmp_path: Path, words: str, modules_max: int, heavy: set[str]) -> None:
    heavy |= {"aiohttp", "sqlalchemy", "rich", "botocore", "uvloop", "markdown_it"}
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom imgkeep.__main__ import main\n"
        f"try: main({words.split()!r})\nexcept SystemExit as error: assert error.code == 0\n"
        "loaded = set(sys.modules) - before\n"
        f"assert not {heavy!r} & loaded, sorted(loaded)\nassert len(loaded) <= {modules_max}, sorted(loaded)"
    )
    settings = environment(tmp_path / "data", server__port="1", security__signing_keys="k" * 20)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, check=True, capture_output=True)


def test_command_on_a_store_imports_neither_server_nor_client() -> None:
    heavy = {"aiohttp", "rich", "botocore", "prometheus_client", "markdown_it", "alembic"}
    modules = "imgkeep.cli.list_stats, imgkeep.cli.verify_reindex, imgkeep.observability.logs"
    code = f"import sys, {modules}\nassert not {heavy!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@table("name", COMMANDS)
def test_every_command_has_a_module_that_runs_it(name: str) -> None:
    assert callable(import_module(f"imgkeep.cli.{MODULES[name]}").run)


# --- configuration


@pytest.mark.parametrize("words", [["--config", "there.toml", "check"], ["check", "--config", "there.toml"]])
async def test_config_stands_before_or_after_the_command(folder: Path, words: list[str]) -> None:
    there = folder.parent / "there.toml"
    assert await run_here(folder, *words) == (2, "", "imgkeep: there.toml: there is no such file\n")
    there.write_text("[sevrer]\nport = 1\n")
    status, _, err = await run_here(folder, *words)
    assert (status, "sevrer" in err) == (2, True)
    there.write_text("")
    assert (await run_here(folder, *words))[0] == 0


@pytest.mark.parametrize("text", ["", "a?b", "a#b", "a%20b", "a:b", "a\nb", "//a"])
def test_data_folder_must_fit_into_a_url(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["list", "--data", text])
    assert "--data: expected a folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "65536", "x", "٣", "9" * 5000])
def test_port_must_be_a_number(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", f"--port={text}"])
    assert "--port: expected a number from 0 to 65535" in capsys.readouterr().err


async def test_flags_win_over_environment_and_file(folder: Path, origin: FakeOrigin) -> None:
    (folder.parent / "config.toml").write_text("[server]\nport = 1\n[store]\nurl = 's3://bucket'\n")
    settings: dict[str, Any] = {"server__port": "2", "server__host": "192.0.2.1", "AWS_S3_BUCKET_NAME": "bucket"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imgkeep", "serve", "--host", "127.0.0.1", "--port", "0", "--data", "data"),
        cwd=folder.parent,
        env=environment(folder.with_name("elsewhere"), **settings),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        facts: dict[str, str] = {}
        while facts.get("message") != "listening":
            facts = json.loads(await process.stderr.readline())
        assert facts["store"] == "file:data"
        there = f"http://{facts['address']}"
        url = origin.gives("/a.png", make_image())
        words = ("--server", there, "--data", "data", "--json")
        status, out, err = await run_here(folder.with_name("elsewhere"), "save", url, *words, **settings)
        assert (status, err) == (0, "")
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0
    assert {path.name for path in folder.iterdir()} >= {"v1", "imgkeep.db", "api-token"}  # noqa: ASYNC240 - quick
    assert not (folder.parent / "elsewhere").exists()
    told = await run_here(folder.with_name("elsewhere"), "list", "--data", "data", "--json", **settings)
    assert json.loads(told[1])["digest"] == json.loads(out)["digest"]


# --- a server and its token


async def test_token_comes_from_flag_variable_or_file(folder: Path, origin: FakeOrigin) -> None:
    file = folder.parent / "token"
    file.write_text(f"{TOKEN}\n")
    url = origin.gives("/a.png", make_image())
    async with serving(folder, security__api_tokens=TOKEN) as program:
        there = ("--server", f"http://{program.address}", "--json")
        elsewhere = folder.with_name("elsewhere")
        answers = [
            await run_here(elsewhere, "save", url, *there, "--token", TOKEN, IMGKEEP_TOKEN="wrong-token-wrong"),
            await run_here(elsewhere, "list", *there, IMGKEEP_TOKEN=TOKEN),
            await run_here(elsewhere, "inspect", url, *there, IMGKEEP_TOKEN_FILE=str(file)),
            await run_here(elsewhere, "refetch", url, *there, "--token", TOKEN),
            await run_here(elsewhere, "remove", url, *there, "--token", TOKEN),
            await run_here(elsewhere, "restore", url, *there, "--token", TOKEN),
        ]
        assert [status for status, _, _ in answers] == [0] * 6, answers
        facts = [json.loads(out) for _, out, _ in answers]
        assert len({fact.get("key") for fact in facts}) == 1
        assert facts[1].keys() < facts[0].keys(), "list tells what save tells, and whether it was created less"
        for name, words in (
            ("--token", ("--token", "of two words")),
            ("IMGKEEP_TOKEN_FILE", ()),
        ):
            status, out, err = await run_here(elsewhere, "list", *there, *words, IMGKEEP_TOKEN_FILE=f"{file}s")
            assert (status, out) == (2, "")
            assert name in err
            assert "two words" not in err
        status, _, err = await run_here(elsewhere, "list", *there, "--token", "another-token-here")
        assert (status, "the server at" in err, "another" in err) == (1, True, False)
    assert await run_here(folder, "list", "--token", TOKEN) == (2, "", "imgkeep: --token: needs --server\n")
    assert not any(TOKEN in out + err for _, out, err in answers)


async def test_store_and_server_print_the_same(folder: Path, origin: FakeOrigin) -> None:
    urls = [origin.gives(f"/{n}.png", make_image(seed=n)) for n in range(3)]
    names = (*urls, origin.url("/missing"), "nonsense")
    async with serving(folder) as program:
        there = ("--server", f"http://{program.address}")
        assert (await run_here(folder, "save", *urls))[0] == 0
        for words in (("list", "--limit", "2"), ("list", "--json"), ("inspect", "--json", *names)):
            here, far = await asyncio.gather(run_here(folder, *words), run(folder, *words, *there))
            assert here[:2] == (far[0], far[1].replace(f"http://{program.address}", ""))
            assert not re.search(r"\d{4}-\d\d-\d\d(?!T\d\d:\d\d:\d\dZ)", here[1]), "dates have one form"
        _, out, _ = await run_here(folder, "remove", "--json", *names, *there)
        assert [json.loads(line)["success"] for line in out.splitlines()] == [True] * 3 + [False] * 2


async def test_every_command_that_prints_facts_prints_json(folder: Path) -> None:
    key = "k" * 20
    for words in (
        "check",
        "check --live",
        "token",
        "stats",
        "verify",
        "reindex",
        "sign https://a.example/a.png",
        "inspect https://a.example/a.png",
    ):
        status, out, err = await run_here(folder, *words.split(), "--json", security__signing_keys=key)
        assert status == 0, (words, err)
        assert all(isinstance(json.loads(line), dict) for line in out.splitlines()), words
        assert out, words
    assert await run_here(folder, "export", "--json") == await run_here(folder, "export", "--format", "jsonl")


# --- completion


@pytest.fixture(scope="module")
def completion() -> str:
    """The completion script for bash."""
    words = (sys.executable, "-m", "imgkeep", "completion", "bash")
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "rewrite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("imgkeep ver", {"verify"}),
        ("imgkeep re", {"remove", "restore", "refetch", "rewrite", "reindex"}),
        ("imgkeep save --ser", {"--server"}),
        ("imgkeep completion f", {"fish"}),
        ("imgkeep wor", set()),
    ],
)
def test_bash_completes(tmp_path: Path, completion: str, typed: str, offered: set[str]) -> None:
    bash = shutil.which("bash")
    if bash is None:
        cannot("bash is not installed")
    words = typed.split()
    script = (
        f"{completion}\n"
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}\n"
        'function=$(complete -p imgkeep | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n'
        f'"$function" imgkeep {words[-1]} {words[-2]}\nprintf "%s\\n" "${{COMPREPLY[@]}}"\n'
    )
    settings = environment(tmp_path / "data")
    answer = subprocess.run([bash, "-c", script], cwd=tmp_path, env=settings, capture_output=True, check=False)
    assert set(answer.stdout.decode().split()) == offered, answer.stderr.decode()

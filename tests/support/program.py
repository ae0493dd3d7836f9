"""imgkeep as people run it: a process of its own on a free port, and means to watch and to hurt it."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import shutil
import signal
import sys
from contextlib import asynccontextmanager, chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import BytesIO, TextIOWrapper
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn
from unittest.mock import patch
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from imgkeep.__main__ import main
from tests.support.prepared import PR_SET_PTRACER, PreparedProcess, start_prepared
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

ROOT = Path(__file__).parents[2]
_ALONE = Lock()
"""The lock of the command that runs in this process."""
START_TIMEOUT_S = 30
"""Under strace, on a machine that is busy with other tests."""


def cannot(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run. In CI that is an error: there everything has to run."""
    if os.environ.get("CI"):  # noqa: TID251 - tests read what they run in
        pytest.fail(f"must run in CI, but {reason}")
    pytest.skip(reason)


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """
    Return the environment of a process that keeps everything under `folder`; settings as `store__url`, empty for none,
    and other variables as they are called.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(("IMGKEEP_", "AWS_"))}  # noqa: TID251
    chosen = {
        "server__port": "0",
        "store__url": f"file:{folder}",
        "store__free_bytes_min": "0",
        "database__url": f"sqlite:{folder}/imgkeep.db",
        "fetch__allow_networks": "127.0.0.0/8",
        "fetch__retries_max": "0",
        "sources__allow": "*",
        "derive__facts": "false",
        "log__format": "json",
        **settings,
    }
    own["PYTHONPATH"] = str(ROOT / "proxy")
    own["AWS_EC2_METADATA_DISABLED"] = "true"
    return own | {
        f"IMGKEEP_{name.upper()}" if name.islower() else name: value for name, value in chosen.items() if value
    }


@dataclass(frozen=True)
class Answer:
    """A response that was received whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def cache_status(self) -> str:
        return self.headers.get("Cache-Status", "")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Program:
    """A running `imgkeep serve`."""

    process: asyncio.subprocess.Process | PreparedProcess
    session: aiohttp.ClientSession
    """It shows the API a token."""
    folder: Path
    api_tokens: str = ""
    address: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def token(self) -> str:
        """A token that the API takes."""
        if self.api_tokens:
            return self.api_tokens.split(",")[0]
        # Beside a bucket the data folder is the default one.
        places = [folder / "api-token" for folder in (self.folder, self.folder.parent / "data")]
        return next(place for place in places if place.exists()).read_text().strip()

    async def get(self, path: str) -> Answer:
        async with self.session.get(URL(f"http://{self.address}{path}", encoded=True)) as response:
            return Answer(response.status, response.headers, await response.read())

    async def img(self, url: str) -> Answer:
        return await self.get(f"/img?src={quote(url, safe='')}")

    async def ready(self) -> dict[str, object]:
        """Return what `/readyz` says."""
        report = json.loads((await self.get("/readyz")).body)
        assert isinstance(report, dict)
        return report

    async def becomes(self, status: str, *, within_s: float = 30) -> dict[str, object]:
        """Wait until `/readyz` has this status; a look is taken every five seconds."""
        report: dict[str, object] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while (report := await self.ready())["status"] != status:  # noqa: ASYNC110 - another process sets no event
                    await asyncio.sleep(0.05)
        assert report["status"] == status, report
        return report

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def follow_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode())
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                if record["message"] == "listening":
                    self.address = record["address"].partition(",")[0]


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    under: Sequence[str] = (),
    interpreter: str = sys.executable,
    prepare: Callable[[], None] | None = None,
    **settings: str,
) -> AsyncGenerator[Program]:
    """Run `python -m imgkeep serve` until the end of the block, `under` another program where that is given."""
    process = await _start(folder, under, interpreter, prepare, settings)

    async def show_token(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        if request.url.path.startswith(("/api/", "/readyz")) and "Authorization" not in request.headers:
            request.headers["Authorization"] = f"Bearer {program.token}"
        return await handler(request)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), middlewares=(show_token,)
    ) as session:
        program = Program(process, session, folder, settings.get("security__api_tokens", ""))
        following = asyncio.create_task(program.follow_log())
        try:
            await until(lambda: bool(program.address) or following.done(), within_s=START_TIMEOUT_S)
            assert program.address, f"imgkeep did not start: {''.join(program.log)}"
            yield program
        finally:
            program.kill()
            await process.wait()
            await following


async def _start(
    folder: Path,
    under: Sequence[str],
    interpreter: str,
    prepare: Callable[[], None] | None,
    settings: Mapping[str, str],
) -> asyncio.subprocess.Process | PreparedProcess:
    """Start a server: by a fork of a process with its imports, unless it is started in a way of its own."""
    variables = environment(folder, **settings)
    is_plain = not under and interpreter == sys.executable and prepare is None
    if is_plain and not any(name.startswith(("PYTHON", "LANG", "LC_", "TZ")) for name in settings):
        return await start_prepared(["serve"], folder=folder.parent, variables=variables, new_session=True)
    return await asyncio.create_subprocess_exec(
        *(*under, interpreter, "-m", "imgkeep", "serve"),
        cwd=folder.parent,
        env=variables,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: _prepare(prepare),
    )


def _prepare(prepare: Callable[[], None] | None) -> None:
    # Where Yama guards processes (ptrace_scope 1), one that is no child may be traced only if it says so itself.
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1))
    if prepare is not None:
        prepare()


async def run(folder: Path, *arguments: str, stdin: bytes = b"", **settings: str) -> tuple[int, str, str]:
    """Run one command to its end; return exit status, standard output and standard error."""
    process = await start_prepared(
        arguments, folder=folder.parent, variables=environment(folder, **settings), has_stdin=True, has_stdout=True
    )
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def run_here(folder: Path, *arguments: str, stdin: bytes = b"", **settings: str) -> tuple[int, str, str]:
    """
    Do the same in a thread of this process, without half a second of imports, and one at a time: the environment, the
    working folder and the standard streams belong to the process.
    """
    return await asyncio.to_thread(_run_here, folder, arguments, stdin, environment(folder, **settings))


def _run_here(
    folder: Path, arguments: Sequence[str], stdin: bytes, variables: Mapping[str, str]
) -> tuple[int, str, str]:
    into, out, err = (TextIOWrapper(BytesIO(given), "utf-8", write_through=True) for given in (stdin, b"", b""))
    with _ALONE:
        umask, level = os.umask(0o077), logging.getLogger().level
        try:
            with (
                patch.dict(os.environ, variables, clear=True),  # noqa: TID251 - what the program reads
                patch.object(sys, "stdin", into),
                redirect_stdout(out),
                redirect_stderr(err),
                chdir(folder.parent),
            ):
                status = main(arguments)
        except SystemExit as exit_:  # argparse's way
            status = int(exit_.code or 0)
        finally:
            os.umask(umask)
            logging.getLogger().setLevel(level)
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return status, texts[0], texts[1]


def need_strace() -> None:
    if shutil.which("strace") is None:
        cannot("strace is not installed")


@asynccontextmanager
async def injecting(
    program: Program, calls: str, error: str = "", *, delay_us: int = 0, pid: int | None = None
) -> AsyncGenerator[None]:
    """
    Let these system calls of a running program, or of one process of it, fail with `error` until the end of the block,
    or take so much longer.
    """
    what = f"error={error}" if error else f"delay_exit={delay_us}"
    tracer = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-o", "/dev/null", "-p", str(pid or program.process.pid)),
        *("-e", f"trace={calls}", "-e", f"inject={calls}:{what}"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert tracer.stderr is not None
    try:
        line = (await tracer.stderr.readline()).decode()
        if "attached" not in line:
            cannot(f"strace may not attach: {line}")
        yield
    finally:
        with suppress(ProcessLookupError):
            tracer.send_signal(signal.SIGINT)
        await tracer.communicate()

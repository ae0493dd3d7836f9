"""
The programs that are compared, each a process of its own: imgkeep with shipped defaults, nginx as a caching proxy,
thumbor as a caching proxy that makes each picture anew, and nginx as a fast origin.

Rules:
- Servers run on one core, clients and origins on the other, so neither takes time from what is measured.
- nginx gets what is fair to it: one worker, no logs, `sendfile`, connections to the origin that stay open, and a plain
  path for a key where imgkeep reads a percent-encoded link.
- thumbor gets its usual fast configuration: what it fetched and what it made of that are stored on disk, so a hit is a
  file that is read and sent; one process, no access log, no signature to compute.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CORES: Final = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = CORES[0], CORES[-1]
START_TIMEOUT_S: Final = 60
DOZING_PERIOD_S: Final = 0.2
"""Much longer than a request takes, and much shorter than a round."""


def find(program: str) -> str | None:
    """Return where a program is; Debian has some in folders that are not on every PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")  # noqa: TID251


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """
    A running server.

    Attributes:
        pids: All of its processes that answer requests.
        exact: Whether it gives the bytes as they came; if not, the same picture written anew.
    """

    name: str
    port: int
    pids: tuple[int, ...]
    started_s: float = 0
    exact: bool = True

    def rss(self) -> int:
        """Return the bytes of memory that its processes have to themselves, or share with each other."""
        fields = [Path(f"/proc/{pid}/status").read_text() for pid in self.pids]
        return sum(int(text.partition("RssAnon:")[2].split()[0]) * 1024 for text in fields)

    def cpu_s(self) -> float:
        """Return the seconds of processor time that they took."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def _pinned(cores: Sequence[int], command: Sequence[str]) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, cores)), *command]


@contextmanager
def imgkeep(
    folder: Path,
    *,
    cores: Sequence[int] = (SERVER_CORE,),
    variables: Mapping[str, str] | None = None,
    **settings: str,
) -> Iterator[Server]:
    """Start imgkeep on `folder`, with settings as `store__url` and other variables, and wait until it is ready."""
    port = free_port()
    environment = {
        "PATH": os.environ.get("PATH", ""),  # noqa: TID251
        "IMGKEEP_SERVER__PORT": str(port),
        "IMGKEEP_STORE__URL": f"file:{folder}",
        "IMGKEEP_DATABASE__URL": f"sqlite:{folder}/imgkeep.db",
        "IMGKEEP_LOG__ACCESS": "false",
        "IMGKEEP_FETCH__ALLOW_NETWORKS": "127.0.0.0/8",
        # Its many clients have one address.
        "IMGKEEP_LIMITS__FILLS_PER_MINUTE": "0",
        "IMGKEEP_LIMITS__FILLS_CONCURRENT": "0",
        **{f"IMGKEEP_{name.upper()}": value for name, value in settings.items()},
        **(variables or {}),
    }
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        start = time.monotonic()
        process = subprocess.Popen(
            _pinned(cores, [sys.executable, "-m", "imgkeep", "serve"]), env=environment, stderr=log, cwd=Path.cwd()
        )
    try:
        ready = wait_until_answering(port, b"/readyz", process)
        workers = int(settings.get("server__workers", "1"))
        if workers > 1:
            ready = _wait_for_workers(port, workers)
        yield Server("imgkeep", port, (process.pid, *_children(process.pid)), ready - start)
    finally:
        process.kill()
        process.wait()


def _wait_for_workers(port: int, number: int) -> float:
    """Wait until all workers tell what they have counted, and return when they did."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            if b"imgkeep_workers_counted %d.0\n" % number in page.read():
                return time.monotonic()
        time.sleep(0.05)
    raise TimeoutError("the workers did not become ready")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def dozing(pids: Sequence[int], awake: float) -> Iterator[None]:
    """Let processes run only so much of the time, each at other moments than the one before it."""
    over = threading.Event()

    def doze(pid: int) -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGCONT)
            time.sleep(DOZING_PERIOD_S * awake)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(DOZING_PERIOD_S * (1 - awake))
        os.kill(pid, signal.SIGCONT)

    threads = [threading.Thread(target=doze, args=(pid,)) for pid in pids]
    try:
        for thread in threads:
            thread.start()
            time.sleep(DOZING_PERIOD_S / len(threads))
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextmanager
def thumbor(program: str, folder: Path, *, cores: Sequence[int] = (SERVER_CORE,)) -> Iterator[Server]:
    """
    Let thumbor keep what it fetched, and what it made of that, in `folder`; results are below `results`. It has one
    process for each core.
    """
    port = free_port()
    place = folder.absolute()  # it takes what is below a relative path for an attack
    configuration = place.parent / f"{place.name}.conf"
    configuration.write_text(
        f"STORAGE = 'thumbor.storages.file_storage'\nFILE_STORAGE_ROOT_PATH = '{place}/originals'\n"
        "RESULT_STORAGE = 'thumbor.result_storages.file_storage'\n"
        f"RESULT_STORAGE_FILE_STORAGE_ROOT_PATH = '{place}/results'\n"
        "RESULT_STORAGE_STORES_UNSAFE = True\nALLOW_UNSAFE_URL = True\n"
    )
    command = [program, "-i", "127.0.0.1", "-p", str(port), "-c", str(configuration), "-l", "error"]
    command += ["--processes", str(len(cores))] if len(cores) > 1 else []
    with (place.parent / f"{place.name}.log").open("w") as log:
        process = subprocess.Popen(
            _pinned(cores, command),
            env={"PATH": os.environ.get("PATH", "")},  # noqa: TID251
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until_answering(port, b"/healthcheck", process)
        yield Server("thumbor", port, (process.pid, *_children(process.pid)), exact=False)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has for other cores
        process.wait()


@contextmanager
def nginx_origin(folder: Path) -> Iterator[Server]:
    """Serve the files of `folder`: an origin that is never what one waits for."""
    with _nginx("origin", CLIENT_CORE, f"location / {{ root {folder}; }}") as server:
        yield server


@contextmanager
def nginx_cache(folder: Path, origin: Server | int) -> Iterator[Server]:
    """Cache what an origin serves, in `folder`."""
    port = origin if isinstance(origin, int) else origin.port
    cache = f"proxy_cache_path {folder} levels=1:2 keys_zone=images:100m max_size=50g inactive=30d use_temp_path=off;"
    upstream = f"upstream origin {{ server 127.0.0.1:{port}; keepalive 64; }}"
    location = (
        "location / { proxy_cache images; proxy_cache_valid 200 1y; proxy_cache_lock on; proxy_http_version 1.1;"
        ' proxy_set_header Connection ""; proxy_pass http://origin; }'
    )
    with _nginx("nginx", SERVER_CORE, location, f"{cache} {upstream}") as server:
        yield server


@contextmanager
def _nginx(name: str, core: int, location: str, outside: str = "") -> Iterator[Server]:
    port = free_port()
    program = find("nginx")
    assert program is not None
    folder = Path(f"/tmp/imgkeep-bench-nginx-{port}")
    folder.mkdir()
    (folder / "nginx.conf").write_text(
        f"worker_processes 1; daemon off; user root; pid {folder}/pid; error_log {folder}/error.log crit;\n"
        "worker_rlimit_nofile 16384; events { worker_connections 8192; }\n"
        "http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; default_type image/png;\n"
        f"client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n"
        f"uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi; {outside}\n"
        f"server {{ listen 127.0.0.1:{port} backlog=4096; {location} }} }}\n"
    )
    process = subprocess.Popen(_pinned([core], [program, "-c", str(folder / "nginx.conf"), "-e", "stderr"]))
    try:
        wait_until_answering(port, b"/", process)
        yield Server(name, port, tuple(_children(process.pid)))
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


def wait_until_answering(port: int, path: bytes, process: subprocess.Popen[bytes]) -> float:
    """Wait until a server answers, and return when it did."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server did not start"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
                sock.sendall(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % path)
                if sock.recv(15).startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 502")):
                    return time.monotonic()
        except OSError:
            pass
        time.sleep(0.005)
    raise TimeoutError("the server did not become ready")


def versions(thumbor_program: str | None) -> dict[str, str]:
    """Return what ran on what."""
    from importlib.metadata import version  # noqa: PLC0415 - of the packages alone

    def told(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return "not installed"
        return (done.stdout + done.stderr).strip().splitlines()[0] if done.stdout + done.stderr else "unknown"

    made_by = told(thumbor_program, "--version") if thumbor_program else ""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    changed = bool(told("git", "status", "--porcelain", "--untracked-files=no") != "unknown")
    return {
        "imgkeep": told("git", "rev-parse", "--short", "HEAD") + (" and changes" if changed else ""),
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("aiohttp", "uvloop")},
        "nginx": told(find("nginx") or "nginx", "-v").rpartition("/")[2],
        "thumbor": made_by.partition(" v")[2].partition(" ")[0] or "not installed",
        "wrk": told("wrk", "-v").partition(" [")[0].removeprefix("wrk "),
        "kernel": os.uname().release.partition("-")[0],
        "processor": f"{len(CORES)} x {cpu[0].partition(': ')[2] if cpu else 'unknown'}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def dump(figures: object, path: Path) -> None:
    path.write_text(json.dumps(figures, indent=1, default=str) + "\n")

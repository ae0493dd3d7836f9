"""nginx in front of imgkeep, as people run it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from tests.support.loopback import port_of, reserve
from tests.support.program import ROOT, cannot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

BARE = """
server {
    listen 127.0.0.1:PORT;
    location / { proxy_pass http://127.0.0.1:8080; }
}
"""
"""What a tutorial says."""

_MAIN = """
worker_processes 1;
daemon off;
pid nginx.pid;
error_log stderr crit;
events {}
http {
    client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    access_log off;
    include site.conf;
}
"""


def shipped() -> str:
    """Return `deploy/nginx.conf` without TLS, which needs a certificate, and with its logs where it runs."""
    text = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
    text = text.replace("listen 443 ssl;", "listen 127.0.0.1:PORT;")
    return re.sub(r"^    ssl_.*\n", "", text, flags=re.MULTILINE).replace("/var/log/nginx/", "")


@asynccontextmanager
async def nginx(folder: Path, site: str, upstream: str) -> AsyncGenerator[str]:
    """Run nginx with `site` in front of imgkeep at an address, and yield its own address."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        cannot("nginx is not installed")
    folder.mkdir()  # noqa: ASYNC240 - before anything runs
    holder = reserve()
    port = port_of(holder)
    (folder / "site.conf").write_text(site.replace("127.0.0.1:8080", upstream).replace("PORT", str(port)))
    # Bodies of requests are in the folder, which belongs to the user of the tests.
    (folder / "nginx.conf").write_text(f"user root;{_MAIN}" if os.geteuid() == 0 else _MAIN)
    process = await asyncio.create_subprocess_exec(
        *(program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"), start_new_session=True
    )
    try:
        async with asyncio.timeout(20):
            while True:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                assert process.returncode is None, "nginx did not start"
                await asyncio.sleep(0.01)
        yield f"127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()
        holder.close()

"""
How the S3 servers of the tests are started. `KINDS` has them by name:

- `moto` is written in Python and forgets everything at a stop. It checks no signatures.
- `rclone` and `s3rver` store objects in a folder, and overwrite one on a conditional PUT. s3rver writes in place, and
  cannot abort a multipart upload.
- `versitygw` stores objects in a folder, with their headers in extended attributes.
- `seaweedfs` is a master, a volume server, a filer and a gateway in one process. It starts in some three seconds.
- `ceph` is radosgw over a store in memory (`tests/support/s3/ceph.py`). It completes a multipart upload with an empty
  tag, and takes too long to start for CI.
- `garage` is one node of Garage. It overwrites an object on a conditional PUT.
- `minio` is MinIO, which is not maintained any more.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.installed import require
from tests.support.loopback import HOST
from tests.support.program import ROOT
from tests.support.s3 import ceph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

BUCKET = "images"


@dataclass(frozen=True)
class Kind:
    """
    A server program.

    Attributes:
        command: Makes the program and its arguments, of free ports and of a folder to write into. It listens for
            requests on the first port.
        ports: How many ports it listens on.
        keeps: Whether it has its objects again after a stop.
        conditional: Whether it refuses a conditional PUT of an object that is there.
        settles: Whether it answers some requests with errors for a moment after a start.
        is_in_ci: Whether the suite runs on it; if not, `python -m bench.stores` does.
    """

    command: Callable[[Sequence[int], Path], list[str]]
    key: str
    secret: str
    ports: int = 1
    keeps: bool = True
    conditional: bool = True
    settles: bool = False
    is_in_ci: bool = True


def _moto(ports: Sequence[int], _folder: Path) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(ports[0])]


def _rclone(ports: Sequence[int], folder: Path) -> list[str]:
    data = folder / "data"
    data.mkdir()
    return [
        *(require("rclone"), "serve", "s3", "--addr", f"{HOST}:{ports[0]}", "--auth-key", "rclone-key,rclone-secret"),
        *("--config", os.devnull, "--cache-dir", str(folder / "cache"), str(data)),
    ]


def _s3rver(ports: Sequence[int], folder: Path) -> list[str]:
    return [
        # It encrypts the token of a next page with DES, which OpenSSL 3 has in its legacy provider only.
        *(require("node"), "--openssl-legacy-provider", os.path.realpath(require("s3rver"))),
        *("--directory", str(folder / "data"), "--address", HOST, "--port", str(ports[0])),
        *("--silent", "--no-vhost-buckets", "--configure-bucket", BUCKET),
    ]


def _versitygw(ports: Sequence[int], folder: Path) -> list[str]:
    data = folder / "data"
    data.mkdir()
    return [
        *(require("versitygw"), "--access", "versitygw-key", "--secret", "versitygw-secret"),
        *("--port", f"{HOST}:{ports[0]}", "--region", "us-east-1", "--quiet", "posix", str(data)),
    ]


def _seaweedfs(ports: Sequence[int], folder: Path) -> list[str]:
    data = folder / "data"
    data.mkdir()
    credentials = {"accessKey": "seaweedfs-key", "secretKey": "seaweedfs-secret"}
    identity = {"name": "imgkeep", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    flags = (
        "s3",
        "s3.port.grpc",
        "master",
        "master.port.grpc",
        "volume",
        "volume.port.grpc",
        "filer",
        "filer.port.grpc",
    )
    numbers = zip((flag if "grpc" in flag else f"{flag}.port" for flag in flags), ports, strict=True)
    return [
        # One volume a bucket, not seven.
        *("env", "WEED_MASTER_VOLUME_GROWTH_COPY_1=1", require("weed"), "server", "-filer", "-s3"),
        *("-dir", str(data), "-ip", HOST, "-ip.bind", HOST, *(f"-{flag}={port}" for flag, port in numbers)),
        *("-s3.config", str(folder / "s3.json"), "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-filer.localSocket=filer.socket", "-s3.localSocket=s3.socket"),  # in its folder: such paths have to be short
        *(
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-master.heartbeatInterval=200ms",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=1000",
        ),
    ]


def _ceph(ports: Sequence[int], folder: Path) -> list[str]:
    require("radosgw", "Debian's radosgw, ceph-mon and ceph-osd")
    module = (sys.executable, "-m", "tests.support.s3.ceph")
    return ["env", f"PYTHONPATH={ROOT}", *module, str(folder), *map(str, ports)]


def _garage(ports: Sequence[int], folder: Path) -> list[str]:
    (folder / "garage.toml").write_text(f"""
metadata_dir = "{folder}/metadata"
data_dir = "{folder}/data"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "{HOST}:{ports[1]}"
rpc_public_addr = "{HOST}:{ports[1]}"
rpc_secret = "{"00" * 32}"
[s3_api]
s3_region = "us-east-1"
api_bind_addr = "{HOST}:{ports[0]}"
""")
    return [
        *("env", f"GARAGE_DEFAULT_ACCESS_KEY={_GARAGE_KEY}", f"GARAGE_DEFAULT_SECRET_KEY={_GARAGE_SECRET}"),
        *(
            require("garage", "cargo install garage"),
            "-c",
            str(folder / "garage.toml"),
            "server",
            "--single-node",
            "--default-access-key",
        ),
    ]


def _minio(ports: Sequence[int], folder: Path) -> list[str]:
    return [
        *("env", "MINIO_ROOT_USER=minio-key", "MINIO_ROOT_PASSWORD=minio-secret", "MINIO_UPDATE=off"),
        *(
            require("minio", "go install github.com/minio/minio@latest"),
            "server",
            "--quiet",
            "--address",
            f"{HOST}:{ports[0]}",
        ),
        *("--console-address", f"{HOST}:{ports[1]}", str(folder / "data")),
    ]


_GARAGE_KEY, _GARAGE_SECRET = f"GK{'01' * 12}", "02" * 32

KINDS = {
    "moto": Kind(_moto, "moto-key", "moto-secret", keeps=False),
    "rclone": Kind(_rclone, "rclone-key", "rclone-secret", conditional=False),
    "s3rver": Kind(_s3rver, "S3RVER", "S3RVER", conditional=False),  # it has no other credentials
    "versitygw": Kind(_versitygw, "versitygw-key", "versitygw-secret"),
    "seaweedfs": Kind(_seaweedfs, "seaweedfs-key", "seaweedfs-secret", ports=8, settles=True),
    "ceph": Kind(_ceph, ceph.KEY, ceph.SECRET, ports=2, keeps=False, is_in_ci=False),
    "garage": Kind(_garage, _GARAGE_KEY, _GARAGE_SECRET, ports=2, conditional=False, is_in_ci=False),
    "minio": Kind(_minio, "minio-key", "minio-secret", ports=2, is_in_ci=False),
}

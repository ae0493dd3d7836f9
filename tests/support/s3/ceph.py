"""
Ceph with its S3 gateway: a monitor and a store in memory, and radosgw, which this process becomes. All end with it.

    python -m tests.support.s3.ceph FOLDER PORT MONITOR_PORT

It starts in some fifteen seconds and forgets everything at a stop. Debian has it: radosgw, ceph-mon, ceph-osd.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from tests.support.loopback import HOST
from tests.support.s3.process import LEASH

KEY, SECRET = "ceph-key", "ceph-secret"

_CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:{host}:{monitor_port}/0]
mon_initial_members = a
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
public_addr = {host}
cluster_addr = {host}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_mon_cluster_mode = crc
ms_mon_service_mode = crc
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_class_load_list = *
osd_class_default_list = *
rgw_frontends = beast endpoint={host}:{port}
keyring = {folder}/keyring
run_dir = {folder}
admin_socket =
log_file = {folder}/$name.log
mon_cluster_log_file = {folder}/cluster.log
"""


def _make(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _start(*command: str) -> None:
    subprocess.Popen([sys.executable, "-ISc", LEASH, str(os.getpid()), *command])


def main(folder: Path, port: int, monitor_port: int) -> None:
    for name in ("mon", "osd"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    fsid, store = str(uuid4()), str(uuid4())
    configuration = _CONFIGURATION.format(fsid=fsid, host=HOST, port=port, monitor_port=monitor_port, folder=folder)
    (folder / "ceph.conf").write_text(configuration)
    here = ("-c", str(folder / "ceph.conf"))
    keys, monitors = str(folder / "keyring"), str(folder / "monitors")
    _make("ceph-authtool", keys, "--create-keyring", "--gen-key", "-n", "client.rgw")
    _make("ceph-authtool", keys, "--gen-key", "-n", "client.admin")
    address = f"[v2:{HOST}:{monitor_port}]"
    _make("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, monitors)
    _make("ceph-mon", *here, "--mkfs", "-i", "a", "--monmap", monitors)
    _start("ceph-mon", *here, "-i", "a", "-f")
    _make("ceph", *here, "osd", "new", store)
    _make("ceph-osd", *here, "-i", "0", "--mkfs", "--osd-uuid", store, "--no-mon-config")
    _make("ceph", *here, "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=here")
    _start("ceph-osd", *here, "-i", "0", "-f")
    user = ("--uid=imgkeep", "--display-name=imgkeep", f"--access-key={KEY}", f"--secret-key={SECRET}")
    _make("radosgw-admin", *here, "user", "create", *user)
    os.execvp("radosgw", ["radosgw", *here, "-n", "client.rgw", "-f"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

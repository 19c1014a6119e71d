# SPDX-License-Identifier: Apache-2.0
"""A simulated V7000 that runs on an array machine: its volumes lie there, and real initiators reach them.

Its portals are addresses of their own beside tgtd's, so that both systems can be used at once.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.vm.array import POOL, VOLUME_GROUP, Array
from lab.vm.errors import VMError
from lab.vm.machine import LateError, Ran
from lab.vm.qemu import NETWORKS
from lab.vm.waiting import until

__all__ = ["BOX_PORT", "V7000"]

LAB = Path(__file__).resolve().parents[1]
BOX_PORT = 2222
PROGRAM = "/opt/lab-v7000"
USER = "oneadmin"
# addresses of boxes lie this much above those of their machine, see init.sh
ABOVE = 100
FILES = "v7000-files"
START_DEADLINE = 120.0
RUN_DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class V7000:
    """How to reach the box: ``ssh -p port user@address`` with ``key``, its own key being in ``known_hosts``.

    All that it knows is gone when it is stopped or its machine loses power; ``array.hang()`` lets it be dead
    for a while and keep everything.
    """

    array: Array
    name: str
    address: str
    port: int
    user: str
    key: Path
    known_hosts: Path
    portals: tuple[str, ...]
    targets: tuple[str, ...]

    def run(self, line: str, deadline: float = RUN_DEADLINE) -> Ran:
        """Run a command line of the box's CLI, as an administrator would, over SSH."""
        options = {
            "IdentityFile": self.key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        argv = ["ssh", "-F", "/dev/null", *(word for k, v in options.items() for word in ("-o", f"{k}={v}"))]
        argv += ["-p", str(self.port), f"{self.user}@{self.address}", line]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=deadline, check=False, text=True
            )
        except subprocess.TimeoutExpired as err:
            raise LateError(f"{self.name} did not end within {deadline:.0f} s: {line}") from err
        return Ran(done.returncode, done.stdout, done.stderr)

    def volume_path(self, uid: str) -> str:
        """Return the file on the array that holds the bytes of the volume with this vdisk_UID."""
        return f"/srv/{self.name}/volumes/{uid}"

    def stop(self) -> None:
        """End the box and remove its volumes."""
        _stop(self.array, self.name)


def start_box(
    array: Array, name: str, hosts: Mapping[str, str], pools: Mapping[str, str], *options: str
) -> V7000:
    """Start a box on ``array`` in the place of one that runs there; ``hosts`` (name to IQN) are registered.

    Raises: VMError with what it wrote when it does not come up.
    """
    _stop(array, name)
    array.run(f"mkdir -p {PROGRAM} && tar -x -C {PROGRAM}", stdin=_program())
    array.run(
        f"lvcreate -q -y -V $(lvs --noheadings --nosuffix --units b -o lv_size {VOLUME_GROUP}/{POOL})b "
        f"-T {VOLUME_GROUP}/{POOL} -n {FILES} && "
        f"mkfs.ext4 -q -m 0 -E nodiscard /dev/{VOLUME_GROUP}/{FILES} && "
        f"mkdir -p /srv/{name} && mount -o discard /dev/{VOLUME_GROUP}/{FILES} /srv/{name}",
        deadline=START_DEADLINE,
    )
    portals = [f"10.7.{network}.{array.wiring.number + ABOVE}" for network in NETWORKS]
    argv = ["python3", "-u", "-m", "lab.v7000", "--name", name, "--listen", f"0.0.0.0:{BOX_PORT}"]
    argv += ["--directory", f"/srv/{name}", "--user", USER, "--authorized-key", "/root/.ssh/authorized_keys"]
    for option, values in (
        ("--portal", portals),
        ("--host", [f"{host}={iqn}" for host, iqn in hosts.items()]),
        ("--pool", [f"{pool}={size}" for pool, size in pools.items()]),
    ):
        argv += [word for value in values for word in (option, value)]
    line = shlex.join([*argv, *options])
    log = f"/run/{name}.log"
    array.run(f"cd {PROGRAM} && {{ setsid {line} > {log} 2>&1 < /dev/null & echo $! > /run/{name}.pid; }}")
    try:
        told = until(
            lambda: _told(array, log, len(portals)), START_DEADLINE, f"{name} on {array.name}", longest=1
        )
    except VMError as err:
        raise VMError(f"{err} It wrote:\n{array.ssh(f'cat {log}').output[-2000:]}") from err
    key = re.search(r"^host key: \S+ (\S+ \S+)$", told, re.MULTILINE)
    found = re.findall(r"^target (\S+) at (\S+)$", told, re.MULTILINE)
    if key is None or not found:
        raise VMError(f"{name} did not tell how to reach it:\n{told}")
    port = array.ports[BOX_PORT]
    known_hosts = array.folder / f"{name}.known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {key[1]}\n")
    return V7000(
        array=array,
        name=name,
        address="127.0.0.1",
        port=port,
        user=USER,
        key=array.image.key,
        known_hosts=known_hosts,
        portals=tuple(portal for _, portal in found),
        targets=tuple(target for target, _ in found),
    )


def _told(array: Array, log: str, targets: int) -> str:
    """Return what a box wrote, empty until it has told the last of its targets."""
    text = array.run(f"cat {log}")
    if "Traceback" in text:
        raise VMError("It did not start.")
    return text if text.count("\ntarget ") == targets else ""


def _stop(array: Array, name: str) -> None:
    pid = f"/run/{name}.pid"
    array.run(
        f"if [ -e {pid} ]; then kill $(cat {pid}); timeout 30 tail --pid=$(cat {pid}) -f /dev/null; fi; "
        f"rm -f {pid}; "
        f"! mountpoint -q /srv/{name} || umount /srv/{name}; "
        f"! lvs {VOLUME_GROUP}/{FILES} > /dev/null 2>&1 || lvremove -q -y {VOLUME_GROUP}/{FILES}"
    )


def _program() -> bytes:
    """Return the simulator as a tar archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in [*sorted(LAB.glob("*.py")), *sorted(LAB.glob("v7000/*.py"))]:
            archive.add(file, f"lab/{file.relative_to(LAB)}")
    return packed.getvalue()

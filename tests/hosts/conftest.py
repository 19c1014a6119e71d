# SPDX-License-Identifier: Apache-2.0
"""A host whose /dev and /sys are a folder, with stand-ins for the commands that change a kernel (standin.sh).

The program for the host runs for real: bundled, fed to a Python of its own, talking back over its output.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from sanstone.hosts.client import Host
from sanstone.hosts.ops import Attach, Attached, Detach, Detached, Operation, Result
from sanstone.model import MIB, Connection, Device, Portal, Target

IQN = "iqn.1986-03.com.ibm:2145.box.node1"
WWID = "3600507680c80000a0000000000000011"
OTHER = "3600507680c80000a0000000000000022"
SIZE = 8 * MIB
COMMANDS = ("blockdev", "iscsiadm", "multipath", "multipathd", "sync", "tee")


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class FakeHost:
    """What a test says about the host and the array, and what it sees afterwards."""

    def __init__(self, root: Path, listeners: list[socket.socket]) -> None:
        self.root = root
        self.host = Host("node1", is_local=True)
        self._fake = root / "fake"
        self.listeners = listeners
        for folder in ("array", "login", "wwids", "in-use", "sticky", "record", "scan-hangs"):
            (self._fake / folder).mkdir(parents=True)
        for folder in ("dev/mapper", "dev/disk/by-id", "sys/block", "sys/class/iscsi_session"):
            (root / folder).mkdir(parents=True)

    def run(
        self,
        *operations: Operation,
        deadline: float = 20,
        upload: BinaryIO | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[Result]:
        return self.host.run(operations, deadline=deadline, upload=upload, progress=progress)

    def portal(self, *, is_alive: bool = True) -> Portal:
        """Return a portal on loopback at which something listens, or nothing."""
        listener = socket.create_server(("127.0.0.1", 0))
        portal = Portal("127.0.0.1", listener.getsockname()[1])
        if is_alive:
            self.listeners.append(listener)
        else:
            listener.close()
        return portal

    def lun(
        self, number: int, wwid: str = WWID, size: int = SIZE, portal: Portal | None = None, ro: int = 0
    ) -> None:
        """Let the array show ``wwid`` at a LUN, through ``portal`` or through all."""
        name = str(number) if portal is None else f"{number}@{portal}"
        (self._fake / "array" / name).write_text(f"{wwid} {size} {ro}\n")

    def unmap(self, number: int) -> None:
        (self._fake / "array" / str(number)).unlink()

    def say(self, what: str, value: str = "") -> None:
        """Set a switch of the stand-ins."""
        (self._fake / what).write_text(value)

    def session(self, portal: Portal, target: str = IQN) -> int:
        """Log in before the test; return the number of the SCSI host."""
        self._standin("session", str(portal), target)
        return max(int(name.removeprefix("session")) for name in names(self.root / "sys/class/iscsi_session"))

    def disk(self, host: int, lun: int, wwid: str, size: int = SIZE) -> str:
        """Let the kernel know a disk already; return its name."""
        before = self.disks()
        self._standin("disk", str(host), str(lun), wwid, str(size))
        (name,) = self.disks() - before
        return name

    def _standin(self, *words: str) -> None:
        subprocess.run(["sh", str(Path(__file__).with_name("standin.sh")), *words], check=True, timeout=20)

    def attribute(self, *parts: str) -> Path:
        return self.root.joinpath("sys", *parts)

    def disks(self) -> set[str]:
        return {name for name in names(self.root / "sys/block") if name.startswith("sd")}

    def maps(self) -> dict[str, set[str]]:
        """Return name and paths of each map."""
        found = {}
        for block in (self.root / "sys/block").glob("dm-*"):
            found[(block / "dm/name").read_text().strip()] = {
                path.name for path in (block / "slaves").iterdir()
            }
        return found

    def sessions(self) -> int:
        return len(names(self.root / "sys/class/iscsi_session"))

    def calls(self) -> list[str]:
        """Return the commands that were run, and forget them."""
        log = self._fake / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        assert not [line for line in lines if line.startswith("UNKNOWN")]
        return [line.replace(str(self.root), "") for line in lines]

    def connection(self, *portals: Portal, lun: int = 1, wwid: str = WWID, size: int = SIZE) -> Connection:
        return Connection("one-img-7", wwid, size, lun, (Target(IQN, portals),))

    def attach(self, connection: Connection, *, link: Path | None = None, deadline: float = 20) -> Device:
        (result,) = self.run(Attach(connection, str(link) if link else None), deadline=deadline)
        assert isinstance(result, Attached)
        return result.device

    def detach(
        self, wwid: str = WWID, *, link: Path | None = None, log_out: bool = False, deadline: float = 20
    ) -> Detached:
        (result,) = self.run(Detach(wwid, str(link) if link else None, log_out), deadline=deadline)
        assert isinstance(result, Detached)
        return result


@pytest.fixture
def standins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put stand-ins before the real commands in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        shutil.copy(Path(__file__).with_name("standin.sh"), folder / name)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def host(tmp_path: Path, standins: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    root = tmp_path / "root"
    monkeypatch.setenv("SANSTONE_HOST_ROOT", str(root))
    listeners: list[socket.socket] = []
    yield FakeHost(root, listeners)
    for listener in listeners:
        listener.close()

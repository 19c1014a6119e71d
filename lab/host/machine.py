# SPDX-License-Identifier: Apache-2.0
"""A host in user space: a directory tree, the programs in it, what plays its kernel, and an SSH server."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import paramiko

from lab.host.block_tools import Blockdev, Lsscsi, Tee, Udevadm
from lab.host.calls import Answer, Call
from lab.host.devices import IscsiError, Timings
from lab.host.exports import Janitor, holders_of, mounts_under
from lab.host.iscsiadm import Iscsiadm
from lab.host.kernel import Kernel
from lab.host.mapper import Mapper
from lab.host.multipath_tools import Multipath, Multipathd
from lab.host.records import Records, settings_of
from lab.host.standins import SUDOERS, Journal, Switchboard, write_programs
from lab.login import Login, ssh_config
from lab.sshd import SSHServer, User, generate_host_key

__all__ = ["PROGRAMS", "AttachedDisk", "OpenSession", "UserSpaceHost", "ssh_config"]

PROGRAMS = ("fusermount3", "qemu-storage-daemon", "setpriv", "sh")
"""What a host starts: for ``@pytest.mark.real(*PROGRAMS, ...)``."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class OpenSession:
    sid: int
    target: str
    portal: str
    state: str


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """One sd device: kernel name, what sysfs says of its identity, where it comes from, and its map."""

    name: str
    hctl: str
    wwid: str
    size: int
    target: str
    portal: str
    state: str
    map: str | None


class UserSpaceHost:
    """A host that attaches volumes for real, without a kernel's help.

    ``root`` gets ``dev/``, ``sys/``, ``etc/`` and ``bin/``; what is below ``etc/``, ``home/`` and ``var/``
    outlives ``crash()`` and ``boot()``. A command runs by ``/bin/sh -c`` with ``bin/`` first in PATH,
    ``HOME`` and ``SANSTONE_HOST_ROOT``. A context manager: it boots, and leaves nothing behind.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        iqn: str,
        authorized_key: str,
        *,
        extra_env: Mapping[str, str] | None = None,
        user: str = "oneadmin",
        timings: Timings | None = None,
        find_multipaths: str = "greedy",
        sudoers: Collection[str] = SUDOERS,
        host_key: paramiko.PKey | None = None,
        home: Path | None = None,
    ) -> None:
        self.name = name
        self.root = root.resolve()
        self.user = user
        self.timings = timings or Timings()
        self.extra_env = dict(extra_env or {})
        self.home = home or self.root / "home" / user
        self.kernel = Kernel(self.root, iqn, self.timings)
        self.mapper = Mapper(self.kernel, self.root / "etc/multipath/wwids", find_multipaths)
        self.records = Records(self.root / "etc/iscsi/nodes")
        self.journal = Journal()
        self._login = Login(self.environment, self.home)
        self.ssh_log = self._login.lines
        """The command lines that came by ssh."""
        self._sudoers = tuple(sudoers)
        self.iscsiadm = Iscsiadm(self.kernel, self.records, self.timings)
        self.multipathd = Multipathd(self.kernel, self.mapper)
        self._programs: dict[str, Callable[[Call], Answer]] = {
            "iscsiadm": self.iscsiadm,
            "multipath": Multipath(self.kernel, self.mapper),
            "multipathd": self.multipathd,
            "blockdev": Blockdev(self.kernel, self.mapper),
            "tee": Tee(self.kernel),
            "udevadm": Udevadm(self.kernel),
            "lsscsi": Lsscsi(self.kernel),
        }
        self._switchboard = Switchboard(self.root, self._programs, self.journal)
        self._sshd = SSHServer(
            self._login,
            users={user: User(keys=(authorized_key,))},
            host_key=host_key or generate_host_key(),
        )
        self._janitor: Janitor | None = None

    @property
    def initiator_name(self) -> str:
        return self.kernel.initiator

    @property
    def ssh_host(self) -> str:
        return self._sshd.host

    @property
    def ssh_port(self) -> int:
        """The port, which stays the same from the first boot on."""
        return self._sshd.port

    @property
    def ssh_connections(self) -> int:
        """How many ssh connections were made to the host."""
        return self._sshd.connections

    @property
    def commands(self) -> Counter[str]:
        """How often each of the host's programs was run."""
        return self.journal.counts()

    @property
    def multipathd_running(self) -> bool:
        return self.mapper.is_running

    @multipathd_running.setter
    def multipathd_running(self, is_running: bool) -> None:
        was_running, self.mapper.is_running = self.mapper.is_running, is_running
        if is_running and not was_running:
            self.mapper.reconfigure()

    def known_hosts_line(self, name: str) -> str:
        return self._sshd.known_hosts_line(name)

    def boot(self) -> None:
        """Power on; over the tree of a host that ended badly as well."""
        if self._janitor is not None:
            return
        self._make_tree()
        self._janitor = Janitor(self.root)
        try:
            self.kernel.start()
            self.mapper.start()
            self._switchboard.start()
            self._sshd.start()
        except BaseException:
            self.crash()
            raise
        self.kernel.run(self._log_in_automatically, "iscsid")

    def crash(self) -> None:
        """Cut the power: connections are reset, commands and exports die, memory is gone."""
        if self._janitor is None:
            return
        self._sshd.drop_connections()
        self._login.kill_all()
        self._switchboard_and_kernel_down()
        self._sshd.stop()
        self._janitor.dismiss()
        self._janitor = None

    stop = crash

    def __enter__(self) -> UserSpaceHost:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout: float = 60
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command on the host, without ssh."""
        return subprocess.run(
            list(argv),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=self.environment(),
            cwd=self.home,
            check=False,
            executable=shutil.which(argv[0], path=self.environment()["PATH"]),
        )

    def call(self, name: str, *argv: str, stdin: bytes = b"") -> Answer:
        """Run one of the host's own programs as root within this process: what ``run`` does, but quicker."""
        return self._switchboard.run(Call(name, argv, stdin=stdin))

    def sessions(self) -> list[OpenSession]:
        return [
            OpenSession(one.sid, one.target, f"{one.portal[0]}:{one.portal[1]}", one.state)
            for one in self.kernel.sessions()
        ]

    def devices(self) -> list[AttachedDisk]:
        """List the SCSI disks that came over iSCSI."""
        found = []
        for disk in self.kernel.disks():
            above = self.mapper.map_of(disk.name)
            session = disk.session
            portal = f"{session.portal[0]}:{session.portal[1]}"
            state = self.mapper.path_state(disk)[1]
            found.append(
                AttachedDisk(
                    disk.name,
                    disk.hctl,
                    disk.wwid,
                    disk.size,
                    session.target,
                    portal,
                    state,
                    above.name if above else None,
                )
            )
        return found

    def leftovers(self, expected: Collection[str] = (), *, with_sessions: bool = True) -> list[str]:
        """Name what should not be there: empty is the proof that nothing was left behind.

        A device that turned into another volume, or whose LUN is gone, is always named. Beyond that every
        map and disk whose WWID is not in ``expected`` is, unless a process holds it, and every session
        without a disk.
        """
        left = []
        disks = self.kernel.disks()
        held = {path.name for path in holders_of([self.root / "dev" / disk.name for disk in disks])}
        for disk in disks:
            now = self.kernel.identity(disk) if disk.session.state == "LOGGED_IN" else disk.wwid
            if now != disk.wwid:
                what = "nothing" if now is None else f"volume {now}"
                left.append(
                    f"ghost {disk.name} ({disk.hctl}): volume {disk.wwid}, but the array has {what} there"
                )
            elif disk.wwid not in expected and disk.name not in held:
                left.append(f"disk {disk.name} ({disk.hctl}) of volume {disk.wwid}")
        for found in self.mapper.maps():
            if not found.paths:
                left.append(f"map {found.name} (dm-{found.minor}) without paths")
            elif found.wwid not in expected and not held.intersection(found.paths):
                left.append(f"map {found.name} (dm-{found.minor})")
        if with_sessions:
            used = {disk.session.sid for disk in disks}
            idle = (one for one in self.kernel.sessions() if one.sid not in used)
            left += [f"session {one.sid} to {one.target} without disks" for one in idle]
        known = {self.root / "dev" / disk.name for disk in disks}
        left += [f"mount {point}" for point in mounts_under(self.root) if point not in known]
        return left

    def environment(self) -> dict[str, str]:
        """Return what a command finds in its environment."""
        return {
            "PATH": f"{self.root / 'bin'}:{SYSTEM_PATH}",
            "HOME": str(self.home),
            "USER": self.user,
            "LOGNAME": self.user,
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "SANSTONE_HOST_ROOT": str(self.root),
            **self.extra_env,
        }

    def _make_tree(self) -> None:
        for folder in ("etc/iscsi/nodes", "etc/multipath", "var/tmp"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)
        initiator = self.root / "etc/iscsi/initiatorname.iscsi"
        initiator.write_text(f"InitiatorName={self.initiator_name}\n", encoding="utf-8")
        write_programs(self.root, self._programs, self._sudoers)

    def _switchboard_and_kernel_down(self) -> None:
        self.kernel.halt()
        self._switchboard.stop()
        self.mapper.stop()
        self.kernel.wipe()

    def _log_in_automatically(self) -> None:
        for record in self.records.all():
            if record.values["node.startup"] == "automatic":
                with contextlib.suppress(IscsiError):
                    self.kernel.login(record.target, record.portal, settings_of(record))

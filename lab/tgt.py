# SPDX-License-Identifier: Apache-2.0
"""A private Linux tgt daemon: own control socket, own portal, gone with its parent."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Session", "TgtError", "Tgtd"]

START_DEADLINE = 15.0
COMMAND_DEADLINE = 15.0
START_ATTEMPTS = 5


class TgtError(Exception):
    """tgtadm refused: its own words and exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Session:
    """One initiator that is logged in to a target."""

    tid: int
    sid: int
    initiator: str


class Tgtd:
    """One tgtd in the foreground, with its control socket in a directory of its own under /tmp.

    It needs no root and touches nothing in /run. The kernel kills it when this process ends. It listens at
    the same port of all ``addresses``.
    """

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses or ("127.0.0.1",)
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._spawner: ThreadPoolExecutor | None = None
        self._control = 0
        self._port = 0
        self._lock = threading.Lock()

    @property
    def portal(self) -> tuple[str, int]:
        return self._addresses[0], self._port

    @property
    def control(self) -> int:
        """The control port, as for ``tgtadm -C``."""
        return self._control

    @property
    def socket_path(self) -> Path:
        """Where tgtadm speaks to the daemon."""
        if self._directory is None:
            raise TgtError("tgtd is not running", 107)
        return self._directory / f"socket.{self._control}"

    @property
    def environment(self) -> dict[str, str]:
        """What tgtadm needs in its environment to find this daemon."""
        if self._directory is None:
            raise TgtError("tgtd is not running", 107)
        return self._environment(self._directory)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def __enter__(self) -> Tgtd:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemon and wait until it answers.

        Raises: TgtError when it does not, with what it wrote.
        """
        if self._process is not None:
            return
        # a socket path must stay short, so not below a test's directory
        self._directory = Path(tempfile.mkdtemp(prefix="lab-tgt-"))
        # the death signal follows the thread that started a process: this one lives as long as the daemon
        self._spawner = ThreadPoolExecutor(1, "tgtd-parent")
        try:
            for attempt in range(1, START_ATTEMPTS + 1):
                try:
                    self._try_start(self._directory, self._spawner)
                    return
                except TgtError:
                    self._end_process()
                    if attempt == START_ATTEMPTS:
                        raise
        except BaseException:
            self.stop()
            raise

    def _try_start(self, directory: Path, spawner: ThreadPoolExecutor) -> None:
        self._control = random.randrange(1024, 32000)
        self._port = _free_port(self._addresses[0])
        log = directory / "log"
        argv = ["setpriv", "--pdeathsig", "KILL", "tgtd", "-f", "-C", str(self._control)]
        portals = (f"portal={address}:{self._port}" for address in self._addresses)
        argv += ["--iscsi", ",".join(portals)]
        self._process = spawner.submit(_spawn, argv, log, self._environment(directory)).result()
        deadline = time.monotonic() + START_DEADLINE
        pause, wakeup = 0.002, threading.Event()
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TgtError(f"tgtd did not start: {log.read_text(errors='replace')[-500:]}", 1)
            with contextlib.suppress(TgtError, OSError):
                self._admin("--op", "show", "--mode", "sys")
                for address in self._addresses:
                    socket.create_connection((address, self._port), 1).close()
                return
            wakeup.wait(pause)
            pause = min(pause * 2, 0.1)

    def stop(self) -> None:
        """Kill the daemon (it ignores SIGTERM) and remove its directory."""
        self._end_process()
        if self._spawner is not None:
            self._spawner.shutdown()
            self._spawner = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(COMMAND_DEADLINE)
            self._process = None

    # targets

    def new_target(self, tid: int, iqn: str) -> None:
        self._admin("--op", "new", "--mode", "target", "--tid", str(tid), "-T", iqn)

    def delete_target(self, tid: int) -> None:
        """Remove a target; its sessions are cut."""
        self._admin("--op", "delete", "--mode", "target", "--tid", str(tid), "--force")

    def bind(self, tid: int, initiator: str) -> None:
        """Let one initiator in, by its name."""
        self._admin("--op", "bind", "--mode", "target", "--tid", str(tid), "-Q", initiator)

    def unbind(self, tid: int, initiator: str) -> None:
        """Let an initiator in no more; its live sessions stay."""
        self._admin("--op", "unbind", "--mode", "target", "--tid", str(tid), "-Q", initiator)

    def add_lun(
        self,
        tid: int,
        lun: int,
        path: Path,
        *,
        scsi_id: str,
        scsi_sn: str,
        vendor: str = "IBM",
        product: str = "2145",
        is_online: bool = True,
    ) -> None:
        """Add a file as a disk with an identity.

        Two commands are needed: an initiator that is logged in already must not ask in between.
        """
        self._lun("new", tid, lun, "-b", str(path), "-E", "rdwr", "-Y", "disk")
        params = f"scsi_id={scsi_id},scsi_sn={scsi_sn},vendor_id={vendor},product_id={product}"
        params += f",thin_provisioning=1,online={int(is_online)}"
        try:
            self._lun("update", tid, lun, "--params", params)
        except TgtError:
            self.delete_lun(tid, lun)
            raise

    def delete_lun(self, tid: int, lun: int) -> None:
        self._lun("delete", tid, lun)

    def set_online(self, tid: int, lun: int, is_online: bool) -> None:
        """Let a LUN answer, or say NOT READY."""
        self._lun("update", tid, lun, "--params", f"online={int(is_online)}")

    def sessions(self, tids: Iterable[int]) -> list[Session]:
        """Return who is logged in to these targets."""
        found = []
        for tid in tids:
            text = self._admin("--op", "show", "--mode", "conn", "--tid", str(tid))
            sid = 0
            for line in text.splitlines():
                if match := re.match(r"\s*Session: (\d+)", line):
                    sid = int(match[1])
                elif match := re.match(r"\s*Initiator: (\S+)", line):
                    found.append(Session(tid, sid, match[1]))
        return found

    def _lun(self, op: str, tid: int, lun: int, *more: str) -> None:
        self._admin("--op", op, "--mode", "logicalunit", "--tid", str(tid), "--lun", str(lun), *more)

    def _admin(self, *argv: str) -> str:
        if self._directory is None:
            raise TgtError("tgtd is not running", 107)
        command = ["tgtadm", "-C", str(self._control), "--lld", "iscsi", *argv]
        environment = self._environment(self._directory)
        with self._lock:
            try:
                done = subprocess.run(
                    command, capture_output=True, env=environment, timeout=COMMAND_DEADLINE, check=False
                )
            except subprocess.TimeoutExpired as err:
                raise TgtError(f"tgtadm did not answer within {COMMAND_DEADLINE:.0f} s", 110) from err
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip().removeprefix("tgtadm: ")
            raise TgtError(words, done.returncode)
        return done.stdout.decode(errors="replace")

    @staticmethod
    def _environment(directory: Path) -> dict[str, str]:
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        return {**os.environ, "PATH": path, "TGT_IPC_SOCKET": str(directory / "socket")}


def _spawn(argv: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])

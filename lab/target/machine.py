# SPDX-License-Identifier: Apache-2.0
"""A target host in user space: LVM's commands on sparse files, a real tgtd, and an SSH server."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import paramiko

from lab.faults import Command, Fault, Faults, Journal, hide
from lab.host.calls import Answer, Call
from lab.host.standins import SOCKET, Switchboard, write_clients
from lab.host.standins import Journal as Calls
from lab.login import Login
from lab.sshd import Exec, SSHServer, User, generate_host_key
from lab.target.files import FILE_PROGRAMS, blkdiscard, run_on_files
from lab.target.lvm import COMMANDS
from lab.target.portals import PORT, Portal
from lab.target.sudoers import Sudoers
from lab.target.volumes import LVMError, Volumes
from lab.tgt import Tgtd, TgtError

__all__ = ["PROGRAMS", "ShownTarget", "TargetHost"]

PROGRAMS = ("setpriv", "sh", "tgtd", "tgtadm", "tgt-admin", *FILE_PROGRAMS)
"""What a target host starts: for ``@pytest.mark.real(*PROGRAMS, ...)``."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ETC = Path(__file__).resolve().parents[2] / "etc"
SUDOERS = ETC / "sudoers.d/sanstone-target"
UNIT = ETC / "systemd/system/tgt.service.d/sanstone.conf"
GIB = 1024**3
COMMAND_DEADLINE = 60.0
ADDRESS_ATTEMPTS = 200
READS = 'any(w.rpartition(b"/")[2] in (b"tee", b"dd", b"cat", b"socat") for w in (name.encode(), *here))'


@dataclass(frozen=True, slots=True)
class ShownTarget:
    """A target as ``tgtadm --op show`` tells: LUNs by number with their backing store, who may log in."""

    tid: int
    iqn: str
    luns: Mapping[int, str]
    scsi_ids: Mapping[int, str]
    initiators: frozenset[str]
    accounts: frozenset[str]
    sessions: tuple[str, ...]


class TargetHost:
    """A machine with a volume group and tgtd.

    ``root`` gets ``dev/``, ``etc/``, ``bin/`` and ``volumes/``; what is below ``etc/``, ``home/``, ``var/``
    and the volumes outlive ``crash()`` and ``boot()``. LVM's paths begin with ``root``. ``pool`` "" makes a
    volume group without a thin pool. A context manager: it boots, and leaves nothing behind.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        authorized_key: str,
        *,
        group: str = "vg-one",
        size: int = 100 * GIB,
        pool: str = "pool",
        pool_size: int = 0,
        portals: int = 2,
        user: str = "oneadmin",
        host_key: paramiko.PKey | None = None,
        latency: float = 0.0,
    ) -> None:
        self.name = name
        self.root = root.resolve()
        self.user = user
        self.group = group
        self.pool = pool
        self.latency = latency
        self.home = self.root / "home" / user
        self.faults = Faults()
        self.journal = Journal()
        self.volumes = Volumes(self.root, self.root, self._held_files)
        self._wanted = (size, pool_size)
        self._portals = [Portal(address) for address in free_addresses(portals)]
        self._daemon: Tgtd | None = None
        self._is_up = False
        self._login = Login(self.environment, self.home)
        names = (*COMMANDS, *FILE_PROGRAMS, "blkdiscard", "tgtadm", "tgt-admin", "socat", "sudo")
        self._programs: dict[str, Callable[[Call], Answer]] = dict.fromkeys(names, self._answer)
        self._calls = Calls()
        self._switchboard = Switchboard(self.root, self._programs, self._calls)
        self._halted = threading.Event()
        self._sshd = SSHServer(
            self._serve,
            users={user: User(keys=(authorized_key,))},
            host_key=host_key or generate_host_key(),
            on_connect=self.journal.add_connection,
        )

    # where it is

    @property
    def ssh_host(self) -> str:
        return self._sshd.host

    @property
    def ssh_port(self) -> int:
        """The port, which stays the same from the first boot on."""
        return self._sshd.port

    @property
    def ssh_connections(self) -> int:
        return self._sshd.connections

    @property
    def portals(self) -> tuple[str, ...]:
        """Addresses with port at which targets are reached."""
        return tuple(f"{portal.address}:{PORT}" for portal in self._portals)

    @property
    def tgtd(self) -> Tgtd:
        """The daemon. Raises LookupError while the host is down or the daemon was killed."""
        if self._daemon is None:
            raise LookupError(f"no tgtd runs on {self.name}")
        return self._daemon

    @property
    def is_dead(self) -> bool:
        return not self._is_up

    def known_hosts_line(self, name: str) -> str:
        return self._sshd.known_hosts_line(name)

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
        }

    # life

    def boot(self) -> None:
        """Power on: LVM activates, tgtd starts and reads its configuration, then others get in."""
        if self._is_up:
            return
        self._make_tree()
        self._halted.clear()
        try:
            with self.volumes.lock:
                self.volumes.load()
                if not self.volumes.groups:
                    size, pool_size = self._wanted
                    self.volumes.add_group(self.group, size, self.pool, pool_size)
                self.volumes.power_on()
            self._switchboard.start()
            self.start_tgtd()
            self._is_up = True
            self._sshd.start()
        except BaseException:
            self._is_up = True
            self.crash()
            raise

    def crash(self) -> None:
        """Cut the power: connections are reset, commands die, every target is gone. What was stored stays."""
        if not self._is_up:
            return
        self._is_up = False
        self._halted.set()
        self._sshd.drop_connections()
        self._login.kill_all()
        self.kill_tgtd()
        self._switchboard.stop()
        self._sshd.stop()
        with self.volumes.lock:
            self.volumes.power_off()

    die, revive = crash, boot

    def stop(self) -> None:
        """End everything and remove what was made on disk."""
        self.crash()
        shutil.rmtree(self.root, ignore_errors=True)

    def kill_tgtd(self) -> None:
        """Kill the daemon alone: sessions are cut and no target is left."""
        for portal in self._portals:
            portal.stop()
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.stop()

    def start_tgtd(self) -> None:
        """Start the daemon, and do what the shipped unit does then: offline, configured by files, ready."""
        if self._daemon is not None:
            return
        daemon = Tgtd(*(portal.address for portal in self._portals))
        daemon.start()
        self._daemon = daemon
        socket_of_tgtadm = self.root / "run/tgtd/socket.0"
        socket_of_tgtadm.unlink(missing_ok=True)
        socket_of_tgtadm.symlink_to(daemon.socket_path)
        first, *more = re.findall(r"^ExecStartPost=(.+)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
        self._start_step(first)
        for portal in self._portals:
            portal.start(daemon.portal[1])
        for step in more:
            self._start_step(step)

    def _start_step(self, line: str) -> None:
        program, *argv = line.split()
        answer = self.run(Path(program).name, *argv)
        if answer.code:
            raise TgtError(f"{line}: {answer.err.strip() or answer.out.strip()}", answer.code)

    def __enter__(self) -> TargetHost:
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def portal_down(self, number: int) -> None:
        """Take portal ``number`` (from 1) away, with the sessions through it."""
        self._portals[number - 1].stop()

    def portal_up(self, number: int) -> None:
        self._portals[number - 1].start()

    # looking and touching behind everybody's back

    def run(self, *argv: str, stdin: bytes = b"") -> Answer:
        """Run a command as root on the host, without ssh, faults or the journal."""
        return self._perform(Call(argv[0], argv[1:], stdin=stdin))

    def lv_path(self, name: str) -> Path:
        """Return the file with a volume's bytes, whether it is active or not."""
        with self.volumes.lock:
            _, volume = self.volumes.find(f"{self.group}/{name}")
            return self.volumes.file(volume)

    def lv_names(self) -> set[str]:
        """Name the logical volumes, without the pool."""
        with self.volumes.lock:
            group = self.volumes.groups[self.group]
            return {one.name for one in group.volumes.values() if one.kind != "pool"}

    def fill_pool(self, *, is_full: bool = True) -> None:
        """Let the thin pool say that it has no room left, or that it has again."""
        with self.volumes.lock:
            self.volumes.full = {f"{self.group}/{self.pool}"} if is_full else set()

    def targets(self) -> list[ShownTarget]:
        """List what tgtd has."""
        return _read_targets(self._tgtadm(("--op", "show", "--mode", "target")).out)

    def leftovers(self) -> list[str]:
        """Name volumes, targets, accounts and configuration files: empty when nothing is left behind."""
        found = [f"volume {name}" for name in sorted(self.lv_names())]
        found += [f"device {path.name}" for path in self.root.glob(f"dev/{self.group}/*")]
        if self._daemon is not None:
            found += [f"target {target.tid} {target.iqn}" for target in self.targets()]
            accounts = self._tgtadm(("--op", "show", "--mode", "account")).out.splitlines()[1:]
            found += [f"account {line.strip()}" for line in accounts if line.strip()]
        found += [f"file {path.relative_to(self.root)}" for path in self.root.glob("etc/tgt/conf.d/*")]
        return found

    # commands

    def _serve(self, request: Exec) -> int:
        self.journal.add_line(request.connection, request.user, request.command)
        return self._login(request)

    def _answer(self, call: Call) -> Answer:
        """Run a command as one that came from a process of the host: faults count, the journal writes."""
        argv = (call.name, *call.argv)
        if call.name == "sudo":
            refused, argv = self._sudo(call.argv)
            if refused is not None:
                return refused
        text = self.plain(" ".join(argv))
        started = time.monotonic()
        fault = self.faults.take(text)
        own = Call(argv[0], argv[1:], True, call.cwd, call.stdin, call.gone)
        answer, is_dropped = self._under(fault, own)
        seconds, line = time.monotonic() - started, self._login.connection_of(call.pid)
        self.journal.add_command(Command(line, hide(text), answer.code, None, seconds, is_dropped))
        if is_dropped:
            self._login.cut(call.pid)
        return answer

    def _under(self, fault: Fault | None, call: Call) -> tuple[Answer, bool]:
        """Do a command as its fault wants; tell also whether the answer shall be lost."""
        pause = self.latency + (fault.hang if fault else 0.0)
        if pause:
            end = time.monotonic() + pause
            call.wait_while(lambda: time.monotonic() < end, self._halted)
        if self._halted.is_set() or (fault is not None and fault.drop == "before"):
            return Answer(255), True
        if fault is None:
            return self._perform(call), False
        if fault.exit is not None and not fault.is_done:
            return _failed(fault, call), False
        answer = self._perform(call)
        if fault.exit is not None:
            return _failed(fault, call), False
        return answer, fault.drop == "after"

    def _perform(self, call: Call) -> Answer:
        if call.name in COMMANDS:
            return self._lvm(call)
        if call.name == "tgtadm":
            return self._tgtadm(call.argv)
        if call.name == "tgt-admin":
            return self._tgt_admin(call.argv)
        if call.name == "socat":
            return self._socat(call)
        rooted = tuple(self.rooted(word) for word in call.argv)
        if call.name == "blkdiscard":
            return blkdiscard(rooted)
        return run_on_files(call.name, rooted, call.stdin, call.cwd)

    def _lvm(self, call: Call) -> Answer:
        with self.volumes.lock:
            try:
                out = COMMANDS[call.name](self.volumes, call.argv)
            except LVMError as err:
                plain = (f"{call.name}: ", "Do you really")
                lines = (line if line.startswith(plain) else f"  {line}" for line in err.lines)
                return Answer(err.code, err.out, "".join(f"{line}\n" for line in lines))
            finally:
                self.volumes.save()
        return Answer(0, out)

    def _tgtadm(self, argv: Sequence[str]) -> Answer:
        answer = self._tgt(
            "tgtadm", ("--lld", "iscsi", *argv) if "--lld" not in argv and "-L" not in argv else argv
        )
        if self._daemon is None:
            return answer
        return Answer(answer.code, answer.out.replace(f":{self._daemon.portal[1]},", f":{PORT},"), answer.err)

    def _tgt_admin(self, argv: Sequence[str]) -> Answer:
        """Run tgt-admin on a copy of its configuration in which paths have the root directory before them."""
        words, path = list(argv), "/etc/tgt/targets.conf"
        for at, word in enumerate(argv):
            if word in ("-c", "--conf") and at + 1 < len(argv):
                path = argv[at + 1]
                del words[at : at + 2]
        with tempfile.NamedTemporaryFile(
            "w", dir=self.root / "run", suffix=".conf", encoding="utf-8"
        ) as file:
            try:
                file.write(self._configuration(Path(self.rooted(path))))
            except OSError as err:
                return Answer(2, "", f"Config file {path} not found. Exiting...\n{err.strerror}\n")
            file.flush()
            return self._tgt("tgt-admin", ["-c", file.name, *words])

    def _configuration(self, path: Path) -> str:
        found = []
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] == ["include"]:
                pattern = Path(self.rooted(words[1]))
                found += [self._configuration(each) for each in sorted(pattern.parent.glob(pattern.name))]
            else:
                found.append(re.sub(r"(?<![\w/])/dev/", f"{self.root}/dev/", line))
        return "\n".join(found) + "\n"

    def _socat(self, call: Call) -> Answer:
        """Pass standard input to tgtd's control socket, and what it answers back."""
        places = [word for word in call.argv if not word.startswith("-t")]
        if places[:1] != ["-"] or len(places) != 2 or not places[1].startswith("UNIX-CONNECT:"):
            return Answer(1, "", "socat: the lab's knows '- UNIX-CONNECT:PATH' only\n")
        wanted = places[1].removeprefix("UNIX-CONNECT:")
        try:
            path = Path(self.rooted(wanted)).resolve(strict=True)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(COMMAND_DEADLINE)
                sock.connect(str(path))
                sock.sendall(call.stdin)
                answer = b""
                while chunk := sock.recv(4096):
                    answer += chunk
        except OSError as err:
            return Answer(1, "", f"socat: {wanted}: {err.strerror}\n")
        return Answer(0, answer.decode("utf-8", "surrogateescape"))

    def _tgt(self, program: str, argv: Sequence[str]) -> Answer:
        try:
            control, environment = self.tgtd.control, self.tgtd.environment
        except (LookupError, TgtError):
            return Answer(
                107,
                "",
                f"{program}: failed to send request hdr to tgt daemon, Transport endpoint is not connected\n",
            )
        command = [program, *map(self.rooted, argv), "-C", str(control)]
        done = subprocess.run(
            command,
            capture_output=True,
            env={**environment, "PATH": SYSTEM_PATH},
            timeout=COMMAND_DEADLINE,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
        return Answer(done.returncode, out, err)

    def _sudo(self, argv: Sequence[str]) -> tuple[Answer | None, tuple[str, ...]]:
        """Let a command through that the sudoers file allows."""
        words = list(argv)
        while words and words[0] in ("-n", "--non-interactive", "--"):
            words.pop(0)
        if not words or words[0].startswith("-"):
            return Answer(1, "", f"sudo: invalid option {' '.join(words[:1])}\n"), ()
        if Path(words[0]).name not in self._programs:
            return Answer(1, "", f"sudo: {words[0]}: command not found\n"), ()
        if not Sudoers.read(SUDOERS).allows([self.plain(word) for word in words]):
            return Answer(1, "", "sudo: a password is required\n"), ()
        return None, (Path(words[0]).name, *words[1:])

    # paths

    def plain(self, text: str) -> str:
        """Spell paths as the host itself would: without its root directory."""
        return text.replace(f"{self.root}/", "/")

    def rooted(self, word: str) -> str:
        """Put the root directory before a path of the host's own, behind an option's ``=`` as well."""
        head, equals, path = word.rpartition("=")
        own = ("/etc/", "/var/", "/run/", f"/dev/{self.group}/", "/dev/mapper/")
        if path.startswith(own) and not path.startswith(f"{self.root}/"):
            return f"{head}{equals}{self.root}{path}"
        return word

    def _make_tree(self) -> None:
        for folder in ("etc/tgt/conf.d", "var/tmp", "run/tgtd", "dev", "tmp"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)
        (self.root / "run" / SOCKET).unlink(missing_ok=True)
        targets = self.root / "etc/tgt/targets.conf"
        if not targets.exists():
            targets.write_text("include /etc/tgt/conf.d/*.conf\n", encoding="utf-8")
        write_clients(self.root, self._programs, READS)

    def _held_files(self) -> set[Path]:
        """Name the files that tgtd has open."""
        if self._daemon is None or self._daemon.pid is None:
            return set()
        found = set()
        folder = Path(f"/proc/{self._daemon.pid}/fd")
        with contextlib.suppress(OSError):
            for descriptor in folder.iterdir():
                with contextlib.suppress(OSError):
                    found.add(descriptor.readlink())
        return found


def _failed(fault: Fault, call: Call) -> Answer:
    return Answer(fault.exit or 0, "", f"  {call.name}: failed on purpose\n")


def free_addresses(count: int) -> tuple[str, ...]:
    """Choose addresses of 127/8 at which nobody listens on the iSCSI port."""
    found: dict[str, None] = {}
    for _ in range(ADDRESS_ATTEMPTS):
        parts = (random.randrange(1, 255), random.randrange(256), random.randrange(1, 255))
        address = "127.{}.{}.{}".format(*parts)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, PORT))
            found[address] = None
        if len(found) == count:
            return tuple(found)
    raise OSError("no free loopback address for a portal")


def _read_targets(text: str) -> list[ShownTarget]:
    """Read what ``tgtadm --op show --mode target`` prints."""
    blocks = re.split(r"^Target (\d+): (.*)$", text, flags=re.MULTILINE)[1:]
    found = []
    for tid, iqn, block in zip(*(itertools.islice(blocks, at, None, 3) for at in range(3)), strict=True):
        luns, ids = {}, {}
        for number, lun in zip(
            *[iter(re.split(r"^ +LUN: (\d+)$", block, flags=re.MULTILINE)[1:])] * 2, strict=True
        ):
            path = re.search(r"Backing store path: (.*)", lun)
            scsi = re.search(r"SCSI ID: (.*)", lun)
            if path and path[1] != "None":
                luns[int(number)] = path[1].strip()
                ids[int(number)] = scsi[1].strip() if scsi else ""
        found.append(
            ShownTarget(
                int(tid),
                iqn.strip(),
                luns,
                ids,
                frozenset(_section(block, "ACL information")),
                frozenset(_section(block, "Account information")),
                tuple(re.findall(r"Initiator: (\S+)", block)),
            )
        )
    return found


def _section(block: str, title: str) -> Iterable[str]:
    lines = block.partition(f"{title}:")[2].splitlines()[1:]
    for line in lines:
        if not line.startswith("        ") or not line.strip():
            return
        yield line.strip()

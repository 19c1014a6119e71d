# SPDX-License-Identifier: Apache-2.0
"""What a kernel with open-iscsi does, in user space: sessions, bus scans, SCSI disks."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lab.host.checker import check_paths
from lab.host.devices import Disk, IscsiError, Portal, Session, SessionSettings, Timings
from lab.host.exports import Export, ExportError, Spawner, mounts_under, unmount
from lab.host.initiator import CheckConditionError, Connection, LoginRefusedError
from lab.host.sysfs import Sysfs, disk_name, disk_number
from lab.host.uevents import Uevents
from lab.host.wwid import kernel_wwid, multipath_wwid

__all__ = ["Kernel"]

log = logging.getLogger(__name__)

FIRST_HOST = 2  # 0 and 1 are the controllers of the host's own disks
DISK = 0
REMOVAL_DEADLINE = 30.0
FLAT_LUN = 0x3FFF  # the number below the addressing method
LOCAL_DISK = "sda"
LOCAL_DISK_SIZE = 1 << 20

# open-iscsi's exit codes
TRANS, LOGIN, TRANS_TIMEOUT, SESS_EXISTS, FATAL_LOGIN, AUTH_FAILED = 4, 5, 8, 15, 19, 24


class Kernel:
    """The resident part of a host. All state is lost by ``halt()``."""

    def __init__(self, root: Path, initiator: str, timings: Timings) -> None:
        self.root = root
        self.initiator = initiator
        self.timings = timings
        self.lock = threading.RLock()
        self.halted = threading.Event()
        self.sysfs = Sysfs(root / "sys")
        self.uevents = Uevents(timings.uevent)
        self.path_failed: Callable[[Disk], None] = lambda disk: None
        self.path_leaving: Callable[[Disk], None] = lambda disk: None
        self._dev = root / "dev"
        self._state = root / "run"
        self._sessions: dict[int, Session] = {}
        self._disks: dict[str, Disk] = {}
        self._others: dict[str, Path] = {}
        self._logging_in: set[tuple[str, Portal]] = set()
        self._last_sid = 0
        self._spawner: Spawner | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Power on, over whatever an earlier life left in the tree."""
        self.wipe()
        for folder in (self._dev / "mapper", self._dev / "disk", self._state):
            folder.mkdir(parents=True)
        (self._dev / "mapper/control").touch()
        self.halted.clear()
        self.sysfs.make()
        self._add_local_disk()
        self._spawner = Spawner()
        self.uevents.start()
        self.run(lambda: check_paths(self.disks, self.is_ready, self.halted), "checker")

    def halt(self) -> None:
        """Power off: connections are cut, exports die, memory is gone. ``wipe()`` when no caller is left."""
        self.halted.set()
        self.uevents.stop()
        with self.lock:
            sessions, disks = list(self._sessions.values()), list(self._disks.values())
            for session in sessions:
                session.ended.set()
                session.connection.close()
            self._sessions.clear()
            self._disks.clear()
        if self._spawner is not None:
            self._spawner.stop()
            self._spawner = None
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()
        for disk in disks:
            disk.export.stop()
        self._last_sid = 0

    def wipe(self) -> None:
        """Empty /dev and /sys, with whatever is still mounted there."""
        for point in mounts_under(self.root):
            unmount(point)
        for folder in (self._dev, self.root / "sys", self._state):
            shutil.rmtree(folder, ignore_errors=True)

    def sessions(self) -> list[Session]:
        with self.lock:
            return list(self._sessions.values())

    def disks(self) -> list[Disk]:
        """The disks that came up and are not yet gone."""
        with self.lock:
            return [disk for disk in self._disks.values() if disk.is_up]

    def disk(self, name: str) -> Disk | None:
        with self.lock:
            found = self._disks.get(name)
            return found if found is not None and found.is_up else None

    def login(self, target: str, portal: Portal, settings: SessionSettings) -> Session:
        """Log in as iscsid does, with its retries. Raises IscsiError."""
        key = (target, portal)
        with self.lock:
            present = any((one.target, one.portal) == key for one in self._sessions.values())
            if present or key in self._logging_in:
                raise IscsiError(SESS_EXISTS)
            self._logging_in.add(key)
        try:
            isid = b"\x80" + os.urandom(5)
            connection = self._connect(target, portal, settings, isid)
            with self.lock:
                session = self._add_session(target, portal, settings, connection, isid)
        finally:
            with self.lock:
                self._logging_in.discard(key)
        self.run(lambda: self._watch(session), f"session{session.sid}")
        if settings.scan == "auto":
            self.run(lambda: self.scan(session.host, None), f"scan{session.sid}")
        return session

    def logout(self, session: Session) -> None:
        """End a session: every disk that it carries goes with it."""
        with session.scanning:
            session.ended.set()
            with self.lock:
                disks = [disk for disk in self._disks.values() if disk.session is session]
            for disk in disks:
                self._remove(disk)
            with self.lock:
                if self._sessions.pop(session.sid, None) is None:
                    return
                for hctl in [one for one in self._others if one.startswith(f"{session.host}:")]:
                    self.sysfs.remove_device(self._others.pop(hctl), hctl, None)
                self.sysfs.remove_session(session.host)
            session.connection.close(politely=session.state == "LOGGED_IN")

    def scan(self, host: int, lun: int | None) -> None:
        """Look for one LUN, or for all. What is known stays as it is, also when it changed its identity."""
        session = next((one for one in self.sessions() if one.host == host), None)
        if session is None:
            raise FileNotFoundError(f"host{host}")
        with session.scanning:
            if session.state != "LOGGED_IN" or session.ended.is_set():
                return
            try:
                luns = [lun] if lun is not None else session.connection.report_luns()
                found = [disk for one in luns if (disk := self._probe(session, one)) is not None]
            except CheckConditionError as err:
                log.debug("scan of host%d: %s", host, err)
                return
            except OSError as err:
                self._fail(session, err)
                return
        for disk in found:
            self._bring_up(disk)

    def delete(self, name: str) -> threading.Event:
        """Order the end of a disk and return at once; the event tells when it is gone.

        A disk whose session is dead waits for the session's replacement time-out, 30 seconds at most.
        """
        gone = threading.Event()
        with self.lock:
            disk = self._disks.get(name)
            if disk is None or disk.is_deleted:
                raise FileNotFoundError(name)
            disk.is_deleted = True
        wait = self.timings.delete
        session = disk.session
        if session.state != "LOGGED_IN":
            until = session.failed_at + session.settings.replacement_timeout * self.timings.second
            wait = max(wait, min(until - time.monotonic(), 30 * self.timings.second))

        def end() -> None:
            self.halted.wait(wait)
            if not self.halted.is_set():
                self._remove(disk)
            gone.set()

        self.run(end, f"delete-{name}")
        return gone

    def rescan(self, name: str) -> None:
        """Read capacity, write protection and VPD pages again, as Linux does; nothing else renews them."""
        disk = self.disk(name)
        if disk is None:
            raise FileNotFoundError(name)
        connection = disk.session.connection
        try:
            size = connection.capacity(disk.lun)
            read_only = connection.is_write_protected(disk.lun)
            page_83 = connection.vpd(disk.lun, 0x83)
        except (CheckConditionError, OSError) as err:
            log.debug("rescan of %s: %s", name, err)
            return
        with self.lock:
            if not disk.is_up or not disk.export.is_running:
                return
            is_announced = size != disk.size or read_only != disk.read_only
            if size != disk.size:
                try:
                    disk.export.resize(size)
                    disk.size = size
                except ExportError as err:
                    log.warning("%s keeps its size: %s", name, err)
            self.sysfs.set_disk(name, size=disk.size)
            if page_83 != disk.page_83:
                disk.page_83, disk.wwid = page_83, multipath_wwid(page_83)
                self.sysfs.set_identity(disk.sysfs, kernel_wwid(page_83), page_83)
        self.set_read_only(disk, read_only)
        if is_announced:  # a new identity alone is not
            self.uevents.send("change", name)

    def set_read_only(self, disk: Disk, read_only: bool) -> None:
        """Set or clear the kernel's write protection; the array's own stays in force below it."""
        if disk.export.read_only and not read_only:
            try:
                disk.export.reopen(read_only=False)
            except ExportError:
                disk.export.reopen(read_only=True)
        with self.lock:
            disk.read_only = read_only
            if disk.is_up:
                self.sysfs.set_disk(disk.name, read_only=read_only)

    def is_ready(self, disk: Disk) -> bool:
        """Ask the target whether the disk takes I/O, as a path checker does."""
        if disk.session.state != "LOGGED_IN" or not disk.export.is_running:
            return False
        try:
            disk.session.connection.test_unit_ready(disk.lun)
        except (CheckConditionError, OSError):
            return False
        return True

    def identity(self, disk: Disk) -> str | None:
        """Ask the array what is behind the disk now (None: nothing, or no answer)."""
        try:
            if disk.session.connection.inquire(disk.lun).qualifier:
                return None
            return multipath_wwid(disk.session.connection.vpd(disk.lun, 0x83))
        except (CheckConditionError, OSError):
            return None

    def fail_io(self, disk: Disk) -> None:
        """Give up on a disk of a dead session: those who wait for it get errors."""
        if disk.session.state != "LOGGED_IN":
            disk.export.kill()
            with self.lock:
                if disk.is_up:
                    self.sysfs.set_disk(disk.name, state="transport-offline")

    def _connect(self, target: str, portal: Portal, settings: SessionSettings, isid: bytes) -> Connection:
        timeout = settings.login_timeout * self.timings.second
        failure = IscsiError(TRANS_TIMEOUT)
        for attempt in range(max(1, settings.login_retries)):
            if attempt and self.halted.wait(self.timings.second):
                break
            try:
                return Connection(portal, self.initiator, target, settings.chap, timeout, isid)
            except TimeoutError:
                failure = IscsiError(TRANS_TIMEOUT, "connection timed out")
            except LoginRefusedError as err:
                if err.status_class == 3:
                    failure = IscsiError(LOGIN, str(err))
                    continue
                is_denied = err.status_class == 2 and err.detail in (1, 2)
                raise IscsiError(AUTH_FAILED if is_denied else FATAL_LOGIN, str(err)) from err
            except OSError as err:
                failure = IscsiError(TRANS, str(err))
        raise failure

    def _add_session(
        self,
        target: str,
        portal: Portal,
        settings: SessionSettings,
        connection: Connection,
        isid: bytes,
    ) -> Session:
        if self.halted.is_set():
            connection.close()
            raise IscsiError(TRANS, "the host is down")
        used = {one.host for one in self._sessions.values()}
        host = next(number for number in range(FIRST_HOST, 1 << 16) if number not in used)
        self._last_sid += 1
        session = Session(self._last_sid, host, target, portal, connection.tpgt, settings, connection, isid)
        self.sysfs.add_session(host, session.sid, target, self.initiator, (*portal, connection.tpgt))
        if connection.portal != portal:
            self.sysfs.set_session(host, session.sid, session.state, connection.portal)
        self._sessions[session.sid] = session
        return session

    def _watch(self, session: Session) -> None:
        """Notice that the portal died; come back when it does."""
        second = self.timings.second
        pause = max(0.02, second)
        while not session.ended.is_set():
            if session.state == "LOGGED_IN":
                try:
                    if select.select([session.connection], [], [], session.settings.noop_interval * second)[
                        0
                    ]:
                        session.connection.serve()
                    else:
                        session.connection.ping(session.settings.noop_timeout * second)
                except (OSError, ValueError) as err:
                    self._fail(session, err)
            elif not session.ended.wait(pause):
                self._reconnect(session)

    def _fail(self, session: Session, reason: Exception) -> None:
        with self.lock:
            if session.ended.is_set() or session.state != "LOGGED_IN":
                return
            log.debug("session%d failed: %s", session.sid, reason)
            session.state, session.failed_at = "FAILED", time.monotonic()
            session.connection.close()
            self.sysfs.set_session(session.host, session.sid, "FAILED")
            disks = [disk for disk in self._disks.values() if disk.session is session and disk.is_up]
            for disk in disks:
                self.sysfs.set_disk(disk.name, state="blocked")
        for disk in disks:
            self.uevents.send("path", disk.name)

    def _reconnect(self, session: Session) -> None:
        settings = session.settings
        elapsed = time.monotonic() - session.failed_at
        is_over = elapsed > settings.replacement_timeout * self.timings.second
        if is_over:
            for disk in self.disks():
                if disk.session is session and disk.export.is_running:
                    self.path_failed(disk)
        try:
            timeout = settings.login_timeout * self.timings.second
            connection = Connection(
                session.portal, self.initiator, session.target, settings.chap, timeout, session.isid
            )
        except (OSError, LoginRefusedError):
            return
        with self.lock:
            if session.ended.is_set():
                connection.close()
                return
            session.connection, session.state = connection, "LOGGED_IN"
            self.sysfs.set_session(session.host, session.sid, "LOGGED_IN", connection.portal)
            disks = [disk for disk in self._disks.values() if disk.session is session and disk.is_up]
        for disk in disks:
            self._revive(disk)

    def _revive(self, disk: Disk) -> None:
        with self.lock:
            if not disk.is_up or disk.is_deleted:
                return
            self.sysfs.set_disk(disk.name, state="running")
        if not disk.export.is_running:
            with contextlib.suppress(ExportError, OSError):
                disk.export.reopen(read_only=disk.export.read_only)
        self.uevents.send("path", disk.name)

    def _probe(self, session: Session, lun: int) -> Disk | None:
        """Find out what a LUN is, and start what is new."""
        hctl = f"{session.host}:0:0:{lun}"
        with self.lock:
            if hctl in self._others or any(disk.hctl == hctl for disk in self._disks.values()):
                return None
        inquiry = session.connection.inquire(lun)
        if inquiry.qualifier:
            return None
        page_83 = session.connection.vpd(lun, 0x83)
        attributes = {
            "type": str(inquiry.kind),
            "vendor": inquiry.vendor,
            "model": inquiry.model,
            "rev": inquiry.revision,
            "wwid": kernel_wwid(page_83),
        }
        path = self.sysfs.disk_path(session.host, session.sid, lun)
        if inquiry.kind != DISK:
            with self.lock:
                self.sysfs.add_device(path, hctl, attributes, page_83)
                self._others[hctl] = path
            return None
        size = session.connection.capacity(lun)
        read_only = session.connection.is_write_protected(lun)
        with self.lock:
            if self._spawner is None or session.ended.is_set():
                return None
            used = {disk.index for disk in self._disks.values()}
            index = next(number for number in range(1, 1 << 16) if number not in used)
            name = disk_name(index)
            export = Export(
                self._dev / name,
                self._state,
                self._spawner,
                portal=session.connection.portal,
                target=session.target,
                lun=lun & FLAT_LUN,
                initiator=self.initiator,
                chap=session.settings.chap,
                read_only=read_only,
            )
            disk = Disk(
                name,
                index,
                session,
                lun,
                size,
                multipath_wwid(page_83),
                page_83,
                inquiry.vendor,
                inquiry.model,
                inquiry.revision,
                read_only,
                export,
                path,
            )
            self._disks[name] = disk
            self.sysfs.add_device(path, hctl, attributes, page_83)
        try:
            export.launch()
        except ExportError as err:
            log.debug("%s: %s", disk.name, err)
            self._remove(disk)
            return None
        return disk

    def _bring_up(self, disk: Disk) -> None:
        try:
            disk.size = disk.export.wait()
        except ExportError as err:
            log.warning("%s did not come up: %s", disk.name, err)
            self._remove(disk)
            return
        with self.lock:
            if disk.is_leaving or self.halted.is_set():
                return
            disk.is_up = True
            # before sysfs shows it: who sees the change and then settles waits for the event
            self.uevents.send("add", disk.name)
            self.sysfs.add_disk(disk.sysfs, disk.hctl, disk.name, disk.number, disk.size, disk.read_only)

    def _remove(self, disk: Disk) -> None:
        """Take a disk away, or wait for whoever does."""
        with self.lock:
            is_first, disk.is_leaving = not disk.is_leaving, True
            disk.is_deleted = True
        if not is_first:
            disk.gone.wait(REMOVAL_DEADLINE)
            return
        self.path_leaving(disk)
        disk.export.stop()
        with self.lock:
            disk.is_up = False
            if self._disks.get(disk.name) is disk:
                del self._disks[disk.name]
                self.uevents.send("remove", disk.name)
                self.sysfs.remove_device(disk.sysfs, disk.hctl, disk.name)
        disk.gone.set()

    def run(self, work: Callable[[], None], name: str) -> None:
        """Do something in the background; ``halt()`` waits for it."""
        thread = threading.Thread(target=work, name=f"lab-host-{name}", daemon=True)
        with self.lock:
            self._threads = [one for one in self._threads if one.is_alive()]
            thread.start()
            self._threads.append(thread)

    def _add_local_disk(self) -> None:
        """Give the host a disk of its own, which nobody may touch."""
        path = self.sysfs.root / "devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0"
        attributes = {
            "type": "0",
            "vendor": "ATA     ",
            "model": "LOCAL DISK",
            "wwid": "naa.5000c500a1b2c3d4",
        }
        with (self._dev / LOCAL_DISK).open("wb") as file:
            file.truncate(LOCAL_DISK_SIZE)
        self.sysfs.add_device(path, "0:0:0:0", attributes, b"")
        self.sysfs.add_disk(path, "0:0:0:0", LOCAL_DISK, disk_number(0), LOCAL_DISK_SIZE, False)

# SPDX-License-Identifier: Apache-2.0
"""Device-mapper multipath in user space: maps, their paths, the daemon's rules, and udev's links."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab.host.devices import Disk
from lab.host.exports import Descriptor, holders_of
from lab.host.kernel import Kernel

__all__ = ["CHECK_INTERVAL", "NO_PATH_RETRY", "Map", "Mapper"]

log = logging.getLogger(__name__)

CHECK_INTERVAL = 5  # of the daemon's seconds
NO_PATH_RETRY = 20  # checks


@dataclass(eq=False, slots=True)
class Map:
    """A multipath map.

    ``queueing`` says that I/O without a usable path waits instead of failing. ``survivors`` are open
    files of a path that is gone: they hold the map still.
    """

    wwid: str
    minor: int
    size: int
    paths: list[str] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)
    queueing: bool = True
    pathless_since: float | None = None
    survivors: set[Descriptor] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.wwid

    @property
    def usable(self) -> list[str]:
        return [path for path in self.paths if path not in self.faulty]


class Mapper:
    """Maps of one kernel. ``is_running`` is multipathd: without it nothing happens by itself.

    ``find_multipaths`` is ``greedy`` (every path gets a map), ``yes`` (a second path or a known WWID makes
    one) or ``strict`` (known WWIDs only).
    """

    def __init__(self, kernel: Kernel, wwids: Path, find_multipaths: str = "greedy") -> None:
        self.kernel = kernel
        self.is_running = True
        self.find_multipaths = find_multipaths
        self.faulty: set[str] = set()
        self._wwids = wwids
        self._maps: dict[str, Map] = {}
        self._links: dict[Path, str] = {}
        self._dev = kernel.root / "dev"
        self._checking: threading.Thread | None = None
        kernel.uevents.handlers.append(self._on_event)
        kernel.path_failed = self._on_dead_path
        kernel.path_leaving = self._on_leaving_path

    def start(self) -> None:
        self._maps.clear()
        self._links.clear()
        self.faulty.clear()
        self._checking = threading.Thread(target=self._check_paths, name="lab-host-multipathd", daemon=True)
        self._checking.start()

    def stop(self) -> None:
        """End the checks; the kernel has halted."""
        if self._checking is not None:
            self._checking.join(10)
        self._maps.clear()

    def maps(self) -> list[Map]:
        with self.kernel.lock:
            return list(self._maps.values())

    def find(self, name: str) -> Map | None:
        """Find a map by its name, its dm-N, or a path to either."""
        word = name.rstrip("/").rpartition("/")[2]
        with self.kernel.lock:
            return next((one for one in self._maps.values() if word in (one.name, f"dm-{one.minor}")), None)

    def map_of(self, disk: str) -> Map | None:
        with self.kernel.lock:
            return next((one for one in self._maps.values() if disk in one.paths), None)

    def known_wwids(self) -> list[str]:
        if not self._wwids.exists():
            return []
        lines = self._wwids.read_text(encoding="utf-8").splitlines()
        return [line.strip("/") for line in lines if line.startswith("/")]

    def remember(self, wwid: str) -> None:
        """Write the WWID down as one that shall have a map."""
        known = self.known_wwids()
        if wwid not in known:
            self._write_wwids([*known, wwid])

    def forget(self, wwid: str) -> bool:
        known = self.known_wwids()
        self._write_wwids([one for one in known if one != wwid])
        return wwid in known

    def assemble(self, wwid: str) -> Map | None:
        """Make the map of a WWID, or let further paths join it. None without a path."""
        with self.kernel.lock:
            disks = [disk for disk in self.kernel.disks() if disk.wwid == wwid and not disk.is_deleted]
            if not disks:
                return None
            found = self._maps.get(wwid)
            if found is None:
                used = {one.minor for one in self._maps.values()}
                minor = next(number for number in range(1 << 16) if number not in used)
                found = Map(wwid, minor, disks[0].size)
                self._maps[wwid] = found
                self.kernel.sysfs.add_map(minor, found.name, wwid, found.size)
                self.remember(wwid)
            found.paths = sorted(
                {disk.name for disk in disks if disk.size == found.size},
                key=lambda name: (len(name), name),
            )
            self._reload(found)
            return found

    def add_path(self, disk: Disk) -> bool:
        return self.assemble(disk.wwid) is not None

    def drop_path(self, name: str) -> bool:
        """Take a path out of its map; the last one takes the map along unless somebody holds it."""
        with self.kernel.lock:
            found = self.map_of(name)
            if found is None:
                return True
            if found.paths == [name] and not self.holders(found):
                self._remove(found)
                return True
            found.paths.remove(name)
            self._reload(found)
            return True

    def holders(self, found: Map) -> list[str]:
        """Name what holds a map open: devices above it and processes."""
        with self.kernel.lock:
            above = self.kernel.sysfs.holders(f"dm-{found.minor}")
            files = [self._dev / name for name in found.paths]
            held = holders_of([*files, self._dev / f"dm-{found.minor}"])
            found.survivors = {one for one in found.survivors if one.is_open()}
            pids = {one.pid for one in found.survivors.union(*held.values())}
        return above + [f"pid {pid}" for pid in sorted(pids)]

    def flush(self, found: Map) -> bool:
        """Remove a map. Returns false when it is in use."""
        with self.kernel.lock:
            if self._maps.get(found.wwid) is not found:
                return True
            if self.holders(found):
                return False
            self._remove(found)
            return True

    def resize(self, found: Map) -> bool:
        """Take the paths' size, on which they must agree."""
        with self.kernel.lock:
            disks = [disk for name in found.paths if (disk := self.kernel.disk(name)) is not None]
            sizes = {disk.size for disk in disks}
            if len(sizes) != 1 or any(disk.name in found.faulty for disk in disks):
                return False
            found.size = sizes.pop()
            base = self.kernel.sysfs.root / f"block/dm-{found.minor}/size"
            base.write_text(f"{found.size // 512}\n", encoding="utf-8")
            return True

    def stop_queueing(self, found: Map) -> None:
        """Let I/O that has no path fail instead of waiting."""
        with self.kernel.lock:
            found.queueing = False
            stuck = [] if found.usable else [self.kernel.disk(name) for name in found.paths]
        for disk in stuck:
            if disk is not None:
                self.kernel.fail_io(disk)

    def is_hung(self, found: Map) -> bool:
        """Tell whether I/O on the map would wait for a path that does not come."""
        with self.kernel.lock:
            return self._maps.get(found.wwid) is found and found.queueing and not found.usable

    def reconfigure(self) -> None:
        for disk in self.kernel.disks():
            if self._shall_map(disk):
                self.assemble(disk.wwid)

    def path_state(self, disk: Disk) -> tuple[str, str, str]:
        """Return device-mapper's, the kernel's and the checker's word on a path."""
        with self.kernel.lock:
            found = self.map_of(disk.name)
            is_faulty = disk.name in self.faulty
            dm = "undef" if found is None else "failed" if is_faulty else "active"
            if disk.session.state == "LOGGED_IN":
                kernel = "running"
            else:
                kernel = "blocked" if disk.export.is_running else "offline"
            return dm, kernel, "faulty" if is_faulty else "ready"

    def _shall_map(self, disk: Disk) -> bool:
        if self.find_multipaths == "greedy" or disk.wwid in self.known_wwids():
            return True
        paths = sum(1 for one in self.kernel.disks() if one.wwid == disk.wwid)
        return self.find_multipaths == "yes" and paths > 1

    def _on_event(self, action: str, name: str) -> None:
        with self.kernel.lock:
            disk = self.kernel.disk(name)
            if self.is_running:
                if action == "remove":
                    self.faulty.discard(name)
                    self.drop_path(name)
                elif action in ("add", "change") and disk is not None:
                    old = self.map_of(name)
                    if old is not None and old.wwid != disk.wwid:
                        self.drop_path(name)
                    if (old is None or old.wwid != disk.wwid) and self._shall_map(disk):
                        self.assemble(disk.wwid)
                elif action == "path" and disk is not None:
                    self._judge(disk, is_ready=disk.session.state == "LOGGED_IN")
            self._refresh_links()

    def _on_dead_path(self, disk: Disk) -> None:
        """Act when a session stayed dead for its replacement time-out."""
        found = self.map_of(disk.name)
        if found is None or found.usable or not found.queueing:
            self.kernel.fail_io(disk)

    def _on_leaving_path(self, disk: Disk) -> None:
        found = self.map_of(disk.name)
        if found is not None:
            for held in holders_of([self._dev / disk.name]).values():
                found.survivors |= held

    def _check_paths(self) -> None:
        interval = CHECK_INTERVAL * self.kernel.timings.second
        while not self.kernel.halted.wait(interval):
            if not self.is_running:
                continue
            for disk in self.kernel.disks():
                self._judge(disk, is_ready=self.kernel.is_ready(disk))
            for found in self.maps():
                since = found.pathless_since
                if since is not None and time.monotonic() - since > NO_PATH_RETRY * interval:
                    self.stop_queueing(found)

    def _judge(self, disk: Disk, is_ready: bool) -> None:
        with self.kernel.lock:
            if is_ready == (disk.name not in self.faulty) or not disk.is_up:
                return
            (self.faulty.discard if is_ready else self.faulty.add)(disk.name)
            found = self.map_of(disk.name)
            if found is not None:
                self._reload(found)

    def _reload(self, found: Map) -> None:
        """Bring sysfs and the device node in line with the paths."""
        found.faulty = {name for name in found.paths if name in self.faulty}
        if found.usable:
            found.pathless_since, found.queueing = None, True
        elif found.pathless_since is None:
            found.pathless_since = time.monotonic()
        self.kernel.sysfs.set_slaves(found.minor, found.paths)
        self._refresh_links()

    def _remove(self, found: Map) -> None:
        del self._maps[found.wwid]
        self.kernel.sysfs.remove_map(found.minor)
        self._refresh_links()

    def _refresh_links(self) -> None:
        """Let the links below /dev be what udev makes of the devices that are there."""
        if self.kernel.halted.is_set():
            return
        wanted: dict[Path, str] = {}
        disks = sorted(self.kernel.disks(), key=lambda disk: disk.index)
        for disk in disks:
            host, port = disk.session.portal
            address = f"[{host}]" if ":" in host else host
            lun = str(disk.lun) if disk.lun < 256 else f"0x{disk.lun:04x}000000000000"
            by_path = f"disk/by-path/ip-{address}:{port}-iscsi-{disk.session.target}-lun-{lun}"
            wanted[self._dev / by_path] = f"../../{disk.name}"
            wanted |= self._by_id(disk.wwid, disk.name)
        for found in self._maps.values():
            device = f"dm-{found.minor}"
            best = next(iter([*found.usable, *found.paths]), None)
            if best is not None:
                wanted[self._dev / device] = best
            wanted[self._dev / "mapper" / found.name] = f"../{device}"
            wanted[self._dev / f"disk/by-id/dm-uuid-mpath-{found.wwid}"] = f"../../{device}"
            wanted[self._dev / f"disk/by-id/dm-name-{found.name}"] = f"../../{device}"
            wanted |= self._by_id(found.wwid, device)
        for link in self._links.keys() - wanted.keys():
            link.unlink(missing_ok=True)
        for link, to in wanted.items():
            if self._links.get(link) != to:
                link.parent.mkdir(parents=True, exist_ok=True)
                new = link.with_name(f".{link.name}")
                with contextlib.suppress(FileNotFoundError):
                    new.unlink()
                new.symlink_to(to)
                new.replace(link)
        self._links = wanted

    def _by_id(self, wwid: str, device: str) -> dict[Path, str]:
        names = [f"scsi-{wwid}"] + ([f"wwn-0x{wwid[1:]}"] if wwid.startswith("3") else [])
        return {self._dev / "disk/by-id" / name: f"../../{device}" for name in names}

    def _write_wwids(self, wwids: list[str]) -> None:
        self._wwids.parent.mkdir(parents=True, exist_ok=True)
        head = "# Multipath wwids, Version : 1.0\n"
        self._wwids.write_text(head + "".join(f"/{one}/\n" for one in wwids), encoding="utf-8")

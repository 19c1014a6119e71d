# SPDX-License-Identifier: Apache-2.0
"""The part of /sys that iSCSI, SCSI and multipath tools look at, laid out as Linux lays it out."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

__all__ = ["Sysfs", "disk_name", "disk_number"]


def disk_name(index: int) -> str:
    """Return the kernel's name of the ``index``-th SCSI disk: sda, ..., sdz, sdaa, ..."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return f"sd{letters}"


def disk_number(index: int) -> str:
    """Return ``major:minor`` of the ``index``-th SCSI disk."""
    majors = (8, *range(65, 72), *range(128, 136))
    return f"{majors[index // 16 % len(majors)]}:{index % 16 * 16}"


class Sysfs:
    """Writes the tree; whoever calls holds the lock of the state that the tree shows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._links: dict[str, list[Path]] = {}

    def make(self) -> None:
        for name in ("scsi_host", "iscsi_host", "iscsi_session", "iscsi_connection", "scsi_device", "block"):
            (self.root / "class" / name).mkdir(parents=True, exist_ok=True)
        for path in ("block", "bus/scsi/devices", "class/scsi_disk", "devices/virtual/block"):
            (self.root / path).mkdir(parents=True, exist_ok=True)

    def host_path(self, host: int) -> Path:
        return self.root / f"devices/platform/host{host}"

    def disk_path(self, host: int, sid: int, lun: int) -> Path:
        return self.host_path(host) / f"session{sid}/target{host}:0:0/{host}:0:0:{lun}"

    def add_session(
        self, host: int, sid: int, target: str, initiator: str, portal: tuple[str, int, int]
    ) -> None:
        base = self.host_path(host)
        address, port, group = portal
        scsi_host = base / f"scsi_host/host{host}"
        self._write(scsi_host, scan="", state="running", proc_name="iscsi_tcp", unique_id=str(host))
        iscsi_host = base / f"iscsi_host/host{host}"
        self._write(iscsi_host, initiatorname=initiator, ipaddress=address, netdev="<NULL>")
        session = base / f"session{sid}/iscsi_session/session{sid}"
        self._write(
            session,
            targetname=target,
            initiatorname=initiator,
            state="LOGGED_IN",
            tpgt=str(group),
            recovery_tmo="120",
            ifacename="default",
            target_id="0",
        )
        connection = base / f"session{sid}/connection{sid}:0/iscsi_connection/connection{sid}:0"
        self._write(
            connection,
            persistent_address=address,
            persistent_port=str(port),
            address=address,
            port=str(port),
            state="up",
        )
        for one, device in (
            (scsi_host, base),
            (iscsi_host, base),
            (session, base / f"session{sid}"),
            (connection, base / f"session{sid}/connection{sid}:0"),
        ):
            self._point(one / "device", device)
            kind = one.parent.name
            self._register(f"host{host}", self.root / "class" / kind / one.name, one)

    def set_session(self, host: int, sid: int, state: str, current: tuple[str, int] | None = None) -> None:
        base = self.host_path(host) / f"session{sid}"
        self._write(base / f"iscsi_session/session{sid}", state=state)
        connection = base / f"connection{sid}:0/iscsi_connection/connection{sid}:0"
        self._write(connection, state="up" if state == "LOGGED_IN" else "failed")
        if current is not None:
            self._write(connection, address=current[0], port=str(current[1]))

    def remove_session(self, host: int) -> None:
        self._unregister(f"host{host}")
        shutil.rmtree(self.host_path(host), ignore_errors=True)

    def add_device(self, path: Path, hctl: str, attributes: dict[str, str], page_83: bytes) -> None:
        """Add a SCSI device: what there is for every LUN, disk or not."""
        self._write(path, state="running", delete="", rescan="", **attributes)
        if page_83:
            (path / "vpd_pg83").write_bytes(page_83)
        device = path / "scsi_device" / hctl
        device.mkdir(parents=True)
        self._point(device / "device", path)
        self._register(hctl, self.root / "class/scsi_device" / hctl, device)
        self._register(hctl, self.root / "bus/scsi/devices" / hctl, path)

    def add_disk(self, path: Path, hctl: str, name: str, number: str, size: int, read_only: bool) -> None:
        block = path / "block" / name
        for folder in ("holders", "slaves", "queue"):
            (block / folder).mkdir(parents=True)
        self._point(block / "device", path)
        self._write(block, size=str(size // 512), ro=str(int(read_only)), dev=number, removable="0")
        self._write(block / "queue", logical_block_size="512", rotational="0", write_cache="write back")
        scsi_disk = path / "scsi_disk" / hctl
        scsi_disk.mkdir(parents=True)
        self._point(scsi_disk / "device", path)
        self._register(name, self.root / "class/scsi_disk" / hctl, scsi_disk)
        self._register(name, self.root / "class/block" / name, block)
        self._register(name, self.root / "block" / name, block)

    def set_disk(
        self,
        name: str,
        *,
        size: int | None = None,
        read_only: bool | None = None,
        state: str | None = None,
    ) -> None:
        block = self.root / "block" / name
        if size is not None:
            self._write(block, size=str(size // 512))
        if read_only is not None:
            self._write(block, ro=str(int(read_only)))
        if state is not None:
            self._write(block / "device", state=state)

    def set_identity(self, path: Path, wwid: str, page_83: bytes) -> None:
        self._write(path, wwid=wwid)
        (path / "vpd_pg83").write_bytes(page_83)

    def remove_device(self, path: Path, hctl: str, name: str | None) -> None:
        if name is not None:
            self._unregister(name)
        self._unregister(hctl)
        shutil.rmtree(path, ignore_errors=True)

    def add_map(self, minor: int, name: str, wwid: str, size: int) -> None:
        base = self.root / f"devices/virtual/block/dm-{minor}"
        for folder in ("dm", "slaves", "holders", "queue"):
            (base / folder).mkdir(parents=True)
        self._write(base / "dm", name=name, uuid=f"mpath-{wwid}", suspended="0")
        self._write(base, size=str(size // 512), ro="0", dev=f"253:{minor}", removable="0")
        self._write(base / "queue", logical_block_size="512", rotational="0")
        self._register(f"dm-{minor}", self.root / f"class/block/dm-{minor}", base)
        self._register(f"dm-{minor}", self.root / f"block/dm-{minor}", base)

    def set_slaves(self, minor: int, slaves: list[str]) -> None:
        base = self.root / f"devices/virtual/block/dm-{minor}"
        for old in list((base / "slaves").iterdir()):
            if old.name not in slaves:
                old.unlink()
        for block in (self.root / "block").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if block.name not in slaves:
                    (block / "holders" / base.name).unlink()
        for name in slaves:
            block = (self.root / "block" / name).resolve()
            if block.is_dir():
                self._point(base / "slaves" / name, block)
                self._point(block / "holders" / base.name, base)

    def remove_map(self, minor: int) -> None:
        self.set_slaves(minor, [])
        self._unregister(f"dm-{minor}")
        shutil.rmtree(self.root / f"devices/virtual/block/dm-{minor}", ignore_errors=True)

    def holders(self, name: str) -> list[str]:
        try:
            return sorted(path.name for path in (self.root / "block" / name / "holders").iterdir())
        except FileNotFoundError:
            return []

    def _write(self, folder: Path, **attributes: str) -> None:
        """Write attributes; each appears whole, as a read of sysfs is."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in attributes.items():
            path = folder / name
            new = folder / f".{name}"
            new.write_text(f"{value}\n" if value else "", encoding="utf-8")
            new.replace(path)

    def _point(self, link: Path, to: Path) -> None:
        with contextlib.suppress(FileExistsError):
            link.symlink_to(os.path.relpath(to, link.parent))

    def _register(self, owner: str, link: Path, to: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        self._point(link, to)
        self._links.setdefault(owner, []).append(link)

    def _unregister(self, owner: str) -> None:
        for link in self._links.pop(owner, []):
            link.unlink(missing_ok=True)

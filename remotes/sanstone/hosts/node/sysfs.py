# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about disks, maps and sessions. Reads only, and never a disk itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import ROOT

__all__ = [
    "WWID",
    "Disk",
    "Map",
    "by_id",
    "dev",
    "disk",
    "disks",
    "find_map",
    "identity",
    "maps",
    "node",
]

WWID = re.compile(r"3[0-9a-f]{16,32}")

_ADDRESS = re.compile(r"(?:^|/)(\d+):(\d+):(\d+):(\d+)$")
_SECTOR = 512
_PAGE = 4096
"""No attribute is longer."""
_NAA = 3
_LOGICAL_UNIT = 0


class Disk(NamedTuple):
    """One SCSI disk, one path to a volume."""

    name: str
    host: int
    channel: int
    target: int
    lun: int
    wwid: str | None

    @property
    def hctl(self) -> str:
        return f"{self.host}:{self.channel}:{self.target}:{self.lun}"


class Map(NamedTuple):
    """One device-mapper multipath map: kernel name (dm-3), map name, WWID, kernel names of its paths."""

    kernel: str
    name: str
    wwid: str
    slaves: frozenset[str]


def identity(wwid: str) -> str:
    """Return a WWID as multipath writes it. Raises NodeError: RequestError if it is none."""
    low = wwid.lower()
    if not WWID.fullmatch(low):
        raise NodeError("RequestError", f"{wwid!r} is not a WWID (3 and an NAA identifier).")
    return low


def node(*parts: str) -> Path:
    """Return a path below /sys."""
    return ROOT.joinpath("sys", *parts)


def dev(*parts: str) -> Path:
    """Return a path below /dev."""
    return ROOT.joinpath("dev", *parts)


def text(path: Path) -> str | None:
    """Return what an attribute holds; None if it is not there or the device does not answer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _PAGE).decode("utf-8", "replace").strip()
    except OSError:
        return None
    finally:
        os.close(fd)


def names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))  # noqa: PTH208 (names are wanted, and this is the quick way)
    except OSError:
        return []


def disks() -> Iterator[Disk]:
    """Yield all SCSI disks, each with the WWID that the kernel has for it now."""
    for name in names(node("block")):
        if name.startswith("sd"):
            found = disk(name)
            if found is not None:
                yield found


def disk(name: str) -> Disk | None:
    """Return the SCSI disk ``name``; None if it has gone."""
    # Strings and one call to the kernel: a crowd of these programs looks at every disk many times a second.
    try:
        link = os.readlink(f"{node('block')}/{name}/device")  # noqa: PTH115
    except OSError:
        return None
    match = _ADDRESS.search(link) or _ADDRESS.search(str(node("block", name, "device").resolve()))
    if match is None:
        return None
    host, channel, target, lun = map(int, match.groups())
    return Disk(name, host, channel, target, lun, wwid(name))


def wwid(name: str) -> str | None:
    """Return ``3`` + NAA identifier of a disk, as multipath names it; None if the kernel does not know.

    The attribute is the kernel's copy of VPD page 0x83, taken when the disk was found or last rescanned.
    """
    value = text(node("block", name, "device", "wwid"))
    if value and value.startswith("naa."):
        return "3" + value[4:].lower()
    naa = _naa_of_page(name)
    return "3" + naa if naa else None


def _naa_of_page(name: str) -> str | None:
    try:
        page = node("block", name, "device", "vpd_pg83").read_bytes()
    except OSError:
        return None
    best = ""
    offset = 4
    while offset + 4 <= len(page):
        kind, association, length = page[offset + 1] & 0xF, (page[offset + 1] >> 4) & 3, page[offset + 3]
        value = page[offset + 4 : offset + 4 + length].hex()
        if (
            kind == _NAA
            and association == _LOGICAL_UNIT
            and len(value) == 2 * length
            and len(value) > len(best)
        ):
            best = value
        offset += 4 + length
    return best or None


def size(name: str) -> int:
    """Return the bytes of a block device, 0 if unknown."""
    value = text(node("block", name, "size"))
    return int(value) * _SECTOR if value and value.isdigit() else 0


def state(name: str) -> str:
    """Return the kernel's state of a disk: running, offline, blocked, transport-offline, ..."""
    return text(node("block", name, "device", "state")) or "gone"


def is_read_only(name: str) -> bool:
    return text(node("block", name, "ro")) == "1"


def is_announced(name: str) -> bool:
    """Tell whether udev has handled a block device, so that its listeners know of it."""
    database = ROOT / "run" / "udev" / "data"
    return not database.is_dir() or (database / f"b{text(node('block', name, 'dev'))}").exists()


def holders(name: str) -> list[str]:
    """Return the kernel names of the devices that are built on this one."""
    return names(node("block", name, "holders"))


def maps() -> Iterator[Map]:
    """Yield all multipath maps."""
    for kernel in names(node("block")):
        if kernel.startswith("dm-"):
            uuid = text(node("block", kernel, "dm", "uuid")) or ""
            name = text(node("block", kernel, "dm", "name"))
            if uuid.startswith("mpath-") and name:
                slaves = frozenset(names(node("block", kernel, "slaves")))
                yield Map(kernel, name, uuid[len("mpath-") :].lower(), slaves)


def find_map(wwid: str) -> Map | None:
    """Return the map of a volume."""
    return next((found for found in maps() if found.wwid == wwid), None)


def by_id(wwid: str) -> tuple[Path, Path]:
    """Return the names that udev gives a single path of this WWID."""
    return dev("disk", "by-id", "scsi-" + wwid), dev("disk", "by-id", "wwn-0x" + wwid[1:])

# SPDX-License-Identifier: Apache-2.0
"""Who has a block device open, as far as it can be seen."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from . import sysfs

__all__ = ["Holder", "device_holders", "processes"]

_ALWAYS_OPEN = frozenset({"multipathd"})
"""Its checkers keep every path open; that is no use of a volume."""


class Holder(NamedTuple):
    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


def device_holders(kernel: str, wwid: str) -> list[str]:
    """Describe the devices that are built on ``kernel``: LVM, md, other maps.

    Not counted are this WWID's own map, and its partitions' maps when nothing is built on them in turn:
    ``multipath -f`` removes those.
    """
    described = []
    for holder in sysfs.holders(kernel):
        uuid = sysfs.text(sysfs.node("block", holder, "dm", "uuid")) or ""
        if uuid.lower() == f"mpath-{wwid}":
            continue
        if uuid.startswith("part") and uuid.lower().endswith(f"-mpath-{wwid}"):
            described += device_holders(holder, wwid)
            continue
        name = sysfs.text(sysfs.node("block", holder, "dm", "name"))
        kind = uuid.split("-", 1)[0] if uuid else ""
        described.append(f"{kind} {name} ({holder})".strip() if name else holder)
    return described


def processes(kernel: str, *others: Path) -> list[Holder]:
    """Return the processes that have ``/dev/<kernel>`` open; those of other users are seen by root only.

    ``others`` are further names of the device. Only descriptors with one of these names are looked at closer:
    a look at every one could wait for ever for a dead network file system.
    """
    number = sysfs.text(sysfs.node("block", kernel, "dev"))
    paths = {str(sysfs.dev(kernel)), *(str(path) for path in others)}
    paths |= {os.path.realpath(path) for path in paths}
    names = {os.path.basename(path) for path in paths}  # noqa: PTH119 (strings from readlink, many of them)
    found = []
    for entry in sysfs.names(Path("/proc")):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        if any(_is_device(link, entry, fd, paths, names, number) for fd, link in _descriptors(entry)):
            name = sysfs.text(Path("/proc", entry, "comm")) or "?"
            if name not in _ALWAYS_OPEN:
                found.append(Holder(int(entry), name))
    return found


def _descriptors(pid: str) -> list[tuple[str, str]]:
    directory = f"/proc/{pid}/fd"
    found = []
    for fd in sysfs.names(Path(directory)):
        try:
            found.append((fd, os.readlink(f"{directory}/{fd}")))  # noqa: PTH115
        except OSError:
            continue
    return found


def _is_device(link: str, pid: str, fd: str, paths: set[str], names: set[str], number: str | None) -> bool:
    if link in paths:
        return True
    if link.rpartition("/")[2] not in names or number is None:
        return False
    # libvirt gives a guest's process a /dev of its own, whose paths read differently from here.
    try:
        seen = os.stat(f"/proc/{pid}/fd/{fd}")  # noqa: PTH116
    except OSError:
        return False
    return stat.S_ISBLK(seen.st_mode) and f"{os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}" == number

# SPDX-License-Identifier: Apache-2.0
"""SCSI disks: look for one LUN, read a disk anew, take a disk away. Writes to sysfs go through ``tee``."""

from __future__ import annotations

from collections.abc import Sequence

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Deadline, in_parallel, run, wait_until

from . import sysfs
from .sysfs import Disk

__all__ = ["delete", "is_same", "lun_numbers", "rescan", "scan", "set_writable"]

_PERIPHERAL_LIMIT = 256
_FLAT = 0x4000
_DELETE_LIMIT = 35.0
"""A dead path goes away when its error time-outs have run out; that can take half a minute."""


def lun_numbers(lun: int) -> tuple[int, ...]:
    """Return the numbers under which the kernel may know a LUN: from 256 on, flat addressing adds 0x4000."""
    return (lun,) if lun < _PERIPHERAL_LIMIT else (lun | _FLAT, lun)


def _write(value: str, parts: Sequence[str], deadline: Deadline) -> None:
    run(["tee", str(sysfs.node(*parts))], deadline, stdin=f"{value}\n".encode())


def scan(host: int, target: int, lun: int, deadline: Deadline) -> None:
    """Ask one SCSI host for one LUN of one target; never for all."""
    for number in lun_numbers(lun):
        _write(f"0 {target} {number}", ("class", "scsi_host", f"host{host}", "scan"), deadline)


def rescan(name: str, deadline: Deadline) -> None:
    """Let the kernel read size, identity and write protection of a disk anew."""
    _write("1", ("block", name, "device", "rescan"), deadline)


def set_writable(name: str, deadline: Deadline) -> None:
    """Clear a cached write protection: a secondary that became primary was read-only when it was found."""
    run(["blockdev", "--setrw", str(sysfs.dev(name))], deadline, ok=None)


def is_same(disk: Disk) -> bool:
    """Tell whether the kernel name still belongs to the same disk: names are used again at once."""
    return sysfs.disk(disk.name) == disk


def delete(disks: Sequence[Disk], deadline: Deadline) -> list[str]:
    """Take disks away, all at once, and wait until the kernel has let go of them.

    Returns warnings. Raises NodeError: HostError when one stays.
    """
    limit = deadline.within(_DELETE_LIMIT)

    def remove(disk: Disk) -> None:
        if is_same(disk):
            _write("1", ("block", disk.name, "device", "delete"), limit)

    faults = in_parallel([lambda disk=disk: remove(disk) for disk in disks])  # type: ignore[misc]
    # Deletion is asynchronous: a scan before its end would find the old disk, with the old identity.
    wait_until(lambda: not any(_is_there(disk) for disk in disks), limit)
    left = [disk for disk in disks if _is_there(disk)]
    reasons = [fault for fault in faults if fault is not None]
    if left:
        raise NodeError(
            "HostError",
            "The kernel does not let go of " + ", ".join(f"{disk.name} ({disk.hctl})" for disk in left) + ".",
            "See the kernel's log; a dead path goes after its time-outs. Then run the action again.",
            "\n".join(fault.message for fault in reasons),
        )
    return [f"removing a path: {fault.message}" for fault in reasons]


def _is_there(disk: Disk) -> bool:
    now = sysfs.disk(disk.name)
    return now is not None and now.hctl == disk.hctl and now.wwid in (disk.wwid, None)

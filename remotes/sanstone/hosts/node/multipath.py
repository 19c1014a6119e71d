# SPDX-License-Identifier: Apache-2.0
"""dm-multipath maps: read from sysfs, changed by ``multipath`` and ``multipathd``."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Deadline, run, search_path, wait_until

from . import sysfs
from .sysfs import Map

__all__ = [
    "add_path",
    "del_path",
    "disable_queueing",
    "flush_map",
    "is_installed",
    "is_running",
    "resize",
    "whitelist",
]

_QUICK = 60.0
"""Longer than it ever takes by itself: where many volumes come at once multipathd has much to do."""
_HOLD = 15.0
"""udev, blkid and LVM look into a device that has just appeared or changed, and let go after a moment."""


def is_installed() -> bool:
    return any(os.access(Path(folder, "multipathd"), os.X_OK) for folder in search_path().split(os.pathsep))


def is_running(deadline: Deadline) -> bool:
    return run(["multipathd", "show", "daemon"], deadline.within(_QUICK), ok=None).code == 0


def whitelist(wwid: str, deadline: Deadline) -> None:
    """Let this WWID have a map even with a single path (find_multipaths strict or yes)."""
    run(["multipath", "-a", wwid], deadline.within(_QUICK), ok=None)


def add_path(name: str, deadline: Deadline) -> None:
    run(["multipathd", "add", "path", name], deadline.within(_QUICK), ok=None)


def del_path(name: str, deadline: Deadline) -> None:
    run(["multipathd", "del", "path", name], deadline.within(_QUICK), ok=None)


def known_paths(deadline: Deadline) -> list[str]:
    """Return the kernel names of the paths that multipathd has on its list."""
    shown = run(["multipathd", "show", "paths", "format", "%d %w"], deadline.within(_QUICK), ok=None)
    return [line.split()[0] for line in shown.stdout.splitlines() if line.strip()]


def disable_queueing(name: str, deadline: Deadline) -> None:
    """Let I/O fail that waits for a path which will not come: without this a flush hangs for ever."""
    run(["multipathd", "disablequeueing", "map", name], deadline.within(_QUICK), ok=None)


def resize(name: str, size: int, deadline: Deadline) -> None:
    """Let a map take on the size that its paths have.

    multipathd answers ``ok``, ``fail``, or ``timeout`` just after a reconfigure; its exit code says nothing.
    """
    answers: list[str] = []

    def is_done() -> bool:
        found = next((found for found in sysfs.maps() if found.name == name), None)
        if found is not None and sysfs.size(found.kernel) == size:
            return True
        answers[:] = [run(["multipathd", "resize", "map", name], deadline.within(_QUICK), ok=None).words]
        return False

    if not wait_until(is_done, deadline.within(_QUICK), first=0.02):
        raise NodeError(
            "HostError",
            f"The map {name} did not take on the size of {size} bytes.",
            f"See whether all its paths are up: multipath -ll {name}",
            answers[0] if answers else "",
        )


def flush_map(found: Map, deadline: Deadline) -> str:
    """Remove a map; return an empty string, or what multipath said while the map is still held."""
    said: list[str] = []

    def is_gone() -> bool:
        if sysfs.find_map(found.wwid) is None:
            return True
        said[:] = [run(["multipath", "-f", found.name], deadline, ok=None).words]
        return sysfs.find_map(found.wwid) is None

    if wait_until(is_gone, deadline.within(min(_HOLD, deadline.left() / 2)), first=0.05):
        return ""
    return said[0] or "map in use"


def forget_paths(names: Collection[str], deadline: Deadline) -> None:
    """Let multipathd drop deleted paths: one that is kept poisons the next disk of its name."""
    kept = set(known_paths(deadline)) & set(names)
    for name in sorted(kept):
        if sysfs.disk(name) is None:
            del_path(name, deadline)

# SPDX-License-Identifier: Apache-2.0
"""Guests that read their disks now and then.

tgt queues a unit attention for each LUN that comes or goes, and QEMU's initiator fails a request with EINVAL
after eight of them in a row, where a kernel goes on: an idle disk of a busy array could not even be flushed.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from lab.killing.world import World

__all__ = ["Guests"]

_PAUSE = 0.3
_TRIES = 50
_END_SECONDS = 10.0


class Guests:
    """Reads the first sector of every disk of every host, one thread per host."""

    def __init__(self, world: World) -> None:
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._read, args=(world, name), name=f"guests-{name}", daemon=True)
            for name in world.host_names
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(_END_SECONDS)

    def _read(self, world: World, name: str) -> None:
        host = world.scene.hosts[name]
        while not self._ending.wait(_PAUSE):
            for disk in host.devices():
                _read_sector(host.root / "dev" / disk.name)


def _read_sector(device: Path) -> None:
    for _ in range(_TRIES):
        with suppress(OSError):
            handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.read(handle, 512)
                return
            finally:
                os.close(handle)

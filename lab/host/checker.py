# SPDX-License-Identifier: Apache-2.0
"""Reads every disk now and then, as multipathd's path checker does on a host.

A target keeps a word for each LUN that has come or gone and says one at a command. A kernel takes any number
of them; QEMU's initiator waits longer and longer and gives up after eight. Where nobody reads a disk for a
while, the next request to it would fail, as it does on no real host.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable

from lab.host.devices import Disk
from lab.host.exports import ExportError

__all__ = ["check_paths"]

_INTERVAL = 0.5
_PATIENCE = 1.0
_REST = 5.0
"""How long a path is left alone that did not answer: a read waits in the daemon each time."""
_TRIES = 20
_BROKEN = 4

_HELLO = struct.Struct(">8s8sH")
_CHOICE = struct.Struct(">I8sII")
_EXPORT = struct.Struct(">QH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_FLAGS = 3  # fixed newstyle, no zeroes
_EXPORT_NAME = 1
_READ = 0
_SECTOR = 512


def check_paths(
    disks: Callable[[], Iterable[Disk]], is_ready: Callable[[Disk], bool], halted: threading.Event
) -> None:
    """Read a sector of each disk whose session is alive, twice a second, until ``halted``.

    A daemon that only fails while the disk ``is_ready`` has lost its session for good: it is started over.
    """
    resting: dict[str, int] = {}
    failed: Counter[str] = Counter()
    while not halted.wait(_INTERVAL):
        found = list(disks())
        resting = {disk.name: resting[disk.name] - 1 for disk in found if resting.get(disk.name, 0) > 1}
        for disk in found:
            if halted.is_set():
                return
            if disk.session.state == "LOGGED_IN" and disk.name not in resting:
                if not (address := disk.export.address):
                    continue
                try:
                    failed[disk.name] = 0 if _read(address) else failed[disk.name] + 1
                except OSError:
                    resting[disk.name] = int(_REST / _INTERVAL)
                if failed[disk.name] >= _BROKEN and is_ready(disk):
                    failed[disk.name] = 0
                    with contextlib.suppress(ExportError, OSError):
                        disk.export.reopen(disk.export.read_only)


def _read(address: str) -> bool:
    """Read the first sector from the NBD server at an abstract socket; False when that fails time after time.

    Raises: TimeoutError.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(_PATIENCE)
        try:
            link.connect("\0" + address)
            _receive(link, _HELLO.size)
            link.sendall(_CHOICE.pack(_FLAGS, b"IHAVEOPT", _EXPORT_NAME, 0))
            size, _ = _EXPORT.unpack(_receive(link, _EXPORT.size))
            for cookie in range(_TRIES if size >= _SECTOR else 0):
                link.sendall(_REQUEST.pack(0x25609513, 0, _READ, cookie, 0, _SECTOR))
                _, error, _ = _REPLY.unpack(_receive(link, _REPLY.size))
                if not error:
                    _receive(link, _SECTOR)
                    return True
        except TimeoutError:
            raise
        except OSError:
            return True  # the daemon is starting, or has gone
        return bool(size < _SECTOR)


def _receive(link: socket.socket, length: int) -> bytes:
    """Raises: OSError, TimeoutError among them, when less comes."""
    parts = b""
    while len(parts) < length:
        part = link.recv(length - len(parts))
        if not part:
            raise ConnectionResetError
        parts += part
    return parts

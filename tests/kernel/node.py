# SPDX-License-Identifier: Apache-2.0
"""A host of the lab as the product reaches it, as oneadmin over ssh, and what is to be seen there as root."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from lab.vm.errors import VMError
from lab.vm.lab import Lab
from lab.vm.machine import Machine
from sanstone.hosts.client import Host
from sanstone.hosts.ops import Attach, Attached, Detach, Detached, Operation
from sanstone.model import Connection, Device
from tests.kernel.targets import SIZE

__all__ = ["Node", "link", "number_of", "until"]

T = TypeVar("T")

PATIENCE = 180.0
"""Seconds for what is no matter of time: the machines are emulated, and not alone on theirs."""

LOOK = r"""
for path in /sys/block/sd*; do [ -e "$path" ] && echo "disk ${path##*/} $(cat "$path/device/wwid" 2>&1)"; done
for path in /sys/block/dm-*; do [ -e "$path" ] && echo "map $(cat "$path/dm/name")"; done
for path in /sys/class/iscsi_session/session*; do
    [ -e "$path" ] && echo "session $(cat "$path/targetname")"
done
for path in /etc/iscsi/nodes/* /var/lib/iscsi/nodes/*; do [ -e "$path" ] && echo "record ${path##*/}"; done
for path in /dev/mapper/* /dev/disk/by-id/* /dev/disk/by-path/*iscsi*; do
    { [ -e "$path" ] || [ -L "$path" ]; } && [ "$path" != /dev/mapper/control ] && echo "name $path"
done
find /var/lib/one/datastores -type l -printf 'link %p\n' 2> /dev/null
ls -A /var/tmp/sanstone-* 2> /dev/null | sed -n '/^dead-portals.json$/d; /^target-/d; /:$/d; s/^./note &/p'
if multipathd show daemon > /dev/null 2>&1; then
    multipathd show paths format 'path %d %w' | grep '^path sd'
fi
ps -eo stat=,pid=,args= | sed -n 's/^D/stuck &/p' | grep -v '\[.*\]$'
true
"""


def link(number: int) -> str:
    """Return where OpenNebula's link to a disk lies."""
    return f"/var/lib/one/datastores/0/{number}/disk.0"


def until(condition: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Wait for ``condition`` and return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about"
        threading.Event().wait(0.1)
    return found


class Node:
    def __init__(self, lab: Lab, name: str = "node1") -> None:
        self.name = name
        self.machine: Machine = lab.hosts[name]
        self.warnings: tuple[str, ...] = ()
        """What the last attachments had to warn of."""
        shared = ("-S", str(self.machine.share("oneadmin")))
        self.host = Host(name, ssh_options=["-F", str(lab.ssh_config), *shared], connect_timeout=PATIENCE)
        self._lock = threading.Lock()

    # by the product

    def run(self, *operations: Operation, deadline: float = PATIENCE) -> list[object]:
        # without power there is no connection to share, and the product shall find that out by itself
        with self._lock, contextlib.suppress(VMError):
            self.machine.share("oneadmin")
        return list(self.host.run(operations, deadline=deadline))

    def attach(self, *connections: Connection, deadline: float = PATIENCE) -> list[Device]:
        """Attach volumes in one round trip, each with its link."""
        operations = [Attach(one, link(number_of(one))) for one in connections]
        self.warnings = ()
        devices = []
        for result in self.run(*operations, deadline=deadline):
            assert isinstance(result, Attached)
            devices.append(result.device)
            self.warnings += result.warnings
        return devices

    def detach(
        self, *connections: Connection, log_out: bool = False, deadline: float = PATIENCE
    ) -> list[Detached]:
        operations = [Detach(one.wwid, link(number_of(one)), log_out) for one in connections]
        results = []
        for result in self.run(*operations, deadline=deadline):
            assert isinstance(result, Detached)
            results.append(result)
        return results

    # by hand

    def sh(self, line: str, *, user: str = "root", stdin: bytes | None = None) -> str:
        return self.machine.run(line, user=user, deadline=PATIENCE, stdin=stdin)

    def write(self, path: str, content: bytes, *, is_buffered: bool = False, user: str = "root") -> None:
        """Write to a device through the page cache, or past it; ``content`` in whole pages."""
        flags = "conv=notrunc" if is_buffered else "conv=notrunc,fsync"
        self.sh(
            f"dd of={shlex.quote(path)} bs=256k iflag=fullblock {flags} status=none", user=user, stdin=content
        )

    def hash(self, path: str, size: int = SIZE) -> str:
        """Return the sha256 of what a reader here gets, from the caches that he gets it from."""
        return self.sh(f"head -c {size} {shlex.quote(path)} | sha256sum").split()[0]

    def leftovers(self, *, but: Sequence[str] = ()) -> list[str]:
        """List disks, maps, sessions, records, names, stuck processes; no line with a word of ``but``."""
        lines = self.sh(LOOK).splitlines()
        return [line for line in lines if not any(word in line for word in but)]


def number_of(connection: Connection) -> int:
    """Return the number of a volume of ``targets.Volumes``."""
    return int(connection.volume.removeprefix("one-"))

# SPDX-License-Identifier: Apache-2.0
"""What OpenNebula's own transfer managers ``shared`` and ``ssh`` do, as far as a SAN driver meets it.

They make and move volatile disks and the directory of a VM, and pass a migration on to the drivers of the
other disks. Three traps of 7.4 are here on purpose: failmigrate passes nothing on; premigrate to the same
host passes nothing on but postmigrate does; postmigrate of ssh removes the old directory before it passes
the call on. Where all hosts share their files nothing is copied to or removed from another host.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree

from lab.oned.drivers import Answer, Builtin, Drivers
from lab.oned.hypervisor import HostRunner

__all__ = ["STOCK_DRIVERS", "StockTransferManager"]

STOCK_DRIVERS = ("shared", "ssh")


def _split(place: str) -> tuple[str, str]:
    host, _, path = place.partition(":")
    return host, path


@dataclass
class StockTransferManager:
    """Answers for ``tm/<name>/<action>``; ``drivers`` runs the calls that are passed on."""

    name: str
    runner: HostRunner
    datastores: str
    version: tuple[int, int]
    drivers: Drivers | None = None

    def action(self, action: str) -> Builtin | None:
        """Give the function of an action, None when there is no such action."""
        builtins: dict[str, Builtin] = {
            "mkimage": self.mkimage,
            "mkswap": self.mkswap,
            "context": self.context,
            "mv": self.mv,
            "delete": self.delete,
            "premigrate": self.premigrate,
            "postmigrate": self.postmigrate,
            "failmigrate": self.failmigrate,
            "resize": self.resize,
            "monitor": self.monitor,
        }
        return builtins.get(action)

    def mkimage(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """Make an empty disk: ``size_mb format host:path vm datastore``."""
        size_mb, _, place = argv[:3]
        return self._make(place, size_mb)

    def mkswap(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """Make a swap disk: ``size_mb host:path vm datastore``."""
        size_mb, place = argv[:2]
        return self._make(place, size_mb)

    def resize(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """Give a disk a new size: ``host:path size_mb vm datastore``."""
        host, path = _split(argv[0])
        return self.runner.run(host, ("truncate", "-s", f"{argv[1]}M", path))

    def _make(self, place: str, size_mb: str) -> Answer:
        host, path = _split(place)
        made = self.runner.run(host, ("mkdir", "-p", str(PurePosixPath(path).parent)))
        return made if made.rc else self.runner.run(host, ("truncate", "-s", f"{size_mb}M", path))

    def context(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """Make the context disk: ``context.sh [files...] host:path vm datastore``."""
        script, *files, place = argv[:-2]
        host, path = _split(place)
        made = self.runner.run(host, ("mkdir", "-p", str(PurePosixPath(path).parent)))
        if made.rc:
            return made
        local = self.runner.run("", ("cat", script))
        if local.rc:
            return local
        content = local.stdout.encode()
        if shutil.which("genisoimage"):
            grafts = tuple(f"{PurePosixPath(name).name}={name}" for name in (script, *files))
            command = ("genisoimage", "-quiet", "-V", "CONTEXT", "-J", "-R", "-graft-points", *grafts)
            image = self.runner.run("", ("sh", "-c", '"$@" | base64', "sh", *command))
            if image.rc:
                return image
            content = base64.b64decode(image.stdout)
        return self.runner.run(host, ("dd", "status=none", f"of={path}"), content)

    def mv(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """Move a disk or the directory: ``host:path host:path vm datastore``."""
        (from_host, source), (to_host, destination) = _split(argv[0]), _split(argv[1])
        is_one_place = from_host == to_host or self.name == "shared" or self.runner.shares_files
        if source == destination and is_one_place:
            return Answer()
        parent = str(PurePosixPath(destination).parent)
        made = self.runner.run(to_host, ("mkdir", "-p", parent))
        if made.rc:
            return made
        if is_one_place:
            return self._move_here(to_host, source, destination)
        copy = self.runner.run(
            from_host, ("sh", "-c", 'tar -C "$1" -cf - "$2" | base64', "sh", *_place(source))
        )
        if copy.rc:
            return copy
        unpacked = self.runner.run(
            to_host,
            ("sh", "-c", 'rm -rf "$1/$2" && tar -C "$1" -xf -', "sh", *_place(destination)),
            base64.b64decode(copy.stdout),
        )
        if unpacked.rc:
            return unpacked
        return self.runner.run(from_host, ("rm", "-rf", source))

    def _move_here(self, host: str, source: str, destination: str) -> Answer:
        is_directory = self.runner.run(host, ("test", "-d", source)).rc == 0
        if not is_directory:
            return self.runner.run(host, ("mv", source, destination))
        made = self.runner.run(host, ("mkdir", "-p", destination))
        if made.rc:
            return made
        script = (
            'for f in "$1"/*; do [ ! -e "$f" ] && [ ! -L "$f" ] || mv "$f" "$2"/ || exit; done; rm -rf "$1"'
        )
        return self.runner.run(host, ("sh", "-c", script, "sh", source, destination))

    def delete(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """Remove a disk or the directory: ``host:path vm datastore``."""
        host, path = _split(argv[0])
        return self.runner.run(host, ("rm", "-rf", path))

    def premigrate(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """Prepare a live migration: ``from to directory vm datastore``."""
        source, destination, directory = argv[:3]
        if source == destination:
            notice = f"INFO: premigrate: Not moving {source} to {destination}, they are the same host\n"
            return Answer(0, "", notice)
        if self.name == "ssh" and not self.runner.shares_files:
            for command in (("rm", "-rf", directory), ("mkdir", "-p", directory)):
                answer = self.runner.run(destination, command)
                if answer.rc:
                    return answer
        return self._pass_on("premigrate", argv, stdin)

    def postmigrate(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """End a live migration: remove the directory on the old host, then pass the call on."""
        source, destination, directory = argv[:3]
        if source == destination and self.version < (7, 2):
            return Answer()
        if source != destination and self.name == "ssh" and not self.runner.shares_files:
            removed = self.runner.run(source, ("rm", "-rf", directory))
            if removed.rc:
                return removed
        return self._pass_on("postmigrate", argv, stdin)

    def failmigrate(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """Undo a live migration: nobody else is told."""
        return Answer()

    def monitor(self, argv: tuple[str, ...], stdin: str) -> Answer:
        """Tell the space of the datastore's file system."""
        usage = shutil.disk_usage(self.datastores)
        used, total, free = usage.used >> 20, usage.total >> 20, usage.free >> 20
        return Answer(0, f"USED_MB={used}\nTOTAL_MB={total}\nFREE_MB={free}\n", "")

    def _pass_on(self, action: str, argv: tuple[str, ...], stdin: str) -> Answer:
        """Call the other drivers of the VM's disks once each, with this driver's name as sixth argument."""
        assert self.drivers is not None
        notes = ""
        for driver in dict.fromkeys(_other_drivers(stdin, self.name)):
            notes += f"INFO: {action}: Call {driver}/{action}\n"
            answer = self.drivers.run("tm", driver, action, (*argv[:5], self.name), stdin, "base64")
            if answer.rc:
                return Answer(answer.rc, "", notes + answer.stderr)
        return Answer(0, "", notes)


def _place(path: str) -> tuple[str, str]:
    place = PurePosixPath(path)
    return str(place.parent), place.name


def _other_drivers(document: str, name: str) -> Iterator[str]:
    for disk in ElementTree.fromstring(document).iter("DISK"):
        driver = disk.findtext("TM_MAD", "")
        if driver and driver != name:
            yield driver

# SPDX-License-Identifier: Apache-2.0
"""The storage systems of the lab behind one face: what is on them, asked and changed behind all backs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from lab.faults import Fault, Faults, Journal
from lab.target import TargetHost
from lab.v7000 import Box

__all__ = ["ALL_ARRAYS", "BASE_IQN", "POOL", "BoxSystem", "System", "TargetSystem"]

REMOTES = Path(__file__).resolve().parent.parent / "remotes"
ALL_ARRAYS = tuple(name for name in ("v7000", "iscsi") if (REMOTES / "tm" / name).is_dir())
"""Drivers for whose systems there is a stand-in: what tests of every array are parametrised by."""

MIB = 1024 * 1024
POOL = "mdiskgrp0"
BASE_IQN = "iqn.2012-02.org.opennebula"
_NOBODY = "255.255.255.255"


class System(Protocol):
    """One storage system. Volumes bear the library's names, whatever the system calls them."""

    driver: str
    refusal: Mapping[str, Any]
    """Arguments of ``faults.add`` with which any command fails and has done nothing."""
    is_shared_target: bool
    """Whether hosts stay logged in because all volumes are behind the same targets."""
    nothing_left: str
    """What an empty list of leftovers means."""

    @property
    def name(self) -> str:
        """The name by which datastores know it."""

    @property
    def paths(self) -> int:
        """How many paths a host has to a volume."""

    @property
    def faults(self) -> Faults: ...

    @property
    def journal(self) -> Journal: ...

    def attributes(self) -> dict[str, str]:
        """Attributes of a datastore on this system, beside those that every datastore has."""

    def add_host(self, name: str, initiator: str) -> None:
        """Let the system know a host, if an administrator has to tell it."""

    def volumes(self) -> dict[str, str]:
        """Give the WWID of every volume."""

    def mappings(self) -> set[tuple[str, str]]:
        """Give host and volume of all accesses that are open."""

    def copies(self) -> set[str]:
        """Name the system's own objects that join a volume to its copy; empty where there are none."""

    def path(self, volume: str) -> Path:
        """Give the file that holds a volume's bytes."""

    def make_foreign(self, volume: str, size: int = 4 * MIB) -> None:
        """Let there be a volume that no driver made."""

    def remove(self, volume: str) -> None:
        """Remove a volume as an administrator does."""

    def refuse(
        self, what: str, volume: str = "", *, host: str = "", skip: int = 0, times: int | None = 1
    ) -> Fault:
        """Refuse to create, copy to, map, unmap, delete or grow a volume; to map it to that host only."""

    def die(self) -> None: ...

    def revive(self) -> None: ...

    def portal_down(self, number: int) -> None:
        """Take portal ``number`` (from 1) away."""

    def portal_up(self, number: int) -> None: ...

    def leftovers(self) -> list[str]:
        """Name all that is there; empty when nothing was left behind."""

    def listings(self) -> list[tuple[str, list[str]]]:
        """Give the system's own commands that list volumes and who has them, and what they print."""


class BoxSystem:
    """A simulated V7000."""

    driver = "v7000"
    nothing_left = "no volume, no FlashCopy map, no mapping"
    refusal: Mapping[str, Any] = {"code": "CMMVC5742E"}
    is_shared_target = True
    _COMMANDS: Mapping[str, str] = {
        "create": "mkvdisk .*-name {volume}( |$)",
        "copy": "mkfcmap .*-target {volume}( |$)",
        "map": "mkvdiskhostmap .*{host}.*{volume}$",
        "unmap": "rmvdiskhostmap .*{volume}$",
        "delete": "rmvdisk .*{volume}$",
        "grow": "expandvdisksize .*{volume}$",
    }

    def __init__(self, box: Box) -> None:
        self.box = box
        self.faults = box.faults
        self.journal = box.journal

    @property
    def name(self) -> str:
        return self.box.ssh_host

    @property
    def paths(self) -> int:
        return len(self.box.portals)

    def attributes(self) -> dict[str, str]:
        return {"MGMT": self.box.ssh_host, "MDISK_GROUP": POOL}

    def add_host(self, name: str, initiator: str) -> None:
        self.box.add_host(name, initiator)

    def volumes(self) -> dict[str, str]:
        return {row["name"]: "3" + row["vdisk_UID"].lower() for row in self.rows("lsvdisk")}

    def mappings(self) -> set[tuple[str, str]]:
        return {(row["name"], row["vdisk_name"]) for row in self.rows("lshostvdiskmap")}

    def copies(self) -> set[str]:
        return {row["name"] for row in self.rows("lsfcmap")}

    def path(self, volume: str) -> Path:
        return self.box.volume_path(volume)

    def make_foreign(self, volume: str, size: int = 4 * MIB) -> None:
        place = f"-mdiskgrp {POOL} -iogrp io_grp0"
        self.box.run(f"mkvdisk -name {volume} {place} -size {size} -unit b -rsize 2% -autoexpand")

    def remove(self, volume: str) -> None:
        self.box.run(f"rmvdisk {volume}")

    def refuse(
        self, what: str, volume: str = "", *, host: str = "", skip: int = 0, times: int | None = 1
    ) -> Fault:
        pattern = self._COMMANDS[what].format(volume=volume or "[^ ]*", host=host and f"-host {host} ")
        return self.faults.add(pattern, skip=skip, times=times, **self.refusal)

    def die(self) -> None:
        self.box.die()

    def revive(self) -> None:
        self.box.revive()

    def portal_down(self, number: int) -> None:
        self.box.portal_down(number)

    def portal_up(self, number: int) -> None:
        self.box.portal_up(number)

    def leftovers(self) -> list[str]:
        return [
            *(f"volume {name}" for name in self.volumes()),
            *(f"FlashCopy map {name}" for name in self.copies()),
            *(f"mapping {host} {volume}" for host, volume in self.mappings()),
        ]

    def listings(self) -> list[tuple[str, list[str]]]:
        commands = ("lsvdisk", "lshostvdiskmap")
        return [(command, self.box.run(command)[0].splitlines()) for command in commands]

    def rows(self, command: str) -> list[dict[str, str]]:
        """Run a listing of the box."""
        name, *operands = command.split()
        stdout, _, _ = self.box.run(" ".join([name, "-delim", ":", *operands]))
        head, *lines = stdout.splitlines() or [""]
        return [dict(zip(head.split(":"), line.split(":"), strict=False)) for line in lines]


class TargetSystem:
    """A target host. A volume's LV is called ``lv-`` and its name."""

    driver = "iscsi"
    nothing_left = "no volume but the pool, no target, no account, no file for the next boot"
    refusal: Mapping[str, Any] = {"exit": 5}
    is_shared_target = False
    _COMMANDS: Mapping[str, str] = {
        "create": "lvcreate .*-n lv-{volume}( |$)",
        "copy": r"lvcreate .*-s .*-n lv-{volume}(\.new)?( |$)",
        "map": "lvchange .*--addtag sanstone.host={host}.*lv-{volume}$",
        "unmap": "lvchange .*--deltag sanstone.host=.*lv-{volume}$",
        "delete": "lvremove .*lv-{volume}$",
        "grow": "lvextend .*lv-{volume}$",
    }

    def __init__(self, host: TargetHost) -> None:
        self.host = host
        self.faults = host.faults
        self.journal = host.journal
        self._initiators: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def paths(self) -> int:
        return len(self.host.portals)

    def attributes(self) -> dict[str, str]:
        return {"HOST": self.host.name, "VG_NAME": self.host.group, "BASE_IQN": BASE_IQN}

    def add_host(self, name: str, initiator: str) -> None:
        self._initiators[initiator] = name

    def volumes(self) -> dict[str, str]:
        with self.host.volumes.lock:
            group = self.host.volumes.groups[self.host.group]
            return {
                name.removeprefix("lv-"): wwid_of(one.uuid, one.tags)
                for name, one in group.volumes.items()
                if one.kind != "pool"
            }

    def mappings(self) -> set[tuple[str, str]]:
        return {
            (self._initiators.get(rule, rule), target.iqn.rpartition(".")[2].removeprefix("lv-"))
            for target in self.host.targets()
            for rule in target.initiators - {_NOBODY}
        }

    def copies(self) -> set[str]:
        return set()

    def path(self, volume: str) -> Path:
        return self.host.lv_path(f"lv-{volume}")

    def make_foreign(self, volume: str, size: int = 4 * MIB) -> None:
        pool = f"{self.host.group}/{self.host.pool}"
        self._must("lvcreate", "-V", f"{size}b", "-T", pool, "-n", f"lv-{volume}")

    def remove(self, volume: str) -> None:
        self._must("lvremove", "-y", f"{self.host.group}/lv-{volume}")

    def _must(self, *argv: str) -> None:
        answer = self.host.run(*argv)
        if answer.code:
            raise ValueError(answer.err.strip())

    def refuse(
        self, what: str, volume: str = "", *, host: str = "", skip: int = 0, times: int | None = 1
    ) -> Fault:
        pattern = self._COMMANDS[what].format(volume=volume or "[^ ]*", host=host)
        return self.faults.add(pattern, skip=skip, times=times, **self.refusal)

    def die(self) -> None:
        self.host.crash()

    def revive(self) -> None:
        self.host.boot()

    def portal_down(self, number: int) -> None:
        self.host.portal_down(number)

    def portal_up(self, number: int) -> None:
        self.host.portal_up(number)

    def leftovers(self) -> list[str]:
        return self.host.leftovers()

    def listings(self) -> list[tuple[str, list[str]]]:
        fields = "lv_name,lv_attr,lv_size,pool_lv,origin,data_percent"
        volumes = self.host.run("lvs", "-o", fields, self.host.group).out.splitlines()
        show = ("--lld", "iscsi", "--op", "show", "--mode", "target")
        shown = self.host.plain(self.host.run("tgtadm", *show).out).splitlines()
        wanted = re.compile(r"Target \d|^ *(?:SCSI ID: [0-9a-f]+$|Backing store path: /|iqn\.)")
        return [
            (f"lvs -o {fields}", volumes),
            (f"tgtadm {' '.join(show)} (in part)", [line for line in shown if wanted.search(line)]),
        ]


def wwid_of(uuid: str, tags: list[str]) -> str:
    """Return what hosts see: NAA 6 with the id of the volume's tag, or one derived from LVM's UUID."""
    chosen = next((tag.partition("=")[2] for tag in tags if tag.startswith("sanstone.id=")), "")
    return f"36{chosen or hashlib.sha256(uuid.encode()).hexdigest()[:24]:0>31}"

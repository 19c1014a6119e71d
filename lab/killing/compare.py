# SPDX-License-Identifier: Apache-2.0
"""OpenNebula, the arrays and the hosts compared: all have to say the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lab.killing.inventory import Inventory
from lab.killing.world import World
from lab.oned.model import IMAGE_TYPES, Vm
from lab.oned.states import LcmState, VmState

__all__ = ["Finding", "Wanted", "compare", "wanted"]

_ON_A_HOST = (VmState.POWEROFF, VmState.SUSPENDED)
_RUNNING = (LcmState.RUNNING, LcmState.UNKNOWN)
_STORED = (VmState.STOPPED, VmState.UNDEPLOYED)
_SETTLING = 5.0
"""How many seconds a copy may take to end, and a kernel to be done with what was taken from it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not agree: ``kind`` is leak, lost or wrong."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(slots=True)
class Wanted:
    """What has to be there, by what OpenNebula has: volumes by array, accesses, files in VM directories.

    ``allowed`` are volumes that may be there: the state of an increment that was not stored stays until the
    next one.
    """

    volumes: dict[str, set[str]] = field(default_factory=dict)
    mappings: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)
    disks: list[tuple[Vm, dict[str, str], str]] = field(default_factory=list)
    allowed: set[str] = field(default_factory=set)


def wanted(world: World) -> Wanted:
    """Work out what has to be there; VMs and images in the middle of something are not counted."""
    found = Wanted(
        {array.name: set() for array in world.arrays}, {array.name: set() for array in world.arrays}
    )
    for image in world.images():
        if image.source and image.type != IMAGE_TYPES.index("BACKUP"):
            names = found.volumes[world.array_of(image.datastore_id).name]
            names.add(f"one-{image.id}")
            names.update(f"one-{image.id}-s{snapshot.id}" for snapshot in image.snapshots.items)
    for vm in world.vms():
        is_on_host = vm.lcm_state in _RUNNING if vm.state is VmState.ACTIVE else vm.state in _ON_A_HOST
        if is_on_host or vm.state in _STORED or vm.is_stored:
            for disk in vm.disks:
                _want_disk(world, found, vm, disk, vm.here.host if is_on_host else None)
            context = vm.template.vector("CONTEXT")
            if context is not None:
                found.files.add(world.link(vm, context))
    return found


def _want_disk(world: World, found: Wanted, vm: Vm, disk: dict[str, str], host: str | None) -> None:
    name = world.volume_of(vm, disk)
    if name is None:
        found.files.add(world.link(vm, disk))
        return
    array = world.array_of(int(disk["DATASTORE_ID"]))
    found.volumes[array.name].add(name)
    snapshots = vm.disk_snapshots(int(disk["DISK_ID"]))
    found.volumes[array.name].update(f"{name}-s{each.id}" for each in (snapshots.items if snapshots else ()))
    config = vm.backups.config
    if config.get("MODE") == "INCREMENT":
        last = int(config.get("LAST_INCREMENT_ID", "-1"))
        found.allowed |= {f"{name}-b{number}" for number in (last, last + 1) if number >= 0}
    if host is not None:
        found.mappings[array.name].add((host, name))
        found.files.add(world.link(vm, disk))
        found.disks.append((vm, disk, host))


def compare(world: World) -> list[Finding]:
    """Compare everything; what takes a moment to settle is given it."""
    found = wanted(world)
    findings = [Finding("wrong", text) for text in world.guests.wrong]
    world.guests.wrong.clear()
    for array in world.arrays:
        findings += _on_array(world, array, found)
    findings += _on_hosts(world, found)
    findings += _on_the_front_end(world, found)
    for vm, disk, host in found.disks:
        findings += [Finding("wrong", text) for text in world.wrong_disk(vm, disk, host)]
    return list(dict.fromkeys(findings))


def _on_array(world: World, array: Inventory, found: Wanted) -> Iterator[Finding]:
    there, wanted_there = array.volumes(), found.volumes[array.name]
    for name in sorted(there.keys() - wanted_there - found.allowed):
        yield Finding("leak", f"volume {name} on {array.name}, which nothing in OpenNebula has")
    for name in sorted(wanted_there - there.keys()):
        yield Finding("lost", f"volume {name} is not on {array.name}")
    for host, name in sorted(array.mappings() - found.mappings[array.name]):
        yield Finding("leak", f"{name} is open to {host} on {array.name}")
    for host, name in sorted(found.mappings[array.name] - array.mappings()):
        yield Finding("wrong", f"{name} is not open to {host} on {array.name}")
    for text in _settled(array.others):
        yield Finding("leak", f"{text} on {array.name}")
    for name in sorted(wanted_there & there.keys()):
        known = world.contents.get(name)
        if known is not None and array.read(name, len(known)) != known:
            yield Finding("lost", f"{name} on {array.name} does not hold what was written to it")


def _on_hosts(world: World, found: Wanted) -> Iterator[Finding]:
    wwids = {array.name: array.volumes() for array in world.arrays}
    for name, host in world.scene.hosts.items():
        expected = [
            wwids[array].get(volume, "?")
            for array, pairs in found.mappings.items()
            for where, volume in pairs
            if where == name
        ]
        leftovers = _settled(partial(host.leftovers, expected, with_sessions=False))
        yield from (Finding("leak", f"{name}: {text}") for text in leftovers)
        there = sorted(disk.wwid for disk in host.devices())
        for wwid in expected:
            if there.count(wwid) != 2:
                yield Finding("wrong", f"{name} has {there.count(wwid)} of 2 paths to {wwid}")


def _on_the_front_end(world: World, found: Wanted) -> Iterator[Finding]:
    datastores = world.cloud / "datastores"
    there = set(datastores.glob("*/*/disk.*"))
    yield from (
        Finding("leak", f"file {path.relative_to(datastores)}") for path in sorted(there - found.files)
    )
    yield from (
        Finding("leak", f"files of a backup in {path.relative_to(datastores)}")
        for path in sorted(datastores.glob("*/*/backup"))
    )
    yield from (
        Finding("lost", f"file {path.relative_to(datastores)} is not there")
        for path in sorted(found.files - there)
    )
    for folder in (world.cloud / "staging", world.drivers.folder / "tmp", world.cloud / "state" / "visits"):
        yield from (
            Finding("leak", f"{path.relative_to(world.directory)}") for path in sorted(folder.glob("*"))
        )
    yield from (Finding("leak", f"{path.name}") for path in sorted((world.cloud / "state/locks").glob("*")))
    yield from _in_the_ledger(world, found)


def _in_the_ledger(world: World, found: Wanted) -> Iterator[Finding]:
    entries = {}
    for path in sorted((world.cloud / "state/volumes").glob("*")):
        if path.suffix != ".json":
            yield Finding("leak", f"{path.relative_to(world.cloud)}")
            continue
        fields = json.loads(path.read_text())
        entries[fields["name"]] = fields
    volumes = {name: wwid for array in world.arrays for name, wwid in array.volumes().items()}
    names = {name for names in found.volumes.values() for name in names}
    for name in sorted(entries.keys() - names - found.allowed):
        yield Finding("leak", f"the ledger has {name}, which nothing in OpenNebula has")
    for name in sorted(names & volumes.keys()):
        entry = entries.get(name)
        if entry is None:
            yield Finding("leak", f"the ledger does not have {name}")
        elif entry["wwid"] != volumes[name] or not entry["is_ready"] or entry["is_doomed"]:
            yield Finding("leak", f"the ledger's entry for {name} is not complete: {entry}")


def _settled(left: Callable[[], list[str]]) -> list[str]:
    """Give what is left, at once when nothing is."""
    end = time.monotonic() + _SETTLING
    while (found := left()) and time.monotonic() < end:
        time.sleep(0.02)
    return found

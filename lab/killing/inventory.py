# SPDX-License-Identifier: Apache-2.0
"""What is on an array, asked behind the driver's back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from lab.systems import BoxSystem, System, TargetSystem
from lab.target import TargetHost
from lab.target.machine import ShownTarget
from lab.v7000 import Box
from lab.v7000.state import FcState, State

__all__ = ["Inventory", "TargetInventory", "V7000Inventory", "inventory"]

_HOST_TAG, _ID_TAG = "sanstone.host=", "sanstone.id="
_NOBODY = "255.255.255.255"


def inventory(system: System) -> Inventory:
    """Give the inventory of one of a scene's arrays."""
    if isinstance(system, BoxSystem):
        return V7000Inventory(system.box)
    assert isinstance(system, TargetSystem)
    return TargetInventory(system)


class Inventory(Protocol):
    """One array. Volumes bear the names that the library gives them, whatever the array calls them."""

    @property
    def name(self) -> str: ...

    def volumes(self) -> dict[str, str]:
        """Give the WWID of every volume."""

    def mappings(self) -> set[tuple[str, str]]:
        """Give host and volume of all accesses that are open."""

    def others(self) -> list[str]:
        """Name what should not be there beside volumes and accesses, whatever OpenNebula has."""

    def read(self, volume: str, length: int) -> bytes: ...

    def write(self, volume: str, content: bytes) -> None:
        """Put bytes at the beginning of a volume that no host has."""


class V7000Inventory:
    """A simulated box."""

    def __init__(self, box: Box) -> None:
        self.box = box

    @property
    def name(self) -> str:
        return self.box.config.name

    def volumes(self) -> dict[str, str]:
        with self._state() as state:
            return {volume.name: f"3{volume.uid.lower()}" for volume in state.volumes.values()}

    def mappings(self) -> set[tuple[str, str]]:
        with self._state() as state:
            return {(state.hosts[each.host].name, state.volumes[each.volume].name) for each in state.mappings}

    def others(self) -> list[str]:
        """A FlashCopy map may be there as long as its copy reads or its target depends on its source."""
        with self._state() as state:
            return [
                f"FlashCopy map {each.name} ({each.state.value}) from {state.volumes[each.source].name}"
                for each in state.fc_maps.values()
                if each.state is not FcState.COPYING
            ]

    @contextmanager
    def _state(self) -> Iterator[State]:
        """Give what the box has now, without a command: that would meet the faults meant for drivers."""
        with self.box.shell.lock:
            self.box.machine.tick()
            yield self.box.machine.state

    def read(self, volume: str, length: int) -> bytes:
        with self.box.volume_path(volume).open("rb") as file:
            return file.read(length)

    def write(self, volume: str, content: bytes) -> None:
        with self.box.volume_path(volume).open("r+b") as file:
            file.write(content)


class TargetInventory:
    """A target host. What the tags of its logical volumes say is the truth, from which the rest follows."""

    def __init__(self, system: TargetSystem) -> None:
        self._system = system

    @property
    def name(self) -> str:
        return self._host.name

    @property
    def _host(self) -> TargetHost:
        return self._system.host

    def volumes(self) -> dict[str, str]:
        return self._system.volumes()

    def mappings(self) -> set[tuple[str, str]]:
        return {(host, name) for name, tags in self._tags().items() for host in _rules(tags)}

    def others(self) -> list[str]:
        """Targets, accounts, files for the next boot and tags that do not follow from the volumes' hosts."""
        tags, targets = self._tags(), self._host.targets()
        shown = {target.iqn.rpartition(".lv-")[2]: target for target in targets}
        open_to_hosts = {name for name, found in tags.items() if _rules(found)}
        found = [f"target {target.iqn}" for name, target in shown.items() if name not in open_to_hosts]
        found += [f"{name} has hosts and no target" for name in open_to_hosts - shown.keys()]
        for name in sorted(open_to_hosts & shown.keys()):
            found += _differences(name, tags[name], shown[name])
        used = {account for target in targets for account in target.accounts}
        found += [f"account {name}, which no target has" for name in self._accounts() if name not in used]
        expected = {f"sanstone-{_identity(tags[name])}.conf" for name in open_to_hosts}
        there = {path.name for path in self._host.root.glob("etc/tgt/conf.d/*")}
        found += [f"file {name}" for name in sorted(there - expected)]
        found += [f"file {name} is not there" for name in sorted(expected - there)]
        for name, each in tags.items():
            found += [f"tag {tag} of {name}" for tag in each if not tag.startswith((_HOST_TAG, _ID_TAG))]
        return found

    def read(self, volume: str, length: int) -> bytes:
        with self._system.path(volume).open("rb") as file:
            return file.read(length)

    def write(self, volume: str, content: bytes) -> None:
        with self._system.path(volume).open("r+b") as file:
            file.write(content)

    def _tags(self) -> dict[str, tuple[str, ...]]:
        volumes = self._host.volumes
        with volumes.lock:
            group = volumes.groups[self._host.group]
            return {
                one.name.removeprefix("lv-"): tuple(one.tags)
                for one in group.volumes.values()
                if one.kind != "pool"
            }

    def _accounts(self) -> list[str]:
        """Ask tgtd without a command of the host: that would meet the faults meant for drivers."""
        shown = self._host.run("tgtadm", "--lld", "iscsi", "--op", "show", "--mode", "account").out
        return [line.strip() for line in shown.splitlines()[1:] if line.strip()]


def _rules(tags: Iterable[str]) -> dict[str, str]:
    """Give host and initiator of all accesses that the tags of a volume name."""
    found = (tag.removeprefix(_HOST_TAG).partition("/") for tag in tags if tag.startswith(_HOST_TAG))
    return {host: initiator for host, _, initiator in found}


def _identity(tags: Iterable[str]) -> str:
    return next((tag.removeprefix(_ID_TAG) for tag in tags if tag.startswith(_ID_TAG)), "")


def _differences(name: str, tags: Iterable[str], target: ShownTarget) -> Iterator[str]:
    """Say in what a target is not what its volume's tags want."""
    wanted, have = set(_rules(tags).values()), target.initiators - {_NOBODY}
    if have != wanted:
        yield f"target of {name} lets {sorted(have)} in, not {sorted(wanted)}"
    if len(target.luns) != 1:
        yield f"target of {name} has {len(target.luns)} LUNs"
    if set(target.scsi_ids.values()) != {_identity(tags)}:
        yield f"target of {name} shows the identity {', '.join(target.scsi_ids.values())}"

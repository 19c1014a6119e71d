# SPDX-License-Identifier: Apache-2.0
"""The data face: a sparse file per volume, a tgt daemon per host, a front per portal."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lab.extents import copy_extents, punch
from lab.tgt import Tgtd, TgtError
from lab.v7000.front import Door, Front, Gate
from lab.v7000.state import Host, Node, Volume

__all__ = ["DataPlane"]

PORT = 3260
ADDRESS_ATTEMPTS = 200


class DataPlane:
    """Files under ``directory/volumes``; both nodes' targets, at their own addresses, for every host.

    A daemon of tgt cannot show different LUNs of one target to different initiators, so each host has its
    own, and the fronts tell hosts apart by the initiator's name in the login.
    """

    def __init__(self, directory: Path, nodes: Sequence[Node]) -> None:
        self._directory = directory / "volumes"
        self._nodes = tuple(nodes)
        self._daemons: dict[int, Tgtd] = {}
        self._gates: dict[int, Gate] = {}
        self._names: dict[int, set[str]] = {}
        self._doors: dict[str, Door] = {}
        targets = [(node.iqn, f"{node.address}:{PORT},{node.id}") for node in nodes]
        self._fronts = {
            node.id: Front(node.address, PORT, node.iqn, targets, self._doors.get) for node in nodes
        }

    @staticmethod
    def free_addresses(count: int) -> tuple[str, ...]:
        """Choose addresses of 127/8 at which nobody listens on the iSCSI port."""
        found: list[str] = []
        for _ in range(ADDRESS_ATTEMPTS):
            parts = (random.randrange(1, 255), random.randrange(256), random.randrange(1, 255))
            address = "127.{}.{}.{}".format(*parts)
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind((address, PORT))
                found.append(address)
            if len(set(found)) == count:
                return tuple(dict.fromkeys(found))
        raise OSError(errno.EADDRINUSE, "no free loopback address for a portal")

    # life

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        for front in self._fronts.values():
            front.start()

    def stop(self) -> None:
        """Cut every session and end every daemon; files stay."""
        for front in self._fronts.values():
            front.stop()
        self._doors.clear()
        for daemon in self._daemons.values():
            daemon.stop()
        self._daemons.clear()
        self._gates.clear()
        self._names.clear()

    def remove(self) -> None:
        """Remove the volumes' files."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def portal_down(self, number: int) -> None:
        self._fronts[number].stop()

    def portal_up(self, number: int) -> None:
        self._fronts[number].start()

    # volumes

    def path(self, volume: Volume) -> Path:
        return self._directory / volume.uid

    def create_volume(self, volume: Volume) -> None:
        with self.path(volume).open("xb") as file:
            file.truncate(volume.size)

    def delete_volume(self, volume: Volume) -> None:
        self.path(volume).unlink(missing_ok=True)

    def used(self, volume: Volume) -> int:
        return self.path(volume).stat().st_blocks * 512

    def resize(self, volume: Volume, luns: Mapping[int, int], is_online: bool) -> None:
        with self.path(volume).open("r+b") as file:
            file.truncate(volume.size)
        # tgt reads the size of a file only when a LUN is added
        for host, lun in luns.items():
            with self._gates[host].closed():
                for node in self._nodes:
                    self._daemons[host].delete_lun(node.id, lun)
                self._add_luns(host, volume, lun, is_online)

    def copy(self, pairs: Sequence[tuple[Volume, Volume]], hosts: Iterable[int]) -> None:
        with contextlib.ExitStack() as stack:
            # always in one order: two copies at once must not wait for one another
            for host in sorted(hosts):
                stack.enter_context(self._gates[host].closed())
            for source, target in pairs:
                copy_extents(self.path(source), self.path(target))

    def lose(self, volume: Volume, start: int) -> None:
        with self.path(volume).open("r+b") as file:
            begin = min(start, volume.size)
            punch(file.fileno(), begin, volume.size - begin)

    # hosts

    def add_host(self, host: Host) -> None:
        daemon = Tgtd()
        daemon.start()
        try:
            for node in self._nodes:
                daemon.new_target(node.id, node.iqn)
        except BaseException:
            daemon.stop()
            raise
        self._daemons[host.id] = daemon
        self._gates[host.id] = Gate()
        self._names[host.id] = set()
        self.change_initiators(host)

    def change_initiators(self, host: Host) -> None:
        known, wanted = self._names[host.id], set(host.iqns)
        daemon = self._daemons[host.id]
        for iqn in known - wanted:
            self._doors.pop(iqn, None)
            for front in self._fronts.values():
                front.cut(iqn)
            for node in self._nodes:
                daemon.unbind(node.id, iqn)
        for iqn in wanted - known:
            for node in self._nodes:
                daemon.bind(node.id, iqn)
            self._doors[iqn] = Door(daemon.portal, self._gates[host.id])
        self._names[host.id] = wanted

    def remove_host(self, host: Host) -> None:
        for iqn in self._names.pop(host.id):
            self._doors.pop(iqn, None)
            for front in self._fronts.values():
                front.cut(iqn)
        self._gates.pop(host.id)
        self._daemons.pop(host.id).stop()

    def map(self, host: Host, volume: Volume, lun: int, is_online: bool) -> None:
        # a LUN gets its identity one command after it appears: nobody may look in between
        with self._gates[host.id].closed():
            self._add_luns(host.id, volume, lun, is_online)

    def _add_luns(self, host: int, volume: Volume, lun: int, is_online: bool) -> None:
        daemon = self._daemons[host]
        added: list[int] = []
        try:
            for node in self._nodes:
                # tgt's NAA designator is a 6 and these digits: together the vdisk_UID
                daemon.add_lun(
                    node.id,
                    lun,
                    self.path(volume),
                    scsi_id=volume.uid[1:],
                    scsi_sn=volume.uid,
                    is_online=is_online,
                )
                added.append(node.id)
        except TgtError:
            for tid in added:
                daemon.delete_lun(tid, lun)
            raise

    def unmap(self, host: Host, volume: Volume, lun: int) -> None:
        for node in self._nodes:
            self._daemons[host.id].delete_lun(node.id, lun)

    def set_online(self, volume: Volume, luns: Mapping[int, int], is_online: bool) -> None:
        for host, lun in luns.items():
            for node in self._nodes:
                self._daemons[host].set_online(node.id, lun, is_online)

    def logged_in(self, iqn: str) -> int:
        return sum(iqn in front.initiators() for front in self._fronts.values())

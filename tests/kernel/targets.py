# SPDX-License-Identifier: Apache-2.0
"""Volumes on an array of the lab and the targets that show them, made by plain tgtadm calls.

Two shapes, as the drivers have them: one target for all volumes, whose LUN numbers are used again (V7000),
and one target for each volume, which a host logs out of (iscsi).
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Iterable, Sequence

from lab.vm.array import POOL, VOLUME_GROUP, Array
from sanstone.model import MIB, Chap, Connection, Portal, Target

__all__ = ["SIZE", "OwnTargets", "SharedTarget", "Volumes", "uid", "volume_name", "wwid"]

SIZE = 8 * MIB
COUNT = 20
PATIENCE = 300.0
OWN_TIDS = 100


def uid(number: int) -> str:
    """Return the NAA identifier of a volume, one of IBM's: the udev rule of etc/ gives these to oneadmin."""
    return f"600507680c8081adac{number:014x}"


def wwid(number: int) -> str:
    return f"3{uid(number)}"


def volume_name(number: int) -> str:
    return f"one-{number}"


class Volumes:
    """Thin volumes 1 to ``count`` of SIZE bytes on ``array``; the next test finds what one wrote."""

    def __init__(self, array: Array, count: int = COUNT) -> None:
        self.array = array
        lines = [
            f"lvcreate -q -y -V {SIZE}b -T {VOLUME_GROUP}/{POOL} -n lv-{volume_name(number)}"
            for number in range(1, count + 1)
        ]
        array.run(
            f"lvs {VOLUME_GROUP}/lv-{volume_name(count)} > /dev/null 2>&1 || lvm",
            stdin="".join(f"{line}\n" for line in lines).encode(),
            deadline=PATIENCE,
        )

    def renew(self, number: int) -> None:
        """Make a volume anew, with SIZE bytes and nothing in it."""
        self.array.run(
            f"lvremove -q -f {self.device(number)} > /dev/null; "
            f"lvcreate -q -y -V {SIZE}b -T {VOLUME_GROUP}/{POOL} -n lv-{volume_name(number)} > /dev/null"
        )

    def device(self, number: int) -> str:
        """Return the block device on the array."""
        return f"/dev/{VOLUME_GROUP}/lv-{volume_name(number)}"

    def fill(self, number: int, content: bytes) -> None:
        """Write ``content`` at the beginning, on the array itself, and zeros behind it."""
        assert len(content) <= SIZE
        device = self.device(number)
        self.array.run(
            f"blkdiscard -f {device} && dd of={device} bs=1M iflag=fullblock conv=fsync status=none",
            stdin=content,
        )

    def hashes(self, numbers: Iterable[int], size: int = SIZE) -> list[str]:
        """Return the sha256 of each volume's first ``size`` bytes as the array has them."""
        devices = [self.device(number) for number in numbers]
        line = "; ".join(f"head -c {size} {device} | sha256sum" for device in devices)
        return [word.split()[0] for word in self.array.run(line, deadline=PATIENCE).splitlines()]

    def holds(self, number: int, content: bytes) -> bool:
        """Tell whether a volume begins with ``content``."""
        return self.hashes([number], len(content)) == [hashlib.sha256(content).hexdigest()]


def _admin(*words: str) -> str:
    return shlex.join(["tgtadm", "--lld", "iscsi", *words])


def _target(tid: int, iqn: str, initiators: Iterable[str]) -> list[str]:
    lines = [_admin("--op", "new", "--mode", "target", "--tid", str(tid), "-T", iqn)]
    return lines + [
        _admin("--op", "bind", "--mode", "target", "--tid", str(tid), "-Q", initiator)
        for initiator in initiators
    ]


def _lun(tid: int, lun: int, device: str, identity: str) -> list[str]:
    place = ["--mode", "logicalunit", "--tid", str(tid), "--lun", str(lun)]
    made = f"scsi_id={identity},scsi_sn={identity},vendor_id=IBM,product_id=2145"
    return [
        _admin("--op", "new", *place, "-b", device),
        _admin("--op", "update", *place, "--params", made),
    ]


class _Targets:
    def __init__(self, volumes: Volumes) -> None:
        self.volumes = volumes
        self.array = volumes.array

    def portals(self) -> tuple[Portal, ...]:
        return tuple(Portal(self.array.address(network)) for network in (1, 2))

    def admin(self, lines: Sequence[str]) -> None:
        if lines:
            self.array.run("set -e\n" + "\n".join(lines), deadline=PATIENCE)

    def wwid(self, number: int) -> str:
        return wwid(number)

    def connection(
        self, number: int, iqn: str, lun: int, chap: Chap | None = None, portals: tuple[Portal, ...] = ()
    ) -> Connection:
        target = Target(iqn, portals or self.portals())
        return Connection(volume_name(number), wwid(number), SIZE, lun, (target,), chap)


class SharedTarget(_Targets):
    """One target with a LUN for each volume; ``initiators`` may log in."""

    iqn = "iqn.1986-03.com.ibm:2145.lab.node1"
    log_out = False
    # out of the way of the driver's own, which come back with other numbers after a reboot
    TID = 90

    def __init__(self, volumes: Volumes, initiators: Iterable[str]) -> None:
        super().__init__(volumes)
        self._initiators = list(initiators)
        self.start()

    def start(self) -> None:
        """Make the target, on an array where nothing of it is left."""
        self.admin(_target(self.TID, self.iqn, self._initiators))

    def map(self, numbers: Iterable[int]) -> list[Connection]:
        """Show each volume at the LUN of its number."""
        return self.map_at({number: number for number in numbers})

    def map_at(self, luns: dict[int, int]) -> list[Connection]:
        """Show volumes: number to LUN."""
        self.admin(
            [
                line
                for number, lun in luns.items()
                for line in _lun(self.TID, lun, self.volumes.device(number), uid(number))
            ]
        )
        return [self.connection(number, self.iqn, lun) for number, lun in luns.items()]

    def unmap(self, luns: Iterable[int]) -> None:
        """Let LUNs be gone; tgtd takes them away under a host's hands too."""
        self.admin(
            [
                _admin("--op", "delete", "--mode", "logicalunit", "--tid", str(self.TID), "--lun", str(lun))
                for lun in luns
            ]
        )


class OwnTargets(_Targets):
    """A target for each volume, with the volume at LUN 1; ``initiators`` may log in to all of them."""

    log_out = True

    def __init__(self, volumes: Volumes, initiators: Iterable[str]) -> None:
        super().__init__(volumes)
        self._initiators = list(initiators)

    def iqn_of(self, number: int) -> str:
        return f"iqn.2012-02.org.opennebula:{self.array.name}.{VOLUME_GROUP}.lv-{volume_name(number)}"

    def map(self, numbers: Iterable[int], chap: Chap | None = None) -> list[Connection]:
        """Make the targets; with ``chap`` an initiator has to prove who it is."""
        lines, connections = [], []
        for number in numbers:
            tid, iqn = OWN_TIDS + number, self.iqn_of(number)
            lines += _target(tid, iqn, self._initiators)
            lines += _lun(tid, 1, self.volumes.device(number), uid(number))
            if chap is not None:
                account = ["--mode", "account", "--user", chap.user]
                lines += [
                    _admin("--op", "new", *account, "--password", chap.password.reveal()),
                    _admin("--op", "bind", *account, "--tid", str(tid)),
                ]
            connections.append(self.connection(number, iqn, 1, chap))
        self.admin(lines)
        return connections

    def grow(self, number: int, size: int) -> Connection:
        """Let a volume be larger under its initiators: tgtd reads a size only when it makes a LUN.

        Nobody can log in meanwhile; initiators whose connections are cut come again by themselves.
        """
        tid = str(OWN_TIDS + number)
        state = ["tgtadm", "--op", "update", "--mode", "sys", "--name", "State", "-v"]
        show = f"tgtadm --op show --mode conn --tid {tid}"
        cut = f"tgtadm --op delete --mode conn --tid {tid} --cid 0 --sid"
        self.admin(
            [
                f"lvextend -q -L {size}b {self.volumes.device(number)} > /dev/null",
                shlex.join([*state, "offline"]),
                f"for sid in $({show} | sed -n 's/^Session: //p'); do {cut} $sid; done",
                _admin("--op", "delete", "--mode", "logicalunit", "--tid", tid, "--lun", "1"),
                *_lun(int(tid), 1, self.volumes.device(number), uid(number)),
                shlex.join([*state, "ready"]),
            ]
        )
        return dataclasses.replace(self.connection(number, self.iqn_of(number), 1), size=size)

    def unmap(self, numbers: Iterable[int], *, is_forced: bool = False) -> None:
        """Remove targets. Raises VMError when a host is still logged in, as tgtd refuses then.

        With ``is_forced`` connections are cut: tgtd keeps those for which nobody could log out.
        """
        force = ["--force"] if is_forced else []
        self.admin(
            [
                _admin("--op", "delete", "--mode", "target", *force, "--tid", str(OWN_TIDS + n))
                for n in numbers
            ]
        )

    def forget_account(self, user: str) -> None:
        self.admin([_admin("--op", "delete", "--mode", "account", "--user", user)])

# SPDX-License-Identifier: Apache-2.0
"""A machine that is an array: LVM thin volumes behind tgtd at two portals."""

from __future__ import annotations

from lab.vm.errors import VMError
from lab.vm.machine import Machine

__all__ = ["POOL", "VOLUME_GROUP", "Array"]

VOLUME_GROUP = "vg-one"
POOL = "pool"
FILLER = "lab-filler"
FILL_DEADLINE = 600.0
SECTOR = 512


class Array(Machine):
    """Volume group ``vg-one`` with thin pool ``pool`` on its data disk; tgtd in both networks."""

    @property
    def portals(self) -> tuple[str, str]:
        """Addresses with port at which tgtd listens, by network."""
        return f"{self.address(1)}:3260", f"{self.address(2)}:3260"

    def die(self) -> None:
        """Be gone at once, as when its power fails; ``boot`` brings it back with what was stored."""
        self.power_cut()

    def fill_pool(self) -> None:
        """Write to a volume of its own until the pool has no free chunk."""
        words = self.run(
            "dmsetup status --target thin-pool $(dmsetup ls | grep -o '^vg--one-pool[^[:space:]]*tpool')"
        )
        used, total = (int(number) for number in words.split()[5].split("/"))
        chunk = int(
            self.run(f"lvs --noheadings --nosuffix --units b -o chunk_size {VOLUME_GROUP}/{POOL}").strip()
        )
        if used == total:
            return
        size = (total - used) * chunk
        self.run(
            f"lvs {VOLUME_GROUP}/{FILLER} >/dev/null 2>&1 || "
            f"lvcreate -q -y -V {total * chunk}b -T {VOLUME_GROUP}/{POOL} -n {FILLER}"
        )
        ran = self.ssh(
            f"dd if=/dev/zero of=/dev/{VOLUME_GROUP}/{FILLER} bs={chunk} count={size // chunk} oflag=direct",
            deadline=FILL_DEADLINE,
        )
        if ran.code:
            raise VMError(f"{self.name}: the pool could not be filled: {ran.output[-500:]}")

    def empty_pool(self) -> None:
        """Remove the volume that ``fill_pool`` wrote to."""
        self.run(f"lvremove -q -y {VOLUME_GROUP}/{FILLER} || ! lvs {VOLUME_GROUP}/{FILLER}")

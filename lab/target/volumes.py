# SPDX-License-Identifier: Apache-2.0
"""Volume groups in a directory: a sparse file per logical volume, one JSON file for their metadata."""

from __future__ import annotations

import json
import os
import secrets
import string
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.extents import copy_extents, extents

__all__ = ["EXTENT", "METADATA", "LVMError", "LogicalVolume", "VolumeGroup", "Volumes", "new_uuid"]

EXTENT = 4 * 1024 * 1024
METADATA = 2 * EXTENT
CHUNK = 64 * 1024
STALE = b"what the last owner left "
STALE_EVERY = 1024 * 1024


class LVMError(Exception):
    """A command is refused: what LVM writes to standard error, without its two blanks, and its exit code.

    ``out`` is what it has written to standard output by then.
    """

    def __init__(self, *lines: str, code: int = 5, out: str = "") -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.code = code
        self.out = out


@dataclass(slots=True)
class LogicalVolume:
    """``kind`` is linear, pool or thin; ``uuid`` also names the file. Sizes are bytes.

    ``merges``: the thin snapshot that takes this volume's place when it is activated next.
    """

    name: str
    uuid: str
    size: int
    kind: str
    pool: str = ""
    origin: str = ""
    tags: list[str] = field(default_factory=list)
    is_active: bool = True
    skips_activation: bool = False
    is_writable: bool = True
    thin_id: int = 0
    created: float = 0.0
    merges: str = ""

    @property
    def is_thin(self) -> bool:
        return self.kind == "thin"


@dataclass(slots=True)
class VolumeGroup:
    name: str
    uuid: str
    size: int
    volumes: dict[str, LogicalVolume] = field(default_factory=dict)
    next_thin_id: int = 1

    @property
    def used(self) -> int:
        """Bytes of its extents that are given away; a pool has metadata, and a spare of the same size."""
        taken = sum(volume.size for volume in self.volumes.values() if not volume.is_thin)
        return taken + 2 * METADATA * any(volume.kind == "pool" for volume in self.volumes.values())

    @property
    def free(self) -> int:
        return self.size - self.used

    def pools(self) -> list[LogicalVolume]:
        return [volume for volume in self.volumes.values() if volume.kind == "pool"]

    def thin_in(self, pool: str) -> list[LogicalVolume]:
        return [volume for volume in self.volumes.values() if volume.pool == pool]


class Volumes:
    """What LVM has on a machine. ``lock`` is held by a command from its beginning to its end.

    ``root`` stands before ``/dev``; ``holders`` names the files of volumes that somebody has open.
    """

    def __init__(self, directory: Path, root: Path, holders: Callable[[], set[Path]]) -> None:
        self.lock = threading.RLock()
        self.groups: dict[str, VolumeGroup] = {}
        self.full: set[str] = set()
        """Names of pools, as VG/POOL, that shall have no room left."""
        self._files = directory / "volumes"
        self._metadata = directory / "lvm.json"
        self._root = root
        self._holders = holders
        self._used: dict[str, tuple[int, frozenset[tuple[int, int]]]] = {}

    # what is kept

    def load(self) -> None:
        """Read the metadata; none is an empty machine."""
        self._files.mkdir(parents=True, exist_ok=True)
        if not self._metadata.exists():
            return
        found = json.loads(self._metadata.read_text(encoding="utf-8"))
        self.groups = {}
        for one in found:
            volumes = {each["name"]: LogicalVolume(**each) for each in one.pop("volumes").values()}
            self.groups[one["name"]] = VolumeGroup(**one, volumes=volumes)

    def save(self) -> None:
        """Write the metadata at once, so that a reader finds the old or the new."""
        new = self._metadata.with_suffix(".new")
        new.write_text(json.dumps([asdict(group) for group in self.groups.values()], indent=1), "utf-8")
        new.replace(self._metadata)

    def add_group(self, name: str, size: int, pool: str, pool_size: int = 0) -> None:
        """Make a volume group, as an administrator does, with a thin pool in it if ``pool`` is a name."""
        group = self.groups[name] = VolumeGroup(name, new_uuid(), size // EXTENT * EXTENT)
        if pool:
            room = pool_size or group.free - 2 * METADATA
            group.volumes[pool] = self.new(pool, room // EXTENT * EXTENT, "pool")
        self.save()

    # finding

    def group(self, name: str) -> VolumeGroup:
        if name not in self.groups:
            raise LVMError(f'Volume group "{name}" not found', f"Cannot process volume group {name}")
        return self.groups[name]

    def split(self, word: str) -> tuple[str, str]:
        """Take ``VG/LV``, ``/dev/VG/LV`` or ``VG`` apart; the second part may be empty."""
        path = word.removeprefix(str(self._root)) if word.startswith(f"{self._root}/") else word
        if path.startswith("/"):
            if not path.startswith("/dev/"):
                raise LVMError(f'"{word}": Invalid path for Logical Volume.')
            path = path.removeprefix("/dev/")
        path, _, more = path.partition("/")
        return path, more

    def find(self, word: str) -> tuple[VolumeGroup, LogicalVolume]:
        """Find a volume by ``VG/LV`` or its path."""
        group_name, name = self.split(word)
        if not name:
            raise LVMError(f'"{word}": Invalid path for Logical Volume.', code=3)
        group = self.group(group_name)
        if name not in group.volumes:
            raise LVMError(f'Failed to find logical volume "{group_name}/{name}"')
        return group, group.volumes[name]

    def all(self) -> Iterator[tuple[VolumeGroup, LogicalVolume]]:
        for group in self.groups.values():
            for volume in group.volumes.values():
                yield group, volume

    # the bytes

    def file(self, volume: LogicalVolume) -> Path:
        return self._files / volume.uuid

    def device(self, group: VolumeGroup, volume: LogicalVolume) -> Path:
        """Return the path that LVM gives out; it is there while the volume is active."""
        return self._root / "dev" / group.name / volume.name

    def is_open(self, volume: LogicalVolume) -> bool:
        return volume.kind != "pool" and self.file(volume) in self._holders()

    def new(self, name: str, size: int, kind: str, **more: object) -> LogicalVolume:
        """Make a volume's record and its file; the caller puts it into a group."""
        volume = LogicalVolume(name, new_uuid(), size, kind, created=time.time(), **more)  # type: ignore[arg-type]
        if kind != "pool":
            with self.file(volume).open("xb") as file:
                file.truncate(size)
                if kind == "linear":
                    litter(file.fileno(), 0, size)
        return volume

    def copy(self, source: LogicalVolume, target: LogicalVolume) -> None:
        copy_extents(self.file(source), self.file(target))

    def grow(self, volume: LogicalVolume, size: int) -> None:
        if volume.kind != "pool":
            with self.file(volume).open("r+b") as file:
                file.truncate(size)
                if volume.kind == "linear":
                    litter(file.fileno(), volume.size, size)
        volume.size = size

    def remove(self, group: VolumeGroup, volume: LogicalVolume) -> None:
        self.deactivate(group, volume)
        del group.volumes[volume.name]
        self._used.pop(volume.uuid, None)
        for other in group.volumes.values():
            if other.origin == volume.name:
                other.origin = ""
        self.file(volume).unlink(missing_ok=True)

    # being active

    def activate(self, group: VolumeGroup, volume: LogicalVolume) -> None:
        if volume.merges:
            self.merge(group, volume, group.volumes[volume.merges])
        volume.is_active = True
        if volume.kind != "pool":
            for link in self._links(group, volume):
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(self.file(volume))

    def deactivate(self, group: VolumeGroup, volume: LogicalVolume) -> None:
        volume.is_active = False
        for link in self._links(group, volume):
            link.unlink(missing_ok=True)

    def merge(self, group: VolumeGroup, origin: LogicalVolume, snapshot: LogicalVolume) -> None:
        """Let the origin be what its snapshot is, which is gone then; the others have no origin any more."""
        self.copy_over(snapshot, origin)
        origin.merges = ""
        for other in group.volumes.values():
            if other.origin == origin.name:
                other.origin = ""
        self.remove(group, snapshot)

    def copy_over(self, source: LogicalVolume, target: LogicalVolume) -> None:
        os.truncate(self.file(target), source.size)
        target.size = source.size
        self.copy(source, target)

    def power_on(self) -> None:
        """Activate what is activated at boot."""
        for group, volume in list(self.all()):
            if not volume.skips_activation and volume.name in group.volumes:
                self.activate(group, volume)
        self.save()

    def power_off(self) -> None:
        """Forget the device nodes."""
        for group, volume in self.all():
            self.deactivate(group, volume)

    def mapped(self, group: VolumeGroup, volume: LogicalVolume) -> Path:
        """Return the path by which device-mapper knows the volume."""
        name = "-".join(name.replace("-", "--") for name in (group.name, volume.name))
        return self._root / "dev/mapper" / name

    def _links(self, group: VolumeGroup, volume: LogicalVolume) -> tuple[Path, Path]:
        return self.device(group, volume), self.mapped(group, volume)

    # thin pools

    def used(self, volume: LogicalVolume) -> int:
        """Bytes of a thin volume that are mapped, shared or not."""
        return min(volume.size, CHUNK * len(self._chunks(volume)))

    def pool_used(self, group: VolumeGroup, pool: LogicalVolume) -> int:
        """Bytes of a pool that its volumes use: a chunk that snapshots share counts once."""
        if f"{group.name}/{pool.name}" in self.full:
            return pool.size
        chunks: set[tuple[int, int]] = set()
        for volume in group.thin_in(pool.name):
            chunks |= self._chunks(volume)
        return min(pool.size, CHUNK * len(chunks))

    def _chunks(self, volume: LogicalVolume) -> frozenset[tuple[int, int]]:
        """Tell chunks by place and contents; what was learned holds until the file changes."""
        path = self.file(volume)
        changed = path.stat().st_mtime_ns
        known = self._used.get(volume.uuid)
        if known is None or known[0] != changed:
            with path.open("rb") as file:
                known = changed, frozenset(_read_chunks(file.fileno(), volume.size))
            self._used[volume.uuid] = known
        return known[1]


def _read_chunks(fd: int, size: int) -> Iterator[tuple[int, int]]:
    seen = -1
    for start, end in extents(fd, size):
        for at in range(max(start // CHUNK * CHUNK, seen + CHUNK if seen >= 0 else 0), end, CHUNK):
            seen = at
            yield at, hash(os.pread(fd, CHUNK, at))


def litter(fd: int, start: int, end: int) -> None:
    """Leave bytes of a former owner behind, as the extents of a used disk have them."""
    for at in range(start, end, STALE_EVERY):
        os.pwrite(fd, STALE, min(at + 8192, end - len(STALE)))


def new_uuid() -> str:
    """Make an identifier in LVM's form: six groups of base 62."""
    letters = string.ascii_letters + string.digits
    parts = ("".join(secrets.choice(letters) for _ in range(size)) for size in (6, 4, 4, 4, 4, 4, 6))
    return "-".join(parts)

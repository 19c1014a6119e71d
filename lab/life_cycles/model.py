# SPDX-License-Identifier: Apache-2.0
"""What each driver call means for volumes, accesses, links and bytes, kept along without an array.

A call that failed has changed nothing; where a disk was to be taken away, it may be half taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.etree import ElementTree

from lab.life_cycles.contents import MIB, Content
from lab.oned import DriverCall

__all__ = ["Disk", "Model", "disk_of"]

_DISK = re.compile(r"/(\d+)/(\d+)/disk\.(\d+)$")
_SOURCE = re.compile(r"(?:^|[.:-])(one-\d+)$")
_STOCK = ("shared", "ssh")


@dataclass(frozen=True, slots=True)
class Disk:
    """What oned says of a disk: ``size`` in bytes, ``volume`` is None for a file."""

    size: int
    is_cdrom: bool
    volume: str | None
    filesystem: str


def disk_of(path: str) -> tuple[int, int] | None:
    """Tell VM and disk of a path, None for one that is no disk."""
    match = _DISK.search(path)
    return (int(match[2]), int(match[3])) if match else None


def _place(text: str) -> tuple[str, str]:
    host, _, path = text.partition(":")
    return host, path


def _is_own(volume: str, disk: tuple[int, int]) -> bool:
    """Tell whether a volume was made for the disk of a VM: a clone, or a volatile disk."""
    return volume.endswith(f"-{disk[0]}-{disk[1]}")


def _volume(source: str) -> str:
    match = _SOURCE.search(source)
    if match is None:
        raise ValueError(f"no volume is in SOURCE {source}")
    return match[1]


@dataclass
class Model:
    """The storage as it has to be.

    ``contents`` has every volume; None is what is not known before it was looked at (a file system).
    ``links`` is path to host and volume, ``files`` path to content. ``copies``: accesses of a live migration
    beside those of the links. ``half_taken``: volumes of which a failed call may have closed the access or
    removed the link; ``half_moved``: host and volume that a failed call may have left open
    until the datastore is monitored; ``astray``: volumes whose links may be spelled for another host.
    ``backups``: what disks were, by the backup driver's SOURCE. ``formats``: what our driver has formatted
    volumes and files with.
    """

    system: str
    frontend: str
    sources: Callable[[str], Content]
    disk: Callable[[int, int], Disk]
    increments: Callable[[int], list[str]]
    contents: dict[str, Content | None] = field(default_factory=dict)
    links: dict[str, tuple[str, str]] = field(default_factory=dict)
    files: dict[str, Content | None] = field(default_factory=dict)
    volumes: dict[tuple[int, int], str] = field(default_factory=dict)
    copies: set[tuple[str, str]] = field(default_factory=set)
    half_taken: set[str] = field(default_factory=set)
    half_moved: set[tuple[str, str]] = field(default_factory=set)
    astray: set[str] = field(default_factory=set)
    directories: dict[str, bool] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    backups: dict[str, dict[int, Content]] = field(default_factory=dict)
    _frozen: dict[int, Content] = field(default_factory=dict)
    _is_ours: bool = True

    @property
    def mappings(self) -> set[tuple[str, str]]:
        """Host and volume of every access."""
        return set(self.links.values()) | self.copies

    def apply(self, call: DriverCall) -> None:
        """Carry out what a call meant."""
        action = call.action.partition(".")[0]
        if call.kind == "vmm" and action == "migrate" and call.rc:
            self._migration_failed(int(call.argv[-2]))
        if call.kind == "vmm" or (call.kind == "tm" and call.driver not in (self.system, *_STOCK)):
            return
        if call.kind == "datastore" and call.driver != self.system:
            if action == "backup" and not call.rc:
                self.backups[call.stdout.split()[0]] = dict(self._frozen)
            return
        if call.rc:
            self._failed(action, call)
            return
        name = ("image_" if call.kind == "datastore" else "") + action
        step: Callable[..., None] | None = getattr(self, f"_{name}", None)
        if step is None:
            return
        self._is_ours = call.driver == self.system
        if call.kind == "datastore":
            step(ElementTree.fromstring(call.stdin))
        elif action.startswith(("prebackup", "postbackup")):
            step(call.argv[1], int(call.argv[4]), ElementTree.fromstring(call.stdin))
        elif action in ("premigrate", "postmigrate", "failmigrate"):
            if call.driver == self.system:
                step(*call.argv[:4])
        else:
            step(*call.argv)

    def _failed(self, action: str, call: DriverCall) -> None:
        """What was to be deleted, and to be resized or saved, may hold anything now."""
        if call.kind == "datastore":
            document = ElementTree.fromstring(call.stdin)
            if action in ("rm", "snap_delete"):
                source = _volume(document.findtext("IMAGE/SOURCE", ""))
                self._spoil(source if action == "rm" else self._snapshot(document))
        elif action in ("delete", "mvds", "mv"):
            disk = disk_of(_place(call.argv[0])[1])
            if disk is not None and disk in self.volumes:
                name = self.volumes[disk]
                self.half_taken.add(name)
                if action == "delete" and _is_own(name, disk):
                    self._spoil(name)
        elif action == "snap_delete":
            self._spoil(f"{self._volume_at(call.argv[0])}-s{call.argv[1]}")
        elif action == "cpds":
            self._spoil(_volume(call.argv[1]))
        elif action == "postmigrate":
            source, target, directory, vm = call.argv[:4]
            self._arrive(target, directory, int(vm))
            self.astray |= set(self._of(int(vm)))
            self.half_moved |= {(source, name) for name in self._of(int(vm))}

    def _migration_failed(self, vm: int) -> None:
        """The drivers shared and ssh tell nobody: the target has the disks until an action finds out."""
        names = set(self._of(vm))
        self.half_moved |= {pair for pair in self.copies if pair[1] in names}
        self.copies -= self.half_moved
        self.astray |= names

    def _spoil(self, name: str) -> None:
        if name in self.contents:
            self.contents[name] = None

    def _of(self, vm: int) -> list[str]:
        """List the volumes of a VM's disks that are on a host."""
        on_hosts = {name for _, name in self.links.values()}
        return [name for (owner, _), name in self.volumes.items() if owner == vm and name in on_hosts]

    # images

    def _image_monitor(self, document: ElementTree.Element) -> None:
        """What was left behind is put in order now."""
        self.half_moved.clear()

    def _image_cp(self, document: ElementTree.Element) -> None:
        image = document.find("IMAGE")
        assert image is not None
        size = int(image.findtext("SIZE", "0")) * MIB
        self.contents[self._image_name(image)] = self.sources(image.findtext("PATH", "")).resized(size)

    def _image_mkfs(self, document: ElementTree.Element) -> None:
        image = document.find("IMAGE")
        assert image is not None
        size = int(image.findtext("SIZE", "0")) * MIB
        is_formatted = image.findtext("FS", "") not in ("", "raw")
        self.contents[self._image_name(image)] = None if is_formatted else Content(size)
        self.formats[self._image_name(image)] = image.findtext("FS", "")

    def _image_clone(self, document: ElementTree.Element) -> None:
        image = document.find("IMAGE")
        assert image is not None
        self.contents[self._image_name(image)] = self.contents[_volume(image.findtext("PATH", ""))]

    def _image_rm(self, document: ElementTree.Element) -> None:
        self._forget(_volume(document.findtext("IMAGE/SOURCE", "")))

    def _image_snap_delete(self, document: ElementTree.Element) -> None:
        self.contents.pop(self._snapshot(document), None)

    def _image_snap_revert(self, document: ElementTree.Element) -> None:
        name = _volume(document.findtext("IMAGE/SOURCE", ""))
        self.contents[name] = self.contents[self._snapshot(document)]

    def _image_snap_flatten(self, document: ElementTree.Element) -> None:
        self._image_snap_revert(document)
        name = _volume(document.findtext("IMAGE/SOURCE", ""))
        for snapshot in [each for each in self.contents if each.startswith(f"{name}-s")]:
            del self.contents[snapshot]

    @staticmethod
    def _image_name(image: ElementTree.Element) -> str:
        return f"one-{image.findtext('ID')}"

    @staticmethod
    def _snapshot(document: ElementTree.Element) -> str:
        name = _volume(document.findtext("IMAGE/SOURCE", ""))
        return (
            f"{name}-s{document.findtext('IMAGE/TARGET_SNAPSHOT', document.findtext('TARGET_SNAPSHOT', ''))}"
        )

    # disks come

    def _clone(self, source: str, place: str, vm: str, datastore: str) -> None:
        key = disk_of(place)
        assert key is not None
        origin = self.contents[_volume(source)]
        assert origin is not None
        name = f"{_volume(source)}-{key[0]}-{key[1]}"
        self.contents.setdefault(name, origin.resized(max(origin.size, self.disk(*key).size)))
        self._link(place, name)

    def _ln(self, source: str, place: str, vm: str, datastore: str) -> None:
        self._link(place, _volume(source))

    def _mkimage(self, size: str, kind: str, place: str, vm: str, datastore: str) -> None:
        self._volatile(int(size) * MIB, place)

    def _mkswap(self, size: str, place: str, vm: str, datastore: str) -> None:
        self._volatile(int(size) * MIB, place)

    def _volatile(self, size: int, place: str) -> None:
        key = disk_of(place)
        assert key is not None
        disk, path = self.disk(*key), _place(place)[1]
        is_formatted = bool(disk.filesystem) and self._is_ours
        content = None if is_formatted else Content(size)
        if is_formatted:
            self.formats[disk.volume or path] = disk.filesystem
        if disk.volume is None:
            self.files.setdefault(path, content)
            self._made(path)
        else:
            self.contents.setdefault(disk.volume, content)
            self._link(place, disk.volume)

    def _context(self, *argv: str) -> None:
        path = _place(argv[-3])[1]
        self.files[path] = None
        self._made(path)

    def _link(self, place: str, volume: str) -> None:
        host, path = _place(place)
        key = disk_of(path)
        assert key is not None
        self.volumes[key] = volume
        self.links[path] = (host, volume)
        self.astray.discard(volume)
        self._settled(volume)
        self._made(path)

    def _made(self, path: str) -> None:
        self.directories[str(PurePosixPath(path).parent)] = True

    def _settled(self, volume: str) -> None:
        self.half_taken.discard(volume)
        self.half_moved = {each for each in self.half_moved if each[1] != volume}
        self.copies = {each for each in self.copies if each[1] != volume}

    # disks move

    def _mv(self, source: str, target: str, vm: str, datastore: str) -> None:
        (_, old), (host, new) = _place(source), _place(target)
        key = disk_of(new)
        if key is None:
            self._move_directory(old, new)
        elif key in self.volumes:
            self.links.pop(old, None)
            self._settled(self.volumes[key])
            if host != self.frontend:
                self._link(target, self.volumes[key])
        elif old in self.files:
            self.files[new] = self.files.pop(old)
            self._made(new)

    def _move_directory(self, old: str, new: str) -> None:
        if old == new:
            return
        for path in [path for path in self.files if path.startswith(f"{old}/")]:
            self.files[new + path.removeprefix(old)] = self.files.pop(path)
        self.directories.update({old: False, new: True})

    def _premigrate(self, source: str, target: str, directory: str, vm: str) -> None:
        if source != target:
            self.copies |= {(target, name) for name in self._of(int(vm))}

    def _postmigrate(self, source: str, target: str, directory: str, vm: str) -> None:
        self._arrive(target, directory, int(vm))

    def _failmigrate(self, source: str, target: str, directory: str, vm: str) -> None:
        names = set(self._of(int(vm)))
        self.copies = {each for each in self.copies if each[1] not in names}
        self.half_moved = {each for each in self.half_moved if each[1] not in names}
        self.astray -= names

    def _arrive(self, host: str, directory: str, vm: int) -> None:
        """Let the disks of a VM be linked in ``directory`` on ``host`` and nowhere else."""
        on_hosts = {name for _, name in self.links.values()}
        for (owner, number), name in self.volumes.items():
            if owner == vm and name in on_hosts:
                old = [
                    p
                    for p, (_, linked) in self.links.items()
                    if linked == name and disk_of(p) == (vm, number)
                ]
                for path in old:
                    del self.links[path]
                self._link(f"{host}:{directory}/disk.{number}", name)

    def moved_files(self, old: str, new: str) -> None:
        """Follow a hypervisor that has copied the disks that are files to another directory."""
        for path in [path for path in self.files if path.startswith(f"{old}/")]:
            self.files[new + path.removeprefix(old)] = self.files.pop(path)

    # disks go

    def _delete(self, place: str, vm: str, datastore: str) -> None:
        path = _place(place)[1]
        key = disk_of(path)
        if key is None:
            for known in [each for each in {*self.files, *self.links} if each.startswith(f"{path}/")]:
                self.files.pop(known, None)
                self.links.pop(known, None)
            self.directories[path] = False
            return
        self._unlink(path)
        self.files.pop(path, None)
        volume = self.volumes.pop(key, None)
        if volume is not None and _is_own(volume, key):
            self._forget(volume)

    def _mvds(self, place: str, source: str, vm: str, datastore: str) -> None:
        path = _place(place)[1]
        self._unlink(path)
        key = disk_of(path)
        assert key is not None
        self.volumes.pop(key, None)

    def _unlink(self, path: str) -> None:
        _, volume = self.links.pop(path, ("", ""))
        key = disk_of(path)
        self._settled(volume or (self.volumes.get(key, "") if key else ""))

    def _forget(self, volume: str) -> None:
        for name in [
            each for each in self.contents if re.fullmatch(re.escape(volume) + r"(-[sb]\d+)?", each)
        ]:
            del self.contents[name]
        self._settled(volume)

    # disks change

    def _volume_at(self, place: str) -> str:
        key = disk_of(_place(place)[1])
        assert key is not None
        return self.volumes[key]

    def _cpds(self, place: str, source: str, snapshot: str, vm: str, datastore: str) -> None:
        name = self._volume_at(place)
        self.contents[_volume(source)] = self.contents[name if snapshot == "-1" else f"{name}-s{snapshot}"]

    def _snap_create(self, place: str, snapshot: str, vm: str, datastore: str) -> None:
        name = self._volume_at(place)
        self.contents[f"{name}-s{snapshot}"] = self.contents[name]

    _snap_create_live = _snap_create

    def _snap_delete(self, place: str, snapshot: str, vm: str, datastore: str) -> None:
        self.contents.pop(f"{self._volume_at(place)}-s{snapshot}", None)

    def _snap_revert(self, place: str, snapshot: str, vm: str, datastore: str) -> None:
        name = self._volume_at(place)
        self.contents[name] = self.contents[f"{name}-s{snapshot}"]

    def _resize(self, place: str, size: str, vm: str, datastore: str) -> None:
        path = _place(place)[1]
        if path in self.files:
            content = self.files[path]
            self.files[path] = content.resized(int(size) * MIB) if content else None
            return
        name = self._volume_at(place)
        content = self.contents[name]
        self.contents[name] = content.resized(int(size) * MIB) if content else None

    def _restore(self, place: str, vm: str, image: str, increment: str, disk: str) -> None:
        """Let disks hold what the backup holds; increments and snapshots of what was there end."""
        sources = self.increments(int(image))
        kept = self.backups[sources[-1 if increment == "-1" else int(increment)]]
        for number, content in kept.items():
            name = self.volumes.get((int(vm), number))
            if name is None or disk not in ("-1", str(number)):
                continue
            self.contents[name] = content
            for state in [
                each for each in self.contents if re.fullmatch(re.escape(name) + r"-[sb]\d+", each)
            ]:
                del self.contents[state]

    # backups

    def _prebackup(self, disks: str, vm: int, document: ElementTree.Element) -> None:
        """Freeze the disks; increments keep the state as a volume of its own."""
        self._frozen = {}
        number, last = _increment(document)
        for disk in map(int, disks.split(":")):
            name = self.volumes.get((vm, disk))
            content = self.contents.get(name) if name else None
            if name is None or content is None:
                continue
            self._frozen[disk] = content
            self._keep_states(name, {last} if number is not None else set())
            if number is not None:
                self.contents[f"{name}-b{number}"] = content

    _prebackup_live = _prebackup

    def _postbackup(self, disks: str, vm: int, document: ElementTree.Element) -> None:
        number, last = _increment(document)
        for disk in map(int, disks.split(":")):
            name = self.volumes.get((vm, disk))
            if name is not None:
                self._keep_states(name, {number, last} if number is not None else set())

    _postbackup_live = _postbackup

    def _keep_states(self, name: str, numbers: set[int | None]) -> None:
        wanted = {f"{name}-b{number}" for number in numbers}
        for state in [each for each in self.contents if re.fullmatch(re.escape(name) + r"-b\d+", each)]:
            if state not in wanted:
                del self.contents[state]


def _increment(document: ElementTree.Element) -> tuple[int | None, int | None]:
    """Tell the number of the increment that is made (None: a full backup) and of the one before it."""
    config = document.find("BACKUPS/BACKUP_CONFIG")
    if config is None or config.findtext("MODE") != "INCREMENT":
        return None, None
    last = int(config.findtext("LAST_INCREMENT_ID", "-1"))
    return last + 1, last if last >= 0 else None

# SPDX-License-Identifier: Apache-2.0
"""The arrays, the hosts and the directories compared with the model."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lab.life_cycles.cloud import Cloud
from lab.life_cycles.contents import Content

__all__ = ["problems"]

_SETTLING = 3.0
"""How many seconds a copy may take to end, and a kernel to be done with what was taken from it."""

_MAGIC = {"ext4": (0x438, b"\x53\xef"), "swap": (4086, b"SWAPSPACE2")}


def problems(cloud: Cloud) -> list[str]:
    """Say what is not as the model has it; what takes a moment to settle is given it."""
    end = time.monotonic() + _SETTLING
    while (
        found := [*_on_arrays(cloud), *_on_hosts(cloud), *_in_directories(cloud)]
    ) and time.monotonic() < end:
        threading.Event().wait(0.05)
    return [*found, *_bytes(cloud), *cloud.wrong_backups()]


def _on_arrays(cloud: Cloud) -> Iterator[str]:
    model = cloud.model
    there = Counter(name for array in cloud.arrays for name in array.volumes())
    for name in sorted(there.keys() - model.contents.keys()):
        yield f"volume {name} is there, and nothing has it"
    for name in sorted(model.contents.keys() - there.keys()):
        yield f"volume {name} is not there"
    yield from (f"volume {name} is on two arrays" for name, count in sorted(there.items()) if count > 1)
    found = {pair for array in cloud.arrays for pair in array.mappings()}
    for host, name in sorted(found - model.mappings - model.half_moved):
        yield f"{name} is open to {host}"
    for host, name in sorted(model.mappings - found):
        if name not in model.half_taken:
            yield f"{name} is not open to {host}"
    for array in cloud.arrays:
        yield from (f"the copy {name} is there" for name in sorted(array.copies() - model.contents.keys()))


def _on_hosts(cloud: Cloud) -> Iterator[str]:
    model = cloud.model
    wwids = {name: wwid for array in cloud.arrays for name, wwid in array.volumes().items()}
    names = {wwid: name for name, wwid in wwids.items()}
    first = cloud.arrays[0]
    for label, host in cloud.scene.hosts.items():
        wanted = {name for where, name in model.mappings if where == label}
        perhaps = {name for where, name in model.half_moved if where == label} | model.half_taken
        counts = Counter(names.get(disk.wwid, disk.wwid) for disk in host.devices())
        for name in sorted(counts.keys() - wanted - perhaps):
            yield f"{label} has {counts[name]} paths to {name}"
        for name in sorted(wanted - model.half_taken):
            if counts[name] != first.paths:
                yield f"{label} has {counts[name]} of {first.paths} paths to {name}"
        expected = [wwids.get(name, name) for name in wanted | perhaps]
        for text in host.leftovers(expected, with_sessions=not first.is_shared_target):
            if not text.startswith("disk "):
                yield f"{label}: {text}"


def _in_directories(cloud: Cloud) -> Iterator[str]:
    model = cloud.model
    wwids = {name: wwid for array in cloud.arrays for name, wwid in array.volumes().items()}
    there = {str(path) for path in cloud.datastores.glob("*/*/disk.*")}
    half = {path for path, (_, name) in model.links.items() if name in model.half_taken}
    for path in sorted(there - model.links.keys() - model.files.keys()):
        yield f"{cloud.plain_path(path)} is there"
    for path in sorted((model.links.keys() | model.files.keys()) - there - half):
        yield f"{cloud.plain_path(path)} is not there"
    for path in sorted(model.links.keys() & there):
        host, name = model.links[path]
        target = Path(path).readlink() if Path(path).is_symlink() else None
        if target is None:
            yield f"{cloud.plain_path(path)} is no link"
        elif target.name != wwids.get(name) or (f"/{host}/" not in str(target) and name not in model.astray):
            yield f"{cloud.plain_path(path)} leads to {target}, not to {name} on {host}"
    for path, is_there in sorted(model.directories.items()):
        if not is_there and Path(path).exists():
            yield f"directory {cloud.plain_path(path)} is there"


def _bytes(cloud: Cloud) -> Iterator[str]:
    """Compare what every volume and file holds, and what every link shows; learn what was not known."""
    model = cloud.model
    where = {name: array for array in cloud.arrays for name in array.volumes()}
    for name in sorted(model.contents.keys() & where.keys()):
        found = Content.of(where[name].path(name))
        wanted = model.contents[name]
        if wanted is None:
            yield from _formatted(name, found, model.formats.get(name, ""))
            model.contents[name] = found
        elif difference := wanted.differs_from(found):
            yield f"{name} has {difference}"
    for path, (host, name) in sorted(model.links.items()):
        wanted = model.contents.get(name)
        if wanted is None or not Path(path).is_symlink() or not cloud.device(path).exists():
            continue
        if difference := wanted.differs_from(_through(cloud.device(path), wanted)):
            yield f"{cloud.plain_path(path)} on {host} shows {difference}"
    for path, wanted in sorted(model.files.items()):
        if not Path(path).exists():
            continue
        found = Content.of(Path(path))
        if wanted is None:
            yield from _formatted(cloud.plain_path(path), found, model.formats.get(path, ""))
            model.files[path] = found
        elif difference := wanted.differs_from(found):
            yield f"{cloud.plain_path(path)} has {difference}"


def _through(path: Path, wanted: Content) -> Content:
    """Read through a link: its size, and the MiB in which something should be."""
    blocks = {}
    with path.open("rb", buffering=0) as device:
        size = device.seek(0, os.SEEK_END)
        for number in wanted.blocks:
            device.seek(number << 20)
            blocks[number] = device.read(1 << 20)
    return Content(size, {number: block for number, block in blocks.items() if block.strip(b"\0")})


def _formatted(name: str, content: Content, kind: str) -> Iterator[str]:
    if kind in _MAGIC:
        offset, magic = _MAGIC[kind]
        if content.blocks.get(0, b"")[offset : offset + len(magic)] != magic:
            yield f"{name} is not formatted as {kind}"

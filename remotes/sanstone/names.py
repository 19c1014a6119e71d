# SPDX-License-Identifier: Apache-2.0
"""OpenNebula ids <-> volume names.

Names of images are those of the existing add-ons. A clone of theirs is called by image and VM only, so
that two disks of one VM from one image collide: ours carries the disk as well, theirs is still understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sanstone.errors import RequestError

__all__ = [
    "VolumeName",
    "backup_volume",
    "clone_names",
    "clone_volume",
    "image_volume",
    "is_backup",
    "is_snapshot_of",
    "read_name",
    "snapshot_volume",
    "volatile_volume",
    "volume_of_source",
]

_SAFE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
_READ = re.compile(
    r"one-(?:sys-(?P<vvm>\d+)-(?P<vdisk>\d+)"
    r"|(?P<image>\d+)(?:-(?P<vm>\d+)-(?P<disk>\d+)|-snapshot-(?P<oldvm>\d+))?)"
    r"(?:-s(?P<snapshot>\d+)|-b(?P<backup>\d+))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class VolumeName:
    """What a volume's name says: the image, and for a clone or volatile disk its VM and disk.

    ``disk`` is None for a clone that the old V7000 add-on named. ``snapshot`` or ``backup``: it is what the
    volume was at that disk snapshot, or at that backup.
    """

    image: int | None
    vm: int | None = None
    disk: int | None = None
    snapshot: int | None = None
    backup: int | None = None


def image_volume(image: int) -> str:
    """Name the volume of an image."""
    return f"one-{image}"


def clone_volume(image: int, vm: int, disk: int) -> str:
    """Name the volume of a VM's disk that was cloned from an image."""
    return f"one-{image}-{vm}-{disk}"


def clone_names(image: int, vm: int, disk: int) -> tuple[str, str]:
    """List what such a clone may be called: by us, by the old add-on."""
    return clone_volume(image, vm, disk), f"one-{image}-snapshot-{vm}"


def volatile_volume(vm: int, disk: int) -> str:
    """Name the volume of a VM's volatile disk."""
    return f"one-sys-{vm}-{disk}"


def snapshot_volume(volume: str, snapshot: int) -> str:
    """Name the volume that holds a disk snapshot of ``volume``."""
    return f"{volume}-s{snapshot}"


def backup_volume(volume: str, backup: int) -> str:
    """Name the volume that holds what ``volume`` was when backup ``backup`` began."""
    return f"{volume}-b{backup}"


def is_snapshot_of(volume: str, name: str) -> bool:
    """Tell whether ``name`` is that of a disk snapshot or a backup's state of ``volume``."""
    return re.fullmatch(re.escape(volume) + r"-[sb]\d+", name, re.ASCII) is not None


def is_backup(name: str) -> bool:
    """Tell whether ``name`` is that of a backup's state of a volume."""
    what = read_name(name)
    return what is not None and what.backup is not None


def read_name(name: str) -> VolumeName | None:
    """Tell what a volume's name says, None when it is no name of ours."""
    match = _READ.fullmatch(name)
    if match is None:
        return None
    found = {key: int(value) for key, value in match.groupdict().items() if value is not None}
    vm = found.get("vm", found.get("oldvm", found.get("vvm")))
    disk = found.get("disk", found.get("vdisk"))
    return VolumeName(found.get("image"), vm, disk, found.get("snapshot"), found.get("backup"))


def volume_of_source(source: str) -> str:
    """Find the volume's name in an image's SOURCE.

    SOURCE is the name alone, or an IQN that ends in ``.NAME`` (the V7000 add-on's form) or in ``.lv-NAME``
    (the iSCSI add-on's, which calls a logical volume so); oned puts
    ``frontend:`` before it for tm actions unless it holds a colon (recorded: vm-deploy-source-with-colon).

    Raises: RequestError when there is no usable name in it.
    """
    name = source.rsplit(":", 1)[-1].rsplit(".", 1)[-1].removeprefix("lv-")
    if not _SAFE.fullmatch(name):
        raise RequestError(
            f"The image's SOURCE {source!r} names no volume.", "Was the image made by this driver?"
        )
    return name

# SPDX-License-Identifier: Apache-2.0
"""Files, links and directories of the host."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path, PurePosixPath

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Context, Json

from . import sysfs

__all__ = ["disk_usage", "link", "move_path", "put_file", "read_link", "remove_path", "wwid_of_link"]

_LEAST_PARENTS = 3
_CHUNK = 1 << 20


def absolute(path: str) -> Path:
    """Return ``path`` if it is absolute and says what it means: no ``..``, no NUL."""
    if not path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise NodeError("RequestError", f"{path!r} is not a plain absolute path.")
    return Path(path)


def deep(path: str) -> Path:
    """Return ``path`` if it lies deep enough for being removed or moved: not /var, not /var/lib/one."""
    found = absolute(path)
    if len(found.parts) - 2 < _LEAST_PARENTS:
        raise NodeError(
            "DataSafetyError", f"{path} is too near to the root of the file system to be removed or moved."
        )
    return found


def beside(path: Path) -> Path:
    """Return a new name in the same directory, for what becomes ``path`` by a rename."""
    return path.with_name(f".{path.name[:200]}.{os.urandom(6).hex()}")


def make_parents(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def link(request: Json, context: Context) -> None:
    """Let ``path`` be a symbolic link to ``target``."""
    make_link(request["path"], request["target"])


def make_link(path: str, target: str) -> None:
    """Replace a link at once, or make one; never replace a file or a directory."""
    place = absolute(path)
    if not target or "\0" in target:
        raise NodeError("RequestError", f"{target!r} cannot be linked to.")
    make_parents(place)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISLNK(place.lstat().st_mode):
            raise NodeError(
                "ConflictError",
                f"{path} is a file or directory, not a link to a disk, and is left as it is.",
                "See what it holds and move it away.",
            )
        if os.fspath(place.readlink()) == target:
            return
    temporary = beside(place)
    temporary.symlink_to(target)
    temporary.replace(place)


def read_link(request: Json, context: Context) -> Json:
    place = absolute(request["path"])
    try:
        mode = place.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return {"target": None, "wwid": None, "exists": False}
    if not stat.S_ISLNK(mode):
        return {"target": None, "wwid": None, "exists": True}
    return {"target": os.fspath(place.readlink()), "wwid": wwid_of_link(place), "exists": True}


def wwid_of_link(path: Path) -> str | None:
    """Return the WWID of the device that a link names, attached or not; None if the name does not tell."""
    try:
        target = path.readlink()
    except OSError:
        return None
    return wwid_of_device(target if target.is_absolute() else path.parent / target)


def wwid_of_device(device: Path) -> str | None:
    """Return the WWID that a device's path stands for."""
    name = device.name
    by_name = next((found.wwid for found in sysfs.maps() if found.name == name), None)
    if device.parent == sysfs.dev("mapper"):
        return by_name or (name if sysfs.WWID.fullmatch(name) else None)
    if device.parent == sysfs.dev("disk", "by-id"):
        for prefix, front in (("dm-uuid-mpath-", ""), ("scsi-", ""), ("wwn-0x", "3"), ("dm-name-", "")):
            identity = front + name[len(prefix) :]
            if name.startswith(prefix) and sysfs.WWID.fullmatch(identity):
                return identity
    kernel = device.resolve().name
    if device.resolve().parent != sysfs.dev().resolve():
        return None
    if kernel.startswith("dm-"):
        return next((found.wwid for found in sysfs.maps() if found.kernel == kernel), None)
    return sysfs.wwid(kernel)


def put_file(request: Json, context: Context) -> None:
    """Write exactly ``size`` bytes of the upload to ``path``, whole or not at all."""
    place = absolute(request["path"])
    size = int(request["size"])
    make_parents(place)
    temporary = beside(place)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 (opened by descriptor)
            _receive(file, place, size, context)
            os.fchmod(file.fileno(), int(request["mode"]) & 0o777)
            file.flush()
            os.fsync(file.fileno())
        if place.is_dir() and not place.is_symlink():
            raise NodeError("ConflictError", f"{place} is a directory.")
        temporary.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(place.parent)


def _receive(file: object, place: Path, size: int, context: Context) -> None:
    left = size
    while left:
        context.deadline.check(f"receiving {place}")
        chunk = context.upload.read(min(_CHUNK, left))
        if not chunk:
            raise NodeError(
                "ConnectError", f"The upload of {place} ended after {size - left} of {size} bytes."
            )
        file.write(chunk)  # type: ignore[attr-defined]
        left -= len(chunk)
    if context.is_last_upload and context.upload.read(1):
        raise NodeError(
            "ConflictError", f"The upload of {place} is longer than the {size} bytes that were announced."
        )


def remove_path(request: Json, context: Context) -> None:
    """Remove a file, a link (not what it leads to), or a directory with all in it."""
    place = deep(request["path"])
    try:
        mode = place.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(mode):
        place.unlink(missing_ok=True)
        return
    if place.is_mount():
        raise NodeError(
            "DataSafetyError",
            f"{place} is a mount point and is not emptied.",
            f"Unmount it first: umount {place}",
        )
    with contextlib.suppress(FileNotFoundError):
        _remove_tree(place)


def _remove_tree(place: Path) -> None:
    import shutil  # only here and where a move copies: it takes long to load

    shutil.rmtree(place)


def move_path(request: Json, context: Context) -> None:
    """Rename, or copy and remove when the two lie on different file systems.

    A directory that is there already takes the other's entries in: disks are linked into a VM's new directory
    before oned moves the rest of the old one.
    """
    source, target = deep(request["source"]), deep(request["target"])
    if source == target:
        return
    if not os.path.lexists(source):
        if os.path.lexists(target):
            return
        raise NodeError("NotFoundError", f"{source} is not there.")
    make_parents(target)
    _move(source, target)
    sync_directory(target.parent)


def _move(source: Path, target: Path) -> None:
    if _is_directory(source) and _is_directory(target):
        for entry in sorted(source.iterdir()):
            _move(entry, target / entry.name)
        sync_directory(target)
        source.rmdir()
    elif source.is_symlink() and target.is_symlink():
        source.unlink()  # the disk has been linked anew
    elif _is_directory(source) != _is_directory(target) and os.path.lexists(target):
        raise NodeError(
            "ConflictError", f"{source} cannot take the place of {target}, which is there already."
        )
    else:
        try:
            source.rename(target)
        except OSError as err:
            if err.errno != errno.EXDEV:
                raise
            _copy_over(source, target)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _copy_over(source: Path, target: Path) -> None:
    import shutil

    temporary = beside(target)
    try:
        if _is_directory(source):
            shutil.copytree(source, temporary, symlinks=True)
        else:
            shutil.copy2(source, temporary, follow_symlinks=False)
        os.sync()
        temporary.replace(target)
    except BaseException:
        if _is_directory(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise
    if _is_directory(source):
        shutil.rmtree(source)
    else:
        source.unlink()


def disk_usage(request: Json, context: Context) -> Json:
    place = absolute(request["path"])
    try:
        found = os.statvfs(place)
    except FileNotFoundError:
        raise NodeError("NotFoundError", f"{place} is not there.") from None
    return {
        "total": found.f_blocks * found.f_frsize,
        "used": (found.f_blocks - found.f_bfree) * found.f_frsize,
        "free": found.f_bavail * found.f_frsize,
    }

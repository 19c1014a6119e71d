# SPDX-License-Identifier: Apache-2.0
"""Bytes onto volumes: images, other volumes, file systems; and disk image files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import ROOT, Context, Json, run

from . import files, sysfs

__all__ = [
    "Percent",
    "attached",
    "cache",
    "convert",
    "copy_volume",
    "inspect",
    "make_filesystem",
    "make_image_file",
    "regular_file",
]

_FORMATS = {name: name for name in ("raw", "qcow2", "qcow", "vmdk", "vdi", "vhdx", "vpc", "qed")} | {
    "vhd": "vpc"
}
_TOOLS = ("qemu-img", "dd", "ddpt")
_INFO_LIMIT = 60.0
_KIND = re.compile(r"[a-z][a-z0-9]{1,15}")
_LABEL_LIMIT = 64
_ZERO_BLOCK = 1 << 20
_ROOT_ONLY = frozenset({"xfs"})
"""These set the block size of the device, which only root may do: ``cannot set blocksize 4096``."""
_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_PERCENT_STEP = 5

_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_DATA_FILE = 1 << 2


def convert(request: Json, context: Context) -> Json:
    """Write an image file onto the volume ``wwid``.

    Raises NodeError: DataSafetyError for an image that refers to other files, CapacityError when it is larger
    than the volume, NotFoundError, HostError.
    """
    tool = _tool(request["tool"])
    source = regular_file(request["source"])
    image = inspect(source, request.get("format"), context)
    if tool != "qemu-img" and image["format"] != "raw":
        raise NodeError("RequestError", f"{tool} copies raw images only, and {source} is {image['format']}.")
    target, size = attached(request["wwid"])
    if image["virtual-size"] > size:
        raise NodeError(
            "CapacityError",
            f"Image {source} has {image['virtual-size']} bytes and does not fit on volume {request['wwid']} "
            f"of {size} bytes.",
        )
    started = time.monotonic()
    _copy(tool, image["format"], source, target, bool(request["target_is_zero"]), context)
    if not request["target_is_zero"]:
        _zero(target, image["virtual-size"], size, context)
    data = min(int(image.get("actual-size", 0)), image["virtual-size"])
    return {"size": image["virtual-size"], "data": data, "seconds": time.monotonic() - started}


def copy_volume(request: Json, context: Context) -> Json:
    """Copy one attached volume onto another."""
    tool = _tool(request["tool"])
    if request["source_wwid"].lower() == request["target_wwid"].lower():
        raise NodeError("RequestError", f"Volume {request['source_wwid']} cannot be copied onto itself.")
    source, size = attached(request["source_wwid"])
    target, room = attached(request["target_wwid"])
    if size > room:
        raise NodeError(
            "CapacityError",
            f"Volume {request['source_wwid']} has {size} bytes and does not fit on volume "
            f"{request['target_wwid']} of {room} bytes.",
        )
    started = time.monotonic()
    _copy(tool, "raw", source, target, bool(request["target_is_zero"]), context)
    if not request["target_is_zero"]:
        _zero(target, size, room, context)
    return {"size": size, "data": size, "seconds": time.monotonic() - started}


def _zero(target: Path, start: int, end: int, context: Context) -> None:
    """Overwrite what lies behind a copy: it may still hold what another owner wrote there."""
    if start >= end:
        return
    block = bytes(_ZERO_BLOCK)
    with target.open("r+b", buffering=0) as device:
        device.seek(start)
        while start < end:
            context.deadline.check(f"zeroing the end of {target}")
            start += device.write(block[: end - start])
        os.fsync(device.fileno())
    flush(target, context)


def attached(wwid: str) -> tuple[Path, int]:
    """Return the device of an attached volume and its size, after a look at the identity of every path."""
    identity = sysfs.identity(wwid)
    found = sysfs.find_map(identity)
    if found is not None:
        strange = [name for name in sorted(found.slaves) if sysfs.wwid(name) not in (identity, None)]
        if strange:
            raise NodeError(
                "DataSafetyError",
                f"The map {found.name} of volume {identity} has the path {strange[0]}, "
                f"which is volume {sysfs.wwid(strange[0])}.",
                "Detach the volume and attach it again.",
            )
        return sysfs.dev("mapper", found.name), sysfs.size(found.kernel)
    disks = [disk for disk in sysfs.disks() if disk.wwid == identity]
    if not disks:
        raise NodeError("NotFoundError", f"Volume {identity} is not attached.")
    if len(disks) > 1:
        names = ", ".join(disk.name for disk in disks)
        raise NodeError(
            "HostError",
            f"Volume {identity} has the paths {names}, but no map.",
            "Let multipathd run: systemctl enable --now multipathd",
        )
    return sysfs.dev(disks[0].name), sysfs.size(disks[0].name)


def inspect(source: Path, format_: str | None, context: Context) -> Json:
    """Return what qemu-img says of an image, once it is known to refer to no other file.

    An image from a stranger that names a backing file would copy that file, any of this user's, to a volume.
    """
    if format_ is not None and format_.lower() not in _FORMATS:
        raise NodeError("RequestError", f"The image format {format_!r} is not known.")
    wanted = _FORMATS[format_.lower()] if format_ else None
    if wanted in (None, "qcow2"):
        _refuse_references_of_qcow2(source)
    asked = ["-f", wanted] if wanted else []
    argv = ["qemu-img", "info", "--output=json", *asked, "--", str(source)]
    try:
        shown = run(argv, context.deadline.within(_INFO_LIMIT)).stdout
    except NodeError as err:
        if err.family != "HostError" or "not installed" in err.message or "sudo" in err.message:
            raise
        raise NodeError(
            "RequestError",
            f"{source} cannot be read as a disk image{' of format ' + wanted if wanted else ''}.",
            "See whether the file is whole and its format was given right.",
            err.details,
        ) from None
    image: Json = json.loads(shown)
    if image.get("format") not in _FORMATS:
        raise NodeError(
            "NotSupportedError", f"{source} has the format {image.get('format')}, which is not taken."
        )
    if image.get("encrypted"):
        raise NodeError("NotSupportedError", f"{source} is encrypted.", "Decrypt it first: qemu-img convert")
    named = _references(image)
    if any(not _is_file(source, name) for name in named):
        raise _refers(source)
    return image


def _references(image: Json) -> list[str]:
    """Return the files that an image names as parts of itself."""
    special = (image.get("format-specific") or {}).get("data") or {}
    named = [image.get("backing-filename"), image.get("full-backing-filename"), special.get("data-file")]
    named += [extent.get("filename") for extent in special.get("extents") or []]
    return [name for name in named if name]


def _is_file(source: Path, name: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(name).samefile(source)
    return False


def _refers(source: Path) -> NodeError:
    return NodeError(
        "DataSafetyError",
        f"Image {source} refers to other files (a backing file, a data file or extents) and is refused.",
        "Make it one file that stands alone: qemu-img convert -O qcow2 IMAGE NEW",
    )


def _refuse_references_of_qcow2(source: Path) -> None:
    """Read the header by ourselves: qemu-img would open what it names before it could tell."""
    with source.open("rb") as file:
        header = file.read(80)
    if len(header) < 80 or header[:4] != _QCOW2_MAGIC:
        return
    version, backing_offset = struct.unpack(">IQ", header[4:16])
    features = struct.unpack(">Q", header[72:80])[0] if version >= 3 else 0
    if backing_offset or features & _QCOW2_DATA_FILE:
        raise _refers(source)


def regular_file(path: str) -> Path:
    place = files.absolute(path)
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NodeError("NotFoundError", f"{place} is not there.") from None
    if not stat.S_ISREG(mode):
        raise NodeError("RequestError", f"{place} is not a file.")
    return place.resolve()


def _tool(name: str) -> str:
    if name not in _TOOLS:
        raise NodeError("RequestError", f"{name!r} is not a tool for copying; there are {', '.join(_TOOLS)}.")
    return name


def _copy(tool: str, format_: str, source: Path, target: Path, is_zero: bool, context: Context) -> None:
    if tool == "qemu-img":
        _qemu_img(format_, source, target, is_zero, context)
    elif tool == "dd":
        # sparse passes over blocks of zeros: only where unwritten blocks read as zeros
        how = "conv=notrunc,nocreat,fsync" + (",sparse" if is_zero else "")
        direct = ["oflag=direct"] if _takes_direct(target) else []
        argv = ["dd", f"if={source}", f"of={target}", "bs=4M", "iflag=fullblock", how, *direct, "status=none"]
        run(argv, context.deadline, ends_with_caller=True)
    else:
        flags = ["oflag=sparse"] if is_zero else []
        argv = ["ddpt", f"if={source}", f"of={target}", "bs=512", "bpt=8192", "conv=fsync", *flags]
        run(argv, context.deadline, ends_with_caller=True)
    flush(target, context)


def flush(target: Path, context: Context) -> None:
    """Bring what the page cache holds of a device to the array."""
    run(["blockdev", "--flushbufs", str(target)], context.deadline)


def _qemu_img(format_: str, source: Path, target: Path, is_zero: bool, context: Context) -> None:
    argv = ["qemu-img", "convert", "-p", "-n", "-f", format_, "-O", "raw", "-W", "-m", "16"]
    argv += ["-T", cache(source), "-t", cache(target)]
    report = Percent(context.progress).take
    zero = ["--target-is-zero"] if is_zero else []
    files_ = ["--", str(source), str(target)]
    done = run([*argv, *zero, *files_], context.deadline, ok=None, on_output=report, ends_with_caller=True)
    if done.code and zero and "target-is-zero" in done.stderr:  # QEMU before 5.0
        done = run([*argv, *files_], context.deadline, ok=None, on_output=report, ends_with_caller=True)
    if done.code:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NodeError("HostError", f"qemu-img failed (exit code {done.code}): {last}", "", done.stderr)


def cache(path: Path) -> str:
    return "none" if _takes_direct(path) else "writeback"


def _takes_direct(path: Path) -> bool:
    """Tell whether the page cache can be passed by; tmpfs and some FUSE file systems refuse."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


class Percent:
    """Takes qemu-img's output and reports each 5 percent, or once a second."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._rest = b""
        self._step = 0
        self._reported = time.monotonic()

    def take(self, chunk: bytes) -> None:
        text = self._rest + chunk
        found = _PERCENT.findall(text)
        self._rest = text[text.rfind(b"(") :][:64] if b"(" in text else b""
        if not found:
            return
        percent, now = int(float(found[-1])), time.monotonic()
        if percent // _PERCENT_STEP > self._step or now - self._reported >= 1:
            self._step, self._reported = percent // _PERCENT_STEP, now
            self._progress(f"copied {percent} %")


def _mkfs(kind: str, label: str, path: Path) -> list[str]:
    """Return the command that makes a file system without asking."""
    if not _KIND.fullmatch(kind):
        raise NodeError("RequestError", f"{kind!r} is not a kind of file system.")
    if "\0" in label or len(label) > _LABEL_LIMIT:
        raise NodeError("RequestError", f"{label!r} is not a label of a file system.")
    named = ["-L", label] if label else []
    options: Sequence[str]
    if kind == "swap":
        return ["mkswap", "-f", *named, str(path)]
    if kind.startswith("ext"):
        options = ["-F", "-q", *named]
    elif kind in ("xfs", "btrfs"):
        options = ["-f", "-q", *named]
    elif kind in ("vfat", "fat", "msdos"):
        options = ["-I", *(["-n", label] if label else [])]
    elif kind == "ntfs":
        options = ["-F", "-Q", "-q", *named]
    else:
        options = named
    return [f"mkfs.{kind}", *options, str(path)]


def make_filesystem(request: Json, context: Context) -> None:
    """Make a file system on an attached volume, or swap space."""
    target, size = attached(request["wwid"])
    kind, label = request["kind"], request["label"]
    if kind in _ROOT_ONLY and os.geteuid() != 0:
        _through_a_file(kind, label, target, size, context)
    else:
        run(_mkfs(kind, label, target), context.deadline, ends_with_caller=True)
    flush(target, context)


def _through_a_file(kind: str, label: str, target: Path, size: int, context: Context) -> None:
    """Make the file system in a sparse file and copy that, with its zeros: the volume may hold anything."""
    place = files.beside(ROOT / "var" / "tmp" / "sanstone-mkfs")
    try:
        _create("raw", place, size, context)
        run(_mkfs(kind, label, place), context.deadline, ends_with_caller=True)
        _qemu_img("raw", place, target, False, context)
    finally:
        place.unlink(missing_ok=True)


def make_image_file(request: Json, context: Context) -> None:
    """Make a disk image file, complete or not at all; what had its name before is replaced."""
    place, size = files.absolute(request["path"]), int(request["size"])
    format_ = _FORMATS.get(str(request["format"]).lower())
    if format_ is None or size < 0:
        raise NodeError(
            "RequestError", f"No image of format {request['format']!r} and {size} bytes can be made."
        )
    files.make_parents(place)
    raw = files.beside(place)
    made = raw
    try:
        if request["kind"]:
            _create("raw", raw, size, context)
            run(_mkfs(request["kind"], "", raw), context.deadline, ends_with_caller=True)
            if format_ != "raw":
                made = files.beside(place)
                argv = ["qemu-img", "convert", "-f", "raw", "-O", format_, "--", str(raw), str(made)]
                run(argv, context.deadline, ends_with_caller=True)
        else:
            _create(format_, raw, size, context)
        made.replace(place)
    finally:
        for path in {raw, made}:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    files.sync_directory(place.parent)


def _create(format_: str, path: Path, size: int, context: Context) -> None:
    run(["qemu-img", "create", "-q", "-f", format_, "--", str(path), str(size)], context.deadline)

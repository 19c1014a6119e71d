# SPDX-License-Identifier: Apache-2.0
"""Disks into QCOW2 files: whole, or what has changed since an earlier state; and a guest that holds still.

A file of changes has a cluster of its own for everything that has changed, zeros included: what it leaves out
is looked up in the file before it. QEMU itself writes it, by copy-on-read from the volume.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Context, Deadline, Json, caller_is_gone, run, wait_until

from . import copy, files

__all__ = ["digest", "hold_still", "remove_backup", "save_disk", "thaw"]

_CLUSTER = 1 << 16
_BLOCK = 64 * _CLUSTER
_LARGEST_READ = 64 << 20
_READS = 1000
"""So many lines for qemu-io fit into a pipe."""
_VIRSH_LIMIT = 30.0
_TICK = 0.25
_DOMAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+@-]{0,127}")
_FREEZE = {"AGENT": ("domfsfreeze", "domfsthaw"), "SUSPEND": ("suspend", "resume")}

Extents = Iterator[tuple[int, int]]


def save_disk(request: Json, context: Context) -> Json:
    """Write an attached volume, or a disk image file, to a QCOW2 file, complete or not at all.

    For changes, ``base_wwid`` is the attached volume that they are counted from, ``extents`` where they are;
    with neither, everything counts as changed.
    """
    target = files.absolute(request["path"])
    source, format_, size = _source(request, context)
    files.make_parents(target)
    temporary = files.beside(target)
    started = time.monotonic()
    try:
        if request["is_increment"]:
            extents = _extents(request, source, size, context)
            data = _write_changes(source, format_, size, extents, temporary, context)
        else:
            _convert(source, format_, temporary, context)
            data = temporary.stat().st_blocks * 512
        temporary.chmod(0o640)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    files.sync_directory(target.parent)
    return {"size": size, "data": data, "seconds": time.monotonic() - started}


def _source(request: Json, context: Context) -> tuple[Path, str, int]:
    if request["wwid"] is not None:
        device, size = copy.attached(request["wwid"])
        return device, "raw", size
    path = copy.regular_file(request["source"])
    image = copy.inspect(path, request.get("format"), context)
    return path, image["format"], image["virtual-size"]


def _convert(source: Path, format_: str, target: Path, context: Context) -> None:
    """Convert with the holes of the source, and what reads as zeros, left out."""
    argv = ["qemu-img", "convert", "-p", "-f", format_, "-O", "qcow2", "-W", "-m", "16"]
    argv += ["-T", copy.cache(source), "-t", "writeback", "--", str(source), str(target)]
    run(argv, context.deadline, on_output=copy.Percent(context.progress).take, ends_with_caller=True)


def _extents(request: Json, source: Path, size: int, context: Context) -> Extents:
    if request["extents"] is not None:
        return _aligned(((each["offset"], each["length"]) for each in request["extents"]), size)
    if request["base_wwid"] is not None:
        base, base_size = copy.attached(request["base_wwid"])
        return _differing(base, base_size, source, size, context)
    return iter([(0, size)])


def _aligned(extents: Iterable[tuple[int, int]], size: int) -> Extents:
    """Widen extents to whole clusters and join those that touch."""
    start = end = 0
    for offset, length in extents:
        first = offset // _CLUSTER * _CLUSTER
        last = min(-(-(offset + length) // _CLUSTER) * _CLUSTER, size)
        if first > end:
            if end > start:
                yield start, end - start
            start = first
        end = max(end, last)
    if end > start:
        yield start, end - start


def _differing(base: Path, base_size: int, source: Path, size: int, context: Context) -> Extents:
    """Find the clusters in which two volumes differ; a smaller base reads as zeros behind its end."""
    return _aligned(_differing_clusters(base, base_size, source, size, context), size)


def _differing_clusters(base: Path, base_size: int, source: Path, size: int, context: Context) -> Extents:
    told = time.monotonic()
    with _Reader(base, base_size) as old, _Reader(source, size) as new:
        for offset in range(0, size, _BLOCK):
            context.deadline.check(f"comparing {source} with its earlier state")
            if time.monotonic() - told >= 1:
                told = time.monotonic()
                context.progress(f"compared {offset * 100 // size} %")
                if caller_is_gone():
                    raise NodeError("ConnectError", "The front-end went away during a comparison.")
            length = min(_BLOCK, size - offset)
            before, now = old.read(offset, length), new.read(offset, length)
            if before == now:
                continue
            for start in range(0, length, _CLUSTER):
                part = slice(start, min(start + _CLUSTER, length))
                if before[part] != now[part]:
                    yield offset + part.start, part.stop - part.start


class _Reader:
    """Reads a volume past the page cache where it can be passed by, into one buffer of its own."""

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        direct = os.O_DIRECT if copy.cache(path) == "none" else 0
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct)
        self._buffer = mmap.mmap(-1, _BLOCK)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> memoryview:
        """Read ``length`` bytes, zeros behind the end; they stand until the next read."""
        wanted = max(0, min(length, self._size - offset))
        done = 0
        while done < wanted:
            count = os.preadv(self._fd, [memoryview(self._buffer)[done:wanted]], offset + done)
            if not count:
                raise NodeError("HostError", f"A volume ended after {offset + done} bytes.")
            done += count
        if wanted < length:
            self._buffer[wanted:length] = bytes(length - wanted)
        return memoryview(self._buffer)[:length]


def _write_changes(
    source: Path, format_: str, size: int, extents: Extents, target: Path, context: Context
) -> int:
    """Write the clusters of ``extents`` to a new QCOW2 file; return how many bytes they are."""
    with_backing = ["-b", str(source), "-F", format_, "--", str(target), str(size)]
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={_CLUSTER}", *with_backing]
    run(create, context.deadline)
    total = 0
    lines: list[str] = []
    for offset, length in extents:
        total += length
        for start in range(offset, offset + length, _LARGEST_READ):
            lines.append(f"read -q {start} {min(_LARGEST_READ, offset + length - start)}\n")
            if len(lines) == _READS:
                _copy_on_read(lines, target, context)
                lines.clear()
    if lines:
        _copy_on_read(lines, target, context)
    run(["qemu-img", "rebase", "-u", "-b", "", "--", str(target)], context.deadline)
    return total


def _copy_on_read(lines: list[str], target: Path, context: Context) -> None:
    argv = ["qemu-io", "-C", "-f", "qcow2", "-t", "writeback", str(target)]
    script = "".join([*lines, "flush\n"]).encode()
    done = run(argv, context.deadline, stdin=script, ends_with_caller=True)
    told = re.sub(r"^(?:qemu-io> ?)+", "", done.words, flags=re.MULTILINE).strip()
    if told:
        raise NodeError("HostError", f"qemu-io failed: {told.splitlines()[0]}", "", done.words)


def digest(request: Json, context: Context) -> Json:
    """Tell the size and the MD5 of a file, which is the checksum that marketplaces want."""
    path = copy.regular_file(request["path"])
    found = hashlib.md5(usedforsecurity=False)
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_BLOCK):
            context.deadline.check(f"reading {path}")
            found.update(chunk)
            size += len(chunk)
    return {"size": size, "md5": found.hexdigest()}


def remove_backup(request: Json, context: Context) -> None:
    """Remove the directory ``.../VM/backup`` with the files in it, and what is above it if that is asked.

    Absent is success. It may be nearer to the root than what ``files.remove_path`` takes.
    """
    place = files.absolute(request["path"])
    if place.name != "backup" or not place.parent.name.isdecimal():
        raise NodeError("DataSafetyError", f"{place} is not the directory of a VM's backup.")
    if place.is_symlink() or place.is_file():
        place.unlink(missing_ok=True)
    elif place.is_dir():
        shutil.rmtree(place)
    if request["with_parent"]:
        with contextlib.suppress(OSError):  # something else is in it, or it is not there
            place.parent.rmdir()


def hold_still(request: Json, context: Context) -> Json:
    """Let a guest hold still until the caller lets go: its file systems frozen, or all of it suspended.

    ``still`` is reported when it does. It goes on when the upload ends, when the caller is gone, or after
    ``seconds``, whatever else happens. Returns the seconds it lasted, and whether the caller let go in time.
    """
    freeze, _ = _commands(request)
    released = threading.Event()
    started = time.monotonic()
    try:
        run(_virsh(request, freeze), context.deadline.within(_VIRSH_LIMIT))
        started = time.monotonic()
        context.progress("still")
        threading.Thread(target=_await_caller, args=(context, released), daemon=True).start()
        limit = Deadline(float(request["seconds"]))
        while not released.wait(min(_TICK, limit.left())):
            if not limit.left() or caller_is_gone():
                break
    finally:
        _thaw(request)
    return {"seconds": time.monotonic() - started, "was_in_time": released.is_set()}


def _await_caller(context: Context, released: threading.Event) -> None:
    with contextlib.suppress(OSError, ValueError):
        context.upload.read(1)
    released.set()


def thaw(request: Json, context: Context) -> None:
    """Let a guest go on that was left holding still, if it was."""
    if request["how"] == "SUSPEND":
        state = run(_virsh(request, "domstate"), context.deadline.within(_VIRSH_LIMIT), ok=None)
        if state.stdout.strip() != "paused":
            return
    _, thaw_ = _commands(request)
    run(_virsh(request, thaw_), context.deadline.within(_VIRSH_LIMIT))


def _thaw(request: Json) -> None:
    """Let the guest go on, with time of its own: it must not stay as it is because ours is up."""
    _, thaw_ = _commands(request)
    said: list[str] = []

    def is_done() -> bool:
        done = run(_virsh(request, thaw_), Deadline(_VIRSH_LIMIT / 3), ok=None)
        said.append(done.words)
        return done.code == 0 or "already running" in done.words

    if not wait_until(is_done, Deadline(_VIRSH_LIMIT)):
        raise NodeError(
            "HostError",
            f"Guest {request['domain']} may still hold still.",
            f"Let it go on: virsh {thaw_} {request['domain']}",
            said[-1] if said else "",
        )


def _commands(request: Json) -> tuple[str, str]:
    found = _FREEZE.get(request["how"])
    if found is None or not _DOMAIN.fullmatch(request["domain"]):
        raise NodeError(
            "RequestError", f"A guest {request['domain']!r} cannot be held by {request['how']!r}."
        )
    return found


def _virsh(request: Json, command: str) -> list[str]:
    return ["virsh", "--connect", request["uri"], command, request["domain"]]

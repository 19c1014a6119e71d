# SPDX-License-Identifier: Apache-2.0
"""Sparse files that stand for volumes: their extents, holes, copies."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["copy_extents", "extents", "punch"]

KEEP_SIZE, PUNCH_HOLE = 1, 2
CHUNK = 1 << 22
LIBC = ctypes.CDLL(None, use_errno=True)


def punch(fd: int, start: int, length: int) -> None:
    """Make a hole of zeros in a file, by writing them where the file system makes none."""
    if length <= 0:
        return
    offset, size = ctypes.c_longlong(start), ctypes.c_longlong(length)
    if LIBC.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, size) == 0:
        return
    zeros = bytes(min(length, CHUNK))
    while length > 0:
        written = os.pwrite(fd, zeros[: min(length, len(zeros))], start)
        start, length = start + written, length - written


def copy_extents(source: Path, target: Path) -> None:
    """Give ``target`` the contents of ``source`` in place: same inode, holes stay holes."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        size = os.fstat(reader.fileno()).st_size
        at = 0
        for start, end in extents(reader.fileno(), size):
            punch(writer.fileno(), at, start - at)
            _copy(reader.fileno(), writer.fileno(), start, end)
            at = end
        punch(writer.fileno(), at, size - at)


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Tell where a file has bytes: start and end, in ascending order."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _copy(reader: int, writer: int, start: int, end: int) -> None:
    while start < end:
        chunk = os.pread(reader, min(CHUNK, end - start), start)
        if not chunk:
            return
        view = memoryview(chunk)
        while view:
            written = os.pwrite(writer, view, start)
            start, view = start + written, view[written:]

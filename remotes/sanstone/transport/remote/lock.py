# SPDX-License-Identifier: Apache-2.0
"""Locks between the runs of this program on one host, and the directory where it remembers things."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import ROOT, Deadline, wait_until

__all__ = ["hold", "state_directory"]


def state_directory() -> Path:
    """Return the directory of this user for locks and notes; make it when it is not there.

    It lies in /var/tmp for every caller, not in XDG_RUNTIME_DIR, which some sessions have and others do not:
    two runs must meet at the same locks.
    """
    path = ROOT / "var" / "tmp" / f"sanstone-{os.geteuid()}"
    if Path("/") != ROOT:
        path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise NodeError(
            "HostError",
            f"{path} is not a directory that this user alone owns and may enter.",
            f"See who made it, remove it and try again: ls -ld {path}",
        )
    return path


@contextlib.contextmanager
def hold(kind: str, key: str, deadline: Deadline, *, is_shared: bool = False) -> Iterator[None]:
    """Hold the lock of ``kind`` for ``key`` within the block.

    Raises NodeError: BusyError when another run keeps it until the deadline.
    """
    path = state_directory() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.lock"
    fd = _acquire(path, deadline, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX, f"{kind} {key}")
    try:
        yield
    finally:
        if not is_shared:
            # Still locked, so that nobody can take a file for the lock that has lost its name.
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        os.close(fd)


def _acquire(path: Path, deadline: Deadline, how: int, what: str) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not wait_until(lambda fd=fd: _try(fd, how), deadline):  # type: ignore[misc]
                raise NodeError(
                    "BusyError",
                    f"Another action has been at work on {what} for {deadline.seconds:.0f} s.",
                    "Wait for it to end and run the action again.",
                )
            if _is_named(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_named(fd: int, path: Path) -> bool:
    """Tell whether the file that was locked still has its name: its last holder removes it."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    locked = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino)

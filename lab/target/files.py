# SPDX-License-Identifier: Apache-2.0
"""What the target host's programs do with plain files and with the bytes of volumes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.extents import punch
from lab.host.calls import Answer, fail

__all__ = ["FILE_PROGRAMS", "blkdiscard", "run_on_files"]

FILE_PROGRAMS = ("cat", "chmod", "dd", "install", "ls", "mkdir", "mv", "rm", "sync", "tee")
"""Real programs, run with the host's root directory before its own paths."""

_DEADLINE = 600.0
_FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"
_MODES = {"-f", "--force", "-z", "--zeroout", "-s", "--secure", "-v", "--verbose"}


def run_on_files(program: str, argv: Sequence[str], stdin: bytes, cwd: str) -> Answer:
    """Run a program of coreutils."""
    done = subprocess.run(
        [program, *argv],
        executable=shutil.which(program, path=_FOLDERS),
        input=stdin,
        capture_output=True,
        cwd=cwd,
        env={"PATH": _FOLDERS, "LC_ALL": "C"},
        timeout=_DEADLINE,
        check=False,
    )
    out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    return Answer(done.returncode, out, err)


def blkdiscard(argv: Sequence[str]) -> Answer:
    """Throw away what a volume holds: it reads as zeros then, as a thin volume does."""
    devices = [word for word in argv if word not in _MODES]
    if len(devices) != 1 or devices[0].startswith("-"):
        return fail(
            1,
            "blkdiscard: no device specified"
            if not devices
            else "blkdiscard: unexpected number of arguments",
        )
    path = Path(devices[0])
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError as err:
        return fail(1, f"blkdiscard: cannot open {path}: {err.strerror}")
    try:
        punch(fd, 0, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    return Answer()

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write a CHAP name and secret into open-iscsi's record of a portal, without a command line that shows them.

``iscsiadm`` takes a secret as an argument only, which every user of the host can read. This file is a part of
the program for hosts, which calls ``write`` as root, and a program of its own (etc/sbin/sanstone-chap), which
other users run through sudo: one JSON object on standard input with ``target``, ``address``, ``port``,
``user`` and ``password``. It changes nothing but the authentication of records that are there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
from pathlib import Path

__all__ = ["is_usable", "write"]

ROOT = Path(os.environ.get("SANSTONE_HOST_ROOT") or "/") if __name__ != "__main__" else Path("/")
_FOLDERS = ("etc/iscsi/nodes", "var/lib/iscsi/nodes")

_TARGET = re.compile(r"(?:iqn|eui|naa)\.[\w.:-]{1,220}", re.ASCII)
_ADDRESS = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]*|\[?[0-9A-Fa-f:.]+(?:%[0-9A-Za-z._-]+)?\]?", re.ASCII)
_WORD = re.compile(r"[!-~]{1,255}")
_AUTH = "node.session.auth."


def is_usable() -> bool:
    """Tell whether this machine has records in a place that is known."""
    return any((ROOT / folder).parent.is_dir() for folder in _FOLDERS)


def write(target: str, address: str, port: int, user: str, password: str) -> int:
    """Let every record of a portal authenticate by CHAP; return how many records there are.

    Raises: ValueError for what is no target, address, port or word; OSError.
    """
    if not (_TARGET.fullmatch(target) and _ADDRESS.fullmatch(address) and 0 < port < 1 << 16):
        raise ValueError("this is no target or portal")
    if not (_WORD.fullmatch(user) and _WORD.fullmatch(password)):
        raise ValueError("a CHAP name or secret has characters that records cannot hold")
    records = [record for folder in _FOLDERS for record in _records(ROOT / folder / target, address, port)]
    for record in records:
        _change(
            record,
            {
                f"{_AUTH}authmethod": "CHAP",
                f"{_AUTH}username": user,
                f"{_AUTH}password": password,
            },
        )
    return len(records)


def _records(folder: Path, address: str, port: int) -> list[Path]:
    """List the record files of a portal: a file of its own, or one per interface in a directory."""
    name = f"{address.strip('[]')},{port}"
    found = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []:
        if entry.is_symlink() or not (entry.name == name or entry.name.startswith(name + ",")):
            continue
        files = sorted(entry.iterdir()) if entry.is_dir() else [entry]
        found += [file for file in files if stat.S_ISREG(file.lstat().st_mode)]
    return found


def _change(record: Path, values: dict[str, str]) -> None:
    """Replace lines of a record, whole or not at all."""
    lines = []
    left = dict(values)
    for line in record.read_text(encoding="utf-8").splitlines():
        name = line.partition(" = ")[0].strip()
        if line.startswith("# END"):
            lines += [f"{key} = {value}" for key, value in left.items()]
            left.clear()
        lines.append(f"{name} = {left.pop(name)}" if name in left else line)
    lines += [f"{key} = {value}" for key, value in left.items()]
    temporary = record.with_name(f".{record.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(record)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _main() -> int:
    try:
        asked = json.loads(sys.stdin.read(65536))
        count = write(asked["target"], asked["address"], int(asked["port"]), asked["user"], asked["password"])
    except (ValueError, KeyError, TypeError):
        sys.stderr.write("sanstone-chap: the request is not understood\n")
        return 2
    except OSError as err:
        sys.stderr.write(f"sanstone-chap: {err.filename}: {err.strerror}\n")
        return 1
    if not count:
        sys.stderr.write("sanstone-chap: there is no record of this portal\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())

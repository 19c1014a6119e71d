# SPDX-License-Identifier: Apache-2.0
"""The iSCSI target daemon of tgt: what it has, and changes to it by tgtadm(8).

A refused request ends with exit code 22 and one line; the words are those of tgt 1.0.85. Passwords take
another way, for tgtadm wants them among its arguments, which everybody can see: they are written to the
socket on which tgtadm itself speaks to the daemon.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import ROOT, Completed, Context, run

__all__ = [
    "LUN",
    "Session",
    "Target",
    "accounts",
    "new_account",
    "portals",
    "shown_size",
    "targets",
    "tgtadm",
]

LUN = 1

_SECONDS = 30.0
_NOT_RUNNING = 107

# struct tgtadm_req: mode, op, lld, len, tid, sid, lun, cid, host_no, device_type, ac_dir, pack, force
_REQUEST = struct.Struct("=II64sIiQQIIIIII")
_ANSWER = struct.Struct("=II")
_MODE_ACCOUNT, _OP_NEW = 7, 0
_USER_EXISTS = 14
_SOCKET = "/run/tgtd/socket.0"


class Session(NamedTuple):
    """An initiator that is logged in, with the numbers of its connections."""

    number: int
    initiator: str
    connections: tuple[int, ...]


class Target(NamedTuple):
    """One target as the daemon shows it; of its LUNs only the one that we make."""

    tid: int
    iqn: str
    state: str
    path: str
    scsi_id: str
    size: str
    sessions: tuple[Session, ...]
    accounts: tuple[str, ...]
    rules: tuple[str, ...]

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def has_lun(self) -> bool:
        return bool(self.path)


def targets(context: Context) -> dict[str, Target]:
    """Ask for all targets, by name.

    Raises NodeError: ArrayError when the daemon does not run.
    """
    shown = tgtadm(context, "show", "target").stdout.replace("\0", "")
    return {target.iqn: target for target in _read(shown)}


def _read(shown: str) -> Iterator[Target]:
    for block in re.split(r"^(?=Target \d+: )", shown, flags=re.MULTILINE):
        head = re.match(r"Target (\d+): (\S+)", block)
        if head is None:
            continue
        parts = _sections(block)
        lun = _lun(parts.get("LUN information", []))
        state = next((each for each in map(_state, parts.get("System information", [])) if each), "")
        yield Target(
            int(head[1]),
            head[2],
            state,
            lun.get("Backing store path", "").removesuffix("None"),
            lun.get("SCSI ID", ""),
            lun.get("Size", "").partition(",")[0],
            tuple(_sessions(parts.get("I_T nexus information", []))),
            tuple(line for line in parts.get("Account information", []) if not line.endswith(" (outgoing)")),
            tuple(parts.get("ACL information", [])),
        )


def _sections(block: str) -> dict[str, list[str]]:
    """Take a target apart by its headings, which stand four blanks in."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in block.splitlines()[1:]:
        heading = re.fullmatch(r" {4}(\S.*):\s*", line)
        if heading:
            lines = found.setdefault(heading[1], [])
        elif line.strip():
            lines.append(line.strip())
    return found


def _state(line: str) -> str:
    return line.removeprefix("State: ") if line.startswith("State: ") else ""


def _lun(lines: Sequence[str]) -> dict[str, str]:
    """Read what is said of our LUN; empty when it is not there."""
    found: dict[str, str] = {}
    current = None
    for line in lines:
        key, _, value = line.partition(": ")
        if key == "LUN":
            current = int(value)
        elif current == LUN:
            found[key] = value.strip()
    return found


def _sessions(lines: Sequence[str]) -> Iterator[Session]:
    text = "\n".join(lines)
    for block in re.split(r"^(?=I_T nexus: )", text, flags=re.MULTILINE):
        head = re.match(r"I_T nexus: (\d+)", block)
        if head:
            initiator = re.search(r"^Initiator: (\S+)", block, re.MULTILINE)
            connections = re.findall(r"^Connection: (\d+)", block, re.MULTILINE)
            yield Session(int(head[1]), initiator[1] if initiator else "", tuple(map(int, connections)))


def portals(context: Context) -> list[str]:
    """Ask for the addresses at which the daemon listens, as ``address:port``."""
    shown = tgtadm(context, "show", "portal").stdout
    return re.findall(r"^Portal: (\S+),\d+\s*$", shown, re.MULTILINE)


def accounts(context: Context) -> list[str]:
    """Ask for the names of all accounts."""
    return [line.strip() for line in tgtadm(context, "show", "account").stdout.splitlines()[1:]]


def tgtadm(
    context: Context,
    op: str,
    mode: str,
    *options: str,
    tid: int | None = None,
    what: str = "",
    accepts: str = "",
) -> Completed:
    """Run one tgtadm command; ``accepts`` is a refusal, as a pattern, that is as good as success.

    Raises NodeError: ArrayError.
    """
    words = ["tgtadm", "--lld", "iscsi", "--op", op, "--mode", mode]
    if tid is not None:
        words += ["--tid", str(tid)]
    done = run([*words, *options], context.deadline.within(_SECONDS), ok=None)
    if done.code and not (accepts and re.search(accepts, done.stderr)):
        raise _refused(done, f"{op} {mode}", what)
    return done


def _refused(done: Completed, doing: str, what: str) -> NodeError:
    if done.code == _NOT_RUNNING:
        return NodeError(
            "ArrayError",
            "tgtd does not run on the target host.",
            "Start it there: systemctl start tgt",
            done.words,
        )
    said = done.stderr.strip().removeprefix("tgtadm: ") or f"exit code {done.code}"
    return NodeError("ArrayError", f"{what or 'tgtd'}: tgtadm refused to {doing}: {said}", "", done.words)


def new_account(context: Context, user: str, password: str) -> bool:
    """Make an account without showing the password to anybody; tell whether its name was free."""
    body = f"user={user},password={password}".encode() + b"\0"
    head = _REQUEST.pack(
        _MODE_ACCOUNT, _OP_NEW, b"iscsi", _REQUEST.size + len(body), 0, 0, 0, 0, 0, 0, 0, 0, 0
    )
    speak: Callable[[bytes, Context], bytes] = _speak if os.geteuid() == 0 else _speak_by_socat
    answer = speak(head + body, context)
    if len(answer) < _ANSWER.size:
        raise NodeError(
            "ArrayError", f"tgtd did not answer when account {user} was made.", "See whether it runs."
        )
    code = int(_ANSWER.unpack_from(answer)[0])
    if code not in (0, _USER_EXISTS):
        raise NodeError("ArrayError", f"tgtd refused to make account {user} (error {code}).")
    return code == 0


def _speak(request: bytes, context: Context) -> bytes:
    folder = os.open((ROOT / _SOCKET.lstrip("/")).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(context.deadline.within(_SECONDS).left())
            # The path of a socket may have 107 bytes only
            sock.connect(f"/proc/self/fd/{folder}/{_SOCKET.rpartition('/')[2]}")
            sock.sendall(request)
            answer = b""
            while chunk := sock.recv(4096):
                answer += chunk
            return answer
    finally:
        os.close(folder)


def _speak_by_socat(request: bytes, context: Context) -> bytes:
    answer = bytearray()
    run(
        ["socat", "-t5", "-", f"UNIX-CONNECT:{_SOCKET}"],
        context.deadline.within(_SECONDS),
        stdin=request,
        on_output=answer.extend,
    )
    return bytes(answer)


def shown_size(size: int) -> str:
    """Spell a size as tgtd 1.0.85 does, which is not quite in megabytes."""
    sectors = size // 512
    return f"{(sectors - (sectors // 625 - 974)) // 1950} MB"

# SPDX-License-Identifier: Apache-2.0
"""What tgt reads when it starts: one file per target in /etc/tgt/conf.d, readable by root only.

The names are of one length and one alphabet, so that the rights to write them can name them exactly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sanstone.arrays.iscsi.node.lvm import LogicalVolume, Request, device
from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import ROOT, Context, run

__all__ = ["NOBODY", "content_of", "path_of", "read", "remove", "secrets_in", "write"]

NOBODY = "255.255.255.255"
"""An address that is nobody's. tgt-admin opens a target to ALL unless its file has an initiator-address."""

_FOLDER = "/etc/tgt/conf.d"
_SECONDS = 30.0


def path_of(volume: LogicalVolume) -> str:
    return f"{_FOLDER}/sanstone-{volume.identity}.conf"


def content_of(request: Request, volume: LogicalVolume, accounts: Mapping[str, str], parameters: str) -> str:
    """Write a target as tgt-admin reads it; its commands follow the alphabet, so that rules come last.

    ``allow-in-use``: without it tgt-admin leaves out a volume that something has open, without a word.
    """
    lines = [
        "# Made by Sanstone from the tags of the logical volume; changes are lost.",
        f"<target {request.iqn(volume.lv)}>",
        "    allow-in-use yes",
        f"    <backing-store {device(request.group, volume.lv)}>",
        "        lun 1",
        f"        params {parameters}",
        "    </backing-store>",
        f"    initiator-address {NOBODY}",
        *(f"    initiator-name {initiator}" for initiator in sorted(volume.hosts.values())),
        *(f"    incominguser {user} {secret}" for user, secret in accounts.items()),
        "</target>",
    ]
    return "\n".join(lines) + "\n"


def secrets_in(content: str) -> dict[str, str]:
    """Read the accounts of a file, in its order."""
    return dict(re.findall(r"^\s*incominguser (\S+) (\S+)\s*$", content, re.MULTILINE))


def read(path: str, context: Context) -> str:
    """Read a file, empty when there is none."""
    done = run(["cat", _here(path)], context.deadline.within(_SECONDS), ok=None)
    if done.code and "No such file" not in done.stderr:
        raise NodeError("ArrayError", f"{path} cannot be read.", "", done.stderr)
    return done.stdout if not done.code else ""


def write(path: str, content: str, context: Context) -> None:
    """Let a file have this content, at once or not at all, also after a power cut."""
    temporary = path.removesuffix(".conf") + ".new"
    deadline = context.deadline.within(_SECONDS)
    run(["install", "-m", "0600", "-T", "/dev/null", _here(temporary)], deadline)
    run(["tee", _here(temporary)], deadline, stdin=content.encode(), on_output=lambda _: None)
    run(["mv", "-f", "-T", _here(temporary), _here(path)], deadline)
    run(["sync", "-f", _here(_FOLDER)], deadline, ok=None)


def remove(path: str, context: Context) -> None:
    run(["rm", "-f", _here(path)], context.deadline.within(_SECONDS))


def _here(path: str) -> str:
    return str(ROOT / path.lstrip("/"))

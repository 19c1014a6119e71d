# SPDX-License-Identifier: Apache-2.0
"""What a target must know of this host: its initiator's name, and whether it can prove who it is."""

from __future__ import annotations

import os

from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import ROOT, Context, Json, run

from . import chap

__all__ = ["read_initiator"]

_FILE = "etc/iscsi/initiatorname.iscsi"
_LIMIT = 20.0


def read_initiator(request: Json, context: Context) -> Json:
    """Read the initiator's name; ``takes_secrets``: CHAP secrets can be written here.

    Raises NodeError: HostError when open-iscsi has no name.
    """
    deadline = context.deadline.within(_LIMIT)
    path = ROOT / _FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ""
    except PermissionError:
        text = run(["cat", f"/{_FILE}"], deadline).stdout
    for line in text.splitlines():
        name, mark, value = line.strip().partition("=")
        if mark and name.strip() == "InitiatorName" and value.strip():
            return {"name": value.strip(), "takes_secrets": _takes_secrets(context)}
    raise NodeError(
        "HostError",
        f"There is no initiator name in /{_FILE}.",
        "Install open-iscsi there, and let InitiatorName=iqn... stand in that file.",
    )


def _takes_secrets(context: Context) -> bool:
    if os.geteuid() == 0:
        return chap.is_usable()
    try:
        return run(["sudo", "-n", "-l", "sanstone-chap"], context.deadline.within(_LIMIT), ok=None).code == 0
    except NodeError:
        return False

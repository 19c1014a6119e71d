# SPDX-License-Identifier: Apache-2.0
"""From a request to the function that carries it out."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from sanstone.actions.site import Site
from sanstone.errors import NotSupportedError
from sanstone.opennebula import messages

__all__ = ["perform"]

_ACTIONS: dict[type, tuple[str, str]] = {
    messages.Stat: ("datastore", "stat"),
    messages.Cp: ("datastore", "cp"),
    messages.Mkfs: ("datastore", "mkfs"),
    messages.CloneImage: ("datastore", "clone"),
    messages.Rm: ("datastore", "rm"),
    messages.MonitorDatastore: ("datastore", "monitor"),
    messages.Ln: ("tm", "ln"),
    messages.Clone: ("tm", "clone"),
    messages.Move: ("tm", "mv"),
    messages.MoveToDatastore: ("tm", "mvds"),
    messages.CopyToDatastore: ("tm", "cpds"),
    messages.Delete: ("tm", "delete"),
    messages.MakeImage: ("tm", "mkimage"),
    messages.MakeSwap: ("tm", "mkswap"),
    messages.Context: ("tm", "context"),
    messages.MonitorSystem: ("tm", "monitor"),
    messages.Prebackup: ("backups", "prebackup"),
    messages.Postbackup: ("backups", "postbackup"),
    messages.Restore: ("restores", "restore"),
    messages.Export: ("exports", "export"),
    messages.Resize: ("resizing", "resize"),
    messages.Premigrate: ("migration", "premigrate"),
    messages.Postmigrate: ("migration", "postmigrate"),
    messages.Failmigrate: ("migration", "failmigrate"),
    messages.SnapshotCreate: ("snapshots", "create"),
    messages.SnapshotCreateLive: ("snapshots", "create"),
    messages.SnapshotDelete: ("snapshots", "delete"),
    messages.SnapshotRevert: ("snapshots", "revert"),
    messages.SnapshotFlatten: ("snapshots", "flatten"),
    messages.ImageSnapshotDelete: ("snapshots", "image_delete"),
    messages.ImageSnapshotRevert: ("snapshots", "image_revert"),
    messages.ImageSnapshotFlatten: ("snapshots", "image_flatten"),
}
"""Module and function: a driver process loads what its own action needs, for it is one of thousands."""


def perform(request: messages.Request, site: Site) -> str:
    """Carry out a request; return what oned reads from standard output.

    Raises: any SanstoneError; NotSupportedError for an action that is not there yet.
    """
    if type(request) not in _ACTIONS:
        name = type(request).__name__
        raise NotSupportedError(
            f"{name} is not supported yet.",
            "It comes with a later version; see the status table in README.md.",
        )
    module, function = _ACTIONS[type(request)]
    action: Callable[[Any, Site], str] = getattr(
        importlib.import_module(f"sanstone.actions.{module}"), function
    )
    return action(request, site)

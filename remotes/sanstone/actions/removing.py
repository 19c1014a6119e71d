# SPDX-License-Identifier: Apache-2.0
"""Delete volumes that have snapshots, and snapshots."""

from __future__ import annotations

import logging

from sanstone.actions import volumes
from sanstone.actions.site import Site
from sanstone.arrays import Array
from sanstone.errors import BusyError, ConflictError
from sanstone.model import Volume
from sanstone.settings import Settings

__all__ = ["delete_snapshot", "delete_with_snapshots", "is_ours"]

log = logging.getLogger(__name__)


def delete_with_snapshots(
    site: Site,
    settings: Settings,
    array: Array,
    name: str,
    *,
    host: str | None = None,
    wwid: str | None = None,
) -> None:
    """Delete a volume as ``volumes.delete`` does, its snapshots first.

    While a copy still reads from a snapshot, both deletions are put off, not failed; the volume is off
    ``host`` all the same.
    """
    for entry in site.ledger.snapshots(array.name, name):
        with site.volume(array, entry.name):
            volumes.end_visit(site, settings, array, entry.name)
        delete_snapshot(site, array, name, entry.name)
    try:
        volumes.delete(site, settings, array, name, host=host, wwid=wwid)
    except ConflictError:
        left = array.snapshots(name)
        if not left:
            raise
        for each in left:
            delete_snapshot(site, array, name, each.name)
        try:
            volumes.delete(site, settings, array, name, host=host, wwid=wwid)
        except ConflictError as err:
            _put_off(site, array, name, wwid, err)


def _put_off(site: Site, array: Array, name: str, wwid: str | None, reason: ConflictError) -> None:
    """Doom a volume that nothing but doomed snapshots keep; otherwise raise ``reason``."""
    left = array.snapshots(name)
    entries = [site.ledger.find(array.name, each.name) for each in left]
    (volume,) = array.find(name)
    if (
        volume is None
        or (wwid is not None and volume.wwid != wwid)
        or not left
        or not all(entry is not None and entry.is_doomed for entry in entries)
    ):
        raise reason
    site.ledger.doom(array.name, name, volume.wwid)
    log.warning(
        "%s is deleted when %s can be: the datastore's monitoring sees to it",
        name, ", ".join(each.name for each in left),
    )  # fmt: skip


def delete_snapshot(site: Site, array: Array, name: str, snapshot: str) -> None:
    """Delete a snapshot of volume ``name``; while a copy reads from it, that is put off."""
    with site.volume(array, snapshot):
        entry = site.ledger.find(array.name, snapshot)
        wwid = entry.wwid if entry else None
        if wwid is None:
            (found,) = array.find(snapshot)
            if found is None:
                site.ledger.forget(array.name, snapshot)
                return
            if not is_ours(site, array, name, found):
                log.warning("%s on %s is left alone: it is not known to be ours", snapshot, array.name)
                return
            wwid = found.wwid
        # An array that refuses half-way may have let go of its contents: nothing goes back to it any more.
        site.ledger.doom(array.name, snapshot, wwid)
        try:
            is_gone = array.delete(snapshot, wait=0.0, wwid=wwid)
        except BusyError as busy:
            log.warning("%s It will be deleted when the datastore is monitored after that.", busy.message)
            return
        if not is_gone:
            log.warning("%s on %s is left alone: it is another volume by now", snapshot, array.name)
        site.ledger.forget(array.name, snapshot)


def is_ours(site: Site, array: Array, name: str, snapshot: Volume) -> bool:
    """Tell whether a volume is the snapshot of ``name`` that we made.

    Where the ledger knows neither of the two it was lost, and the names are all there is.
    """
    entry = site.ledger.find(array.name, snapshot.name)
    if entry is not None:
        return entry.covers(snapshot.wwid)
    return site.ledger.find(array.name, name) is None

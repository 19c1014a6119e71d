# SPDX-License-Identifier: Apache-2.0
"""Steps that several actions share: make a volume that is ours, bring it to a host, take it away."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from sanstone.actions.site import Site
from sanstone.arrays import Array, NewVolume
from sanstone.errors import BusyError, ConflictError, ConnectError, SanstoneError, UnreachableError
from sanstone.hosts.ops import Attach, Attached, Detach, Operation, Result
from sanstone.model import Connection, Device, Volume
from sanstone.settings import Settings

__all__ = ["Made", "OnHost", "attach", "attached", "complete", "delete", "detach", "make", "sweep"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """Where a volume of ours is; ``is_complete`` when an earlier run had finished it."""

    volume: Volume
    connection: Connection | None
    is_complete: bool


def make(site: Site, array: Array, new: NewVolume, *, host: str | None = None) -> Made:
    """Make a volume (mapped to ``host`` if given), written down in the ledger as ours.

    Raises: ConflictError when somebody else's volume bears the name.
    """
    entry = site.ledger.find(array.name, new.name)
    if entry is not None and entry.is_ready and not entry.is_doomed:
        (volume,) = array.find(new.name)
        if volume is not None and entry.covers(volume.wwid):
            return Made(volume, array.map(new.name, host) if host else None, is_complete=True)

    def claim(found: Volume | None) -> None:
        nonlocal entry
        if found is None:
            entry = site.ledger.begin(array.name, new.name)
        elif entry is None or not entry.covers(found.wwid):
            raise ConflictError(
                f"{array.name} has a volume {new.name} already that this front-end did not make.",
                "Rename it there, or delete it if nobody needs it, then run the action again.",
            )

    placement = array.create(new, claim=claim, host=host)
    assert entry is not None
    site.ledger.made(entry, placement.volume.wwid)
    return Made(placement.volume, placement.connection, is_complete=False)


def complete(site: Site, array: Array, name: str) -> None:
    """Write down that the contents of a volume of ours are complete."""
    entry = site.ledger.find(array.name, name)
    if entry is not None:
        site.ledger.ready(entry)


def attach(
    site: Site, settings: Settings, connection: Connection, host: str, *, link: str | None = None
) -> Device:
    """Attach a mapped volume to a host and link a disk to it; the certificate goes to the log."""
    (result,) = site.host(host).run(
        [attach_operation(site, settings, connection, host, link)],
        deadline=settings.seconds("ATTACH_TIMEOUT"),
    )
    assert isinstance(result, Attached)
    return certify(connection, host, result)


def attach_operation(
    site: Site, settings: Settings, connection: Connection, host: str, link: str | None = None
) -> Attach:
    quiet = settings.words("NO_ISCSI")
    return Attach(connection, link, log_in=host not in quiet and host.split(".", 1)[0] not in quiet)


def certify(connection: Connection, host: str, result: Attached) -> Device:
    """Log what was checked, and loudly when a path is missing."""
    device = result.device
    found = ", ".join(f"{path.name} ({path.portal})" for path in device.paths)
    log.info(
        "%s is %s on %s: WWID %s, %d bytes, paths %s",
        connection.volume, device.path, host, device.wwid, device.size, found,
    )  # fmt: skip
    if device.is_degraded:
        log.warning(
            "%s has %d of %d paths on %s: see its iSCSI sessions and the array's ports",
            connection.volume, len(device.paths), device.expected_paths, host,
        )  # fmt: skip
    return device


def detach(
    site: Site, settings: Settings, array: Array, name: str, wwid: str, host: str, *, link: str | None = None
) -> None:
    """Take a volume off a host: the device first, only then its mapping.

    A host that cannot be reached loses the mapping all the same: whatever still runs there can no longer
    write, so that the volume may be used elsewhere. Its dead paths are purged when it is back.
    """
    try:
        site.host(host).run([Detach(wwid, link)], deadline=settings.seconds("ATTACH_TIMEOUT"))
    except ConnectError as err:
        log.warning("%s is unmapped from %s without the host's consent: %s", name, host, err)
    array.unmap(name, host)


@contextmanager
def attached(
    site: Site, settings: Settings, array: Array, connection: Connection, host: str
) -> Iterator[OnHost]:
    """Have a mapped volume on a host for a while.

    At the end, whatever happened, the host lets go of it first and only then the array; what cannot be
    undone then is said loudly and does not hide the failure that came before.
    """
    on_host = OnHost(site, settings, connection, host)
    try:
        yield on_host
    except SanstoneError:
        try:
            if on_host.was_reached:
                on_host.leave()
            array.unmap(connection.volume, host)
        except SanstoneError as left:
            log.error("%s stays mapped to %s: %s", connection.volume, host, left)
        raise
    on_host.leave()
    array.unmap(connection.volume, host)


class OnHost:
    """Operations around one attached volume: one round trip where one is enough."""

    def __init__(self, site: Site, settings: Settings, connection: Connection, host: str) -> None:
        self._attach = attach_operation(site, settings, connection, host)
        self._detach = Detach(connection.wwid)
        self._host = site.host(host)
        self._settings = settings
        self._at_the_end: list[Operation] = []
        self._has_left = False
        self.was_reached = True

    def at_the_end(self, *operations: Operation) -> None:
        """Add operations that follow the detaching, also after a failure."""
        self._at_the_end += operations

    def bring(self) -> None:
        """Attach the volume and leave it attached."""
        (result,) = self._run([self._attach], self._settings.seconds("ATTACH_TIMEOUT"))
        assert isinstance(result, Attached)
        certify(self._attach.connection, self._host.name, result)

    def run(self, before: Sequence[Operation], work: Operation, *, upload: BinaryIO | None = None) -> Result:
        """Run ``before``, attach, do ``work``, detach and end in one round trip; return what ``work`` did."""
        results = self._run(
            [*before, self._attach, work, self._detach, *self._at_the_end],
            self._settings.seconds("COPY_TIMEOUT"),
            upload,
        )
        self._has_left = True
        first = results[len(before)]
        assert isinstance(first, Attached)
        certify(self._attach.connection, self._host.name, first)
        return results[len(before) + 1]

    def _run(
        self, operations: Sequence[Operation], deadline: float, upload: BinaryIO | None = None
    ) -> list[Result]:
        try:
            return self._host.run(operations, deadline=deadline, progress=_say, upload=upload)
        except UnreachableError:
            self.was_reached = False
            raise

    def leave(self) -> None:
        if not self._has_left:
            self._host.run(
                [self._detach, *self._at_the_end], deadline=self._settings.seconds("ATTACH_TIMEOUT")
            )
            self._has_left = True


def _say(progress: str) -> None:
    log.info("%s", progress)


def delete(site: Site, settings: Settings, array: Array, name: str) -> None:
    """Delete a volume of ours; while a copy still reads from it, its deletion is put off, not failed."""
    try:
        array.delete(name, wait=settings.seconds("DELETE_WAIT"))
    except BusyError as busy:
        (volume,) = array.find(name)
        if volume is None:
            raise
        site.ledger.doom(array.name, name, volume.wwid)
        log.warning("%s It will be deleted when the datastore is monitored after that.", busy.message)
        return
    site.ledger.forget(array.name, name)


def sweep(site: Site, array: Array) -> None:
    """Delete what could not be deleted before."""
    for entry in site.ledger.doomed(array.name):
        with site.volume(array, entry.name):
            try:
                (volume,) = array.find(entry.name)
                if volume is not None and entry.covers(volume.wwid):
                    array.delete(entry.name, wait=0.0)
                    log.info("%s is deleted now", entry.name)
                site.ledger.forget(array.name, entry.name)
            except BusyError as busy:
                log.info("%s", busy.message)

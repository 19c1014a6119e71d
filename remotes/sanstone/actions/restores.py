# SPDX-License-Identifier: Apache-2.0
"""Disks put back from a backup, in place: the VM keeps its disks, which get the bytes of then.

The backup driver of OpenNebula says where they are (``ls``), and its downloader brings them: docs/backups.md.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sanstone.actions import imports, volumes
from sanstone.actions.backups import end_chain
from sanstone.actions.disks import disk_of, disk_volume, existing_name, is_system, is_volatile_block
from sanstone.actions.removing import delete_snapshot
from sanstone.actions.site import Site
from sanstone.arrays import Array
from sanstone.errors import HostError, NotFoundError, RequestError, SanstoneError
from sanstone.hosts.ops import Attached, Convert, PutFile, RemovePath
from sanstone.names import read_name
from sanstone.opennebula.documents import Disk, VmDocument
from sanstone.opennebula.messages import DiskPath, Restore
from sanstone.settings import Settings
from sanstone.store.locks import Place
from sanstone.transport.command import Command, run

__all__ = ["restore"]

log = logging.getLogger(__name__)

_DRIVER = re.compile(r"[A-Za-z0-9_-]+")
_URL = re.compile(r"[a-z][a-z0-9+]*://[!-~]+")
_LIST_SECONDS = 600.0
_FILE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class _Target:
    """A disk to be written: ``name`` is that of its volume, empty for a disk that is a file."""

    disk: Disk
    path: DiskPath
    settings: Settings
    array: Array
    name: str


def restore(request: Restore, site: Site) -> str:
    """Write disks of a VM that is powered off anew from a backup.

    All are fetched before the first is written. What OpenNebula forgets then is deleted: the snapshots of
    disks that are not persistent, and the states from which increments would have gone on.
    """
    vm = site.opennebula.vm(request.vm_id)
    urls = _urls(request, site)
    targets = {target.disk.id: target for target in _targets(request, site, vm)}
    missing = [number for number in urls if number not in targets]
    if missing:
        raise NotFoundError(
            f"VM {vm.id} has no disk {missing[0]} that is a volume.", "Restore the others one by one."
        )
    with _fetched(urls, targets) as images:
        for number, image in images.items():
            _write(site, targets[number], image)
    for target in targets.values():
        _forget(site, target)
    return ""


def _urls(request: Restore, site: Site) -> dict[int, str]:
    """Ask the backup driver where the disks of an increment are; -1 is the newest (``ls -i`` of 7.4.0)."""
    image = site.opennebula.image(request.image_id)
    if image.datastore_id is None:
        raise RequestError(f"Image {request.image_id} is in no datastore.")
    driver = site.opennebula.datastore(image.datastore_id).ds_mad
    if not _DRIVER.fullmatch(driver):
        raise RequestError(f"The backup datastore's driver {driver[:40]!r} is no name of one.")
    documents = (
        site.opennebula.xml("datastore", image.datastore_id),
        site.opennebula.xml("vm", request.vm_id),
        site.opennebula.xml("image", request.image_id),
    )
    action = f"<DS_DRIVER_ACTION_DATA>{''.join(documents)}</DS_DRIVER_ACTION_DATA>"
    program = site.common.path("REMOTES_DIR") / "datastore" / driver / "ls"
    increment = "-1" if request.increment is None else str(request.increment)
    done = run(Command.of([str(program), "-i", increment], deadline=_LIST_SECONDS, stdin=action.encode()))
    try:
        found = {str(key): str(value) for key, value in json.loads(done.text).items()}
    except (ValueError, AttributeError) as err:
        raise HostError(
            f"What the driver {driver} says of the backup cannot be read.", details=done.text
        ) from err
    if found.pop("tpm", None) is not None:
        log.warning("the state of the TPM of VM %d is not restored", request.vm_id)
    wanted = {
        int(key): url for key, url in found.items() if key.isdecimal() and request.disk_id in (None, int(key))
    }
    if not wanted:
        raise NotFoundError(f"Backup {request.image_id} does not hold the disk.", "See: oneimage show")
    strange = [url for url in wanted.values() if not _URL.fullmatch(url) or "+rbd:" in url]
    if strange:
        raise HostError(f"The backup is not one of QCOW2 files: {strange[0][:60]}")
    return wanted


def _targets(request: Restore, site: Site, vm: VmDocument) -> Iterator[_Target]:
    arrays: dict[int, tuple[Settings, Array]] = {}
    for disk in vm.disks:
        if disk.is_cdrom or disk.datastore_id is None:
            continue
        if disk.datastore_id not in arrays:
            datastore = site.opennebula.datastore(disk.datastore_id)
            if is_system(datastore) and not is_volatile_block(datastore):
                continue
            settings = site.settings(datastore)
            arrays[disk.datastore_id] = settings, site.array(settings)
        settings, array = arrays[disk.datastore_id]
        path = DiskPath(request.disk.host, f"{request.disk.path}/disk.{disk.id}")
        assert disk_of(vm, path) is disk
        yield _Target(disk, path, settings, array, existing_name(site, array, disk_volume(vm, disk)))


@contextmanager
def _fetched(urls: dict[int, str], targets: dict[int, _Target]) -> Iterator[dict[int, imports.ImageFile]]:
    """Have the disks of a backup as files on the front-end."""
    images = {}
    with ExitStack() as stack:
        for number, url in urls.items():
            settings = targets[number].settings
            folder = stack.enter_context(imports.scratch_folder(settings.path("STAGING_DIR")))
            images[number] = imports.fetch_backup(url, folder / f"disk.{number}", settings)
        yield images


def _write(site: Site, target: _Target, image: imports.ImageFile) -> None:
    """Write an image over a volume, which stays on its host; its end is zeroed where the image is shorter."""
    settings, array, name, path = target.settings, target.array, target.name, target.path
    host = site.host(path.host)
    with site.volume(array, name):
        (volume,) = array.find(name)
        if volume is None:
            raise NotFoundError(f"Volume {name} is not on {array.name}.", "Was it deleted by hand?")
        if image.size > volume.size:
            volumes.detach(site, settings, array, name, volume.wwid, path.host)
            array.resize(name, image.size)
        connection = array.map(name, path.host)
        attach = volumes.attach_operation(site, settings, connection, path.host, path.path)
        staged = str(settings.path("STAGING_DIR") / f"sanstone-{name}.image")
        site.ledger.locks.note(array.name, name, Place(path.host, path.path, staged))
        put = PutFile(staged, image.path.stat().st_size)
        convert = Convert(staged, connection.wwid, False, image.format)
        array.close()  # a copy takes its time, and a box has few sessions
        try:
            with image.path.open("rb") as upload:
                results = host.run(
                    [put, attach, convert, RemovePath(staged)],
                    deadline=settings.seconds("COPY_TIMEOUT"),
                    upload=upload,
                    progress=lambda said: log.info("%s", said),
                )
        except BaseException:
            try:
                host.run([RemovePath(staged)], deadline=_FILE_SECONDS)
            except SanstoneError as left:
                log.error("%s is still on %s: %s", staged, path.host, left)
            raise
    assert isinstance(results[1], Attached)
    volumes.certify(connection, path.host, results[1])


def _forget(site: Site, target: _Target) -> None:
    """Delete what OpenNebula no longer knows after a restore (trigger_disk_restore_success of 7.4.0)."""
    array, name = target.array, target.name
    with site.volume(array, name):
        end_chain(site, target.settings, array, name)
        if target.disk.is_persistent:
            return
        for entry in site.ledger.snapshots(array.name, name):
            what = read_name(entry.name)
            if what is not None and what.snapshot is not None:
                delete_snapshot(site, array, name, entry.name)

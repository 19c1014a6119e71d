# SPDX-License-Identifier: Apache-2.0
"""From what oned starts a driver with (name, argv, stdin) to a typed request.

The forms are those of 6.10 to 7.4; datastore actions are understood as oned up to 6.6 sent them, too (the
document as first argument). All is checked here, so that actions can trust what they get.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sanstone.errors import NotSupportedError, RequestError
from sanstone.opennebula import request_types as t
from sanstone.opennebula.arguments import DRIVER_NAME, MAX_SOURCE, UNPRINTABLE, Call
from sanstone.opennebula.documents import (
    DatastoreDocument,
    ImageDocument,
    VmDocument,
    read_datastore,
    read_image,
    read_vm,
)
from sanstone.opennebula.markup import Element
from sanstone.opennebula.paths import DiskPath, check_host, check_path
from sanstone.opennebula.request_types import *  # noqa: F403

__all__ = ["DATASTORE_ACTIONS", "TM_ACTIONS", "DiskPath", "parse"]
__all__ += t.__all__

_FORMAT = re.compile(r"[A-Za-z0-9_-]{1,32}")


def parse(kind: str, driver: str, action: str, argv: Sequence[str], stdin: bytes) -> t.Request:
    """Understand one call of oned.

    ``kind`` is ``datastore`` or ``tm``; ``driver`` and ``action`` are the names of the script's directory and
    file, ``argv`` the arguments without the script's name.

    Raises: NotSupportedError for an action that is not known, RequestError for everything else that is wrong.
    """
    if kind not in _KINDS:
        raise RequestError(f"{kind[:40]!r} is no kind of driver; datastore and tm are.")
    if not DRIVER_NAME.fullmatch(driver):
        raise RequestError(f"{driver[:40]!r} is no name of a driver.")
    name, dot, suffix = action.partition(".")
    read = _KINDS[kind].get(name)
    if read is None or (dot and not (kind == "tm" and DRIVER_NAME.fullmatch(suffix))):
        raise NotSupportedError(f"{kind} drivers of this version have no action {action[:60]!r}.")
    return read(Call(kind, driver, action, argv, stdin))


# Datastore actions


def _of_datastore(call: Call) -> tuple[dict[str, Any], Element]:
    """Read what all datastore actions have: the id, DS_DRIVER_ACTION_DATA and in it DATASTORE."""
    call.expect(1, 2)
    old_form = call.word("the document") if len(call.argv) == 2 else None
    request_id = call.number("the request's id")
    document = call.document("DS_DRIVER_ACTION_DATA", text=old_form)
    datastore = read_datastore(document.required("DATASTORE"))
    return {"driver": call.driver, "request_id": request_id, "datastore": datastore}, document


def _of_image(call: Call) -> tuple[dict[str, Any], Element]:
    fields, document = _of_datastore(call)
    image = read_image(document.required("IMAGE"))
    _check_image(call, image)
    return {**fields, "image": image}, document


def _check_image(call: Call, image: ImageDocument) -> None:
    for name, text in (
        ("PATH", image.path),
        ("SOURCE", image.source),
        ("FORMAT", image.format),
        ("FS", image.fs),
    ):
        if UNPRINTABLE.search(text):
            raise RequestError(f"{call.name}: the image's {name} holds a control character.")
        if len(text) > MAX_SOURCE:
            raise RequestError(f"{call.name}: the image's {name} is longer than {MAX_SOURCE} characters.")
    needs_id, needs_path, needs_size, needs_source = _NEEDS.get(call.action, (True, False, False, False))
    if needs_id and image.id is None:
        raise RequestError(f"{call.name}: the image has no ID.")
    if needs_path and not image.path:
        raise RequestError(f"{call.name}: the image has no PATH.")
    if needs_size and not image.size_mib:
        raise RequestError(f"{call.name}: the image has no SIZE.")
    if needs_source and not image.source:
        raise RequestError(f"{call.name}: the image has no SOURCE.")


# Of an image: ID, PATH, SIZE, SOURCE
_NEEDS = {
    "stat": (False, True, False, False),
    "cp": (True, True, True, False),
    "mkfs": (True, False, True, False),
    "clone": (True, True, True, False),
    "rm": (True, False, False, True),
    "snap_delete": (True, False, False, True),
    "snap_revert": (True, False, False, True),
    "snap_flatten": (True, False, False, True),
    "export": (False, False, False, True),
}

_I = TypeVar("_I", t.Stat, t.Cp, t.Mkfs, t.Rm, t.Export)
_S = TypeVar("_S", t.ImageSnapshotDelete, t.ImageSnapshotRevert, t.ImageSnapshotFlatten)


def _image(kind: type[_I]) -> Callable[[Call], _I]:
    return lambda call: kind(**_of_image(call)[0])


def _clone_image(call: Call) -> t.CloneImage:
    fields, document = _of_image(call)
    hosts = tuple(check_host(word) for word in document.text("SOURCE_BRIDGE_LIST").split())
    return t.CloneImage(**fields, source_bridge_list=hosts)


def _image_snapshot(kind: type[_S]) -> Callable[[Call], _S]:
    def read(call: Call) -> _S:
        fields, document = _of_image(call)
        image = document.required("IMAGE")
        return kind(**fields, target_snapshot=image.count("TARGET_SNAPSHOT"))

    return read


def _monitor_datastore(call: Call) -> t.MonitorDatastore:
    return t.MonitorDatastore(**_of_datastore(call)[0])


def _restore_image(call: Call) -> t.RestoreImage:
    fields, document = _of_image(call)
    template = document.child("TEMPLATE")
    return t.RestoreImage(
        **fields,
        destination_datastore_id=document.count("DESTINATION_DS_ID"),
        options=template.attributes() if template else {},
    )


def _increment_flatten(call: Call) -> t.IncrementFlatten:
    fields, document = _of_image(call)
    return t.IncrementFlatten(**fields, keep_last=document.required("EXTRA_DATA").count("KEEP_LAST"))


def _backup(call: Call) -> t.Backup:
    around = _around_backup(call)
    datastore, vm = _backup_documents(call)
    return t.Backup(driver=call.driver, datastore=datastore, vm=vm, **around)


def _backup_documents(call: Call) -> tuple[DatastoreDocument, VmDocument | None]:
    document = call.document("DS_DRIVER_ACTION_DATA", "DATASTORE")
    if document.tag == "DATASTORE":
        return read_datastore(document), None
    return read_datastore(document.required("DATASTORE")), read_vm(document.required("VM"))


def _backup_cancel(call: Call) -> t.BackupCancel:
    call.expect(2)
    disk, deploy_id = call.place("the VM's directory"), call.word("the deploy id")
    vm = call.vm() if call.stdin.strip() else None
    return t.BackupCancel(driver=call.driver, disk=disk, deploy_id=deploy_id, vm=vm)


# Transfer actions

_F = TypeVar("_F", t.Clone, t.Ln)
_P = TypeVar(
    "_P", t.SnapshotCreate, t.SnapshotCreateLive, t.SnapshotDelete, t.SnapshotFlatten, t.SnapshotRevert
)
_M = TypeVar("_M", t.Premigrate, t.Postmigrate, t.Failmigrate)
_B = TypeVar("_B", t.Prebackup, t.Postbackup)


def _disk(call: Call) -> DiskPath:
    """Take the path of one disk, never that of a directory."""
    disk = call.place("the disk")
    if disk.disk_id is None:
        raise RequestError(f"{call.name}: {disk.path} is no disk's path.")
    return disk


def _from_source(kind: type[_F]) -> Callable[[Call], _F]:
    def read(call: Call) -> _F:
        call.expect(4)
        source = call.source()
        return kind(source=source, **call.transfer(disk=_disk(call)))

    return read


def _make_image(call: Call) -> t.MakeImage:
    call.expect(5)
    size, form = call.number("the size", least=1), call.word("the format")
    if not _FORMAT.fullmatch(form):
        raise RequestError(f"{call.name}: {form[:40]!r} is no format.")
    return t.MakeImage(size_mib=size, format=form, **call.transfer(disk=_disk(call)))


def _make_swap(call: Call) -> t.MakeSwap:
    call.expect(4)
    size = call.number("the size", least=1)
    return t.MakeSwap(size_mib=size, **call.transfer(disk=_disk(call)))


def _context(call: Call) -> t.Context:
    if len(call.argv) < 4:
        raise RequestError(f"{call.name} takes 4 arguments or more, not {len(call.argv)}.")
    files = tuple(call.word("a file") for _ in call.argv[:-3])
    return t.Context(files=files, **call.transfer(disk=_disk(call)))


def _move(call: Call) -> t.Move:
    call.expect(4)
    source, target = call.place("the origin"), call.place("the target")
    if source.disk_id != target.disk_id:
        raise RequestError(f"{call.name}: {source.path} and {target.path} are not the same disk.")
    return t.Move(**call.transfer(source=source, target=target))


def _move_to_datastore(call: Call) -> t.MoveToDatastore:
    call.expect(4)
    disk, source = _disk(call), call.source()
    return t.MoveToDatastore(source=source, **call.transfer(disk=disk))


def _delete(call: Call) -> t.Delete:
    call.expect(3)
    disk = call.place("the disk")
    if disk.vm_id is None:
        raise RequestError(f"{call.name}: {disk.path} is neither a disk's path nor a VM's directory.")
    return t.Delete(**call.transfer(disk=disk))


def _copy_to_datastore(call: Call) -> t.CopyToDatastore:
    call.expect(5)
    disk, source, snapshot = _disk(call), call.source(), call.number_or_none("the snapshot's id")
    return t.CopyToDatastore(source=source, snapshot_id=snapshot, **call.transfer(disk=disk))


def _snapshot(kind: type[_P]) -> Callable[[Call], _P]:
    def read(call: Call) -> _P:
        call.expect(4)
        disk, snapshot = _disk(call), call.number("the snapshot's id")
        return kind(snapshot_id=snapshot, **call.transfer(disk=disk))

    return read


def _resize(call: Call) -> t.Resize:
    call.expect(4)
    disk, size = _disk(call), call.number("the size", least=1)
    return t.Resize(size_mib=size, **call.transfer(disk=disk))


def _migrate(kind: type[_M]) -> Callable[[Call], _M]:
    def read(call: Call) -> _M:
        call.expect(5, 6)
        source, target = check_host(call.word("the source host")), check_host(call.word("the target host"))
        directory = check_path(call.word("the VM's directory"))
        ends = call.transfer()
        called_by = call.word("the caller's name") if len(call.argv) == 6 else None
        if called_by is not None and not DRIVER_NAME.fullmatch(called_by):
            raise RequestError(f"{call.name}: {called_by[:40]!r} is no name of a driver.")
        call.hold(ends["vm_id"], DiskPath(target, directory))
        vm = _same_vm(call, ends["vm_id"])
        return kind(
            source_host=source,
            target_host=target,
            directory=directory,
            vm=vm,
            called_by=called_by,
            document=call.stdin,
            **ends,
        )

    return read


def _same_vm(call: Call, vm_id: int) -> VmDocument:
    vm = call.vm()
    if vm.id != vm_id:
        raise RequestError(f"{call.name}: the document is that of VM {vm.id}, not of VM {vm_id}.")
    return vm


def _around_backup(call: Call) -> dict[str, Any]:
    call.expect(6)
    disk, disk_ids = call.place("the VM's directory"), call.numbers("the disks' ids")
    deploy_id, job_id = call.word("the deploy id"), call.number_or_none("the backup job's id", none="-")
    vm_id, datastore_id = call.number("the VM's id"), call.number("the datastore's id")
    call.hold(vm_id, disk)
    return {
        "disk": disk,
        "disk_ids": disk_ids,
        "deploy_id": deploy_id,
        "job_id": job_id,
        "vm_id": vm_id,
        "datastore_id": datastore_id,
    }


def _around(kind: type[_B], is_live: bool) -> Callable[[Call], _B]:
    def read(call: Call) -> _B:
        fields = _around_backup(call)
        document = call.stdin.decode("utf-8", "replace").strip()
        vm = _same_vm(call, fields["vm_id"])
        return kind(**call.common(), is_live=is_live, vm=vm, document=document, **fields)

    return read


def _restore(call: Call) -> t.Restore:
    call.expect(5)
    disk, vm_id = call.place("the VM's directory"), call.number("the VM's id")
    call.hold(vm_id, disk)
    return t.Restore(
        disk=disk,
        vm_id=vm_id,
        image_id=call.number("the backup's id"),
        increment=call.number_or_none("the increment"),
        disk_id=call.number_or_none("the disk's id"),
        **call.common(),
    )


def _monitor_system(call: Call) -> t.MonitorSystem:
    fields, document = _of_datastore(call)
    location = document.text("DATASTORE_LOCATION").strip()
    return t.MonitorSystem(
        **fields,
        location=check_path(location) if location else "",
        monitor_vm_disks=document.flag("MONITOR_VM_DISKS") is True,
    )


_DATASTORE: dict[str, Callable[[Call], t.DatastoreRequest]] = {
    "backup": _backup,
    "backup_cancel": _backup_cancel,
    "clone": _clone_image,
    "cp": _image(t.Cp),
    "export": _image(t.Export),
    "increment_flatten": _increment_flatten,
    "mkfs": _image(t.Mkfs),
    "monitor": _monitor_datastore,
    "restore": _restore_image,
    "rm": _image(t.Rm),
    "snap_delete": _image_snapshot(t.ImageSnapshotDelete),
    "snap_flatten": _image_snapshot(t.ImageSnapshotFlatten),
    "snap_revert": _image_snapshot(t.ImageSnapshotRevert),
    "stat": _image(t.Stat),
}
_TM: dict[str, Callable[[Call], t.TransferRequest]] = {
    "clone": _from_source(t.Clone),
    "context": _context,
    "cpds": _copy_to_datastore,
    "delete": _delete,
    "failmigrate": _migrate(t.Failmigrate),
    "ln": _from_source(t.Ln),
    "mkimage": _make_image,
    "mkswap": _make_swap,
    "monitor": _monitor_system,
    "mv": _move,
    "mvds": _move_to_datastore,
    "postbackup": _around(t.Postbackup, is_live=False),
    "postbackup_live": _around(t.Postbackup, is_live=True),
    "postmigrate": _migrate(t.Postmigrate),
    "prebackup": _around(t.Prebackup, is_live=False),
    "prebackup_live": _around(t.Prebackup, is_live=True),
    "premigrate": _migrate(t.Premigrate),
    "resize": _resize,
    "restore": _restore,
    "snap_create": _snapshot(t.SnapshotCreate),
    "snap_create_live": _snapshot(t.SnapshotCreateLive),
    "snap_delete": _snapshot(t.SnapshotDelete),
    "snap_flatten": _snapshot(t.SnapshotFlatten),
    "snap_revert": _snapshot(t.SnapshotRevert),
}
_KINDS: dict[str, Mapping[str, Callable[[Call], t.Request]]] = {"datastore": _DATASTORE, "tm": _TM}

# The actions that oned calls by these names: each is a link in the driver's directory. With a suffix
# (clone.ssh) oned falls back to the link without one.
DATASTORE_ACTIONS = tuple(sorted(_DATASTORE))
TM_ACTIONS = tuple(sorted(_TM))

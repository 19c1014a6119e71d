# SPDX-License-Identifier: Apache-2.0
"""Scenarios of actions that make files of volumes, or volumes of files: backups, restore, export.

A snapshot of a disk that is flattened is here too: nothing in OpenNebula asks for it, as for an export.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from lab.killing.scenarios import STATES, Follow, Scenario, Setup, nothing, running, with_snapshot
from lab.killing.world import StuckError, World
from lab.oned.drivers import Answer
from lab.oned.model import Vm

__all__ = ["SCENARIOS"]

_DISKS = ("BASE", "OWN")


# backups


def _configured(mode: str, *, backups: int = 0, then: str = "") -> Setup:
    """Have a VM with two disks whose backups are of this mode, after some of them; other bytes since."""

    def setup(world: World) -> int:
        vm = running(*_DISKS)(world)
        world.call("vm.updateconf", vm, f'BACKUP_CONFIG=[MODE="{mode}",FS_FREEZE="NONE"]', 1)
        for _ in range(backups):
            _backed_up(world, vm)
            for disk in range(len(_DISKS)):
                world.write(vm, disk, world.pattern())
        if then:
            world.act(vm, f"{then}-hard")
            world.expect(vm, STATES[then])
        return vm

    return setup


def _back_up(world: World, vm: int) -> None:
    world.call("vm.backup", vm, world.backups, False)


def _backed_up(world: World, vm: int) -> None:
    """Back up once more, and see that what is stored is what the disks hold."""
    disks = world.oned.core.vms[vm].disks
    before = [world.backup_files(vm, disk) for disk in range(len(disks))]
    _back_up(world, vm)
    for disk, vector in enumerate(disks):
        files = world.backup_files(vm, disk)
        if not files or files == before[disk]:
            raise StuckError(f"no backup of VM {vm} was stored: {world.complaints()}")
        name = str(world.volume_of(world.oned.core.vms[vm], vector))
        known = world.contents[name]
        if world.merged(files)[: len(known)] != known:
            world.guests.wrong.append(f"the backup of {name} does not hold what the disk held")


def _restored_from(vm: Vm) -> int:
    return vm.backups.ids[-1]


def _with_backup(world: World) -> int:
    """Have a VM that is off, whose disks have other bytes than their backup."""
    vm = _configured("FULL")(world)
    found = world.oned.core.vms[vm]
    names = [str(world.volume_of(found, disk)) for disk in found.disks]
    stored = [world.contents[name] for name in names]
    _backed_up(world, vm)
    for disk in range(len(names)):
        world.write(vm, disk, world.pattern())
    world.act(vm, "poweroff-hard")
    world.expect(vm, "POWEROFF")
    world.stored[vm] = dict(zip(names, stored, strict=True))
    return vm


def _restore(world: World, vm: int) -> None:
    for name in world.stored[vm]:
        world.contents.pop(name, None)  # either of the two until it is done
    world.call("vm.restore", vm, _restored_from(world.oned.core.vms[vm]), -1, -1)


def _restored(world: World, vm: int) -> None:
    calls = len(world.oned.calls)
    _restore(world, vm)
    if any(call.rc for call in world.oned.calls[calls:]):
        raise StuckError(f"VM {vm} was not restored: {world.complaints()}")
    world.contents.update(world.stored[vm])


def _terminated(world: World, vm: int) -> None:
    world.act(vm, "terminate-hard")
    world.expect(vm, "DONE")


def _backup_scenarios() -> list[Scenario]:
    follow: dict[str, Follow] = {"again": _backed_up, "delete": _terminated}
    found = []
    for mode, count in (("FULL", 0), ("INCREMENT", 1)):
        title = "full" if mode == "FULL" else "increment"
        live = _configured(mode, backups=count)
        off = _configured(mode, backups=count, then="poweroff")
        found += [
            Scenario("tm/prebackup_live", title, live, _back_up, {**follow, "sweep": nothing}),
            Scenario("tm/postbackup_live", title, live, _back_up, follow),
            Scenario("tm/prebackup", title, off, _back_up, follow),
            Scenario("tm/postbackup", title, off, _back_up, follow),
        ]
    restored: dict[str, Follow] = {"again": _restored, "sweep": nothing, "delete": _terminated}
    found.append(Scenario("tm/restore", "of two disks", _with_backup, _restore, restored))
    return found


# what nothing in OpenNebula's core asks for


def _export(world: World, image: int) -> Answer:
    """Ask as a marketplace's driver does."""
    documents = world.call("image.info", image) + world.call("datastore.info", world.san)
    action = f"<DS_DRIVER_ACTION_DATA>{documents}</DS_DRIVER_ACTION_DATA>"
    return world.oned.core.drivers.run(
        "datastore", world.system_name, "export", (str(image),), action, "base64"
    )


def _exported(world: World, image: int) -> None:
    """Export, see that the file is the image, and remove it as the marketplace's driver does."""
    answer = _export(world, image)
    if answer.rc:
        raise StuckError(f"image {image} was not exported: {answer.stderr}")
    source = ElementTree.fromstring(answer.stdout).findtext("IMPORT_SOURCE", "")
    file = Path("/" + source.removeprefix("ssh://").partition("/")[2])
    known = world.contents[f"one-{image}"]
    if world.merged([file])[: len(known)] != known:
        world.guests.wrong.append(f"the export of image {image} does not hold what the image holds")
    file.unlink()


def _export_once(world: World, image: int) -> None:
    if not _export(world, image).rc:
        for path in (world.cloud / "staging").glob("sanstone-export-*"):
            path.unlink()


def _flatten(world: World, vm: int) -> int:
    found = world.oned.core.vms[vm]
    name = world.volume_of(found, found.disks[0])
    line = world.oned.core.writer.on_disk(found, found.disks[0], "snap_flatten", "0")
    world.contents.pop(str(name), None)  # either of the two until it is done
    return world.oned.core.drivers.run("tm", line.driver, line.action, line.argv).rc


def _flatten_once(world: World, vm: int) -> None:
    if not _flatten(world, vm):
        _note_flat(world, vm)


def _flattened(world: World, vm: int) -> None:
    if _flatten(world, vm):
        raise StuckError(f"the disk of VM {vm} was not flattened: {world.complaints()}")
    _note_flat(world, vm)


def _note_flat(world: World, vm: int) -> None:
    found = world.oned.core.vms[vm]
    name = world.volume_of(found, found.disks[0])
    snapshots = found.disk_snapshots(0)
    assert snapshots is not None
    with world.oned.core.lock:
        snapshots.items = []
    world.contents[f"{name}"] = world.contents.pop(f"{name}-s0")


def _image(world: World) -> int:
    return world.filled()


SCENARIOS: tuple[Scenario, ...] = (
    *_backup_scenarios(),
    Scenario("datastore/export", "image", _image, _export_once, {"again": _exported, "sweep": nothing}),
    *(
        Scenario(
            "tm/snap_flatten", disk, with_snapshot(disk, then="poweroff"), _flatten_once,
            {"again": _flattened, "delete": _terminated},
        )
        for disk in _DISKS
    ),
)  # fmt: skip

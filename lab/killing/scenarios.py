# SPDX-License-Identifier: Apache-2.0
"""What is asked of OpenNebula so that a driver action is called, and what follows when it was killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lab.killing.world import StuckError, World

__all__ = ["SCENARIOS", "Follow", "Scenario"]

STATES = {"poweroff": "POWEROFF", "undeploy": "UNDEPLOYED"}

Setup = Callable[[World], int]
Follow = Callable[[World, int], None]


@dataclass(frozen=True, slots=True)
class Scenario:
    """``action`` is killed in what ``go`` asks for; both are given what ``setup`` made (a VM, an image).

    ``follow`` are the ways in which OpenNebula, or who uses it, goes on. ``skip``: how many calls of the
    action go by before the one that is meant.
    """

    action: str
    title: str
    setup: Setup
    go: Follow
    follow: Mapping[str, Follow]
    skip: int = 0


def nothing(world: World, number: int) -> None:
    """Leave it to the next monitoring."""


# images


def _import(world: World, _: int) -> None:
    content = world.pattern()
    path = world.file(content)
    world.contents[f"one-{world.new_image(PATH=str(path))}"] = content


def _mkfs(world: World, _: int) -> None:
    world.new_image()


def _mkfs_formatted(world: World, _: int) -> None:
    world.new_image(FS="ext4", SIZE=2)


def _clone_image(datastore: str) -> Follow:
    def clone(world: World, _: int) -> None:
        target = -1 if datastore == "san" else getattr(world, datastore)
        image = world.call("image.clone", world.base, world._name(), target)
        world.contents[f"one-{image}"] = world.contents[f"one-{world.base}"]

    return clone


def _delete_failed(world: World, _: int) -> None:
    """Delete what is in ERROR."""
    for image in world.images():
        if image.state.name == "ERROR":
            world.delete_image(image.id)


def _and_again(go: Follow) -> Follow:
    def again(world: World, number: int) -> None:
        _delete_failed(world, number)
        go(world, number)
        for image in world.images():
            if image.state.name not in ("READY", "USED", "USED_PERS"):
                raise StuckError(f"image {image.id} is {image.state.name}: {world.complaints()}")

    return again


def _image(world: World) -> int:
    return world.filled()


def _delete_image(world: World, image: int) -> None:
    world.call("image.delete", image)


# VMs


def _vm(*disks: str, context: bool = False) -> Setup:
    """Register a VM; BASE and DATA in its disks are the images of the world."""

    def setup(world: World) -> int:
        return world.new_vm(*(_owned(disk)(world) for disk in disks), context=context)

    return setup


def _disk(world: World, disk: str) -> str:
    return {
        "BASE": f'IMAGE_ID="{world.base}"',
        "LARGER": f'IMAGE_ID="{world.base}",SIZE="{world.larger}"',
        "DATA": f'IMAGE_ID="{world.data}"',
        "FS": 'TYPE="fs",SIZE="2",FORMAT="raw",FS="ext4"',
        "SWAP": 'TYPE="swap",SIZE="2"',
    }[disk]


def _owned(disk: str) -> Callable[[World], str]:
    """Give the vector of a disk; OWN is a persistent image made for the case."""

    def vector(world: World) -> str:
        if disk == "OWN":
            return f'IMAGE_ID="{world.filled(persistent=True)}"'
        return _disk(world, disk)

    return vector


def running(*disks: str, then: str = "") -> Setup:
    """Have a VM run, with other bytes on its disks, and do ``then`` with it."""

    def setup(world: World) -> int:
        vm = _vm(*disks)(world)
        world.deploy(vm, 0, world.system)
        world.expect(vm, "RUNNING")
        for disk in world.oned.core.vms[vm].disks:
            world.write(vm, int(disk["DISK_ID"]), world.pattern())
        if then:
            world.act(vm, f"{then}-hard")
            world.expect(vm, STATES[then])
        return vm

    return setup


def _deploy(world: World, vm: int) -> None:
    for disk in world.oned.core.vms[vm].disks:
        if "IMAGE_ID" in disk and disk["CLONE"] == "YES":
            world.clone_contents(int(disk["IMAGE_ID"]), vm, int(disk["DISK_ID"]))
    world.deploy(vm, 0, world.system)


def _attach(disk: str) -> Follow:
    def attach(world: World, vm: int) -> None:
        number = world.oned.core.vms[vm].next_disk
        if disk in ("BASE", "LARGER"):
            world.clone_contents(world.base, vm, number)
        world.call("vm.attach", vm, f"DISK=[{_disk(world, disk)}]")

    return attach


def _attached(disk: str) -> Follow:
    """Attach once more, and see that it is there."""

    def attach(world: World, vm: int) -> None:
        before = len(world.oned.core.vms[vm].disks)
        _attach(disk)(world, vm)
        if len(world.oned.core.vms[vm].disks) != before + 1:
            raise StuckError(f"nothing was attached to VM {vm}: {world.complaints()}")

    return attach


def _attached_elsewhere(disk: str) -> Follow:
    """Attach the same to a VM on another host."""

    def attach(world: World, _: int) -> None:
        world.monitor()
        other = world.run(host=1)
        _attached(disk)(world, other)

    return attach


def _detach(world: World, vm: int) -> None:
    world.call("vm.detach", vm, 0)


def _detached(world: World, vm: int) -> None:
    _detach(world, vm)
    if world.oned.core.vms[vm].disks:
        raise StuckError(f"nothing was detached from VM {vm}: {world.complaints()}")


def _act(action: str) -> Follow:
    return lambda world, vm: world.act(vm, action)


def recover(operation: str, state: str) -> Follow:
    def recover(world: World, vm: int) -> None:
        world.recover(vm, operation)
        world.expect(vm, state)

    return recover


def _recreate(world: World, vm: int) -> None:
    world.recover(vm, "delete-recreate")
    world.expect(vm, "PENDING")
    _deploy(world, vm)
    world.expect(vm, "RUNNING")


def _give_up(world: World, vm: int) -> None:
    world.recover(vm, "delete")


def _begin_anew(world: World, vm: int) -> None:
    world.recover(vm, "delete-recreate")


def _deployed(world: World, vm: int) -> None:
    """Deploy a VM that waits to begin anew, before anything was monitored."""
    _deploy(world, vm)
    world.expect(vm, "RUNNING")


def ended(state: str) -> dict[str, Follow]:
    """What is done about a VM whose disks could not be brought or moved."""
    return {"retry": recover("retry", state), "delete": recover("delete", "DONE")}


def _migrate(*, is_live: bool) -> Follow:
    return lambda world, vm: world.migrate(vm, 1, is_live=is_live)


def _migrated(world: World, vm: int) -> None:
    world.migrate(vm, 1, is_live=True)
    world.expect(vm, "RUNNING")
    if world.oned.core.vms[vm].here.host != world.host_names[1]:
        raise StuckError(f"VM {vm} was not migrated: {world.complaints()}")


def _fail_to_migrate(world: World, vm: int) -> None:
    world.oned.hypervisor.fail("migrate", "the guest did not want to")
    world.migrate(vm, 1, is_live=True)


def _deploy_undeployed(world: World, vm: int) -> None:
    world.act(vm, "resume")
    world.deploy(vm, 1, world.system)


def _save_as(world: World, vm: int) -> None:
    disk = world.oned.core.vms[vm].disks[0]
    image = world.call("vm.disksaveas", vm, 0, world._name(), "", -1)
    name = world.volume_of(world.oned.core.vms[vm], disk)
    assert name is not None
    world.contents[f"one-{image}"] = world.contents[name]


# snapshots and size


def _snapshot(world: World, vm: int) -> None:
    vm_found = world.oned.core.vms[vm]
    name = world.volume_of(vm_found, vm_found.disks[0])
    number = world.call("vm.disksnapshotcreate", vm, 0, "a snapshot")
    world.contents[f"{name}-s{number}"] = world.contents[f"{name}"]


def with_snapshot(*disks: str, then: str = "") -> Setup:
    """Have a VM with a snapshot of its first disk and other bytes on it since."""

    def setup(world: World) -> int:
        vm = running(*disks)(world)
        if then:
            world.act(vm, f"{then}-hard")
            world.expect(vm, STATES[then])
        _snapshot(world, vm)
        if not then:
            world.write(vm, 0, world.pattern())
        return vm

    return setup


def _snapshots(world: World, vm: int) -> int:
    found = world.oned.core.vms[vm].disk_snapshots(0)
    return len(found.items) if found else 0


def _snapshot_taken(world: World, vm: int) -> None:
    before = _snapshots(world, vm)
    _snapshot(world, vm)
    if _snapshots(world, vm) != before + 1:
        raise StuckError(f"no snapshot of VM {vm} was taken: {world.complaints()}")


def _drop_snapshot(world: World, vm: int) -> None:
    world.call("vm.disksnapshotdelete", vm, 0, 0)


def _snapshot_dropped(world: World, vm: int) -> None:
    _drop_snapshot(world, vm)
    if _snapshots(world, vm):
        raise StuckError(f"the snapshot of VM {vm} is still there: {world.complaints()}")


def _revert(world: World, vm: int) -> None:
    found = world.oned.core.vms[vm]
    name = world.volume_of(found, found.disks[0])
    world.contents.pop(f"{name}", None)  # either of the two until it is done
    world.call("vm.disksnapshotrevert", vm, 0, 0)


def _reverted(world: World, vm: int) -> None:
    found = world.oned.core.vms[vm]
    name = world.volume_of(found, found.disks[0])
    calls = len(world.oned.calls)
    _revert(world, vm)
    if any(call.rc for call in world.oned.calls[calls:]):
        raise StuckError(f"VM {vm} was not reverted: {world.complaints()}")
    world.contents[f"{name}"] = world.contents[f"{name}-s0"]


def _resize(world: World, vm: int) -> None:
    world.call("vm.diskresize", vm, 0, str(world.larger))


def _resized(world: World, vm: int) -> None:
    _resize(world, vm)
    if world.oned.core.vms[vm].disks[0]["SIZE"] != str(world.larger):
        raise StuckError(f"the disk of VM {vm} was not resized: {world.complaints()}")


def _image_with_snapshot(world: World) -> int:
    """Have a persistent image with a snapshot that a VM has left it."""
    image = world.filled(persistent=True)
    vm = world.run(f'IMAGE_ID="{image}"')
    world.act(vm, "poweroff-hard")
    world.expect(vm, "POWEROFF")
    world.call("vm.disksnapshotcreate", vm, 0, "a snapshot")
    world.contents[f"one-{image}-s0"] = world.contents[f"one-{image}"]
    world.act(vm, "terminate-hard")
    world.expect(vm, "DONE")
    return image


def _on_image_snapshot(request: str) -> Follow:
    def go(world: World, image: int) -> None:
        world.call(f"image.{request}", image, 0)

    return go


def _image_is_fine(request: str) -> Follow:
    def again(world: World, image: int) -> None:
        calls = len(world.oned.calls)
        world.call(f"image.{request}", image, 0)
        if any(call.rc for call in world.oned.calls[calls:]):
            raise StuckError(f"image {image}: {world.complaints()}")

    return again


def _no_setup(_: World) -> int:
    return -1


def _images() -> list[Scenario]:
    made = {
        ("datastore/cp", "import"): _import,
        ("datastore/mkfs", "empty image"): _mkfs,
        ("datastore/mkfs", "image with a file system"): _mkfs_formatted,
        ("datastore/clone", "image, same array"): _clone_image("san"),
        ("datastore/clone", "image, to another array"): _clone_image("other"),
    }
    found = [
        Scenario(action, title, _no_setup, go, {"again": _and_again(go)})
        for (action, title), go in made.items()
    ]
    found.append(Scenario("datastore/rm", "delete", _image, _delete_image, {"again": _delete_failed}))
    found.append(
        Scenario(
            "datastore/monitor", "monitor", _no_setup, lambda world, _: world.monitor(), {"again": nothing}
        )
    )
    for action, request in (
        ("snap_delete", "snapshotdelete"),
        ("snap_revert", "snapshotrevert"),
        ("snap_flatten", "snapshotflatten"),
    ):
        go = _on_image_snapshot(request)
        found.append(
            Scenario(
                f"datastore/{action}", "image", _image_with_snapshot, go, {"again": _image_is_fine(request)}
            )
        )
    return found


def _bringing() -> list[Scenario]:
    deploys = [("clone", "BASE"), ("clone", "LARGER"), ("ln", "DATA"), ("mkimage", "FS"), ("mkswap", "SWAP")]
    found = [
        Scenario(
            f"tm/{action}",
            f"deploy, {disk}",
            _vm(disk),
            _deploy,
            {**ended("RUNNING"), **({"recreate": _recreate} if disk in ("BASE", "DATA") else {})},
        )
        for action, disk in deploys
    ]
    found += [
        Scenario(
            f"tm/{action}",
            f"attach, {disk}",
            running(),
            _attach(disk),
            {
                "sweep": nothing,
                "again": _attached(disk),
                **({"elsewhere": _attached_elsewhere(disk)} if disk == "DATA" else {}),
            },
        )
        for action, disk in deploys
        if disk != "LARGER"
    ]
    found.append(
        Scenario(
            "tm/context",
            "deploy",
            _vm("BASE", context=True),
            _deploy,
            {"retry": recover("retry", "RUNNING"), "delete": recover("delete", "DONE")},
        )
    )
    return found


def _moving() -> list[Scenario]:
    found = []
    for disk in ("BASE", "DATA"):
        found += [
            Scenario(
                "tm/mv", f"undeploy, {disk}", running(disk), _act("undeploy-hard"), ended("UNDEPLOYED")
            ),
            Scenario(
                "tm/mv", f"deploy elsewhere, {disk}", running(disk, then="undeploy"), _deploy_undeployed,
                ended("RUNNING"),
            ),
            Scenario("tm/mv", f"migrate, {disk}", running(disk), _migrate(is_live=False), ended("RUNNING")),
        ]  # fmt: skip
    for disk in ("BASE", "DATA"):
        live = _migrate(is_live=True)
        found += [
            Scenario(
                "tm/premigrate", f"live, {disk}", running(disk), live, {"sweep": nothing, "again": _migrated}
            ),
            Scenario("tm/postmigrate", f"live, {disk}", running(disk), live, {"sweep": nothing}),
            Scenario("tm/failmigrate", f"live, {disk}", running(disk), _fail_to_migrate, {"sweep": nothing}),
        ]
    return found


def _removing() -> list[Scenario]:
    end = _act("terminate-hard")
    found = []
    for action, disk in (("delete", "BASE"), ("mvds", "DATA"), ("delete", "FS")):
        found += [
            Scenario(f"tm/{action}", f"terminate, {disk}", running(disk), end, ended("DONE")),
            Scenario(
                f"tm/{action}",
                f"detach, {disk}",
                running(disk),
                _detach,
                {"again": _detached, **({"sweep": nothing} if action == "mvds" else {})},
            ),
            Scenario("tm/delete", f"recover --delete, {disk}", running(disk), _give_up, {"sweep": nothing}),
        ]
    stored = running("BASE", then="undeploy")
    found += [
        Scenario("tm/delete", "terminate undeployed, BASE", stored, end, ended("DONE")),
        Scenario("tm/delete", "terminate, the directory", running("BASE"), end, ended("DONE"), skip=1),
        Scenario("tm/delete", "recreate, BASE", running("BASE"), _begin_anew, {"deploy": _deployed}),
    ]
    return found


def _disks() -> list[Scenario]:
    found = [
        Scenario(
            "tm/cpds", f"save, {disk}", running(disk, then="poweroff"), _save_as, {"delete": _delete_failed}
        )
        for disk in ("BASE", "DATA")
    ]
    found += [
        Scenario("tm/cpds", "save of a running VM", running("BASE"), _save_as, {"delete": _delete_failed}),
        Scenario("datastore/mkfs", "save", running("BASE"), _save_as, {"delete": _delete_failed}),
    ]
    for disk in ("BASE", "OWN"):
        taken = {"sweep": nothing, "again": _snapshot_taken}
        off = with_snapshot(disk, then="poweroff")
        found += [
            Scenario("tm/snap_create", disk, running(disk, then="poweroff"), _snapshot, taken),
            Scenario("tm/snap_create_live", disk, running(disk), _snapshot, taken),
            Scenario("tm/snap_delete", disk, off, _drop_snapshot, {"again": _snapshot_dropped}),
            Scenario("tm/snap_revert", disk, off, _revert, {"again": _reverted}),
            Scenario(
                "tm/resize", f"live, {disk}", running(disk), _resize, {"sweep": nothing, "again": _resized}
            ),
            Scenario(
                "tm/resize", f"off, {disk}", running(disk, then="poweroff"), _resize, {"again": _resized}
            ),
        ]
    return found


SCENARIOS: tuple[Scenario, ...] = (*_images(), *_bringing(), *_moving(), *_removing(), *_disks())

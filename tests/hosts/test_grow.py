# SPDX-License-Identifier: Apache-2.0
"""A device in use follows its volume: every path, then the map, and what the kernel shows is the proof."""

from __future__ import annotations

from pathlib import Path

import pytest

from sanstone.errors import HostError, NotFoundError
from sanstone.hosts.ops import (
    Attach,
    Attached,
    Grow,
    GrowFile,
    Grown,
    Outcomes,
    ReadLink,
    RemovePath,
    Together,
)
from sanstone.model import MIB, Connection
from tests.hosts.conftest import OTHER, SIZE, WWID, FakeHost

pytestmark = pytest.mark.real("python3", "sh", "qemu-img")


def grow(host: FakeHost, connection: Connection) -> Grown:
    (result,) = host.run(Grow(connection))
    assert isinstance(result, Grown)
    return result


def test_all_paths_and_the_map_take_on_the_new_size(host: FakeHost) -> None:
    portals = (host.portal(), host.portal())
    host.lun(1)
    host.attach(host.connection(*portals))
    host.calls()
    host.lun(1, size=2 * SIZE)
    grown = grow(host, host.connection(*portals, size=2 * SIZE))
    assert (grown.device.size, len(grown.device.paths), grown.warnings) == (2 * SIZE, 2, ())
    assert grown.device.path.endswith(f"/dev/mapper/{WWID}")
    calls = host.calls()
    assert sum(call.endswith("/device/rescan") for call in calls) == 2
    assert calls[-1] == f"multipathd resize map {WWID}"
    # once more: nothing has to be done
    assert grow(host, host.connection(*portals, size=2 * SIZE)).device.size == 2 * SIZE
    assert host.calls() == []


def test_a_single_path_without_multipath_grows(host: FakeHost) -> None:
    portal = host.portal()
    host.lun(1)
    host.say("no-multipathd")
    host.attach(host.connection(portal))
    host.lun(1, size=2 * SIZE)
    assert grow(host, host.connection(portal, size=2 * SIZE)).device.size == 2 * SIZE


def test_a_dead_path_of_the_old_size_is_dropped(host: FakeHost) -> None:
    portals = (host.portal(), host.portal())
    host.lun(1)
    device = host.attach(host.connection(*portals))
    dead, alive = sorted(device.paths, key=lambda path: path.portal != str(portals[0]))
    host.attribute("block", dead.name, "device", "state").write_text("transport-offline\n")
    host.lun(1, portal=portals[0])
    host.lun(1, size=2 * SIZE, portal=portals[1])
    host.unmap(1)
    grown = grow(host, host.connection(*portals, size=2 * SIZE))
    assert grown.device.size == 2 * SIZE
    assert [path.name for path in grown.device.paths] == [alive.name]
    assert dead.name in grown.warnings[0]
    assert host.maps() == {WWID: {alive.name}}
    assert dead.name not in host.disks()


def test_a_path_that_lives_and_does_not_grow_is_an_error(host: FakeHost) -> None:
    portals = (host.portal(), host.portal())
    host.lun(1)
    host.attach(host.connection(*portals))
    host.lun(1, portal=portals[0])
    host.lun(1, size=2 * SIZE, portal=portals[1])
    host.unmap(1)
    with pytest.raises(HostError, match=rf"{SIZE} bytes there after it was read anew, not {2 * SIZE}"):
        grow(host, host.connection(*portals, size=2 * SIZE))
    assert len(host.disks()) == 2


def test_a_volume_that_is_not_attached_is_an_error(host: FakeHost) -> None:
    with pytest.raises(NotFoundError, match="not attached"):
        grow(host, host.connection(host.portal()))


def test_disk_files_grow_and_never_shrink(host: FakeHost, tmp_path: Path) -> None:
    file = tmp_path / "disk.1"
    file.write_bytes(bytes(MIB))
    host.run(GrowFile(str(file), 2 * MIB))
    host.run(GrowFile(str(file), MIB))
    assert file.stat().st_size == 2 * MIB


def test_operations_done_together_do_not_stop_one_another(host: FakeHost, tmp_path: Path) -> None:
    portals = (host.portal(), host.portal())
    host.lun(1)
    host.lun(2, wwid=OTHER)
    first = host.connection(*portals)
    second = host.connection(*portals, lun=2, wwid=OTHER)
    third = host.connection(*portals, lun=3, wwid="36005076000000000000000000000000a")
    link = tmp_path / "vm" / "1" / "disk.0"
    (outcomes,) = host.run(
        Together((Attach(first, str(link)), Attach(third), Attach(second), ReadLink("/nowhere/at/all"))),
        deadline=60,
    )
    assert isinstance(outcomes, Outcomes)
    one, failed, other, _ = outcomes.of_each
    assert isinstance(one, Attached)
    assert isinstance(other, Attached)
    assert (one.device.wwid, other.device.wwid) == (WWID, OTHER)
    assert isinstance(failed, HostError)
    assert link.is_symlink()
    assert set(host.maps()) == {WWID, OTHER}
    host.run(RemovePath(str(link)))

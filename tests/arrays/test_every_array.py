# SPDX-License-Identifier: Apache-2.0
"""What ``arrays/base.py`` promises, asked of every storage system in the lab. A new one joins by ALL_ARRAYS.

The array is reached as by the drivers, over real SSH; volumes are looked at behind its back, and as an
initiator sees them.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.host import PROGRAMS as HOST_PROGRAMS
from lab.host.initiator import Chap, CheckConditionError, LoginRefusedError
from lab.host.initiator import Connection as Session
from lab.host.wwid import multipath_wwid
from lab.scene import Scene
from lab.systems import ALL_ARRAYS, System
from lab.target import PROGRAMS as TARGET_PROGRAMS
from sanstone.arrays import Array, NewVolume, open_array
from sanstone.errors import (
    CapacityError,
    ConfigurationError,
    ConflictError,
    ConnectError,
    NotFoundError,
    SanstoneError,
)
from sanstone.model import MIB, Connection, Initiator, Volume
from sanstone.names import backup_volume, snapshot_volume, volume_of_source
from sanstone.settings import ConfigFile, resolve

pytestmark = pytest.mark.real(*HOST_PROGRAMS, *TARGET_PROGRAMS, "ssh", "ssh-keygen", "tgtd", "tgtadm")

SIZE = 16 * MIB
CONTENT = os.urandom(MIB)
OTHER = CONTENT[::-1]
WAIT = 30.0
LOGIN_SECONDS = 10.0
VPD_IDENTIFICATION = 0x83


def claim_all(found: Volume | None) -> None:
    """Take over whatever bears the name."""


@dataclass(frozen=True)
class Lab:
    """An array as the drivers have it, and the system behind it."""

    scene: Scene
    open: Callable[..., Array]
    array: Array

    @property
    def system(self) -> System:
        return self.scene.array

    def make(self, name: str = "one-1", size: int = SIZE, content: bytes = b"") -> Volume:
        volume = self.array.create(NewVolume(name, size), claim=claim_all).volume
        if content:
            self.write(name, content)
        return volume

    def link(self, name: str, source: str) -> Volume:
        return self.array.create(NewVolume(name, source=source, is_linked=True), claim=claim_all).volume

    def write(self, name: str, content: bytes, offset: int = 0) -> None:
        with self.system.path(name).open("r+b") as file:
            file.seek(offset)
            file.write(content)

    def read(self, name: str, length: int = MIB, offset: int = 0) -> bytes:
        with self.system.path(name).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def remove(self, name: str, **more: object) -> bool:
        return self.array.delete(name, wait=WAIT, **more)  # type: ignore[arg-type]

    def names(self) -> set[str]:
        return set(self.system.volumes())

    def initiator(self, host: str) -> str:
        return self.scene.hosts[host].initiator_name


@pytest.fixture(params=ALL_ARRAYS)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    quick = {"CONNECT_TIMEOUT": "3"}
    with Scene(tmp_path, system=request.param, box={"copy_speed": 1000.0}, settings=quick) as scene:
        arrays: list[Array] = []

        def initiators(host: str) -> Initiator:
            return Initiator(scene.hosts[host].initiator_name, takes_secrets=True)

        def open_with(**attributes: str) -> Array:
            file = ConfigFile.read(tmp_path / "sanstone.conf")
            wanted = {**scene.array.attributes(), "BRIDGE_LIST": "node1", **attributes}
            settings = resolve(scene.system, file, datastore=wanted)
            array = open_array(scene.system, settings, state=tmp_path / "state", initiators=initiators)
            arrays.append(array)
            return array

        yield Lab(scene, open_with, open_with())
        for array in arrays:
            array.close()


# being made


def test_a_volume_is_made_empty_with_at_least_its_size(lab: Lab) -> None:
    volume = lab.make()
    assert volume.name == "one-1"
    assert volume.size >= SIZE
    assert volume.is_online
    assert re.fullmatch(r"3[0-9a-f]{32}", volume.wwid)
    assert lab.system.volumes() == {"one-1": volume.wwid}
    if lab.array.abilities.zeroes_new_volumes:
        assert lab.read("one-1", SIZE) == bytes(SIZE)


def test_a_volume_that_is_there_is_taken_over_and_keeps_its_bytes(lab: Lab) -> None:
    first = lab.make(content=CONTENT)
    told: list[Volume | None] = []
    again = lab.array.create(NewVolume("one-1", SIZE), claim=told.append).volume
    assert (again, told) == (first, [first])
    assert lab.read("one-1") == CONTENT


def test_a_claim_hears_of_a_foreign_volume_and_may_refuse_it(lab: Lab) -> None:
    lab.system.make_foreign("one-1")
    before = lab.system.volumes()

    def refuse(found: Volume | None) -> None:
        assert found is not None
        assert found.wwid == before["one-1"]
        raise ConflictError("not ours")

    with pytest.raises(ConflictError, match="not ours"):
        lab.array.create(NewVolume("one-1", SIZE), claim=refuse)
    assert lab.system.volumes() == before


def test_a_claim_is_told_that_the_name_is_free_before_anything_is_made(lab: Lab) -> None:
    seen: list[tuple[Volume | None, set[str]]] = []
    lab.array.create(NewVolume("one-1", SIZE), claim=lambda found: seen.append((found, lab.names())))
    assert seen == [(None, set())]


@pytest.mark.parametrize("is_linked", [True, False], ids=["linked", "full"])
def test_a_copy_has_the_bytes_of_its_source_and_both_go_their_own_ways(lab: Lab, is_linked: bool) -> None:
    source = lab.make(content=CONTENT)
    new = NewVolume("one-1-2-0", source="one-1", is_linked=is_linked)
    copy = lab.array.create(new, claim=claim_all).volume
    assert copy.wwid != source.wwid
    assert copy.size == source.size
    assert lab.array.create(new, claim=claim_all).volume == copy
    assert lab.read("one-1-2-0") == CONTENT
    lab.write("one-1", OTHER)
    assert lab.read("one-1-2-0") == CONTENT
    lab.write("one-1-2-0", OTHER[:4096], 4096)
    assert lab.read("one-1") == OTHER
    assert lab.read("one-1-2-0", 8192) == CONTENT[:4096] + OTHER[:4096]


def test_a_copy_of_what_is_not_there_is_refused(lab: Lab) -> None:
    with pytest.raises(NotFoundError, match="one-9"):
        lab.array.create(NewVolume("one-1", source="one-9", is_linked=True), claim=claim_all)
    assert lab.names() == set()


def test_more_than_the_pool_has_is_refused_before_anything_is_made(lab: Lab) -> None:
    free = lab.array.capacity().free
    with pytest.raises(CapacityError):
        lab.array.create(NewVolume("one-1", SIZE, needs=free + MIB), claim=claim_all)
    assert lab.names() == set()
    lab.array.create(NewVolume("one-1", SIZE, needs=SIZE), claim=claim_all)


def test_capacity_adds_up_and_shrinks_with_what_is_written(lab: Lab) -> None:
    before = lab.array.capacity()
    assert before.total == before.used + before.free
    lab.make(content=CONTENT * 8)
    after = lab.array.capacity()
    assert after.total == before.total
    assert after.free < before.free


def test_an_odd_name_is_a_name_or_refused_and_reaches_no_shell(lab: Lab, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    command = f"touch {canary}"
    for name in ("-rf", "a b", "a'b", f"a;{command}", f"$({command})", "../x", "x" * 200, "a\nb", "ü", "%s"):
        try:
            lab.array.create(NewVolume(name, SIZE), claim=claim_all)
        except SanstoneError:
            assert lab.names() == set(), name
        else:
            assert lab.names() == {name}
            lab.remove(name)
    assert not canary.exists()


def test_twenty_volumes_at_once_are_twenty_volumes(lab: Lab) -> None:
    errors: list[BaseException] = []

    def make(number: int) -> None:
        try:
            lab.array.create(NewVolume(f"one-{number}", SIZE), claim=claim_all, host="node1")
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert lab.names() == {f"one-{number}" for number in range(20)}
    assert len(set(lab.system.volumes().values())) == 20
    assert lab.system.mappings() == {("node1", f"one-{number}") for number in range(20)}


# being found


def test_volumes_are_found_by_name_and_by_wwid(lab: Lab) -> None:
    one, two = lab.make("one-1"), lab.make("one-2")
    assert lab.array.find("one-2", "one-9", "one-1") == (two, None, one)
    assert lab.array.find_wwid(two.wwid) == two
    assert lab.array.find_wwid("3" + "6" * 32) is None


def test_source_names_the_volume(lab: Lab) -> None:
    assert volume_of_source(lab.array.source("one-7")) == "one-7"


def test_a_name_that_is_used_again_is_another_volume(lab: Lab) -> None:
    first = lab.make(content=CONTENT)
    assert lab.remove("one-1")
    second = lab.make()
    assert first.wwid != second.wwid
    assert lab.array.find_wwid(first.wwid) is None
    if lab.array.abilities.zeroes_new_volumes:
        assert lab.read("one-1") == bytes(MIB)


# being reached


def seen_by(lab: Lab, host: str, connection: Connection) -> set[tuple[str, int]]:
    """Log in at every portal as that host does; WWID and size of what is at the LUN there."""
    chap = Chap(connection.chap.user, connection.chap.password.reveal()) if connection.chap else None
    found = set()
    for target in connection.targets:
        for portal in target.portals:
            place = (portal.address, portal.port)
            session = Session(place, lab.initiator(host), target.iqn, chap, LOGIN_SECONDS)
            try:
                wwid = multipath_wwid(session.vpd(connection.lun, VPD_IDENTIFICATION))
                found.add((wwid, session.capacity(connection.lun)))
            finally:
                session.close(politely=True)
    return found


def test_an_initiator_sees_the_wwid_and_size_that_the_volume_says(lab: Lab) -> None:
    volume = lab.make()
    connection = lab.array.map("one-1", "node1")
    assert (connection.wwid, connection.size) == (volume.wwid, volume.size)
    assert connection.expected_paths == lab.system.paths
    assert seen_by(lab, "node1", connection) == {(volume.wwid, volume.size)}


def test_a_host_that_the_volume_is_not_mapped_to_does_not_see_it(lab: Lab) -> None:
    volume = lab.make()
    connection = lab.array.map("one-1", "node1")
    try:
        seen = {wwid for wwid, _ in seen_by(lab, "node2", connection)}
    except (LoginRefusedError, CheckConditionError):
        return
    assert volume.wwid not in seen


def test_mapping_again_tells_the_same_and_unmapping_again_is_no_error(lab: Lab) -> None:
    lab.make()
    first = lab.array.map("one-1", "node1")
    assert lab.array.map("one-1", "node1") == first
    assert lab.system.mappings() == {("node1", "one-1")}
    for _ in range(2):
        lab.array.unmap("one-1", "node1")
        assert lab.system.mappings() == set()
    assert lab.array.mapped_hosts("one-1") == ()


def test_a_volume_is_made_and_mapped_in_one(lab: Lab) -> None:
    for _ in range(2):
        placement = lab.array.create(NewVolume("one-1", SIZE), claim=claim_all, host="node1")
        assert placement.connection is not None
        assert placement.connection.wwid == placement.volume.wwid
        assert lab.system.mappings() == {("node1", "one-1")}


def test_a_second_host_is_refused_unless_it_is_meant(lab: Lab) -> None:
    lab.make()
    lab.array.map("one-1", "node1")
    with pytest.raises(ConflictError, match="node1"):
        lab.array.map("one-1", "node2")
    assert lab.system.mappings() == {("node1", "one-1")}
    lab.array.map("one-1", "node2", is_shared=True)
    assert set(lab.array.mapped_hosts("one-1")) == {"node1", "node2"}
    lab.array.unmap("one-1", "node1")
    assert lab.array.mapped_hosts("one-1") == ("node2",)
    assert lab.system.mappings() == {("node2", "one-1")}


def test_of_two_hosts_that_map_at_once_one_gets_the_volume(lab: Lab) -> None:
    lab.make()
    outcomes: dict[str, object] = {}

    def take(host: str) -> None:
        try:
            outcomes[host] = lab.array.map("one-1", host)
        except ConflictError as err:
            outcomes[host] = err

    threads = [threading.Thread(target=take, args=(host,)) for host in ("node1", "node2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = {host for host, outcome in outcomes.items() if isinstance(outcome, Connection)}
    assert len(outcomes) == 2
    assert len(got) == 1
    assert lab.system.mappings() == {(host, "one-1") for host in got}


def test_what_is_not_there_is_not_mapped(lab: Lab) -> None:
    with pytest.raises(NotFoundError, match="one-1"):
        lab.array.map("one-1", "node1")
    lab.array.unmap("one-1", "node1")
    assert lab.array.mapped_hosts("one-1") == ()


# growing


def test_a_volume_grows_and_never_shrinks(lab: Lab) -> None:
    volume = lab.make(content=CONTENT)
    for size in (2 * SIZE, 2 * SIZE, SIZE):
        lab.array.resize("one-1", size)
        (found,) = lab.array.find("one-1")
        assert found is not None
        assert found.size >= 2 * SIZE
        assert found.wwid == volume.wwid
    assert lab.read("one-1") == CONTENT
    if lab.array.abilities.zeroes_new_volumes:
        assert lab.read("one-1", SIZE, SIZE) == bytes(SIZE)


def test_a_mapped_volume_grows_and_its_host_learns_of_it(lab: Lab) -> None:
    lab.make()
    before = lab.array.map("one-1", "node1")
    lab.array.resize("one-1", 2 * SIZE)
    after = lab.array.map("one-1", "node1")
    assert (after.wwid, after.lun, after.targets) == (before.wwid, before.lun, before.targets)
    assert after.size >= 2 * SIZE
    assert seen_by(lab, "node1", after) == {(after.wwid, after.size)}
    assert lab.system.mappings() == {("node1", "one-1")}


def test_what_is_not_there_does_not_grow(lab: Lab) -> None:
    with pytest.raises(NotFoundError, match="one-1"):
        lab.array.resize("one-1", SIZE)


# being deleted


def test_a_volume_is_deleted_once_and_for_all(lab: Lab) -> None:
    lab.make()
    assert lab.remove("one-1")
    assert lab.remove("one-1")
    assert lab.system.leftovers() == []


def test_a_mapped_volume_is_not_deleted_unless_its_host_is_named(lab: Lab) -> None:
    lab.make()
    lab.array.map("one-1", "node1")
    with pytest.raises(ConflictError, match="node1"):
        lab.remove("one-1")
    with pytest.raises(ConflictError, match="node1"):
        lab.remove("one-1", host="node2")
    assert lab.system.mappings() == {("node1", "one-1")}
    assert lab.remove("one-1", host="node1")
    assert lab.system.leftovers() == []


def test_another_volume_that_bears_the_name_stays(lab: Lab) -> None:
    gone = lab.make().wwid
    lab.remove("one-1")
    volume = lab.make(content=CONTENT)
    lab.remove("one-1", wwid=gone)
    assert lab.system.volumes() == {"one-1": volume.wwid}
    assert lab.read("one-1") == CONTENT
    assert lab.remove("one-1", wwid=volume.wwid)
    assert lab.system.leftovers() == []


# snapshots


def test_snapshots_are_listed_by_their_volume_and_keep_what_it_was(lab: Lab) -> None:
    for name in ("one-1", "one-11"):
        lab.make(name, content=CONTENT)
    names = {snapshot_volume("one-1", 0), snapshot_volume("one-1", 3), backup_volume("one-1", 2)}
    for name in sorted(names):
        lab.link(name, "one-1")
    lab.link(snapshot_volume("one-11", 0), "one-11")
    lab.link("one-1-5-0", "one-1")
    lab.write("one-1", OTHER)
    assert {one.name for one in lab.array.snapshots("one-1")} == names
    assert all(lab.read(name) == CONTENT for name in names)
    assert lab.array.snapshots("one-5") == ()


def test_a_volume_goes_back_to_a_snapshot_which_stays(lab: Lab) -> None:
    volume = lab.make(content=CONTENT)
    older, newer = (snapshot_volume("one-1", number) for number in (0, 1))
    lab.link(older, "one-1")
    lab.write("one-1", OTHER)
    lab.link(newer, "one-1")
    lab.write("one-1", CONTENT[:4096], 8192)
    for snapshot, content in ((older, CONTENT), (newer, OTHER), (older, CONTENT), (older, CONTENT)):
        lab.array.copy(snapshot, "one-1")
        assert lab.read("one-1") == content
        assert (lab.read(older), lab.read(newer)) == (CONTENT, OTHER)
    (found,) = lab.array.find("one-1")
    assert found is not None
    assert (found.wwid, found.size) == (volume.wwid, volume.size)
    assert {one.name for one in lab.array.snapshots("one-1")} == {older, newer}
    lab.write("one-1", OTHER)
    assert lab.read(older) == CONTENT


def test_a_volume_that_a_host_has_goes_back_to_nothing(lab: Lab) -> None:
    lab.make(content=CONTENT)
    snapshot = lab.link(snapshot_volume("one-1", 0), "one-1").name
    lab.write("one-1", OTHER)
    lab.array.map("one-1", "node1")
    with pytest.raises(ConflictError):
        lab.array.copy(snapshot, "one-1")
    assert lab.read("one-1") == OTHER


def test_contents_are_not_copied_to_a_volume_of_another_size(lab: Lab) -> None:
    lab.make("one-1", content=CONTENT)
    lab.make("one-2", 2 * SIZE, content=OTHER)
    with pytest.raises(ConflictError):
        lab.array.copy("one-1", "one-2")
    assert lab.read("one-2") == OTHER


def test_a_volume_is_not_deleted_before_its_snapshots(lab: Lab) -> None:
    lab.make(content=CONTENT)
    snapshot = lab.link(snapshot_volume("one-1", 0), "one-1").name
    with pytest.raises(ConflictError):
        lab.remove("one-1")
    assert lab.read("one-1") == CONTENT
    assert lab.remove(snapshot)
    assert lab.remove("one-1")
    assert lab.system.leftovers() == []


def test_a_clone_of_a_snapshot_is_a_volume_of_its_own(lab: Lab) -> None:
    lab.make(content=CONTENT)
    snapshot = lab.link(snapshot_volume("one-1", 0), "one-1").name
    lab.write("one-1", OTHER)
    lab.array.create(NewVolume("one-2", source=snapshot), claim=claim_all)
    assert lab.read("one-2") == CONTENT
    assert lab.remove("one-2")
    assert lab.remove(snapshot)


# trouble


def test_each_failing_command_ends_in_an_error_and_again_in_success(lab: Lab) -> None:
    """The life of a volume with its n-th command refused, for each n; the operation is called once more."""
    steps: list[Callable[[], object]] = [
        lambda: lab.array.create(NewVolume("one-1", SIZE), claim=claim_all, host="node1"),
        lambda: lab.array.resize("one-1", 2 * SIZE),
        lambda: lab.remove("one-1", host="node1"),
    ]
    for step in steps:
        for at in range(60):
            fault = lab.system.faults.add(".", skip=at, **lab.system.refusal)
            with contextlib.suppress(SanstoneError):
                step()
            lab.system.faults.clear()
            step()
            if not fault.hits:
                break
        else:
            pytest.fail("the operation never came to an end")
    assert lab.system.leftovers() == []


def test_a_dead_system_is_said_by_name_and_found_again(lab: Lab) -> None:
    volume = lab.make(content=CONTENT)
    lab.array.map("one-1", "node1")
    lab.system.die()
    with pytest.raises(ConnectError, match=re.escape(lab.system.name)):
        lab.array.find("one-1")
    lab.system.revive()
    assert lab.array.find("one-1") == (volume,)
    assert lab.system.mappings() == {("node1", "one-1")}
    assert lab.array.map("one-1", "node1").wwid == volume.wwid
    assert lab.read("one-1") == CONTENT


def test_a_wrong_place_for_volumes_is_a_wrong_configuration(lab: Lab) -> None:
    key = "VG_NAME" if "VG_NAME" in lab.system.attributes() else "MDISK_GROUP"
    with pytest.raises(ConfigurationError, match="nowhere"):
        lab.open(**{key: "nowhere"}).capacity()


def test_after_closing_the_next_question_is_answered(lab: Lab) -> None:
    volume = lab.make()
    for _ in range(2):
        lab.array.close()
        assert lab.array.find("one-1") == (volume,)

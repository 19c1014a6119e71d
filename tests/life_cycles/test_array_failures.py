# SPDX-License-Identifier: Apache-2.0
"""Each action with each of its array commands failing: refused, or the connection cut behind it.

What OpenNebula does then (try again, or clean up) has to end well: nothing leaked, nothing lost.
The actions run in this process, by the edge that the driver script calls, so that hundreds of them are quick.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from lab.oned import Answer, DriverCall
from lab.scene import REMOTES
from sanstone.driver import main
from tests.life_cycles.cloud import MIB, PROGRAMS, V7000_ONLY, Cloud

pytestmark = [V7000_ONLY, pytest.mark.real(*PROGRAMS, "ssh", "qemu-img")]

CONTENT = os.urandom(4 * MIB)
# an operation forgives the first cut of its connection; a cut before a command is one after the last command
MODES = ("refused", "cut")

Run = Callable[[DriverCall], Answer]


@dataclass(frozen=True)
class Failed:
    """How a call ended with a fault at its ``at``-th command."""

    mode: str
    at: int
    answer: Answer

    def __str__(self) -> str:
        return f"{self.mode} at command {self.at}: {self.answer.rc} {self.answer.stderr}"


@pytest.fixture
def run(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Make a call like one that oned made, in this process."""
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)

    def run(call: DriverCall) -> Answer:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(cloud.wire(call))))
        capsys.readouterr()
        code = main([str(REMOTES / call.kind / call.driver / call.action), *call.argv])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert "Unexpected" not in said.err
        assert code == 0 or not said.out
        return Answer(code, said.out, said.err)

    return run


def failures(cloud: Cloud, run: Run, call: DriverCall, *, mode: str) -> Iterator[Failed]:
    """Let the call fail at its first, second, ... array command, until it is over before the fault is due.

    That is for a box to which an operation is a few command lines. Where it is many small commands of a
    program, as with tgt on LVM, each of them fails in ``tests/arrays/test_every_array.py``.
    """
    arguments = {**cloud.array.refusal, "times": 1} if mode == "refused" else {"drop": "after", "times": 2}
    for at in range(120):
        fault = cloud.array.faults.add(".", skip=at, **arguments)
        answer = run(call)
        hits = fault.hits
        cloud.array.faults.clear()
        if not hits:
            assert answer.rc == 0, answer.stderr
            assert at > 1
            return
        yield Failed(mode, at, answer)
    pytest.fail("the action never came to an end")


def must(answer: Answer, what: object) -> str:
    assert answer.rc == 0, f"{what}\n-> {answer.stderr}"
    return answer.stdout


@dataclass(frozen=True)
class ImageCalls:
    make: DriverCall
    remove: DriverCall
    volume: str
    origin: set[str]


@pytest.fixture
def image_calls(cloud: Cloud, request: pytest.FixtureRequest) -> ImageCalls:
    """Calls that make and remove an image by ``cp``, ``mkfs`` or ``clone``."""
    origin: set[str] = set()
    if request.param == "cp":
        image = cloud.imported(CONTENT)
    elif request.param == "clone":
        first = cloud.filled(CONTENT)
        origin = {f"one-{first}"}
        image = int(cloud.call("image.clone", first, "clone", -1))
    else:
        image = cloud.image(SIZE=len(CONTENT) // MIB)
    make = cloud.calls(request.param)[-1]
    cloud.delete(image)
    return ImageCalls(make, cloud.calls("rm")[-1], f"one-{image}", origin)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cloud", [{"box": {"copy_speed": 1000.0}}], indirect=True)
@pytest.mark.parametrize("image_calls", ["mkfs", "clone", "cp"], indirect=True)
def test_an_image_that_cannot_be_made_leaves_nothing(
    cloud: Cloud, run: Run, image_calls: ImageCalls, mode: str
) -> None:
    for failed in failures(cloud, run, image_calls.make, mode=mode):
        if failed.answer.rc:
            assert (cloud.volumes(), cloud.maps(), cloud.mappings()) == (image_calls.origin, set(), set()), (
                failed
            )
        if failed.answer.rc and image_calls.make.action == "cp" and failed.at % 3:
            continue  # an import takes its time, and a retry finds the same after each of these
        assert must(run(image_calls.make), failed) == image_calls.make.stdout
        assert cloud.volumes() == image_calls.origin | {image_calls.volume}, failed
        assert cloud.mappings() == set(), failed
        if image_calls.make.action != "mkfs":
            assert cloud.stored(image_calls.volume) == CONTENT, failed
        must(run(image_calls.remove), failed)
        assert cloud.volumes() == image_calls.origin, failed
    must(run(image_calls.remove), "the end")
    for volume in image_calls.origin:
        cloud.delete(int(volume.removeprefix("one-")))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("image_calls", ["mkfs"], indirect=True)
def test_a_deletion_that_fails_is_repeated(
    cloud: Cloud, run: Run, image_calls: ImageCalls, mode: str
) -> None:
    must(run(image_calls.make), "the beginning")
    for failed in failures(cloud, run, image_calls.remove, mode=mode):
        if failed.answer.rc == 0:
            assert cloud.volumes() == set(), failed
        must(run(image_calls.remove), failed)
        assert cloud.volumes() == set(), failed
        must(run(image_calls.make), failed)


@dataclass(frozen=True)
class DiskCalls:
    """Calls about the two disks of a VM that is no more: 0 was a clone of ``image``, 1 the image ``data``."""

    image: int
    data: int
    vm: int
    clone: DriverCall
    delete: DriverCall
    ln: DriverCall
    mvds: DriverCall

    @property
    def images(self) -> set[str]:
        return {f"one-{self.image}", f"one-{self.data}"}

    @property
    def own(self) -> str:
        return f"one-{self.image}-{self.vm}-0"


@pytest.fixture
def disk_calls(cloud: Cloud) -> DiskCalls:
    image, data = cloud.filled(CONTENT), cloud.filled(CONTENT[::-1], PERSISTENT="YES")
    vm = cloud.run(f'IMAGE_ID="{image}"', f'IMAGE_ID="{data}"')
    cloud.act(vm, "terminate-hard", "DONE")
    (clone,), (ln,), (mvds,) = cloud.calls("clone"), cloud.calls("ln"), cloud.calls("mvds")
    return DiskCalls(image, data, vm, clone, cloud.calls("delete")[0], ln, mvds)


def nothing_on_hosts(cloud: Cloud) -> bool:
    return not any(host.leftovers(with_sessions=False) for host in cloud.scene.hosts.values())


@pytest.mark.parametrize("mode", MODES)
def test_a_clone_for_a_vm_that_fails_is_made_by_a_retry_and_removed_by_a_deletion(
    cloud: Cloud, run: Run, disk_calls: DiskCalls, mode: str
) -> None:
    for failed in failures(cloud, run, disk_calls.clone, mode=mode):
        if failed.answer.rc:  # after a failed attach to a running VM oned calls nobody
            left = (cloud.volumes(), cloud.maps(), cloud.mappings())
            assert left == (disk_calls.images, set(), set()), failed
            assert nothing_on_hosts(cloud), failed
        if failed.at % 2:  # in turns: oned's retry of the script, or recover --delete at once
            must(run(disk_calls.clone), failed)
            assert cloud.mappings() == {("node1", disk_calls.own)}, failed
            assert cloud.read(disk_calls.vm, 0, len(CONTENT)) == CONTENT, failed
        must(run(disk_calls.delete), failed)
        assert (cloud.volumes(), cloud.maps(), cloud.mappings()) == (disk_calls.images, set(), set()), failed
        assert nothing_on_hosts(cloud), failed
    must(run(disk_calls.delete), "the end")
    assert cloud.stored(f"one-{disk_calls.image}") == CONTENT
    cloud.delete(disk_calls.image, disk_calls.data)


@pytest.mark.parametrize("mode", MODES)
def test_an_attachment_that_fails_leaves_nothing_mapped_and_is_repeated(
    cloud: Cloud, run: Run, disk_calls: DiskCalls, mode: str
) -> None:
    for failed in failures(cloud, run, disk_calls.ln, mode=mode):
        if failed.answer.rc:  # after a failed attach to a running VM oned calls nobody
            assert cloud.mappings() == set(), failed
            assert nothing_on_hosts(cloud), failed
        must(run(disk_calls.ln), failed)
        assert cloud.mappings() == {("node1", f"one-{disk_calls.data}")}, failed
        must(run(disk_calls.mvds), failed)
        assert cloud.mappings() == set(), failed
    must(run(disk_calls.mvds), "the end")
    assert cloud.stored(f"one-{disk_calls.data}") == CONTENT[::-1]
    cloud.delete(disk_calls.image, disk_calls.data)


@pytest.mark.parametrize("mode", MODES)
def test_a_detachment_that_fails_is_repeated(
    cloud: Cloud, run: Run, disk_calls: DiskCalls, mode: str
) -> None:
    pairs = [(disk_calls.clone, disk_calls.delete)]
    if mode == "refused":
        pairs.append((disk_calls.ln, disk_calls.mvds))
    for make, remove in pairs:
        must(run(make), "the beginning")
        for failed in failures(cloud, run, remove, mode=mode):
            if failed.answer.rc == 0:
                assert (cloud.volumes(), cloud.mappings()) == (disk_calls.images, set()), failed
            must(run(remove), failed)
            assert (cloud.volumes(), cloud.mappings()) == (disk_calls.images, set()), failed
            assert nothing_on_hosts(cloud), failed
            must(run(make), failed)
        must(run(remove), "the end")
    assert cloud.stored(f"one-{disk_calls.data}") == CONTENT[::-1]
    cloud.delete(disk_calls.image, disk_calls.data)


@pytest.mark.parametrize("mode", MODES)
def test_a_move_that_fails_is_repeated(cloud: Cloud, run: Run, disk_calls: DiskCalls, mode: str) -> None:
    volume, there = f"one-{disk_calls.data}", disk_calls.ln.argv[1]
    elsewhere = there.replace("node1:", "node2:")
    forth = replace(disk_calls.ln, action="mv", argv=(there, elsewhere, *disk_calls.ln.argv[2:]))
    back = replace(forth, argv=(elsewhere, there, *disk_calls.ln.argv[2:]))
    must(run(disk_calls.ln), "the beginning")
    for failed in failures(cloud, run, forth, mode=mode):
        must(run(forth), failed)
        assert cloud.mappings() == {("node2", volume)}, failed
        must(run(back), failed)
        assert cloud.mappings() == {("node1", volume)}, failed
    must(run(back), "the end")
    must(run(disk_calls.mvds), "the end")
    assert nothing_on_hosts(cloud)
    assert cloud.stored(volume) == CONTENT[::-1]
    cloud.delete(disk_calls.image, disk_calls.data)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cloud", [{"box": {"copy_speed": 1000.0}}], indirect=True)
@pytest.mark.parametrize("image_calls", ["mkfs"], indirect=True)
def test_a_save_that_fails_is_repeated(
    cloud: Cloud, run: Run, image_calls: ImageCalls, disk_calls: DiskCalls, mode: str
) -> None:
    source = must(run(image_calls.make), "the beginning").strip()
    disk, vm, datastore = disk_calls.ln.argv[1], *disk_calls.ln.argv[2:]
    save = replace(disk_calls.ln, action="cpds", argv=(disk, source, "-1", vm, datastore))
    must(run(disk_calls.ln), "the beginning")
    for failed in failures(cloud, run, save, mode=mode):
        must(run(save), failed)
        assert cloud.stored(image_calls.volume) == CONTENT[::-1], failed
        assert cloud.mappings() == {("node1", f"one-{disk_calls.data}")}, failed
        must(run(image_calls.remove), failed)
        must(run(image_calls.make), failed)
    must(run(disk_calls.mvds), "the end")
    must(run(image_calls.remove), "the end")
    assert cloud.stored(f"one-{disk_calls.data}") == CONTENT[::-1]
    cloud.delete(disk_calls.image, disk_calls.data)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("disk", [0, 1], ids=["mkimage", "mkswap"])
def test_a_volatile_volume_that_cannot_be_made_leaves_nothing_and_is_repeated(
    cloud: Cloud, run: Run, disk: int, mode: str
) -> None:
    block = cloud.block_datastore()
    vm = cloud.run('TYPE="fs",SIZE="8",FORMAT="raw"', 'TYPE="swap",SIZE="8"', datastore=block)
    cloud.act(vm, "terminate-hard", "DONE")
    make = cloud.calls(("mkimage", "mkswap")[disk])[-1]
    remove = cloud.calls("delete")[disk]
    volume = f"one-sys-{vm}-{disk}"
    for failed in failures(cloud, run, make, mode=mode):
        if failed.answer.rc:
            assert (cloud.volumes(), cloud.mappings()) == (set(), set()), failed
        must(run(make), failed)
        assert cloud.volumes() == {volume}, failed
        assert cloud.mappings() == {("node1", volume)}, failed
        must(run(remove), failed)
        assert (cloud.volumes(), cloud.mappings()) == (set(), set()), failed
        assert nothing_on_hosts(cloud), failed
    must(run(remove), "the end")

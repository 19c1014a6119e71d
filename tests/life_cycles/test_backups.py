# SPDX-License-Identifier: Apache-2.0
"""Backups of running and resting VMs: what is stored is what the disks were, and can be put back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Thread
from xml.etree import ElementTree

import pytest

from lab.backup import ACTIONS, DOWNLOADER, install
from lab.scene import REMOTES
from sanstone.transport.waiting import Deadline, wait_until
from tests.life_cycles.cloud import MIB, PROGRAMS, Cloud
from tests.life_cycles.conftest import FAILED

pytestmark = pytest.mark.real(*PROGRAMS, *ACTIONS, DOWNLOADER)

SIZE = 4 * MIB
BLOCK = 4096
SECONDS = 30.0


def noise(seed: int, size: int = SIZE) -> bytes:
    """Bytes, a megabyte of zeros among them."""
    return random.Random(seed).randbytes(size - MIB) + bytes(MIB)


@pytest.fixture
def cloud(tmp_path: Path, system: str, request: pytest.FixtureRequest) -> Iterator[Cloud]:
    remotes = tmp_path / "remotes"
    for kind in ("tm", "datastore"):
        (remotes / kind).mkdir(parents=True)
        (remotes / kind / system).symlink_to(REMOTES / kind / system)
    install(remotes, "files")
    with Cloud(tmp_path, system, oned={"remotes": remotes}, **getattr(request, "param", {})) as cloud:
        settings = cloud.directory / "sanstone.conf"
        text = settings.read_text().replace("[sanstone]\n", f"[sanstone]\nREMOTES_DIR = {remotes}\n")
        settings.write_text(text)
        yield cloud
        cloud.oned.wait_idle(60)
        if not request.node.stash.get(FAILED, False):
            cloud.assert_nothing_left()


class Guest:
    """A VM with a clone and a persistent disk, and the datastore of its backups."""

    def __init__(self, cloud: Cloud, mode: str = "FULL", freeze: str = "NONE", **config: str) -> None:
        self.cloud = cloud
        self.images = (cloud.filled(noise(1)), cloud.filled(noise(2), PERSISTENT="YES"))
        self.vm = cloud.run(*(f'IMAGE_ID="{image}"' for image in self.images))
        self.volumes = (f"one-{self.images[0]}-{self.vm}-0", f"one-{self.images[1]}")
        self.bak = int(
            cloud.call("datastore.allocate", 'NAME="bak"\nTYPE="BACKUP_DS"\nDS_MAD="files"\nTM_MAD="-"', -1)
        )
        self.configure(MODE=mode, FS_FREEZE=freeze, **config)

    def configure(self, **config: str) -> None:
        told = ",".join(f'{key}="{value}"' for key, value in config.items())
        self.cloud.call("vm.updateconf", self.vm, f"BACKUP_CONFIG=[{told}]", 1)

    @property
    def disks(self) -> tuple[bytes, bytes]:
        return self.cloud.stored(self.volumes[0]), self.cloud.stored(self.volumes[1])

    @property
    def place(self) -> Path:
        return self.cloud.link(self.vm, 0).parent / "backup"

    def back_up(self, *, is_reset: bool = False, state: str = "RUNNING") -> None:
        self.cloud.call("vm.backup", self.vm, self.bak, is_reset)
        self.cloud.expect(self.vm, state)
        self.take_notice()

    def take_notice(self) -> None:
        """Let the host hear of the LUNs that came and went, by writing what is there already.

        tgtd tells of each by a unit attention of its own, and QEMU's initiator gives a request up at the
        ninth, where a kernel goes on.
        """
        for disk, volume in enumerate(self.volumes):
            first = self.cloud.stored(volume, BLOCK)
            with suppress(OSError):
                self.cloud.write(self.vm, disk, first)
                continue
            self.cloud.write(self.vm, disk, first)

    def ids(self) -> list[int]:
        document = ElementTree.fromstring(self.cloud.call("vm.info", self.vm))
        return [int(each.text or "") for each in document.findall("BACKUPS/BACKUP_IDS/ID")]

    def files(self, disk: int) -> list[Path]:
        """The files of a disk that are stored, oldest first."""
        found = self.cloud.directory.glob(f"datastores/{self.bak}/{self.vm}/*/disk.{disk}.*")
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def states(self) -> set[str]:
        """The states of disks that the array keeps for increments."""
        return {name.rpartition("-b")[2] for name in self.cloud.volumes() if "-b" in name}

    def restore(self, image: int, increment: int = -1, disk: int = -1) -> None:
        self.cloud.call("vm.restore", self.vm, image, increment, disk)
        self.cloud.expect(self.vm, "POWEROFF")

    def end(self) -> None:
        self.cloud.act(self.vm, "terminate-hard", "DONE")
        self.cloud.assert_array(f"one-{image}" for image in self.images)
        self.cloud.delete(*self.images)

    def assert_at_rest(self) -> None:
        """Nothing of a backup is on the array's hosts or in the VM's directory."""
        assert not self.place.exists()
        images = {f"one-{image}" for image in self.images}
        states = {name for name in self.cloud.volumes() if "-b" in name}
        self.cloud.assert_array(
            {*images, *self.volumes, *states}, {volume: "node1" for volume in self.volumes}
        )


def block(words: bytes) -> bytes:
    """A block of a guest's file system."""
    return words.ljust(BLOCK, b".")


def raw(path: Path) -> bytes:
    target = path.with_suffix(".read")
    command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(target)]
    subprocess.run(command, check=True, timeout=SECONDS)
    found = target.read_bytes()
    target.unlink()
    return found


def give_virsh(cloud: Cloud, on_thaw: str = "", code: int = 0) -> Path:
    """Give node1 a virsh; return where it writes down what it was asked."""
    root = cloud.scene.hosts["node1"].root
    log = root / "virsh.log"
    program = root / "bin" / "virsh"
    program.write_text(
        f'#!/bin/sh\necho "$3" >> "{log}"\ncase "$3" in\n'
        f"  domfsfreeze|suspend) exit {code} ;;\n  domfsthaw|resume) {on_thaw or ':'} ;;\nesac\n"
    )
    program.chmod(0o755)
    return log


def test_a_live_backup_is_what_both_disks_were_and_the_guest_writes_on(cloud: Cloud) -> None:
    guest = Guest(cloud, freeze="AGENT")
    cloud.write(guest.vm, 0, block(b"before"), MIB)
    before = guest.disks
    links = [cloud.link(guest.vm, disk) for disk in (0, 1)]
    writes = "; ".join(
        f'printf after | dd of="{link}" bs=1 seek=100 conv=notrunc,fsync 2>/dev/null' for link in links
    )
    log = give_virsh(cloud, writes)

    guest.back_up()

    assert cloud.failures() == ""
    assert log.read_text().split() == ["domfsfreeze", "domfsthaw", "domfsthaw"]
    assert [raw(*guest.files(disk)) for disk in (0, 1)] == list(before)
    assert [disk[100:105] for disk in guest.disks] == [b"after", b"after"]
    assert guest.files(0)[0].stat().st_size < SIZE
    assert guest.states() == set()
    guest.assert_at_rest()
    guest.end()


def test_a_backup_of_a_vm_that_is_off_is_what_its_disks_are(cloud: Cloud) -> None:
    guest = Guest(cloud, freeze="AGENT")
    cloud.write(guest.vm, 1, block(b"before"), MIB)
    cloud.act(guest.vm, "poweroff-hard", "POWEROFF")

    guest.back_up(state="POWEROFF")

    assert cloud.failures() == ""
    assert [raw(*guest.files(disk)) for disk in (0, 1)] == list(guest.disks)
    guest.assert_at_rest()
    guest.end()


def chained(*paths: Path) -> bytes:
    """What the last file reads as when the chain is put together as the stock drivers do it."""
    for below, above in pairwise(paths):
        command = ["qemu-img", "rebase", "-u", "-F", "qcow2", "-b", str(below), str(above)]
        subprocess.run(command, check=True, timeout=SECONDS)
    return raw(paths[-1])


def test_increments_are_small_and_each_of_them_restores_whole_disks(cloud: Cloud) -> None:
    guest = Guest(cloud, mode="INCREMENT")
    was = []
    for number in range(3):
        cloud.write(guest.vm, 0, noise(10 + number, MIB + 20 * BLOCK), number * MIB)
        cloud.write(guest.vm, 1, block(b"increment %d" % number), 2 * MIB)
        guest.back_up()
        assert cloud.failures() == ""
        guest.assert_at_rest()
        was.append(guest.disks)
    assert guest.states() == {"1", "2"}
    (image,) = guest.ids()
    for disk in (0, 1):
        files = guest.files(disk)
        assert [path.suffix for path in files] == [".0", ".1", ".2"]
        assert [chained(*files[: number + 1]) for number in range(3)] == [each[disk] for each in was]
        assert files[2].stat().st_size < SIZE
    cloud.write(guest.vm, 0, block(b"lost"))
    cloud.act(guest.vm, "poweroff-hard", "POWEROFF")

    guest.restore(image, 1)

    assert cloud.failures() == ""
    assert guest.disks == was[1]
    assert guest.states() == set()
    cloud.act(guest.vm, "resume", "RUNNING")
    cloud.write(guest.vm, 0, block(b"more"))
    guest.back_up()
    assert len(guest.ids()) == 2
    assert guest.disks[0] == raw(guest.files(0)[-1])
    guest.end()


def test_one_disk_is_restored_and_the_other_stays(cloud: Cloud) -> None:
    guest = Guest(cloud)
    before = guest.disks
    guest.back_up()
    cloud.write(guest.vm, 0, block(b"stays"))
    cloud.write(guest.vm, 1, block(b"lost"))
    cloud.act(guest.vm, "poweroff-hard", "POWEROFF")
    left = guest.disks[0]

    guest.restore(guest.ids()[0], disk=1)

    assert cloud.failures() == ""
    assert guest.disks == (left, before[1])
    guest.end()


def test_oldest_increments_can_be_merged(cloud: Cloud) -> None:
    guest = Guest(cloud, mode="INCREMENT", KEEP_LAST="2")
    for number in range(3):
        cloud.write(guest.vm, 0, bytes(25 * BLOCK) if number else block(b"full"), number * 25 * BLOCK)
        guest.back_up()
    assert cloud.failures() == ""
    was = guest.disks
    assert len(guest.files(0)) == 2
    cloud.write(guest.vm, 0, block(b"lost"))
    cloud.act(guest.vm, "poweroff-hard", "POWEROFF")

    guest.restore(guest.ids()[0])

    assert cloud.failures() == ""
    assert guest.disks == was
    guest.end()


def test_an_increment_whose_base_is_gone_holds_everything(cloud: Cloud) -> None:
    guest = Guest(cloud, mode="INCREMENT")
    guest.back_up()
    call = cloud.calls("postbackup_live")[-1]
    full = call.stdin.replace("INCREMENT]", "FULL]")
    cloud.drive("tm", "postbackup_live", *call.argv, stdin=full)  # drops all states, as after a full backup
    assert guest.states() == set()
    cloud.write(guest.vm, 0, bytes(2 * MIB))

    guest.back_up()

    assert cloud.failures() == ""
    assert chained(*guest.files(0)) == guest.disks[0]
    guest.end()


def test_a_backup_that_was_not_stored_is_not_what_the_next_increment_begins_at(cloud: Cloud) -> None:
    guest = Guest(cloud, mode="INCREMENT")
    guest.back_up()
    stores = cloud.directory.parent / "remotes/datastore/files/backup"
    program = stores.read_text()
    stores.write_text("#!/bin/sh\necho repository locked >&2\nexit 1\n")
    cloud.write(guest.vm, 0, block(b"between"), MIB)
    guest.back_up()
    assert "repository locked" in cloud.vm_error(guest.vm)
    guest.assert_at_rest()
    stores.write_text(program)
    cloud.write(guest.vm, 0, block(b"later"), 2 * MIB)

    guest.back_up()

    assert [path.suffix for path in guest.files(0)] == [".0", ".1"]
    assert chained(*guest.files(0)) == guest.disks[0]
    guest.end()


def test_a_reset_begins_a_new_chain(cloud: Cloud) -> None:
    guest = Guest(cloud, mode="INCREMENT")
    guest.back_up()
    guest.back_up()
    cloud.write(guest.vm, 0, block(b"new"))

    guest.back_up(is_reset=True)

    assert len(guest.ids()) == 2
    assert raw(guest.files(0)[-1]) == guest.disks[0]
    assert guest.states() == {"0"}
    guest.end()


@pytest.mark.parametrize("cloud", [{"attributes": {"BACKUP_COMPARE": "NO"}}], indirect=True)
def test_without_comparing_increments_are_whole(cloud: Cloud) -> None:
    guest = Guest(cloud, mode="INCREMENT")
    guest.back_up()
    cloud.write(guest.vm, 0, bytes(2 * MIB))

    guest.back_up()

    assert cloud.failures() == ""
    assert chained(*guest.files(0)) == guest.disks[0]
    guest.end()


def test_a_guest_that_does_not_freeze_is_not_backed_up(cloud: Cloud) -> None:
    guest = Guest(cloud, freeze="SUSPEND")
    give_virsh(cloud, code=1)

    guest.back_up()

    assert "BACKUP: " in cloud.vm_error(guest.vm)
    assert guest.files(0) == []
    assert guest.states() == set()
    guest.assert_at_rest()
    guest.end()


def test_a_host_without_room_leaves_nothing_behind(cloud: Cloud) -> None:
    guest = Guest(cloud, mode="INCREMENT")
    root = cloud.scene.hosts["node1"].root
    (root / "bin" / "qemu-img").write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
    (root / "bin" / "qemu-img").chmod(0o755)

    guest.back_up()

    assert "No space left" in cloud.vm_error(guest.vm)
    assert guest.states() == set()
    guest.assert_at_rest()
    guest.end()


@pytest.mark.parametrize("mode", ["FULL", "INCREMENT"])
def test_a_killed_prebackup_leaves_nothing_that_postbackup_does_not_remove(cloud: Cloud, mode: str) -> None:
    guest = Guest(cloud, mode=mode)
    root = cloud.scene.hosts["node1"].root
    mark = root / "copying"
    (root / "bin" / "qemu-img").write_text(f"#!/bin/sh\ntouch '{mark}'\nexec sleep 60\n")
    (root / "bin" / "qemu-img").chmod(0o755)
    before = {call.action for call in cloud.calls()}
    thread = Thread(target=guest.back_up)
    thread.start()
    wait_for(mark.exists)

    for pid in pids_of(cloud.directory.parent / "remotes/tm" / cloud.driver / "prebackup_live"):
        os.kill(pid, signal.SIGKILL)
    thread.join(SECONDS)

    assert not thread.is_alive()
    assert "postbackup_live" in {call.action for call in cloud.calls()} - before
    assert guest.states() == set()
    guest.assert_at_rest()
    (root / "bin" / "qemu-img").unlink()
    guest.back_up()
    assert raw(guest.files(0)[0]) == guest.disks[0]
    guest.end()


def wait_for(condition: Callable[[], object]) -> None:
    wait_until(lambda: condition() or None, Deadline(SECONDS), "what the test waits for")


def pids_of(action: Path) -> list[int]:
    """The processes of a driver's action."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if os.fsencode(action) in words:
                found.append(int(path.parent.name))
    return found


def test_monitoring_removes_what_is_not_wanted_of_a_chain(cloud: Cloud) -> None:
    guest = Guest(cloud, mode="INCREMENT")
    guest.back_up()
    guest.back_up()
    assert guest.states() == {"0", "1"}

    cloud.oned.monitor_datastore(cloud.san)

    assert guest.states() == {"1"}
    guest.end()


def test_a_persistent_disk_that_is_detached_takes_no_states_along(cloud: Cloud) -> None:
    guest = Guest(cloud, mode="INCREMENT")
    guest.back_up()

    cloud.detach(guest.vm, 1)

    assert {name for name in cloud.volumes() if "-b" in name} == {f"{guest.volumes[0]}-b0"}
    guest.end()

# SPDX-License-Identifier: Apache-2.0
"""Live migration: two hosts have a VM's volumes from premigrate to postmigrate, and at no other time."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest

from lab.oned import Answer, HostCall
from lab.oned.config import SAN_TM_CONF
from lab.scene import REMOTES
from tests.life_cycles.cloud import MIB, PROGRAMS, Cloud

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)
PATTERN = os.urandom(65536)


class Guests:
    """Looks at the array when the hypervisor is told to move a domain, and refuses when asked to."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.mapped: list[set[tuple[str, str]]] = []
        self.links: list[dict[str, str]] = []
        self.refusals: list[str] = []
        self._before = cloud.hypervisor.execute

    def execute(self, call: HostCall) -> Answer:
        if call.action == "migrate":
            self.mapped.append(self.cloud.mappings())
            links = self.cloud.directory.glob(f"datastores/*/{call.vm_id}/disk.*")
            self.links.append({str(link): str(link.readlink()) for link in links if link.is_symlink()})
            if self.refusals:
                return Answer(1, "", self.refusals.pop())
        return self._before(call)


@pytest.fixture
def guests(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Guests:
    guests = Guests(cloud)
    monkeypatch.setattr(cloud.hypervisor, "execute", guests.execute)
    return guests


def migrate(cloud: Cloud, vm: int, host: str, datastore: int = -1) -> None:
    cloud.call("vm.migrate", vm, cloud.scene.host_names.index(host), True, False, datastore, 0)
    cloud.expect(vm, "RUNNING")


def sweep(cloud: Cloud) -> None:
    """Monitor the datastore once, which puts in order what nobody asked for."""
    info = cloud.call("datastore.info", cloud.san)
    document = f"<DS_DRIVER_ACTION_DATA>{info}</DS_DRIVER_ACTION_DATA>"
    assert cloud.drive("datastore", "monitor", str(cloud.san), stdin=document).rc == 0


class Setting:
    """A VM with a clone, a persistent disk and a CD-ROM that another VM uses on the target host."""

    def __init__(self, cloud: Cloud, datastore: int | None = None) -> None:
        self.cloud = cloud
        self.os = cloud.filled(CONTENT)
        self.data = cloud.image(SIZE=4, PERSISTENT="YES")
        self.cdrom = cloud.filled(CONTENT)
        cloud.call("image.chtype", self.cdrom, "CDROM")
        disks = [f'IMAGE_ID="{image}"' for image in (self.os, self.data, self.cdrom)]
        self.vm = cloud.run(*disks, datastore=datastore)
        self.other = cloud.run(disks[2], host="node2", datastore=datastore)
        self.own = {f"one-{self.os}-{self.vm}-0", f"one-{self.data}"}
        cloud.write(self.vm, 1, PATTERN)

    @property
    def volumes(self) -> set[str]:
        return self.own | {f"one-{self.os}", f"one-{self.cdrom}"}

    def assert_on(self, *hosts: str, cdrom: Any = ("node1", "node2")) -> None:
        """The disks are on these hosts, and the CD-ROM where both VMs are."""
        mapped: dict[str, str | set[str]] = {name: set(hosts) for name in self.own}
        self.cloud.assert_array(self.volumes, {**mapped, f"one-{self.cdrom}": set(cdrom)})

    def end(self) -> None:
        self.cloud.act(self.vm, "terminate-hard", "DONE")
        self.cloud.assert_array(self.volumes - {f"one-{self.os}-{self.vm}-0"}, {f"one-{self.cdrom}": "node2"})
        assert self.cloud.stored(f"one-{self.data}", len(PATTERN)) == PATTERN
        self.cloud.act(self.other, "terminate-hard", "DONE")
        self.cloud.delete(self.os, self.data, self.cdrom)


def assert_two_hosts_at_the_move(guests: Guests, setting: Setting) -> None:
    assert guests.mapped[-1] >= {(host, name) for host in ("node1", "node2") for name in setting.own}


def test_the_disks_are_on_two_hosts_while_the_guest_moves(cloud: Cloud, guests: Guests) -> None:
    setting = Setting(cloud)
    setting.assert_on("node1")
    migrate(cloud, setting.vm, "node2")
    assert not cloud.failures()
    assert_two_hosts_at_the_move(guests, setting)
    assert all("/node2/" in target for target in guests.links[-1].values())
    setting.assert_on("node2", cdrom=["node2"])
    cloud.assert_linked(setting.vm, 0, f"one-{setting.os}-{setting.vm}-0", "node2")
    assert cloud.read(setting.vm, 0, len(CONTENT)) == CONTENT
    assert cloud.read(setting.vm, 1, len(PATTERN)) == PATTERN
    migrate(cloud, setting.vm, "node1")
    setting.assert_on("node1")
    assert cloud.read(setting.vm, 2, MIB) == CONTENT[:MIB]
    setting.end()


def test_a_guest_that_stays_leaves_nothing_on_the_other_host(cloud: Cloud, guests: Guests) -> None:
    setting = Setting(cloud)
    guests.refusals.append("migrate: connection reset")
    migrate(cloud, setting.vm, "node2")
    assert_two_hosts_at_the_move(guests, setting)
    setting.assert_on("node1")
    cloud.assert_linked(setting.vm, 0, f"one-{setting.os}-{setting.vm}-0", "node1")
    assert cloud.read(setting.vm, 1, len(PATTERN)) == PATTERN
    setting.end()


def test_when_one_disk_cannot_come_along_none_does(cloud: Cloud, guests: Guests) -> None:
    setting = Setting(cloud)
    cloud.array.refuse("map", f"one-{setting.data}", host="node2", times=None)
    migrate(cloud, setting.vm, "node2")
    assert guests.mapped == []
    assert cloud.vm_error(setting.vm)
    setting.assert_on("node1")
    cloud.array.faults.clear()
    migrate(cloud, setting.vm, "node2")
    setting.assert_on("node2", cdrom=["node2"])
    setting.end()


def test_each_call_may_be_made_again(cloud: Cloud, guests: Guests) -> None:
    setting = Setting(cloud)
    migrate(cloud, setting.vm, "node2")
    assert cloud.again(cloud.calls("postmigrate")[-1]).rc == 0
    setting.assert_on("node2", cdrom=["node2"])
    guests.refusals.append("no")
    migrate(cloud, setting.vm, "node1")
    assert cloud.again(cloud.calls("failmigrate")[-1]).rc == 0
    setting.assert_on("node2", cdrom=["node2"])
    assert cloud.again(cloud.calls("premigrate")[-1]).rc == 0
    assert cloud.again(cloud.calls("premigrate")[-1]).rc == 0
    setting.assert_on("node1", "node2")
    assert cloud.again(cloud.calls("failmigrate")[-1]).rc == 0
    setting.assert_on("node2", cdrom=["node2"])
    setting.end()


def test_to_another_system_datastore_on_the_same_host_only_links_move(cloud: Cloud, guests: Guests) -> None:
    other = cloud.system_datastore("system 2")
    setting = Setting(cloud)
    migrate(cloud, setting.vm, "node1", other)
    assert not cloud.failures()
    setting.assert_on("node1")
    assert cloud.link(setting.vm, 0).is_relative_to(cloud.directory / "datastores" / str(other))
    cloud.assert_linked(setting.vm, 0, f"one-{setting.os}-{setting.vm}-0")
    guests.refusals.append("no")
    migrate(cloud, setting.vm, "node1", cloud.system)
    assert cloud.link(setting.vm, 0).is_relative_to(cloud.directory / "datastores" / str(other))
    setting.assert_on("node1")
    setting.end()


def test_volatile_volumes_come_along(cloud: Cloud, guests: Guests) -> None:
    vm = cloud.run('TYPE="fs",SIZE="4",FORMAT="raw"', datastore=cloud.block_datastore())
    volume = f"one-sys-{vm}-0"
    cloud.write(vm, 0, PATTERN)
    migrate(cloud, vm, "node2")
    assert not cloud.failures()
    assert guests.mapped == [{("node1", volume), ("node2", volume)}]
    cloud.assert_array({volume}, {volume: "node2"})
    assert cloud.read(vm, 0, len(PATTERN)) == PATTERN
    cloud.act(vm, "terminate-hard", "DONE")


@pytest.mark.parametrize("stock", ["shared", "ssh"])
def test_the_stock_drivers_tell_us_of_a_migration(cloud: Cloud, guests: Guests, stock: str) -> None:
    setting = Setting(cloud, cloud.system_datastore("stock", TM_MAD=stock))
    migrate(cloud, setting.vm, "node2")
    assert not cloud.failures()
    assert_two_hosts_at_the_move(guests, setting)
    setting.assert_on("node2", cdrom=["node2"])
    cloud.assert_linked(setting.vm, 0, f"one-{setting.os}-{setting.vm}-0", "node2")
    setting.end()


def test_a_stock_driver_moves_links_to_another_datastore_though_it_tells_of_the_end_only(
    cloud: Cloud,
) -> None:
    first = cloud.system_datastore("stock", TM_MAD="shared")
    second = cloud.system_datastore("stock 2", TM_MAD="shared")
    setting = Setting(cloud, first)
    migrate(cloud, setting.vm, "node1", second)
    assert not cloud.failures()
    assert cloud.link(setting.vm, 0).is_relative_to(cloud.directory / "datastores" / str(second))
    setting.assert_on("node1")
    setting.end()


@pytest.mark.parametrize(
    ("stock", "then"),
    [("shared", then) for then in ("monitoring", "terminate", "migration", "detach")]
    + [("ssh", "monitoring")],
)
def test_a_failure_that_the_stock_drivers_keep_to_themselves_is_put_in_order(
    cloud: Cloud, guests: Guests, stock: str, then: str
) -> None:
    setting = Setting(cloud, cloud.system_datastore("stock", TM_MAD=stock))
    guests.refusals.append("migrate: refused")
    migrate(cloud, setting.vm, "node2")
    setting.assert_on("node1", "node2")
    if then == "monitoring":
        sweep(cloud)
        setting.assert_on("node1")
    elif then == "migration":
        migrate(cloud, setting.vm, "node2")
        setting.assert_on("node2", cdrom=["node2"])
    elif then == "detach":
        cloud.detach(setting.vm, 1)
        mapped = {
            f"one-{setting.os}-{setting.vm}-0": {"node1", "node2"},
            f"one-{setting.cdrom}": {"node1", "node2"},
        }
        cloud.assert_array(setting.volumes, mapped)
    setting.end()


def test_a_migration_whose_end_was_lost_is_put_in_order(cloud: Cloud, guests: Guests) -> None:
    setting = Setting(cloud)
    cloud.array.refuse("unmap", times=None)
    migrate(cloud, setting.vm, "node2")
    cloud.array.faults.clear()
    assert {("node1", name) for name in setting.own} & cloud.mappings()
    sweep(cloud)
    setting.assert_on("node2", cdrom=["node2"])
    setting.end()


@pytest.fixture
def heard(tmp_path: Path) -> Path:
    return tmp_path / "heard"


@pytest.fixture
def remotes(tmp_path: Path, heard: Path) -> Path:
    """oned's drivers: ours, and one called ``other`` that only notes how it was called."""
    remotes = tmp_path / "remotes"
    for kind in ("tm", "datastore"):
        own, other = remotes / kind / "v7000", remotes / kind / "other"
        own.mkdir(parents=True)
        other.mkdir()
        for link in (REMOTES / kind / "v7000").iterdir():
            (own / link.name).symlink_to(REMOTES / "sanstone-driver")
            script = other / link.name
            said = "echo FREE_MB=9" if link.name == "monitor" else "echo elsewhere"
            script.write_text(
                f'#!/bin/sh\nread -r text; echo "${{0##*/}} $* ${{#text}}" >> "{heard}"\n{said}\n'
            )
            script.chmod(0o755)
    return remotes


def test_the_drivers_of_other_disks_are_told_when_we_are_the_system_datastore(
    tmp_path: Path, remotes: Path, heard: Path
) -> None:
    conf = {"TM_MAD_SYSTEM": "v7000", "LN_TARGET_V7000": "NONE", "CLONE_TARGET_V7000": "SELF"}
    oned = {
        "remotes": remotes,
        "ds_mads": ("other",),
        "tm_mad_conf": {"other": {**SAN_TM_CONF, **conf, "DISK_TYPE_V7000": "BLOCK"}},
    }
    with Cloud(tmp_path, oned=oned) as cloud:
        elsewhere = cloud.datastore("elsewhere", DS_MAD="other", TM_MAD="other")
        image, ours = cloud.image(datastore=elsewhere), cloud.filled(CONTENT)
        vm = cloud.run(f'IMAGE_ID="{image}"', f'IMAGE_ID="{ours}"')
        heard.write_text("")
        migrate(cloud, vm, "node2")
        assert not cloud.failures()
        directory = cloud.directory / "datastores" / str(cloud.system) / str(vm)
        document = len(base64.b64encode(cloud.calls("premigrate")[0].stdin.encode()))
        ends = f"node1 node2 {directory} {vm} {cloud.system} v7000 {document}"
        assert heard.read_text().splitlines() == [f"premigrate {ends}", f"postmigrate {ends}"]
        # failmigrate is passed on by none of OpenNebula's own drivers
        cloud.oned.hypervisor.fail("migrate", "no")
        migrate(cloud, vm, "node1")
        assert [line.split()[0] for line in heard.read_text().splitlines()[2:]] == ["premigrate"]
        cloud.act(vm, "terminate-hard", "DONE")
        cloud.delete(image, ours)
        cloud.assert_nothing_left()

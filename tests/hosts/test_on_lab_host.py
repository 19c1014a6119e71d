# SPDX-License-Identifier: Apache-2.0
"""Attach and detach over real ssh and real iSCSI: a user-space host, and a tgtd for each portal of a box."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.host import PROGRAMS, Timings, UserSpaceHost, ssh_config
from lab.tgt import Tgtd
from sanstone.errors import BusyError, ConnectError, DataSafetyError
from sanstone.hosts.client import Host
from sanstone.hosts.ops import Attach, Attached, Convert, Detach, Detached, PutFile, ReadLink
from sanstone.model import MIB, Connection, Device, Portal, Target

pytestmark = pytest.mark.real(*PROGRAMS, "tgtd", "tgtadm", "ssh", "ssh-keygen", "qemu-img")

INITIATOR = "iqn.1994-05.com.redhat:node1"
IQN = "iqn.1986-03.com.ibm:2145.lab.node1"
SIZE = 8 * MIB


def uid(number: int) -> str:
    return f"600507680c8081adac{number:014x}"


def wwid(number: int) -> str:
    return f"3{uid(number)}"


class Box:
    """An array with two portals, each a tgtd of its own, and the same volumes behind both."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        octets = os.urandom(2)
        self.nodes = [Tgtd(f"127.{octets[0] or 1}.{octets[1]}.{number}") for number in (21, 22)]

    def start(self) -> None:
        for node in self.nodes:
            node.start()
            node.new_target(1, IQN)
            node.bind(1, INITIATOR)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def file(self, number: int) -> Path:
        return self._folder / f"volume-{number}"

    def map(self, number: int, lun: int) -> Connection:
        if not self.file(number).exists():
            with self.file(number).open("wb") as file:
                file.truncate(SIZE)
        for node in self.nodes:
            node.add_lun(1, lun, self.file(number), scsi_id=uid(number), scsi_sn=uid(number))
        portals = tuple(Portal(address, port) for address, port in (node.portal for node in self.nodes))
        return Connection(f"one-img-{number}", wwid(number), SIZE, lun, (Target(IQN, portals),))

    def unmap(self, lun: int) -> None:
        for node in self.nodes:
            node.delete_lun(1, lun)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("key") / "id_ed25519"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    one = Box(tmp_path)
    try:
        one.start()
        yield one
    finally:
        one.stop()


@pytest.fixture
def machine(tmp_path: Path, key: Path) -> Iterator[UserSpaceHost]:
    if not key.exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=20
        )
    public = key.with_suffix(".pub").read_text()
    with UserSpaceHost("node1", tmp_path / "node1", INITIATOR, public, timings=Timings(second=0.05)) as one:
        yield one


@pytest.fixture
def host(machine: UserSpaceHost, key: Path, tmp_path: Path) -> Host:
    config = tmp_path / "ssh_config"
    config.write_text(ssh_config([machine], key))
    return Host("node1", ssh_options=("-F", str(config)))


def attach(host: Host, connection: Connection, link: Path | None = None) -> Device:
    (result,) = host.run([Attach(connection, str(link) if link else None)], deadline=40)
    assert isinstance(result, Attached)
    return result.device


def detach(host: Host, number: int, *, log_out: bool = False) -> Detached:
    (result,) = host.run([Detach(wwid(number), log_out=log_out)], deadline=40)
    assert isinstance(result, Detached)
    return result


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def test_an_image_travels_from_the_front_end_to_the_array(
    host: Host, machine: UserSpaceHost, box: Box, tmp_path: Path
) -> None:
    connection = box.map(1, 4)
    content = os.urandom(MIB) + bytes(2 * MIB)
    image = tmp_path / "image"
    image.write_bytes(content)
    link = tmp_path / "datastores/0/7/disk.0"

    with image.open("rb") as upload:
        host.run(
            [
                PutFile(f"{tmp_path}/staged", len(content)),
                Attach(connection, str(link)),
                Convert(f"{tmp_path}/staged", wwid(1), True, "raw"),
            ],
            deadline=40,
            upload=upload,
        )

    assert host.round_trips == machine.ssh_connections == 1
    assert box.file(1).read_bytes()[: len(content)] == content
    assert link.read_bytes()[: len(content)] == content
    results = host.run([ReadLink(str(link)), Detach(wwid(1), str(link), log_out=True)], deadline=40)
    assert results[1] == Detached(was_attached=True)
    assert machine.leftovers() == []


def test_attaching_again_runs_nothing(host: Host, machine: UserSpaceHost, box: Box) -> None:
    connection = box.map(1, 4)
    first = attach(host, connection)
    assert not first.is_degraded
    before = machine.commands

    assert attach(host, connection) == first
    assert machine.commands == before


def test_a_lun_used_again_leads_to_the_new_volume(host: Host, machine: UserSpaceHost, box: Box) -> None:
    attach(host, box.map(1, 4))
    box.unmap(4)
    second = box.map(2, 4)

    device = attach(host, second)

    assert device.wwid == wwid(2)
    assert not device.is_degraded
    assert machine.leftovers([wwid(2)]) == []


def test_a_lun_used_again_while_the_old_disk_is_open_is_refused(
    host: Host, machine: UserSpaceHost, box: Box
) -> None:
    old = attach(host, box.map(1, 4))

    with Path(old.path).open("rb"):
        box.unmap(4)
        second = box.map(2, 4)
        with pytest.raises(DataSafetyError, match=str(os.getpid())):
            attach(host, second)


def test_a_detach_of_an_open_volume_is_refused(host: Host, machine: UserSpaceHost, box: Box) -> None:
    device = attach(host, box.map(1, 4))

    with Path(device.path).open("rb"), pytest.raises(BusyError, match=str(os.getpid())):
        host.run([Detach(wwid(1))], deadline=8)

    assert len(machine.devices()) == 2
    detach(host, 1, log_out=True)
    assert machine.leftovers() == []


def test_one_dead_portal_degrades_and_a_dead_array_says_so(
    host: Host, machine: UserSpaceHost, box: Box
) -> None:
    connection = box.map(1, 4)
    box.nodes[1].stop()

    device = attach(host, connection)

    assert device.is_degraded
    assert len(device.paths) == 1
    detach(host, 1, log_out=True)
    box.nodes[0].stop()
    with pytest.raises(ConnectError, match="connection refused"):
        attach(host, connection)
    assert machine.leftovers() == []


def test_a_volume_of_a_dead_array_is_detached(host: Host, machine: UserSpaceHost, box: Box) -> None:
    attach(host, box.map(1, 4))
    for node in box.nodes:
        node.stop()
    until(lambda: all(session.state != "LOGGED_IN" for session in machine.sessions()))

    result = detach(host, 1, log_out=True)

    assert result.was_attached
    assert machine.leftovers() == []


def test_a_path_that_died_is_removed_with_the_rest(host: Host, machine: UserSpaceHost, box: Box) -> None:
    attach(host, box.map(1, 4))
    box.nodes[1].stop()
    until(lambda: any(session.state != "LOGGED_IN" for session in machine.sessions()))

    result = detach(host, 1)

    assert any("was down" in warning for warning in result.warnings)
    assert machine.leftovers(with_sessions=False) == []


@pytest.mark.slow
def test_a_crowd_comes_and_goes(host: Host, machine: UserSpaceHost, box: Box) -> None:
    numbers = range(1, 7)
    connections = [box.map(number, number) for number in numbers]

    with ThreadPoolExecutor(6) as pool:
        devices = list(pool.map(lambda connection: attach(host, connection), connections))
        assert [device.wwid for device in devices] == [wwid(number) for number in numbers]
        assert not any(device.is_degraded for device in devices)
        assert len(machine.sessions()) == 2
        results = list(pool.map(lambda number: detach(host, number, log_out=True), numbers))

    assert all(result.was_attached for result in results)
    assert machine.leftovers() == []

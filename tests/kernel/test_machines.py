# SPDX-License-Identifier: Apache-2.0
"""What the lab promises to those who use it: a real kernel, two paths, and events that really happen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.vm.array import Array
from lab.vm.image import Image
from lab.vm.lab import PROGRAMS, Lab
from lab.vm.machine import LateError, Machine
from lab.vm.waiting import until

pytestmark = pytest.mark.real(*PROGRAMS)

IQN = "iqn.2020-01.org.example:array1.vg-one.lv-machines"
SERIAL = "5a5a000000000001"
WWID = f"36{SERIAL:0>31}"  # of tgt: NAA 6, then the serial
MAP = f"/dev/mapper/{WWID}"
LV = "/dev/vg-one/lv-machines"
MIB = 1 << 20
PATIENCE = 120.0
TGT = f"""
<target {IQN}>
    <backing-store {LV}>
        lun 1
        scsi_id {SERIAL}
        vendor_id SANSTONE
        product_id VOLUME
    </backing-store>
    initiator-address ALL
</target>
"""


@pytest.fixture(scope="module")
def array(lab: Lab) -> Iterator[Array]:
    """Return the array with a thin volume behind a target that comes back at boot."""
    array = lab.array
    array.run("lvcreate -q -y -V 64M -T vg-one/pool -n lv-machines")
    array.run("cat > /etc/tgt/conf.d/lab.conf && sync", stdin=TGT.encode())
    array.run("tgt-admin -e")
    yield array
    array.run("rm /etc/tgt/conf.d/lab.conf")
    array.run(f"tgt-admin --force --delete {IQN} && lvremove -q -y vg-one/lv-machines")


def log_in(host: Machine, *portals: str, targets: tuple[str, ...] = (IQN,)) -> None:
    """Log in to the targets at all portals and look for LUN 1."""
    for portal in portals:
        host.run(f"iscsiadm -m discovery -t sendtargets -p {portal}")
    for target in targets:
        host.run(f"iscsiadm -m node -T {target} -l")
    host.run("for scan in /sys/class/scsi_host/host*/scan; do echo 0 0 1 > $scan; done; udevadm settle")


def log_out(host: Machine) -> None:
    host.run("multipath -F; iscsiadm -m node -u; iscsiadm -m node -o delete; ! iscsiadm -m session")


@pytest.fixture
def node1(lab: Lab, array: Array) -> Iterator[Machine]:
    """Return a host with the volume's map over both networks."""
    host = lab.hosts["node1"]
    log_in(host, *array.portals)
    until(lambda: paths(host) == ["active ready"] * 2, PATIENCE, "A map with two paths")
    yield host
    log_out(host)


def paths(host: Machine) -> list[str]:
    """Return the state of each path in multipathd's eyes."""
    lines = host.run("multipathd show paths raw format '%t %T'").splitlines()
    return sorted(line.strip() for line in lines)


def test_both_hosts_reach_the_array_in_both_networks(lab: Lab, array: Array) -> None:
    for host in lab.hosts.values():
        for network, portal in enumerate(array.portals, 1):
            seen = host.run(f"iscsiadm -m discovery -t sendtargets -p {portal}")
            assert f"{portal},1 {IQN}" in seen.splitlines(), (host.name, network)


def test_a_map_has_two_paths_and_what_is_written_is_in_the_volume(array: Array, node1: Machine) -> None:
    assert f"{WWID} dm-" in node1.run("multipath -l")
    content = os.urandom(MIB)
    node1.run(f"dd of={MAP} bs=1M oflag=direct iflag=fullblock", stdin=content)
    array.run(f"cmp -n {MIB} {LV} -", stdin=content)


def test_oneadmin_has_on_each_machine_the_rights_that_are_shipped_and_no_other(lab: Lab) -> None:
    node1 = lab.hosts["node1"]
    assert node1.ssh("sudo -n multipathd show daemon", user="oneadmin").code == 0
    assert node1.ssh("sudo -n id", user="oneadmin").code == 1
    assert lab.array.ssh("sudo -n multipathd show daemon", user="oneadmin").code == 1


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_write_goes_on_over_the_other_path_when_one_is_lost(
    whole_lab: Lab, array: Array, node1: Machine, is_silent: bool
) -> None:
    content = os.urandom(MIB)
    with whole_lab.lost_path("node1", 1, is_silent=is_silent):
        node1.run(f"dd of={MAP} bs=64K oflag=direct iflag=fullblock", stdin=content, deadline=PATIENCE)
        until(lambda: paths(node1) == ["active ready", "failed faulty"], PATIENCE, "One failed path")
        is_up = node1.run("cat /sys/class/net/san1-1/carrier").strip() == "1"
        assert is_up is is_silent
    until(lambda: paths(node1) == ["active ready"] * 2, PATIENCE, "The path's return")
    array.run(f"cmp -n {MIB} {LV} -", stdin=content)


def test_an_array_that_hangs_is_silent_and_goes_on(whole_lab: Lab) -> None:
    array = whole_lab.array
    array.run("true")
    array.hang()
    with pytest.raises(LateError):
        array.ssh("true", deadline=1)
    array.go_on()
    assert array.ssh("true").code == 0


def test_a_power_cut_keeps_bytes_and_targets_and_sessions_come_back(
    whole_lab: Lab, array: Array, node1: Machine
) -> None:
    content = os.urandom(MIB)
    node1.run(f"dd of={MAP} bs=1M oflag=direct iflag=fullblock && sync -- {MAP}", stdin=content)
    boot = array.run("cat /proc/sys/kernel/random/boot_id")
    array.die()
    assert not array.is_running
    array.boot()
    assert array.run("cat /proc/sys/kernel/random/boot_id") != boot
    array.run(f"cmp -n {MIB} {LV} -", stdin=content)
    until(lambda: paths(node1) == ["active ready"] * 2, PATIENCE, "The paths' return")
    node1.run(f"cmp -n {MIB} {MAP} -", stdin=content)


def test_a_full_pool_takes_no_write_until_there_is_room(whole_lab: Lab, array: Array) -> None:
    whole_lab.fill_pool()
    try:
        assert array.run("lvs --noheadings -o data_percent vg-one/pool").strip() == "100.00"
        with pytest.raises(LateError):
            array.ssh(f"dd if=/dev/urandom of={LV} bs=1M seek=32 count=1 oflag=direct", deadline=3)
    finally:
        whole_lab.empty_pool()
    array.run(f"dd if=/dev/urandom of={LV} bs=1M seek=33 count=1 oflag=direct")


def test_a_simulated_v7000_has_its_volumes_on_the_array_and_real_hosts_use_them(whole_lab: Lab) -> None:
    box = whole_lab.v7000()
    try:
        made = "mkvdisk -name v1 -mdiskgrp mdiskgrp0 -iogrp 0 -size 32 -unit mb -rsize 2% -autoexpand"
        assert box.run(made).code == 0
        assert box.run("mkvdiskhostmap -host node2 v1").code == 0
        uid = next(
            line.split(":")[1] for line in box.run("lsvdisk -delim : v1").stdout.splitlines() if "UID" in line
        )
        host = whole_lab.hosts["node2"]
        log_in(host, box.portals[0], targets=box.targets)
        until(lambda: paths(host) == ["active ready"] * 2, PATIENCE, "A map with two paths")
        content = os.urandom(MIB)
        host.run(f"dd of=/dev/mapper/3{uid.lower()} bs=1M oflag=direct iflag=fullblock", stdin=content)
        log_out(host)
        box.array.run(f"cmp -n {MIB} {box.volume_path(uid)} -", stdin=content)
    finally:
        box.stop()


START = """
import sys
from pathlib import Path
from lab.vm.lab import Lab
Lab(Path(sys.argv[1]), arrays=0, hosts=1).start()
"""


@pytest.mark.real("python3", *PROGRAMS)
def test_a_machine_ends_when_the_process_that_started_it_is_killed(image: Image, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(image.folder.parents[2]),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    state = tmp_path / "lab/state.json"
    argv = [sys.executable, "-c", START, str(tmp_path / "lab")]
    with subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL) as parent:
        until(lambda: parent.poll() is not None or state.exists(), 60, "A machine")
        pid = json.loads(state.read_text())["machines"]["node1"]["pid"]
        assert b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()
        parent.send_signal(signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists(), 10, "The end of QEMU")

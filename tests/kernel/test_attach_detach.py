# SPDX-License-Identifier: Apache-2.0
"""Attach and detach with a real initiator, real SCSI disks and a real multipathd."""

from __future__ import annotations

import dataclasses
import os

import pytest

from lab.vm.lab import PROGRAMS
from sanstone.errors import BusyError, ConnectError, DataSafetyError
from sanstone.model import MIB, Chap
from sanstone.secret import Secret
from tests.kernel.node import Node, link, until
from tests.kernel.scene import Scene, at_once
from tests.kernel.targets import SIZE, wwid

pytestmark = [pytest.mark.real(*PROGRAMS), pytest.mark.usefixtures("clean")]

# Keeps a device open as a guest does, writes to it if told, and ends when it is told by a signal.
HOLD = """
import os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print(os.getpid(), flush=True)
signal.sigwait({signal.SIGUSR1})
"""
WATCH = """
import os, time
NAMES, seen = ("cmdline", "environ"), set()
with open("/run/lab-watch", "w") as file:
    print("watching", flush=True)
    while os.path.exists("/run/lab-watch-on"):
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                try:
                    words = b"".join(open(f"/proc/{pid}/{name}", "rb").read() for name in NAMES)
                except OSError:
                    continue
                if words not in seen:
                    seen.add(words)
                    file.write(repr(words) + "\\n")
        file.flush()
        time.sleep(0.005)
"""


def hold(node: Node, number: int, user: str) -> int:
    """Let a process of ``user`` have the volume open; return its id."""
    node.sh(f"cat > /tmp/hold-{user}.py", stdin=HOLD.encode(), user=user)
    run = f"setsid python3 /tmp/hold-{user}.py {link(number)} > /tmp/hold-{user} 2>&1 < /dev/null &"
    node.sh(f": > /tmp/hold-{user}; {run}", user=user)
    pid = int(until(lambda: node.sh(f"cat /tmp/hold-{user}").strip()))
    node.sh(f"echo {pid} > /run/lab-holder")
    return pid


def let_go(node: Node, pid: int) -> None:
    node.sh(f"kill -USR1 {pid}; timeout 60 tail --pid={pid} -f /dev/null; rm /run/lab-holder")


@pytest.mark.parametrize("shape", ["shared", "own"])
def test_a_volume_comes_and_goes_and_comes_again(scene: Scene, shape: str) -> None:
    target, node = getattr(scene, shape), scene.node1
    one, _ = target.map([1, 2])
    content = os.urandom(SIZE)

    (device,) = node.attach(one)

    assert device.path == f"/dev/mapper/{wwid(1)}"
    assert node.warnings == ()
    assert (device.wwid, device.size, device.is_degraded) == (wwid(1), SIZE, False)
    assert {path.portal for path in device.paths} == set(scene.lab.array.portals)
    assert {path.state for path in device.paths} == {"running"}
    # nothing has scanned for the other volume
    assert set(node.sh("cd /sys/block; ls -d sd*").split()) == {path.name for path in device.paths}
    assert node.sh(f"readlink {link(1)}").strip() == device.path
    assert node.attach(one) == [device]
    node.write(link(1), content, user="oneadmin")

    first, second = node.detach(one, log_out=target.log_out), node.detach(one, log_out=target.log_out)

    assert [(first[0].was_attached, first[0].warnings), (second[0].was_attached, second[0].warnings)] == [
        (True, ()),
        (False, ()),
    ]
    assert scene.volumes.holds(1, content)
    node.attach(one)
    assert node.hash(link(1)) == scene.volumes.hashes([1])[0]
    node.detach(one, log_out=target.log_out)
    target.unmap([1, 2])


def test_a_chap_secret_opens_a_target_and_is_nowhere_to_be_seen(scene: Scene) -> None:
    node, right, wrong = scene.node1, "tlRhsw7Qnv2Zc9aK", "xxRhsw7Qnv2Zc9aK"
    (one,) = scene.own.map([3], Chap("node1", Secret(right)))
    node.sh("cat > /tmp/watch.py; touch /run/lab-watch-on", stdin=WATCH.encode())
    node.sh("setsid python3 /tmp/watch.py > /run/lab-watch.out 2>&1 < /dev/null &")
    until(lambda: "watching" in node.sh("cat /run/lab-watch.out"))

    with pytest.raises(ConnectError, match="CHAP name or secret is wrong"):
        node.attach(dataclasses.replace(one, chap=Chap("node1", Secret(wrong))))

    assert scene.own.iqn_of(3) not in "\n".join(node.leftovers())
    (device,) = node.attach(one)
    node.sh("rm /run/lab-watch-on")
    assert not device.is_degraded
    records = f"/etc/iscsi/nodes/{scene.own.iqn_of(3)}"
    assert node.sh(f"stat -c '%a %U' {records}/*").split() == ["600", "root"] * 2
    assert node.sh(f"grep -l {right} {records}/* | wc -l").strip() == "2"
    # it was seen who was at work, and not with what
    assert node.sh("grep -c -e iscsiadm -e sanstone-chap /run/lab-watch").strip() != "0"
    places = "/run/lab-watch /var/log /var/tmp /tmp /run /etc /var/lib/one"
    found = node.sh(
        f"dmesg > /run/lab-watch.dmesg; grep -rlsF -D skip -e {right[2:]} {places} | sort -u; true"
    ).split()
    assert found == sorted(f"{records}/{portal.replace(':', ',')}" for portal in scene.lab.array.portals)
    node.detach(one, log_out=True)
    node.sh("rm -f /run/lab-watch*")
    scene.own.unmap([3])
    scene.own.forget_account("node1")


def test_a_lun_used_again_after_a_detach_is_the_new_volume(scene: Scene) -> None:
    node, old, new = scene.node1, os.urandom(MIB), os.urandom(MIB)
    scene.volumes.fill(2, new)
    (first,) = scene.shared.map_at({1: 5})
    node.attach(first)
    node.write(link(1), old)
    node.detach(first)
    scene.shared.unmap([5])
    (second,) = scene.shared.map_at({2: 5})

    (device,) = node.attach(second)

    assert (device.wwid, device.is_degraded) == (wwid(2), False)
    assert node.hash(link(2)) == scene.volumes.hashes([2])[0]
    node.detach(second)
    assert scene.volumes.holds(1, old)
    assert scene.volumes.holds(2, new)
    scene.shared.unmap([5])


def test_a_lun_used_again_behind_the_hosts_back_is_the_new_volume(scene: Scene) -> None:
    node, old, new = scene.node1, os.urandom(MIB), os.urandom(MIB)
    scene.volumes.fill(2, new)
    (first,) = scene.shared.map_at({1: 6})
    node.attach(first)
    node.write(link(1), old)
    scene.shared.unmap([6])
    (second,) = scene.shared.map_at({2: 6})

    (device,) = node.attach(second)

    assert (device.wwid, device.is_degraded) == (wwid(2), False)
    assert wwid(1) not in "\n".join(line for line in node.leftovers() if not line.startswith("note"))
    assert node.hash(link(2)) == scene.volumes.hashes([2])[0]
    node.detach(first)
    node.write(link(2), old[::-1])
    node.detach(second)
    assert scene.volumes.holds(1, old)
    assert scene.volumes.holds(2, old[::-1])
    scene.shared.unmap([6])


def test_a_lun_used_again_while_the_old_disk_is_open_is_refused(scene: Scene) -> None:
    node, old, new = scene.node1, os.urandom(MIB), os.urandom(MIB)
    scene.volumes.fill(2, new)
    (first,) = scene.shared.map_at({1: 7})
    node.attach(first)
    node.write(link(1), old)
    pid = hold(node, 1, "oneadmin")
    scene.shared.unmap([7])
    (second,) = scene.shared.map_at({2: 7})

    for _ in range(2):
        with pytest.raises(DataSafetyError, match=rf"volume {wwid(1)} and in use: .*process {pid}"):
            node.attach(second)

    assert node.sh(f"readlink -e {link(2)}; true") == ""
    let_go(node, pid)
    (device,) = node.attach(second)
    assert (device.wwid, device.is_degraded) == (wwid(2), False)
    assert node.hash(link(2)) == scene.volumes.hashes([2])[0]
    node.detach(first, second)
    assert scene.volumes.holds(1, old)
    assert scene.volumes.holds(2, new)
    scene.shared.unmap([7])


@pytest.mark.parametrize(
    ("user", "who"), [("oneadmin", r"python3 \(process {pid}\)"), ("root", "a process that cannot be seen")]
)
def test_a_volume_that_is_open_stays(scene: Scene, user: str, who: str) -> None:
    node, content = scene.node1, os.urandom(MIB)
    (one,) = scene.shared.map([4])
    (device,) = node.attach(one)
    pid = hold(node, 4, user)

    with pytest.raises(BusyError, match=f"in use by {who}|in use: {who}".format(pid=pid)):
        node.detach(one, deadline=60)

    assert node.sh(f"readlink {link(4)}").strip() == device.path
    assert node.attach(one) == [device]
    node.write(link(4), content)
    let_go(node, pid)
    assert node.detach(one)[0].was_attached
    assert scene.volumes.holds(4, content)
    scene.shared.unmap([4])


def test_what_a_writer_left_in_the_page_cache_is_on_the_array_after_a_detach(scene: Scene) -> None:
    node, content = scene.node1, os.urandom(SIZE)
    (one,) = scene.shared.map([5])
    node.attach(one)
    # only a flush brings a page to the array now
    node.sh("sysctl -q -w vm.dirty_writeback_centisecs=0 vm.dirty_expire_centisecs=360000")
    try:
        pid = hold(node, 5, "oneadmin")
        node.write(link(5), content, is_buffered=True, user="oneadmin")
        assert int(node.sh("sed -n 's/^Dirty: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) > SIZE // 2048
        assert not scene.volumes.holds(5, content)

        at_once(lambda: node.detach(one), lambda: node.sh(f"sleep 0.5; kill -KILL {pid}; rm /run/lab-holder"))
    finally:
        node.sh("sysctl -q -w vm.dirty_writeback_centisecs=500 vm.dirty_expire_centisecs=3000")

    assert scene.volumes.holds(5, content)
    scene.shared.unmap([5])

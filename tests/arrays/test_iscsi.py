# SPDX-License-Identifier: Apache-2.0
"""tgt on LVM: what is there after each operation, on a target host with a real tgtd.

What holds for every array is in test_every_array.py; here stands what is tgt's or LVM's own.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.target import PROGRAMS, TargetHost
from sanstone.arrays import NewVolume
from sanstone.arrays.iscsi import ISCSI
from sanstone.errors import (
    ArrayError,
    CapacityError,
    ConfigurationError,
    ConflictError,
    ConnectError,
    NotFoundError,
)
from sanstone.model import MIB, Chap, Connection, Initiator, Volume
from sanstone.settings import ConfigFile, resolve

pytestmark = pytest.mark.real("ssh", "python3", "qemu-io", "iscsi-ls", *PROGRAMS)

SIZE = 8 * MIB
IQN = "iqn.2012-02.org.opennebula:nas1.vg-one.lv-one-1"
Opened = Callable[..., ISCSI]


def claim_all(_: Volume | None) -> None:
    """Take whatever bears the name for ours."""


def initiator(host: str) -> Initiator:
    return Initiator(f"iqn.1993-08.org.debian:01:{host}", takes_secrets=True)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    _write_key(path)
    return path


def _write_key(path: Path) -> None:
    import paramiko

    made = paramiko.ECDSAKey.generate()
    made.write_private_key_file(str(path))
    path.with_suffix(".pub").write_text(f"{made.get_name()} {made.get_base64()}\n")


@pytest.fixture
def host(tmp_path: Path, key: Path) -> Iterator[TargetHost]:
    with TargetHost("nas1", tmp_path / "nas1", key.with_suffix(".pub").read_text().strip()) as one:
        yield one


@pytest.fixture
def thick_host(tmp_path: Path, key: Path) -> Iterator[TargetHost]:
    public = key.with_suffix(".pub").read_text().strip()
    with TargetHost("nas1", tmp_path / "nas1", public, pool="", size=128 * MIB) as one:
        yield one


def opener(host: TargetHost, key: Path, tmp_path: Path) -> Opened:
    known = tmp_path / "known_hosts"
    known.write_text(host.known_hosts_line("nas1") + "\n")
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host nas1\n HostName {host.ssh_host}\n Port {host.ssh_port}\n User {host.user}\n"
        f" HostKeyAlias nas1\n IdentityFile {key}\n IdentitiesOnly yes\n"
        f" UserKnownHostsFile {known}\n StrictHostKeyChecking yes\n"
    )
    conf = tmp_path / "sanstone.conf"
    conf.write_text(f"[hosts]\nSSH_OPTIONS = -F {shlex.quote(str(config))}\n")

    def opened(**attributes: str) -> ISCSI:
        settings = resolve("iscsi", ConfigFile.read(conf), datastore={"HOST": "nas1", **attributes})
        return ISCSI(settings, initiators=initiator)

    return opened


@pytest.fixture
def opened(host: TargetHost, key: Path, tmp_path: Path) -> Opened:
    return opener(host, key, tmp_path)


@pytest.fixture
def array(opened: Opened) -> ISCSI:
    return opened()


@pytest.fixture
def thick(thick_host: TargetHost, key: Path, tmp_path: Path) -> ISCSI:
    return opener(thick_host, key, tmp_path)()


def make(array: ISCSI, name: str = "one-1", size: int = SIZE) -> Volume:
    return array.create(NewVolume(name, size), claim=claim_all).volume


def url(connection: Connection, chap: Chap | None = None, portal: int = 0) -> str:
    target = connection.targets[0]
    chap = chap or connection.chap
    who = f"{chap.user}%{chap.password.reveal()}@" if chap else ""
    return f"iscsi://{who}{target.portals[portal]}/{target.iqn}/{connection.lun}"


def io(connection: Connection, host: str, *commands: str, chap: Chap | None = None) -> str:
    """Read and write as an initiator; return what qemu-io says."""
    options = [word for command in commands for word in ("-c", command)]
    place = url(connection, chap)
    node = f"driver=iscsi,initiator-name={initiator(host).name},transport=tcp,"
    node += f"portal={connection.targets[0].portals[0]},target={connection.targets[0].iqn},lun=1"
    if "@" in place:
        user, secret = place.removeprefix("iscsi://").partition("@")[0].split("%")
        node += f",user={user},password={secret}"
    done = subprocess.run(
        ["qemu-io", "--image-opts", node, *options], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout + done.stderr


def visible(connection: Connection, host: str) -> bool:
    """Tell whether discovery shows the target to an initiator."""
    portal = connection.targets[0].portals[0]
    done = subprocess.run(
        ["iscsi-ls", "-i", initiator(host).name, f"iscsi://{portal}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return connection.targets[0].iqn in done.stdout


WRITE, READ = "write -P 0xa5 0 64k", "read -P 0xa5 0 64k"


def works(said: str) -> bool:
    return "65536/65536" in said and "verification failed" not in said


# access


def test_only_the_host_that_has_the_volume_sees_its_target(array: ISCSI) -> None:
    make(array)
    connection = array.map("one-1", "node1")

    assert visible(connection, "node1")
    assert not visible(connection, "node2")
    assert works(io(connection, "node1", WRITE, READ))
    assert "Failed to connect" in io(connection, "node2", READ)


def test_an_initiator_without_the_secret_is_refused(array: ISCSI) -> None:
    make(array)
    connection = array.map("one-1", "node1")
    assert connection.chap is not None
    wrong = Chap(connection.chap.user, type(connection.chap.password)("0123456789abcdef"))

    assert works(io(connection, "node1", WRITE))
    assert "Failed to connect" in io(connection, "node1", READ, chap=wrong)


def test_secrets_differ_by_volume_and_host_and_stay_while_the_volume_does(array: ISCSI) -> None:
    make(array)
    make(array, "one-2")
    first = array.map("one-1", "node1").chap
    again = array.map("one-1", "node1").chap
    other = array.map("one-1", "node2", is_shared=True).chap
    second = array.map("one-2", "node1").chap

    assert first == again
    assert len({each.password for each in (first, other, second) if each}) == 3


def test_no_secret_is_an_argument_of_any_command(array: ISCSI, host: TargetHost) -> None:
    make(array)
    chap = array.map("one-1", "node1").chap
    assert chap is not None
    secret = chap.password.reveal()

    asked = [each.text for each in host.journal.commands]
    assert not [text for text in asked if secret in text or "password" in text]
    assert any(text.startswith("tee /etc/tgt/conf.d/") for text in asked)


def test_without_chap_the_rules_alone_decide(opened: Opened) -> None:
    array = opened(CHAP="NO")
    make(array)
    connection = array.map("one-1", "node1")

    assert connection.chap is None
    assert works(io(connection, "node1", WRITE))
    assert "Failed to connect" in io(connection, "node2", READ)


def test_the_host_that_came_second_keeps_its_access_when_the_first_leaves(
    array: ISCSI, host: TargetHost
) -> None:
    """tgtd dies when an account is taken out of the middle of its row and asked for its targets then."""
    make(array)
    array.map("one-1", "node1")
    second = array.map("one-1", "node2", is_shared=True)

    array.unmap("one-1", "node1")

    assert array.mapped_hosts("one-1") == ("node2",)
    assert not visible(second, "node1")
    assert works(io(second, "node2", WRITE, READ))
    assert [target.iqn for target in host.targets()] == [IQN]


@pytest.mark.parametrize(
    "step", ["rm -f", "op unbind --mode target", "mode account", "op delete --mode target"]
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_unmapping_that_was_cut_off_leaves_neither_target_nor_account(
    array: ISCSI, host: TargetHost, step: str, moment: str
) -> None:
    make(array)
    array.map("one-1", "node1")
    host.faults.add(step, times=2, drop=moment)  # twice: a connection that broke is tried once more
    with contextlib.suppress(ConnectError):
        array.unmap("one-1", "node1")
    assert any(command.dropped for command in host.journal.commands)
    host.faults.clear()

    assert array.delete("one-1", wait=0, host="node1")

    assert host.leftovers() == []


def test_an_initiator_without_a_secret_store_is_refused_before_anything_is_mapped(
    opened: Opened, host: TargetHost
) -> None:
    array = opened(CHAP="YES")
    make(array)
    array._initiators = lambda name: Initiator(initiator(name).name)

    with pytest.raises(ConfigurationError, match="cannot be given a CHAP secret"):
        array.map("one-1", "node1")
    assert array.mapped_hosts("one-1") == ()
    assert host.targets() == []


def test_where_secrets_cannot_be_written_the_rules_alone_decide_unless_chap_is_asked_for(
    opened: Opened,
) -> None:
    array = opened(CHAP="AUTO")
    make(array)
    assert array.map("one-1", "node1").chap is not None
    array.unmap("one-1", "node1")

    array._initiators = lambda name: Initiator(initiator(name).name)
    connection = array.map("one-1", "node1")

    assert connection.chap is None
    assert works(io(connection, "node1", WRITE))
    assert "Failed to connect" in io(connection, "node2", READ)


def test_an_open_rule_of_somebody_else_is_closed_by_the_next_mapping(array: ISCSI, host: TargetHost) -> None:
    make(array)
    connection = array.map("one-1", "node1")
    (target,) = host.targets()
    host.run("tgtadm", "--op", "bind", "--mode", "target", "--tid", str(target.tid), "-I", "ALL")
    assert visible(connection, "node2")

    array.map("one-1", "node1")

    assert not visible(connection, "node2")


# target numbers


def test_a_target_number_that_is_taken_is_left_alone(opened: Opened, host: TargetHost) -> None:
    host.run("tgtadm", "--op", "new", "--mode", "target", "--tid", "7", "-T", "iqn.2000-01.somebody:else")
    array = opened(BASE_TID="7")
    make(array)
    array.map("one-1", "node1")

    assert {target.iqn: target.tid for target in host.targets()} == {"iqn.2000-01.somebody:else": 7, IQN: 8}


# what outlives tgtd


def test_a_target_is_there_again_after_a_power_cut_and_closed_as_before(
    array: ISCSI, host: TargetHost
) -> None:
    volume = make(array)
    connection = array.map("one-1", "node1")
    io(connection, "node1", WRITE)

    host.crash()
    host.boot()

    (target,) = host.targets()
    assert target.scsi_ids == {1: volume.wwid[-24:]}
    assert not visible(connection, "node2")
    assert works(io(connection, "node1", READ))


def test_monitoring_brings_back_what_tgtd_has_lost_with_the_same_secret(
    array: ISCSI, host: TargetHost, caplog: pytest.LogCaptureFixture
) -> None:
    make(array)
    connection = array.map("one-1", "node1")
    (target,) = host.targets()
    host.run("tgtadm", "--op", "delete", "--mode", "target", "--tid", str(target.tid), "--force")

    array.capacity()

    assert works(io(connection, "node1", WRITE))
    assert "The target of one-1 was not as it should be and is again." in caplog.text
    caplog.clear()
    array.capacity()
    assert caplog.text == ""


def test_a_mapping_brings_the_target_back_when_its_file_is_lost_too(array: ISCSI, host: TargetHost) -> None:
    make(array)
    before = array.map("one-1", "node1")
    for path in host.root.glob("etc/tgt/conf.d/*"):
        path.unlink()

    after = array.map("one-1", "node1")

    assert after.chap != before.chap
    assert works(io(after, "node1", WRITE))
    assert "Failed to connect" in io(before, "node1", READ)


def test_files_for_boot_are_for_root_only_and_name_nobodys_address(array: ISCSI, host: TargetHost) -> None:
    """tgt-admin lets everybody in unless an address is named."""
    make(array)
    array.map("one-1", "node1")
    (path,) = host.root.glob("etc/tgt/conf.d/*")

    assert path.stat().st_mode & 0o777 == 0o600
    assert re.search(r"^ +initiator-address 255\.255\.255\.255$", path.read_text(), re.MULTILINE)

    array.unmap("one-1", "node1")
    assert list(host.root.glob("etc/tgt/conf.d/*")) == []


def test_a_dead_tgtd_is_named(array: ISCSI, host: TargetHost) -> None:
    make(array)
    host.kill_tgtd()

    with pytest.raises(ArrayError, match="tgtd does not run") as caught:
        array.map("one-1", "node1")
    assert "systemctl start tgt" in caught.value.hint


# volumes


def test_a_name_that_is_used_again_never_has_the_old_identity(array: ISCSI) -> None:
    first = make(array)
    array.delete("one-1", wait=0)
    assert make(array).wwid != first.wwid


def test_a_volume_of_the_earlier_add_on_is_found_and_gets_a_closed_target(
    array: ISCSI, host: TargetHost
) -> None:
    host.run("lvcreate", "-y", "-V", "8M", "-T", "vg-one/pool", "-n", "lv-one-1")
    tgtadm = ("tgtadm", "--op")
    host.run(*tgtadm, "new", "--mode", "target", "--tid", "3", "-T", IQN)
    lun = ("--lun", "1", "-b", f"{host.root}/dev/vg-one/lv-one-1")
    host.run(*tgtadm, "new", "--mode", "logicalunit", "--tid", "3", *lun)
    host.run(*tgtadm, "bind", "--mode", "target", "--tid", "3", "-I", "ALL")
    (found,) = array.find("one-1")
    assert found is not None

    array.capacity()  # leaves it as it is
    assert host.targets()[0].initiators == {"ALL"}

    connection = array.map("one-1", "node1")

    assert connection.wwid == found.wwid
    assert not visible(connection, "node2")
    assert works(io(connection, "node1", WRITE))


def test_a_missing_group_or_pool_is_told_with_what_is_there(opened: Opened) -> None:
    with pytest.raises(ConfigurationError, match=r"Volume group vg-two is not there; there are: vg-one\."):
        opened(VG_NAME="vg-two").capacity()
    with pytest.raises(
        ConfigurationError, match=r"Thin pool fast is not in volume group vg-one; there are: pool\."
    ):
        opened(POOL="fast").capacity()


def test_nothing_is_made_in_a_full_pool(array: ISCSI, host: TargetHost) -> None:
    make(array)
    host.fill_pool()

    with pytest.raises(CapacityError, match="Thin pool vg-one/pool is full"):
        make(array, "one-2")
    with pytest.raises(CapacityError):
        array.create(NewVolume("one-1-s1", source="one-1", is_linked=True), claim=claim_all)
    assert host.lv_names() == {"lv-one-1"}


def test_growth_reaches_an_initiator_that_logs_in_again(array: ISCSI, host: TargetHost) -> None:
    make(array)
    connection = array.map("one-1", "node1")
    io(connection, "node1", WRITE)

    array.resize("one-1", 3 * SIZE)

    assert works(io(connection, "node1", READ))
    assert "24 MiB" in io(connection, "node1", "length")
    assert array.map("one-1", "node1").size == 3 * SIZE
    assert [target.scsi_ids[1] for target in host.targets()] == [connection.wwid[-24:]]


@pytest.mark.parametrize("step", range(7))
def test_an_exchange_of_contents_that_is_cut_off_is_finished_or_undone(
    array: ISCSI, host: TargetHost, step: int
) -> None:
    """Copying onto a thin volume takes five commands; the one after ``step`` others never comes back."""
    volume = make(array)
    connection = array.map("one-1", "node1")
    io(connection, "node1", WRITE)
    array.unmap("one-1", "node1")
    array.create(NewVolume("one-1-s1", source="one-1", is_linked=True), claim=claim_all)
    connection = array.map("one-1", "node1")
    io(connection, "node1", "write -P 0x11 0 64k")
    array.unmap("one-1", "node1")
    changing = "lvcreate|lvchange|lvrename|lvremove"
    host.faults.add(changing, skip=step, exit=5, times=2)
    try:
        array.copy("one-1-s1", "one-1")
    except (ArrayError, CapacityError):
        assert array.find("one-1")[0] is not None, "it is there at every moment"
    host.faults.clear()

    array.copy("one-1-s1", "one-1")

    assert array.find("one-1") == (volume,)
    assert host.lv_names() == {"lv-one-1", "lv-one-1-s1"}
    assert works(io(array.map("one-1", "node1"), "node1", READ))


# thick volumes


def test_a_thick_volume_is_zeroed_before_its_extents_go_to_somebody_else(
    thick: ISCSI, thick_host: TargetHost
) -> None:
    make(thick)
    connection = thick.map("one-1", "node1")
    assert works(io(connection, "node1", WRITE))
    path = thick_host.lv_path("lv-one-1")
    kept = path.with_name("kept")
    kept.hardlink_to(path)
    thick.unmap("one-1", "node1")

    assert thick.delete("one-1", wait=0)

    assert set(kept.read_bytes()) == {0}


def test_a_copy_of_a_thick_volume_has_all_of_its_bytes(thick: ISCSI, thick_host: TargetHost) -> None:
    make(thick)
    io(thick.map("one-1", "node1"), "node1", WRITE)
    with pytest.raises(ConflictError, match="is thick and mapped"):
        thick.create(NewVolume("one-2", source="one-1"), claim=claim_all)
    thick.unmap("one-1", "node1")

    thick.create(NewVolume("one-2", source="one-1"), claim=claim_all)

    one, two = (thick_host.lv_path(f"lv-one-{number}").read_bytes() for number in (1, 2))
    assert one == two
    assert set(one[:65536]) == {0xA5}
    thick.copy("one-1", "one-2")
    assert thick_host.lv_path("lv-one-2").read_bytes() == one


def test_an_incomplete_copy_is_mapped_to_nobody(thick: ISCSI, thick_host: TargetHost) -> None:
    make(thick)
    thick_host.faults.add("lvchange .*--deltag sanstone.incomplete", exit=5)
    with pytest.raises(ArrayError):
        thick.create(NewVolume("one-2", source="one-1"), claim=claim_all)

    with pytest.raises(ConflictError, match="a copy that is not complete"):
        thick.map("one-2", "node1")
    thick.create(NewVolume("one-2", source="one-1"), claim=claim_all)
    assert thick.map("one-2", "node1").size == SIZE


def test_a_volume_group_that_is_too_small_is_told(thick: ISCSI) -> None:
    with pytest.raises(CapacityError, match="vg-one has 128 MiB free"):
        make(thick, size=1024 * MIB)


def test_a_missing_source_is_told(array: ISCSI) -> None:
    with pytest.raises(NotFoundError, match="Volume one-9 is not on nas1/vg-one"):
        array.create(NewVolume("one-1", source="one-9"), claim=claim_all)


# addresses


def test_portals_of_the_datastore_go_before_those_of_tgtd(opened: Opened) -> None:
    make(opened())
    (target,) = opened(PORTALS="10.0.1.5 [fe80::5]:3261").map("one-1", "node1").targets

    assert [str(portal) for portal in target.portals] == ["10.0.1.5:3260", "[fe80::5]:3261"]


def test_the_source_of_an_image_is_the_name_of_its_target(array: ISCSI) -> None:
    assert array.source("one-1") == IQN

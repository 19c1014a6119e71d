# SPDX-License-Identifier: Apache-2.0
"""The program of a user who is not root: what it changes goes through ``sudo -n``, and nothing else does."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sanstone.errors import BusyError, HostError
from sanstone.hosts.client import Host
from sanstone.hosts.ops import Attach, Detach, MakeFilesystem, ReadInitiator
from sanstone.model import MIB, Initiator

if TYPE_CHECKING:
    from tests.hosts.conftest import FakeHost

NOBODY = 65534
WWID = "3600507680c80000a0000000000000011"
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.real("ssh", "sh", "setpriv", "qemu-img")


@pytest.fixture
def plain(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    """A fake host whose program runs as nobody, in a folder that nobody may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can run something as somebody else")
    folder = Path(tempfile.mkdtemp(prefix="sanstone-"))
    try:
        folder.chmod(0o755)
        monkeypatch.setenv("SANSTONE_HOST_ROOT", str(folder / "root"))
        one = type(host)(folder / "root", host.listeners)
        (folder / "bin").mkdir()
        for name in ("blockdev", "iscsiadm", "multipath", "multipathd", "sync", "tee"):
            shutil.copy(Path(__file__).with_name("standin.sh"), folder / "bin" / name)
        (folder / "bin/sudo").write_text(
            f'#!/bin/sh\necho "$*" >> {folder}/root/sudo\n'
            f"[ -e {folder}/nameless ] && echo 'sudo: unable to resolve host node1: Temporary failure' >&2\n"
            f"[ -e {folder}/refuse ] && {{ echo 'sudo: a password is required' >&2; exit 1; }}\n"
            'shift\nexec "$@"\n'
        )
        (folder / "bin/ssh").write_text(
            "#!/bin/sh\nfor last; do :; done\n"
            f'exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups sh -c "$last"\n'
        )
        for program in (folder / "bin").iterdir():
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        one.host = Host("node1")
        one.say("no-multipathd")
        one.lun(1)
        yield one
    finally:
        shutil.rmtree(folder)


def give_away(host: FakeHost) -> None:
    for path in (host.root, *host.root.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def test_every_change_goes_through_sudo_without_a_password(plain: FakeHost) -> None:
    portal = plain.portal()
    plain.session(portal)
    give_away(plain)
    connection = plain.connection(portal)

    plain.run(Attach(connection, log_in=False), Detach(connection.wwid))

    asked = (plain.root / "sudo").read_text().splitlines()
    assert all(line.startswith("-n ") for line in asked)
    ran = [call for call in plain.calls() if not call.startswith(("scan ", "sync "))]
    assert [line.removeprefix("-n ").replace(str(plain.root), "").rstrip() for line in asked] == [
        call.rstrip() for call in ran
    ]
    assert plain.disks() == set()


def test_a_missing_right_names_the_file_that_gives_it(plain: FakeHost) -> None:
    portal = plain.portal()
    plain.session(portal)
    give_away(plain)
    (plain.root.parent / "refuse").touch()

    with pytest.raises(HostError, match="may not run tee") as caught:
        plain.run(Attach(plain.connection(portal), log_in=False))

    assert "/etc/sudoers.d/sanstone" in caught.value.hint


def test_a_host_whose_name_is_unknown_keeps_the_commands_own_words(plain: FakeHost) -> None:
    """sudo complains of it and goes on; a command that then fails with 1 has failed, not sudo."""
    (plain.root / "fake/no-multipathd").unlink()
    portal = plain.portal()
    number = plain.session(portal)
    plain.disk(number, 1, WWID)
    plain.say(f"in-use/{WWID}", "9999")
    give_away(plain)
    (plain.root.parent / "nameless").touch()

    with pytest.raises(BusyError) as caught:
        plain.run(Detach(WWID), deadline=5)

    assert caught.value.details == f"{WWID}: map in use"
    (plain.root.parent / "refuse").touch()
    with pytest.raises(HostError, match="may not run"):
        plain.run(Detach(WWID), deadline=5)


def test_xfs_is_made_in_a_file_because_only_root_can_on_a_disk(plain: FakeHost) -> None:
    program = plain.root.parent / "bin/mkfs.xfs"
    program.write_text(
        "#!/bin/sh\nfor last; do :; done\n"
        "case $last in */dev/*) echo 'cannot set blocksize 4096: Permission denied' >&2; exit 1 ;; esac\n"
        'printf XFSB | dd of="$last" conv=notrunc status=none\n'
    )
    program.chmod(0o755)
    size = 8 * MIB
    plain.disk(plain.session(plain.portal()), 1, WWID, size)
    device = plain.root / "dev/sda"
    device.write_bytes(b"\xa5" * size)
    (plain.root / "var/tmp").mkdir(parents=True)
    give_away(plain)

    plain.run(MakeFilesystem(WWID, "xfs"))

    assert device.read_bytes() == b"XFSB" + bytes(size - 4)
    assert [path.name for path in (plain.root / "var/tmp").iterdir() if "mkfs" in path.name] == []


def test_the_initiators_name_is_read_through_sudo_where_only_root_may(plain: FakeHost) -> None:
    path = plain.root / "etc/iscsi/initiatorname.iscsi"
    path.parent.mkdir(parents=True)
    path.write_text("## kept for root\nInitiatorName=iqn.1993-08.org.debian:01:abc\n")
    cat = plain.root.parent / "bin/cat"
    cat.write_text(f'#!/bin/sh\nexec /bin/sed "" "{plain.root.parent}/secret/$(basename "$1")"\n')
    cat.chmod(0o755)
    give_away(plain)

    assert plain.run(ReadInitiator()) == [Initiator("iqn.1993-08.org.debian:01:abc", takes_secrets=False)]

    (plain.root.parent / "secret").mkdir()
    path.rename(plain.root.parent / "secret/initiatorname.iscsi")
    path.write_text("unreadable")
    path.chmod(0o600)
    os.chown(path, 0, 0)
    sudo = (plain.root / "sudo").read_text() if (plain.root / "sudo").exists() else ""
    assert "cat" not in sudo
    assert plain.run(ReadInitiator()) == [Initiator("iqn.1993-08.org.debian:01:abc", takes_secrets=False)]
    assert "-n cat /etc/iscsi/initiatorname.iscsi" in (plain.root / "sudo").read_text()


def test_a_lock_folder_of_somebody_else_is_refused(plain: FakeHost) -> None:
    give_away(plain)
    folder = plain.root / f"var/tmp/sanstone-{NOBODY}"
    folder.mkdir(parents=True)

    with pytest.raises(HostError, match="this user alone"):
        plain.run(Detach("3600507680c80000a0000000000000011"))


def test_sudoers_let_no_pattern_reach_another_file() -> None:
    """A star in sudo's arguments matches slashes and blanks too."""
    rules = (ROOT / "etc/sudoers.d/sanstone").read_text()

    written = re.findall(r"/tee ([^,\\\n]+)", rules)
    assert written
    assert all("*" not in path and path.startswith("/sys/") for path in written)
    assert re.findall(r"NOPASSWD: (.*)", rules) == [
        "SANSTONE_ISCSI, SANSTONE_INITIATOR, SANSTONE_MULTIPATH, SANSTONE_BLOCK, SANSTONE_SCSI"
    ]

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

from sanstone.errors import HostError
from sanstone.hosts.client import Host
from sanstone.hosts.ops import Attach, Detach

if TYPE_CHECKING:
    from tests.hosts.conftest import FakeHost

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.real("ssh", "sh", "setpriv")


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
        for name in ("blockdev", "iscsiadm", "multipath", "multipathd", "tee"):
            shutil.copy(Path(__file__).with_name("standin.sh"), folder / "bin" / name)
        (folder / "bin/sudo").write_text(
            f'#!/bin/sh\necho "$*" >> {folder}/root/sudo\n'
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
    ran = [call for call in plain.calls() if not call.startswith("scan ")]
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
        "SANSTONE_ISCSI, SANSTONE_MULTIPATH, SANSTONE_BLOCK, SANSTONE_SCSI"
    ]

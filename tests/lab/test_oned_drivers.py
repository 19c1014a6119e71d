# SPDX-License-Identifier: Apache-2.0
"""How the stand-in runs drivers, forms error texts, and what its own transfer managers do to files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.oned import Answer, FaultyHypervisor, HostCall, LocalRunner, Oned, QuietHypervisor, ScriptHypervisor
from lab.oned.drivers import Drivers
from lab.oned.errors import driver_error_text, vm_error_text
from lab.oned.stock_tm import StockTransferManager
from lab.oned.templates import TemplateError, parse
from tests.lab.test_oned_recorder import PROGRAMS, make_datastores, recorded_config

STAND_IN = ("act", "sleep", "deploy")


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    (tmp_path / "remotes/tm/x").mkdir(parents=True)
    drivers = Drivers(
        tmp_path / "remotes", {"PATH": "/bin:/usr/bin", "A": "b"}, 2, 20, lambda driver, action: None
    )
    yield drivers
    drivers.stop()


def script(drivers: Drivers, text: str) -> None:
    path = drivers.remotes / "tm/x/act"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.real("act")
def test_a_driver_gets_its_arguments_and_its_environment_only(drivers: Drivers) -> None:
    script(drivers, 'echo "$#:$1:$2:$A:${HOME-none}"; echo aside >&2; exit 3')
    assert drivers.run("tm", "x", "act", ("a b", "c")) == Answer(3, "2:a b:c:b:none\n", "aside\n")


@pytest.mark.real("act")
def test_a_driver_leads_a_process_group(drivers: Drivers) -> None:
    script(
        drivers, 'read pid comm state ppid group rest < /proc/self/stat; [ "$group" = "$$" ] && echo leads'
    )
    assert drivers.run("tm", "x", "act", ()).stdout == "leads\n"


@pytest.mark.real("act")
def test_stdin_is_closed_after_the_data(drivers: Drivers) -> None:
    script(drivers, "cat; cat")
    assert drivers.run("tm", "x", "act", (), "x" * 300_000, "raw").stdout == "x" * 300_000
    assert drivers.run("tm", "x", "act", ()).stdout == ""


@pytest.mark.real("act")
def test_a_driver_that_does_not_read_its_document_is_no_failure(drivers: Drivers) -> None:
    script(drivers, "exec <&-; echo done")
    assert drivers.run("tm", "x", "act", (), "x" * 300_000, "base64").stdout == "done\n"


@pytest.mark.real("act")
def test_what_a_child_says_after_the_end_is_lost(drivers: Drivers) -> None:
    script(drivers, "(sleep 20; echo late) &\necho early")
    started = time.monotonic()
    answer = drivers.run("tm", "x", "act", ())
    assert answer.stdout == "early\n"
    assert time.monotonic() - started < 15


@pytest.mark.real("act")
def test_no_more_drivers_run_at_once_than_allowed(drivers: Drivers, tmp_path: Path) -> None:
    script(drivers, f"mkdir {tmp_path}/$1; ls -d {tmp_path}/n* | wc -l; sleep 0.1; rmdir {tmp_path}/$1")
    counts: list[int] = []

    def work(number: int) -> None:
        with drivers.slot("tm"):
            counts.append(int(drivers.run("tm", "x", "act", (f"n{number}",)).stdout))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(counts) == 2


@pytest.mark.real("act")
def test_a_suffix_falls_back_to_the_action_without_it(drivers: Drivers) -> None:
    script(drivers, "echo ${0##*/}")
    drivers.run("tm", "x", "act.shared", ())
    assert [(call.action, call.stdout) for call in drivers.finished()] == [("act", "act\n")]


@pytest.mark.real("act")
def test_a_driver_beyond_its_deadline_is_killed(tmp_path: Path) -> None:
    (tmp_path / "remotes/tm/x").mkdir(parents=True)
    drivers = Drivers(tmp_path / "remotes", {"PATH": "/bin"}, 1, 0.2, lambda driver, action: None)
    script(drivers, "sleep 30")
    assert drivers.run("tm", "x", "act", ()).rc == -9


@pytest.mark.real("nothing")
def test_a_missing_driver_is_a_failure_with_its_path(drivers: Drivers) -> None:
    answer = drivers.run("tm", "x", "nothing", ())
    assert answer.rc != 0
    assert "tm/x/nothing" in answer.stderr


STDERR = "INFO: clone: start\nERROR: clone: 17 bad\n plain one \nERROR MESSAGE --8<------\nlast"


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ((7, 4), "plain oneERROR MESSAGE --8<------last"),
        ((6, 10), "INFO: clone: start ERROR: clone: 17 bad  plain one  ERROR MESSAGE --8<------ last"),
    ],
)
def test_error_text_follows_the_rules_of_the_version(version: tuple[int, int], text: str) -> None:
    assert driver_error_text(STDERR, version) == text


def test_a_vm_error_is_cut_at_a_hundred_characters() -> None:
    shown = vm_error_text("P", "x" * 98)
    assert shown == "P: " + "x" * 97 + "... see more details in VM log"
    assert vm_error_text("P", "x" * 97) == "P: " + "x" * 97
    assert vm_error_text("P", "") is None


# -- shared and ssh

FILES = ("mkdir", "truncate", "mv", "rm", "test", "sh", "cat", "dd", "genisoimage")


@pytest.fixture
def shared(tmp_path: Path) -> StockTransferManager:
    return StockTransferManager("shared", LocalRunner(), str(tmp_path), (7, 4))


@pytest.mark.real(*FILES)
def test_a_volatile_disk_is_made_and_removed(shared: StockTransferManager, tmp_path: Path) -> None:
    disk = tmp_path / "105/7/disk.2"
    assert shared.mkimage(("16", "raw", f"h1:{disk}", "7", "105"), "").rc == 0
    assert disk.stat().st_size == 16 << 20
    assert shared.resize((f"h1:{disk}", "32", "7", "105"), "").rc == 0
    assert disk.stat().st_size == 32 << 20
    assert shared.delete((f"h1:{disk}", "7", "105"), "").rc == 0
    assert not disk.exists()


@pytest.mark.real(*FILES)
def test_a_directory_moves_with_its_links_to_another_datastore(
    shared: StockTransferManager, tmp_path: Path
) -> None:
    old, new = tmp_path / "105/7", tmp_path / "106/7"
    old.mkdir(parents=True)
    new.mkdir(parents=True)
    (old / "disk.0").symlink_to("/dev/nowhere")
    (old / "deployment.0").write_text("domain")
    (new / "disk.1").symlink_to("/dev/there")
    assert shared.mv((f"h1:{old}", f"h2:{new}", "7", "106"), "") == Answer()
    assert sorted(path.name for path in new.iterdir()) == ["deployment.0", "disk.0", "disk.1"]
    assert not old.exists()
    assert shared.mv((f"h2:{new}", f"h1:{new}", "7", "106"), "") == Answer()
    assert (new / "disk.0").is_symlink()


@pytest.mark.real(*FILES, "base64")
def test_the_context_disk_holds_the_variables(shared: StockTransferManager, tmp_path: Path) -> None:
    variables = tmp_path / "context.sh"
    variables.write_text("ROLE=db\n")
    disk = tmp_path / "105/7/disk.5"
    assert shared.context((str(variables), f"h1:{disk}", "7", "105"), "").rc == 0
    assert b"ROLE=db" in disk.read_bytes()


VM = (
    "<VM><TEMPLATE>"
    + "".join(f"<DISK><TM_MAD>{tm}</TM_MAD></DISK>" for tm in ("x", "shared", "x"))
    + "</TEMPLATE></VM>"
)


@pytest.mark.real("premigrate", "postmigrate", "failmigrate")
@pytest.mark.parametrize(
    ("version", "hosts", "told"),
    [
        ((7, 4), ("h1", "h2"), ["premigrate", "postmigrate"]),
        ((7, 4), ("h1", "h1"), ["postmigrate"]),
        ((6, 10), ("h1", "h1"), []),
    ],
)
def test_a_migration_is_passed_on_once_with_a_sixth_argument(
    drivers: Drivers,
    shared: StockTransferManager,
    version: tuple[int, int],
    hosts: tuple[str, str],
    told: list[str],
) -> None:
    for action in ("premigrate", "postmigrate", "failmigrate"):
        path = drivers.remotes / "tm/x" / action
        path.write_text("#!/bin/sh\nexit 0\n")
        path.chmod(0o755)
    shared.drivers, shared.version = drivers, version
    argv = (*hosts, "/ds/105/7", "7", "105")
    for action in (shared.premigrate, shared.postmigrate, shared.failmigrate):
        assert action(argv, VM).rc == 0
    assert [call.action for call in drivers.finished()] == told
    assert all(call.argv == (*argv, "shared") and call.stdin == VM for call in drivers.finished())


# -- hypervisors, keeping, templates


def host_call(action: str, host: str = "h1") -> HostCall:
    return HostCall(action=action, host=host, mad="kvm", vm_id=3, argv=("x", "3", host), stdin="<domain/>")


def test_a_failure_that_was_asked_for_happens_so_often_and_no_more() -> None:
    hypervisor = FaultyHypervisor(QuietHypervisor())
    hypervisor.fail("migrate", "no route", times=2)
    answers = [hypervisor.execute(host_call("migrate")) for _ in range(3)]
    assert answers == [Answer(1, "", "no route"), Answer(1, "", "no route"), Answer()]
    assert hypervisor.execute(host_call("deploy")) == Answer(0, "one-3", "")


@pytest.mark.real("deploy")
def test_vmm_scripts_get_the_domain_on_stdin(tmp_path: Path) -> None:
    path = tmp_path / "vmm/kvm/deploy"
    path.parent.mkdir(parents=True)
    path.write_text('#!/bin/sh\necho "$1-$2-$3-$(cat)"\n')
    path.chmod(0o755)
    answer = ScriptHypervisor(tmp_path).execute(host_call("deploy"))
    assert answer == Answer(0, "x-3-h1-<domain/>\n", "")


@pytest.mark.real(*PROGRAMS)
def test_everything_is_there_again_after_saving_and_loading(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with Oned(recorded_config(first)) as oned:
        make_datastores(oned)
        admin = oned.core.users[0]
        oned.images.allocate(admin, 'NAME="a"\nTYPE="DATABLOCK"\nSIZE="16"\nPERSISTENT="YES"', 100)
        oned.wait(image=0, state="READY")
        oned.vms.allocate(admin, 'NAME="v"\nDISK=[IMAGE_ID="0"]\nCONTEXT=[A="b"]')
        oned.vms.deploy(admin, 0, 0, False, 103)
        oned.wait_vm(0, "RUNNING")
        oned.snapshots.snapshot_create(admin, 0, 0, "s")
        oned.wait_idle()
        before = (oned.vms.info(admin, 0), oned.images.info(admin, 0), oned.datastores.pool(admin))
        oned.save(tmp_path / "state.json")
    json.loads((tmp_path / "state.json").read_text())
    with Oned(recorded_config(second)) as oned:
        oned.load(tmp_path / "state.json")
        admin = oned.core.users[0]
        assert (oned.vms.info(admin, 0), oned.images.info(admin, 0), oned.datastores.pool(admin)) == before
        assert oned.images.allocate(admin, 'NAME="b"\nTYPE="DATABLOCK"\nSIZE="16"', 100) == 1
        oned.wait_idle()


def test_a_template_is_read_in_both_forms() -> None:
    own = parse('A = "x \\"y\\"\nz"\nB=bare\nV=[ C="1, ]", D="2" ]\nV=[C="3"]\n# a remark\nE=""')
    assert own.get("A") == 'x "y"\nz'
    assert own.get("B") == "bare"
    assert own.vectors("V") == [{"C": "1, ]", "D": "2"}, {"C": "3"}]
    assert "E" in own
    xml = parse("<TEMPLATE><A><![CDATA[a & b]]></A><V><C>1</C></V></TEMPLATE>")
    assert (xml.get("A"), xml.vector("V")) == ("a & b", {"C": "1"})


@pytest.mark.parametrize("text", ["A B = 1", "A=[B", 'A=[B="1" C="2"]', "<A"])
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        parse(text)

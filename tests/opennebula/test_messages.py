# SPDX-License-Identifier: Apache-2.0
"""Every recorded call of oned is understood, and whatever else comes is refused in words."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sanstone.errors import NotSupportedError, RequestError, SanstoneError
from sanstone.opennebula import messages as m
from sanstone.opennebula.documents import ImageType

RECORDED = Path(__file__).parents[1] / "data" / "opennebula-7.4" / "calls"
OURS = ("rec", "recln", "recbak")

Call = dict[str, Any]


def _recorded() -> Iterator[Any]:
    for file in sorted(RECORDED.glob("*.jsonl")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            call = json.loads(line)
            if call.get("driver") in OURS and call["kind"] in ("datastore", "tm"):
                yield pytest.param(call, id=f"{file.stem}:{number}:{call['action']}")


def _stdin(call: Call) -> bytes:
    text: bytes = call["stdin"].encode()
    return base64.b64encode(text) if call["stdin_encoding"] == "base64" else text


def _parse(call: Call) -> m.Request:
    return m.parse(call["kind"], call["driver"], call["action"], call["argv"], _stdin(call))


def _of(name: str, action: str) -> Call:
    for line in (RECORDED / f"{name}.jsonl").read_text().splitlines():
        call: Call = json.loads(line)
        if call["action"] == action and call["driver"] in OURS:
            return call
    raise LookupError(f"{name}: {action}")


def _argv(request: Any) -> list[str]:
    """Write a request as oned would, from what was understood of it."""
    r = request
    match r:
        case m.Clone() | m.Ln():
            return [r.source, str(r.disk), f"{r.vm_id}", f"{r.datastore_id}"]
        case m.MakeImage():
            return [f"{r.size_mib}", r.format, str(r.disk), f"{r.vm_id}", f"{r.datastore_id}"]
        case m.MakeSwap():
            return [f"{r.size_mib}", str(r.disk), f"{r.vm_id}", f"{r.datastore_id}"]
        case m.Context():
            return [*r.files, str(r.disk), f"{r.vm_id}", f"{r.datastore_id}"]
        case m.Move():
            return [str(r.source), str(r.target), f"{r.vm_id}", f"{r.datastore_id}"]
        case m.MoveToDatastore():
            return [str(r.disk), r.source, f"{r.vm_id}", f"{r.datastore_id}"]
        case m.Delete():
            return [str(r.disk), f"{r.vm_id}", f"{r.datastore_id}"]
        case m.CopyToDatastore():
            return [str(r.disk), r.source, _or(r.snapshot_id), f"{r.vm_id}", f"{r.datastore_id}"]
        case m.SnapshotCreate() | m.SnapshotCreateLive() | m.SnapshotDelete() | m.SnapshotRevert():
            return [str(r.disk), f"{r.snapshot_id}", f"{r.vm_id}", f"{r.datastore_id}"]
        case m.Resize():
            return [str(r.disk), f"{r.size_mib}", f"{r.vm_id}", f"{r.datastore_id}"]
        case m.Premigrate() | m.Postmigrate() | m.Failmigrate():
            caller = [] if r.called_by is None else [r.called_by]
            hosts = [r.source_host, r.target_host, r.directory]
            return [*hosts, f"{r.vm_id}", f"{r.datastore_id}", *caller]
        case m.Prebackup() | m.Postbackup() | m.Backup():
            disks = ":".join(map(str, r.disk_ids))
            job = _or(r.job_id, "-")
            return [str(r.disk), disks, r.deploy_id, job, f"{r.vm_id}", f"{r.datastore_id}"]
        case m.Restore():
            return [str(r.disk), f"{r.vm_id}", f"{r.image_id}", _or(r.increment), _or(r.disk_id)]
        case _:
            return [f"{r.request_id}"]


def _or(number: int | None, none: str = "-1") -> str:
    return none if number is None else str(number)


@pytest.mark.parametrize("call", list(_recorded()))
def test_recorded_call_is_understood_whole(call: Call) -> None:
    request = _parse(call)
    assert _argv(request) == call["argv"]
    assert request.driver == call["driver"]
    name, _, suffix = call["action"].partition(".")
    assert getattr(request, "system_tm", None) == (suffix or None)
    kinds = TYPES[call["kind"]]
    assert type(request) is kinds[name]
    for entry in ("image", "datastore", "vm"):
        document = getattr(request, entry, None)
        if document is not None and document.id is not None:
            assert f"<{entry.upper()}><ID>{document.id}</ID>" in call["stdin"]


TYPES: dict[str, dict[str, type]] = {
    "datastore": {
        "backup": m.Backup,
        "clone": m.CloneImage,
        "cp": m.Cp,
        "increment_flatten": m.IncrementFlatten,
        "mkfs": m.Mkfs,
        "monitor": m.MonitorDatastore,
        "restore": m.RestoreImage,
        "rm": m.Rm,
        "snap_delete": m.ImageSnapshotDelete,
        "snap_flatten": m.ImageSnapshotFlatten,
        "snap_revert": m.ImageSnapshotRevert,
        "stat": m.Stat,
    },
    "tm": {
        "clone": m.Clone,
        "context": m.Context,
        "cpds": m.CopyToDatastore,
        "delete": m.Delete,
        "failmigrate": m.Failmigrate,
        "ln": m.Ln,
        "mkimage": m.MakeImage,
        "mkswap": m.MakeSwap,
        "monitor": m.MonitorSystem,
        "mv": m.Move,
        "mvds": m.MoveToDatastore,
        "postbackup": m.Postbackup,
        "postbackup_live": m.Postbackup,
        "postmigrate": m.Postmigrate,
        "prebackup": m.Prebackup,
        "prebackup_live": m.Prebackup,
        "premigrate": m.Premigrate,
        "resize": m.Resize,
        "restore": m.Restore,
        "snap_create": m.SnapshotCreate,
        "snap_create_live": m.SnapshotCreateLive,
        "snap_delete": m.SnapshotDelete,
        "snap_flatten": m.SnapshotFlatten,
        "snap_revert": m.SnapshotRevert,
    },
}


def test_all_actions_that_were_recorded_have_a_link_to_make() -> None:
    assert set(TYPES["datastore"]) | {"backup_cancel", "export"} == set(m.DATASTORE_ACTIONS)
    assert set(TYPES["tm"]) == set(m.TM_ACTIONS)


def test_stat_knows_nothing_but_the_path() -> None:
    request = _parse(_of("image-create-cdrom", "stat"))
    assert isinstance(request, m.Stat)
    assert (request.image.path, request.image.id, request.image.type) == ("/var/tmp/os.raw", None, None)
    assert request.datastore.template["SAFE_DIRS"] == "/var/tmp"


def test_cp_brings_image_and_datastore() -> None:
    request = _parse(_of("image-create-cdrom", "cp"))
    assert isinstance(request, m.Cp)
    assert (request.request_id, request.image.id, request.image.type) == (4, 4, ImageType.CDROM)
    assert (request.image.size_mib, request.image.source, request.image.cloning_id) == (16, "", None)
    assert (request.datastore.id, request.datastore.disk_type, request.datastore.free_mib) == (100, 2, 99900)
    assert request.datastore.image_ids == (1, 2, 3)


def test_clone_names_the_origin_and_its_bridges() -> None:
    request = _parse(_of("image-clone-ds-with-other-tm", "clone"))
    assert isinstance(request, m.CloneImage)
    assert request.image.path == "/var/lib/one/datastores/rec/img-03271851"
    assert (request.image.cloning_id, request.source_bridge_list) == (1, ("h1", "h2"))


def test_image_snapshot_is_named_by_target_snapshot() -> None:
    request = _parse(_of("image-snapshot-delete", "snap_delete"))
    assert isinstance(request, m.ImageSnapshotDelete)
    assert request.target_snapshot == request.image.target_snapshot
    assert request.target_snapshot in [entry.id for entry in request.image.snapshots]


def test_source_with_colons_stays_as_it_is() -> None:
    request = _parse(_of("vm-deploy-source-with-colon", "ln"))
    assert isinstance(request, m.Ln)
    assert request.source == "v7000-a:vdisk-17"


def test_last_move_is_that_of_the_directory() -> None:
    moves = [
        _parse(json.loads(line))
        for line in (RECORDED / "vm-stop.jsonl").read_text().splitlines()
        if '"action": "mv"' in line
    ]
    assert [move.is_directory for move in moves if isinstance(move, m.Move)][-2:] == [False, True]


def test_system_monitor_knows_where_datastores_are() -> None:
    request = _parse(_of("datastore-monitor", "monitor"))
    assert isinstance(request, m.MonitorDatastore)
    system = next(
        _parse(call)
        for line in (RECORDED / "datastore-monitor.jsonl").read_text().splitlines()
        if (call := json.loads(line))["kind"] == "tm"
    )
    assert isinstance(system, m.MonitorSystem)
    assert (system.location, system.monitor_vm_disks) == ("/var/lib/one/datastores", True)


def test_migration_passed_on_by_a_system_datastore_names_it() -> None:
    passed = _parse(_of("mixed-sys-shared-vm-migrate-live", "premigrate"))
    direct = _parse(_of("vm-migrate-live-premigrate-fails", "premigrate"))
    assert isinstance(passed, m.Premigrate)
    assert isinstance(direct, m.Premigrate)
    assert (passed.called_by, direct.called_by) == ("shared", None)
    assert passed.vm.id == passed.vm_id == 14


def test_encrypted_attributes_come_in_plain_text_and_stay_out_of_repr() -> None:
    request = _parse(_of("image-create-in-ds-with-encrypted-attr", "mkfs"))
    assert isinstance(request, m.Mkfs)
    assert request.datastore.template["NETAPP_PASS"] == "s3cret"
    assert "s3cret" not in repr(request)


def test_old_form_with_the_document_as_argument_is_understood() -> None:
    call = _of("image-create-cdrom", "cp")
    document = base64.b64encode(call["stdin"].encode()).decode()
    assert m.parse("datastore", "rec", "cp", [document, "4"], b"") == _parse(call)


def test_raw_and_base64_stdin_mean_the_same() -> None:
    call = _of("image-create-cdrom", "cp")
    lines = base64.encodebytes(call["stdin"].encode())
    raw = m.parse("datastore", "rec", "cp", ["4"], call["stdin"].encode())
    assert raw == m.parse("datastore", "rec", "cp", ["4"], lines) == _parse(call)


def test_backup_of_6_10_0_brings_the_datastore_alone() -> None:
    call = _of("vm-backup-full-poweroff", "backup")
    start = call["stdin"].index("<DATASTORE>")
    alone = call["stdin"][start : call["stdin"].index("</DATASTORE>") + len("</DATASTORE>")]
    request = m.parse("datastore", "recbak", "backup", call["argv"], alone.encode())
    assert isinstance(request, m.Backup)
    assert (request.datastore.id, request.vm) == (109, None)


def test_backup_cancel_comes_with_or_without_the_vm() -> None:
    argv = ["h1:/var/lib/one/datastores/103/0", "one-0"]
    vm = _of("vm-backup-full-poweroff", "prebackup")["stdin"].encode()
    without, having = (m.parse("datastore", "rec", "backup_cancel", argv, stdin) for stdin in (b"", vm))
    assert isinstance(without, m.BackupCancel)
    assert isinstance(having, m.BackupCancel)
    assert without.vm is None
    assert having.vm is not None
    assert having.vm.id == 0


def test_export_is_understood() -> None:
    stdin = _of("image-delete", "rm")["stdin"].encode()
    request = m.parse("datastore", "rec", "export", ["3"], stdin)
    assert isinstance(request, m.Export)
    assert request.image.source


PATH = "h1:/var/lib/one/datastores/103/5/disk.0"
DIRECTORY = "h1:/var/lib/one/datastores/103/5"
DS = "<DATASTORE><ID>100</ID><TYPE>0</TYPE></DATASTORE>"


def _wrapped(text: str) -> bytes:
    return f"<DS_DRIVER_ACTION_DATA>{text}</DS_DRIVER_ACTION_DATA>".encode()


@pytest.mark.parametrize(
    ("kind", "action", "argv", "stdin", "said"),
    [
        ("tm", "ln", [], b"", "takes 4 arguments, not 0"),
        ("tm", "ln", ["s", PATH, "5"], b"", "takes 4 arguments, not 3"),
        ("tm", "ln", ["s", PATH, "5", "100", "9"], b"", "takes 4 arguments, not 5"),
        ("tm", "ln", ["", PATH, "5", "100"], b"", "SOURCE is empty"),
        ("tm", "ln", ["a b", PATH, "5", "100"], b"", "blank or control"),
        ("tm", "ln", ["a\0", PATH, "5", "100"], b"", "blank or control"),
        ("tm", "ln", ["x" * 9000, PATH, "5", "100"], b"", "longer than 8192"),
        ("tm", "ln", ["s", "/no/host", "5", "100"], b"", "HOST:PATH"),
        ("tm", "ln", ["s", "-oProxyCommand=x:/a/1/5/disk.0", "5", "100"], b"", "no name or address"),
        ("tm", "ln", ["s", "h1:/a/1/../5/disk.0", "5", "100"], b"", "upwards"),
        ("tm", "ln", ["s", "h1:/a\n/1/5/disk.0", "5", "100"], b"", "blank or control"),
        ("tm", "ln", ["s", DIRECTORY, "5", "100"], b"", "no disk's path"),
        ("tm", "ln", ["s", PATH, "6", "100"], b"", "does not belong to VM 6"),
        ("tm", "ln", ["s", PATH, "-5", "100"], b"", "number from 0, not '-5'"),
        ("tm", "ln", ["s", PATH, "\u0665", "100"], b"", "number from 0"),
        ("tm", "ln", ["s", PATH, "5", "1" * 16], b"", "number from 0"),
        ("tm", "mkimage", ["0", "raw", PATH, "5", "103"], b"", "number from 1"),
        ("tm", "mkimage", ["5", "r$w", PATH, "5", "103"], b"", "no format"),
        ("tm", "mkswap", ["x", PATH, "5", "103"], b"", "number from 1"),
        ("tm", "context", [PATH, "5", "103"], b"", "4 arguments or more"),
        ("tm", "context", ["f"] * 2000, b"", "too many"),
        ("tm", "context", ["f" * 200_000, PATH, "5", "103"], b"", "longer than 131072"),
        ("tm", "mv", [PATH, DIRECTORY, "5", "103"], b"", "not the same disk"),
        ("tm", "mv", [PATH, "h2:/d/104/6/disk.0", "5", "103"], b"", "does not belong"),
        ("tm", "delete", ["h1:/etc", "5", "103"], b"", "neither a disk's path nor"),
        ("tm", "delete", ["h1:/", "5", "103"], b"", "neither a disk's path nor"),
        ("tm", "cpds", [PATH, "s", "-2", "5", "100"], b"", "snapshot's id"),
        ("tm", "snap_create", [PATH, "-1", "5", "100"], b"", "snapshot's id"),
        ("tm", "premigrate", ["h1", "h2", "/d/103/5", "5", "103"], b"", "VM document on standard input"),
        ("tm", "premigrate", ["h1", "h;2", "/d/103/5", "5", "103"], b"", "no name or address"),
        ("tm", "premigrate", ["h1", "h2", "d/103/5", "5", "103"], b"", "start with '/'"),
        ("tm", "premigrate", ["h1", "h2", "/d/103/5", "5", "103"], b"<IMAGE/>", "is IMAGE, not VM"),
        ("tm", "premigrate", ["h1", "h2", "/d/103/5", "5", "103"], b"<VM/>", "no number in LCM_STATE"),
        (
            "tm",
            "premigrate",
            ["h1", "h2", "/d/103/5", "5", "103"],
            b"<VM><ID>6</ID><STATE>3</STATE><LCM_STATE>3</LCM_STATE></VM>",
            "VM 6, not of VM 5",
        ),
        ("tm", "prebackup", [DIRECTORY, "0:x", "d", "-", "5", "103"], b"", "colons between"),
        ("tm", "monitor", ["103"], b"*", "neither XML nor base64"),
        ("datastore", "rm", ["1", "2", "3"], b"", "takes 1 or 2 arguments"),
        ("datastore", "rm", ["x"], b"", "request's id"),
        ("datastore", "rm", ["1"], b"", "DS_DRIVER_ACTION_DATA document on standard input"),
        ("datastore", "rm", ["1"], b"\xff\xfe", "neither XML nor base64"),
        ("datastore", "rm", ["1"], b"YWJj", "not well-formed"),
        ("datastore", "rm", ["1"], b"<DS_DRIVER_ACTION_DATA>", "not well-formed"),
        ("datastore", "rm", ["1"], _wrapped("\xe9").replace(b"\xc3", b""), "not well-formed"),
        ("datastore", "rm", ["1"], _wrapped(""), "no DATASTORE element"),
        ("datastore", "rm", ["1"], _wrapped(DS), "no IMAGE element"),
        ("datastore", "rm", ["1"], _wrapped(DS + "<IMAGE/>"), "image has no ID"),
        ("datastore", "rm", ["1"], _wrapped(DS + "<IMAGE><ID>1</ID></IMAGE>"), "no SOURCE"),
        ("datastore", "rm", ["1"], _wrapped(DS + "<IMAGE><ID>-7</ID></IMAGE>"), "cannot be negative"),
        (
            "datastore",
            "rm",
            ["1"],
            _wrapped(DS + "<IMAGE><ID>1</ID><TYPE>99</TYPE></IMAGE>"),
            "99 is not known",
        ),
        ("datastore", "stat", ["1"], _wrapped(DS + "<IMAGE/>"), "no PATH"),
        ("datastore", "stat", ["1"], _wrapped(DS + "<IMAGE><PATH>/a\nb</PATH></IMAGE>"), "control character"),
        (
            "datastore",
            "stat",
            ["1"],
            _wrapped(DS + f"<IMAGE><PATH>{'/a' * 5000}</PATH></IMAGE>"),
            "longer than",
        ),
        ("datastore", "mkfs", ["1"], _wrapped(DS + "<IMAGE><ID>1</ID></IMAGE>"), "no SIZE"),
        ("datastore", "monitor", ["1"], _wrapped("<DATASTORE/>"), "no number in ID"),
        ("datastore", "monitor", ["1"], _wrapped("<DATASTORE><ID>x</ID></DATASTORE>"), "should be a number"),
        (
            "datastore",
            "monitor",
            ["1"],
            b'<!DOCTYPE a [<!ENTITY b "c">]><DS_DRIVER_ACTION_DATA>&b;</DS_DRIVER_ACTION_DATA>',
            "document type",
        ),
        ("vmm", "deploy", [], b"", "no kind of driver"),
    ],
)
def test_malformed_call_is_refused_in_words(
    kind: str, action: str, argv: list[str], stdin: bytes, said: str
) -> None:
    with pytest.raises(RequestError) as caught:
        m.parse(kind, "rec", action, argv, stdin)
    assert said in caught.value.message


@pytest.mark.parametrize("action", ["", "LN", "deploy", "ln.", "ln..ssh", "ln.ssh.x", "ln.a/b", "../ln"])
def test_unknown_action_is_not_supported(action: str) -> None:
    with pytest.raises(NotSupportedError):
        m.parse("tm", "rec", action, [], b"")


def test_suffix_belongs_to_transfer_actions_only() -> None:
    with pytest.raises(NotSupportedError):
        m.parse("datastore", "rec", "cp.ssh", ["4"], b"")


@pytest.mark.parametrize("driver", ["", "-x", "a/b", "..", "a b", "x" * 65])
def test_strange_driver_name_is_refused(driver: str) -> None:
    with pytest.raises(RequestError):
        m.parse("tm", driver, "ln", [], b"")


def _calls() -> Sequence[tuple[str, str, str, list[str], bytes]]:
    params = [param.values[0] for param in _recorded()]
    return [(c["kind"], c["driver"], c["action"], c["argv"], c["stdin"].encode()) for c in params]


def _refusal(kind: str, driver: str, action: str, argv: list[str], stdin: bytes) -> str | None:
    try:
        m.parse(kind, driver, action, argv, stdin)
    except SanstoneError as err:
        return err.message
    return None


words = st.text(max_size=40) | st.sampled_from(
    [PATH, DIRECTORY, "5", "103", "-1", "-", "raw", "h1", "/d/103/5"]
)
actions = st.sampled_from([("datastore", a) for a in m.DATASTORE_ACTIONS] + [("tm", a) for a in m.TM_ACTIONS])


@given(actions, st.lists(words, max_size=7), st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@example(("tm", "ln"), ["\ud800", PATH, "5", "100"], b"")
@example(("datastore", "cp"), ["\ud800", "4"], b"")
@settings(max_examples=300)
def test_anything_is_understood_or_refused(action: tuple[str, str], argv: list[str], stdin: bytes) -> None:
    said = _refusal(action[0], "rec", action[1], argv, stdin)
    assert said is None or 0 < len(said) < 1000


@given(st.sampled_from(_calls()), st.data())
@settings(max_examples=200)
def test_damaged_document_is_understood_or_refused(
    call: tuple[str, str, str, list[str], bytes], data: st.DataObject
) -> None:
    kind, driver, action, argv, stdin = call
    start = data.draw(st.integers(0, len(stdin)))
    end = data.draw(st.integers(start, min(len(stdin), start + 30)))
    damaged = stdin[:start] + data.draw(st.binary(max_size=20)) + stdin[end:]
    said = _refusal(kind, driver, action, argv, damaged)
    assert said is None or 0 < len(said) < 1000

# SPDX-License-Identifier: Apache-2.0
"""oned's documents, as recorded from a running one."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from sanstone.errors import RequestError
from sanstone.opennebula import documents as d
from sanstone.opennebula.markup import Element

RECORDED = Path(__file__).parents[1] / "data" / "opennebula-7.4" / "xml"
READERS: dict[str, Any] = {
    "IMAGE": d.read_image,
    "DATASTORE": d.read_datastore,
    "VM": d.read_vm,
    "HOST": d.read_host,
}
FILES = sorted(RECORDED.glob("*.xml"))


def _text(name: str) -> bytes:
    return (RECORDED / f"{name}.xml").read_bytes()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recorded_document_is_read(file: Path) -> None:
    root = ET.fromstring(file.read_text())
    nodes = [root] if root.tag in READERS else [node for node in root if node.tag in READERS]
    for node in nodes:
        document = READERS[node.tag](ET.tostring(node))
        assert document.id == int(node.findtext("ID") or "")
        assert document.name == node.findtext("NAME")
        if isinstance(document, d.VmDocument):
            ids = [int(entry.text or "") for entry in node.findall("TEMPLATE/DISK/DISK_ID")]
            assert [disk.id for disk in document.disks] == ids
            assert len(document.history) == len(node.findall("HISTORY_RECORDS/HISTORY"))
        if isinstance(document, d.DatastoreDocument):
            assert len(document.image_ids) == len(node.findall("IMAGES/ID"))
    if not nodes:
        assert root.tag in {"USER", "HOOK", "HOOK_POOL"}


def test_running_vm_says_what_each_disk_is() -> None:
    vm = d.read_vm(_text("vm-running"))
    kinds = [
        (disk.id, disk.type, disk.is_clone, disk.is_persistent, disk.is_cdrom, disk.is_volatile)
        for disk in vm.disks
    ]
    assert kinds == [
        (0, "BLOCK", True, False, False, False),
        (1, "BLOCK", False, True, False, False),
        (2, "fs", None, False, False, True),
        (3, "swap", None, False, False, True),
        (4, "CDROM", False, False, True, False),
    ]
    assert (vm.host, vm.system_datastore_id, vm.context_disk_id) == ("h1", 103, 5)
    assert (vm.state, vm.lcm_state) == (3, 3)
    assert vm.disk(4) is not None
    assert vm.disk(5) is None


def test_vm_on_hold_is_nowhere() -> None:
    vm = d.read_vm(_text("vm-hold"))
    assert (vm.host, vm.system_datastore_id, vm.history) == ("", None, ())


def test_disk_of_a_short_pool_document_is_persistent_when_it_is_no_clone() -> None:
    pool = Element.parse(_text("vmpool-list"))
    vm = next(vm for vm in map(d.read_vm, pool.all("VM")) if vm.id == 21)
    assert [disk.is_persistent for disk in vm.disks if disk.image_id is not None][:2] == [False, True]


def test_snapshots_belong_to_their_disk() -> None:
    vm = d.read_vm(_text("vm-poweroff-snapshots"))
    first, other = vm.disk(0), vm.disk(6)
    assert first is not None
    assert other is not None
    assert [(entry.id, entry.name, entry.parent, entry.is_active) for entry in first.snapshots] == [
        (0, "s0", None, True)
    ]
    assert [entry.id for entry in other.snapshots] == [1, 2, 3]


@pytest.mark.parametrize(
    ("lcm_state", "is_attaching", "is_detaching"), [(17, True, True), (33, True, False), (34, False, True)]
)
def test_hotplugged_disk_is_told_apart_where_oned_does(
    lcm_state: int, is_attaching: bool, is_detaching: bool
) -> None:
    vm = d.read_vm(
        f"<VM><ID>1</ID><STATE>3</STATE><LCM_STATE>{lcm_state}</LCM_STATE><TEMPLATE>"
        "<DISK><DISK_ID>0</DISK_ID><ATTACH>YES</ATTACH></DISK><DISK><DISK_ID>1</DISK_ID></DISK></TEMPLATE></VM>"
    )
    assert [(x.is_attaching, x.is_detaching) for x in vm.disks] == [
        (is_attaching, is_detaching),
        (False, False),
    ]


def test_vectors_of_a_template_are_flattened() -> None:
    datastore = d.read_datastore(_text("datastore-after-update-xml"))
    assert datastore.template["VECT/B"] == "2"
    assert datastore.template["FROMXML"] == 'a & b "q"'
    assert datastore.template["ONLY"] == ""
    assert "VECT" not in datastore.template


def test_datastore_says_what_it_has() -> None:
    datastore = d.read_datastore(_text("datastore-image-block-monitored"))
    assert (datastore.total_mib, datastore.used_mib, datastore.free_mib) == (100000, 100, 99900)
    assert (datastore.ds_mad, datastore.tm_mad, datastore.disk_type, datastore.cluster_ids) == (
        "rec",
        "rec",
        2,
        (0,),
    )
    assert datastore.base_path == "/var/lib/one/datastores/100"


def test_backup_image_is_of_its_type() -> None:
    image = d.read_image(_text("image-backup-increment"))
    assert (image.type, image.vm_ids, image.is_persistent) == (d.ImageType.BACKUP, (0,), True)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("/a/it&apos;s", "/a/it's"),
        ("/a/&amp;apos;", "/a/&apos;"),
        ("<![CDATA[/a/&apos;]]>", "/a/&apos;"),
        ("http://x/?a=1&amp;b=%20", "http://x/?a=1&b=%20"),
    ],
)
def test_path_is_decoded_once(written: str, read: str) -> None:
    assert d.read_image(f"<IMAGE><PATH>{written}</PATH></IMAGE>").path == read


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE IMAGE SYSTEM "file:///etc/passwd"><IMAGE/>',
        '<!DOCTYPE a [<!ENTITY x "y">]><IMAGE><NAME>&x;</NAME></IMAGE>',
        '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]><IMAGE><NAME>&b;</NAME></IMAGE>',
    ],
)
def test_document_type_is_refused(document: str) -> None:
    with pytest.raises(RequestError, match="document type"):
        d.read_image(document)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "<IMAGE>",
        "<IMAGE/><IMAGE/>",
        "text",
        "<IMAGE><NAME>&x;</NAME></IMAGE>",
        "<IMAGE>\0</IMAGE>",
        b"\xff\xfe<IMAGE/>",
        '<?xml version="1.0" encoding="no-such"?><IMAGE><ID>x</ID></IMAGE>',
        "<HOST/>",
        "<IMAGE><SIZE>1e3</SIZE></IMAGE>",
        "<IMAGE><SIZE>1 2</SIZE></IMAGE>",
        "<IMAGE><SNAPSHOTS><SNAPSHOT/></SNAPSHOTS></IMAGE>",
    ],
)
def test_what_is_no_image_is_refused(document: str | bytes) -> None:
    with pytest.raises(RequestError):
        d.read_image(document)


def test_large_document_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RequestError, match="larger than"):
        Element.parse("<" * 101, limit=100)


def test_deep_document_does_no_harm() -> None:
    deep = "<A>" * 100_000 + "</A>" * 100_000
    assert d.read_image(f"<IMAGE><ID>1</ID><X>{deep}</X></IMAGE>").id == 1


def test_templates_stay_out_of_repr() -> None:
    document = (
        "<DATASTORE><ID>1</ID><TYPE>0</TYPE><TEMPLATE><SAN_PASS>canary</SAN_PASS></TEMPLATE></DATASTORE>"
    )
    datastore = d.read_datastore(document)
    assert datastore.template["SAN_PASS"] == "canary"
    assert "canary" not in repr(datastore)

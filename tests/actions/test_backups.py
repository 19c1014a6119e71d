# SPDX-License-Identifier: Apache-2.0
"""What a backup's configuration decides: host and directory of the files, their numbers, the states."""

from __future__ import annotations

from pathlib import Path

import pytest

from sanstone.actions import backups, imports
from sanstone.actions.site import Site
from sanstone.opennebula.documents import BackupConfig, VmDocument, read_vm
from sanstone.opennebula.messages import Prebackup, parse
from sanstone.settings import ConfigFile

FULL = "<MODE><![CDATA[FULL]]></MODE>"


def document(config: str) -> str:
    return (
        "<VM><ID>7</ID><NAME>a</NAME><STATE>3</STATE><LCM_STATE>69</LCM_STATE><DEPLOY_ID>one-7</DEPLOY_ID>"
        f"<TEMPLATE/><BACKUPS><BACKUP_CONFIG>{config}</BACKUP_CONFIG></BACKUPS></VM>"
    )


def vm(config: str) -> VmDocument:
    return read_vm(document(config))


def request(config: str) -> Prebackup:
    argv = ("node1:/var/lib/one/datastores/100/7", "0:2", "one-7", "-", "7", "100")
    found = parse("tm", "v7000", "prebackup_live", argv, document(config).encode())
    assert isinstance(found, Prebackup)
    return found


def site(tmp_path: Path, *lines: str) -> Site:
    config = tmp_path / "sanstone.conf"
    text = ["[sanstone]", f"STATE_DIR = {tmp_path}", f"REMOTES_DIR = {tmp_path}", *lines, ""]
    config.write_text("\n".join(text))
    return Site(ConfigFile.read(config))


def test_a_backup_carries_the_document_as_oned_wrote_it() -> None:
    assert request(FULL).document == document(FULL)


@pytest.mark.parametrize(
    ("config", "number"),
    [
        (FULL + "<LAST_INCREMENT_ID>4</LAST_INCREMENT_ID>", 0),
        ("<MODE>INCREMENT</MODE><LAST_INCREMENT_ID>-1</LAST_INCREMENT_ID>", 0),
        ("<MODE>increment</MODE><LAST_INCREMENT_ID>4</LAST_INCREMENT_ID>", 5),
    ],
)
def test_files_bear_the_number_of_the_increment(config: str, number: int) -> None:
    assert backups._number(vm(config)) == number


def test_states_of_a_full_backup_and_of_two_chains_are_told_apart() -> None:
    def content(config: str, number: int) -> str:
        return backups._content(vm(config), number)

    chain = "<MODE>INCREMENT</MODE><INCREMENTAL_BACKUP_ID>%d</INCREMENTAL_BACKUP_ID>"
    assert content(FULL, 0) != content(chain % -1, 0)
    assert content(chain % -1, 0) == content(chain % 5, 0)
    assert content(chain % 5, 1) != content(chain % 6, 1)
    assert content(chain % 5, 1) != content(chain % 5, 2)


def test_a_vm_without_a_configuration_is_backed_up_whole() -> None:
    assert vm("").backup == BackupConfig()


def test_files_go_to_the_host_and_directory_of_the_vm(tmp_path: Path) -> None:
    found = backups._files(request(FULL), site(tmp_path))

    assert (found.host, found.directory) == ("node1", "/var/lib/one/datastores/100/7/backup")
    assert not found.removal.with_parent


def test_files_go_to_the_bridge_of_the_backup_datastore(tmp_path: Path) -> None:
    found = backups._files(request(FULL + "<LAST_BRIDGE>node2</LAST_BRIDGE>"), site(tmp_path))

    assert found.host == "node2"


@pytest.mark.parametrize(
    "line",
    [
        'BACKUP_BASE_PATH="/srv/backups"',
        "export BACKUP_BASE_PATH=/srv/backups",
        "BACKUP_BASE_PATH=/srv/backups/",
    ],
)
def test_files_go_where_opennebula_was_told_to_have_them(tmp_path: Path, line: str) -> None:
    conf = tmp_path / "etc/datastore/datastore.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(f'#BACKUP_BASE_PATH="/path/in/the/hosts"\nOTHER=1\n{line}\n')

    found = backups._files(request(FULL), site(tmp_path))

    assert found.directory == "/srv/backups/7/backup"
    assert found.removal.with_parent


def test_our_own_setting_of_the_directory_has_the_last_word(tmp_path: Path) -> None:
    found = backups._files(request(FULL), site(tmp_path, "BACKUP_BASE_PATH = /fast"))

    assert found.directory == "/fast/7/backup"


@pytest.mark.parametrize(
    ("path", "datastore", "is_of_backup"),
    [
        ("rsync://109//0:abc/var/lib/one/datastores/109/7/abc/disk.0.0", "109", True),
        ("restic://109//0:abc,1:def/var/lib/one/disk.0.1", "109", True),
        ("rsync://110//0:abc/disk.0.0", "109", False),
        ("rsync://109//0:abc/disk.0.0", "", False),
        ("rsync://109//0:a b/disk.0.0", "109", False),
        ("rsync://x/disk", "x", False),
        ("http://109/disk", "109", False),
    ],
)
def test_only_a_url_of_the_named_backup_datastore_is_one(
    path: str, datastore: str, is_of_backup: bool
) -> None:
    assert imports._is_of_backup(path, {"FROM_BACKUP_DS": datastore}) is is_of_backup

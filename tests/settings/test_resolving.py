# SPDX-License-Identifier: Apache-2.0
"""Who has the last word, what messages say, which attributes fit together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sanstone.errors import NotSupportedError
from sanstone.settings import (
    attributes,
    refuse_unsupported,
    resolve,
)
from tests.settings.samples import NO_FILE, SAN, conf, refusal

KNOWN = attributes("v7000")
OWN_NAME = os.uname().nodename


FILE = """
[sanstone]
DELETE_WAIT = 1 min
CONNECT_TIMEOUT = 21
[v7000]
COPYRATE = 10
RSIZE = 11
DELETE_WAIT = 2 min
CONNECT_TIMEOUT = 22
[v7000 "V7000-A"]
COPYRATE = 20
CONNECT_TIMEOUT = 23
[v7000 "other"]
COPYRATE = 99
"""


@pytest.mark.parametrize(
    ("datastore", "image", "name", "expected", "origin"),
    [
        ({}, None, "CLEANRATE", "50", "default"),
        ({"MGMT": "b"}, None, "COPYRATE", "10", "file"),
        ({}, None, "COPYRATE", "20", "file"),
        ({}, None, "DELETE_WAIT", "120", "file"),
        ({}, None, "CONNECT_TIMEOUT", "23", "file"),
        ({"COPYRATE": "30"}, None, "COPYRATE", "30", "datastore san (100)"),
        ({"COPYRATE": "30"}, {"COPYRATE": "40", "NAME": "web", "ID": "7"}, "COPYRATE", "40", "image web (7)"),
        ({"COPYRATE": "30"}, {"COPYRATE": ""}, "COPYRATE", "30", "datastore san (100)"),
        ({}, {"COPYRATE": "40"}, "COPYRATE", "40", "image"),
        ({}, {"RSIZE": "5", "ID": "7"}, "RSIZE", "5", "image 7"),
    ],
)
def test_the_more_special_place_has_the_last_word(
    tmp_path: Path,
    datastore: dict[str, str],
    image: dict[str, str] | None,
    name: str,
    expected: str,
    origin: str,
) -> None:
    settings = resolve("v7000", conf(tmp_path, FILE), datastore={**SAN, **datastore}, image=image)
    assert settings.text(name) == expected
    assert settings.origin(name) == origin


def test_address_in_the_file_serves_a_datastore_without_one(tmp_path: Path) -> None:
    config = conf(tmp_path, '[v7000]\nMGMT = other\n[v7000 "other"]\nMGMT_USER = me\n')
    for nothing in ({}, {"MGMT": ""}, {"MGMT": "  "}):
        settings = resolve("v7000", config, datastore={"NAME": "old", **nothing})
        assert settings.text("MGMT") == "other"
        assert settings.text("MGMT_USER") == "me"


def test_frontend_logs_in_when_it_prepares_disks_itself() -> None:
    alone = resolve("v7000", NO_FILE, datastore=SAN)
    bridged = resolve("v7000", NO_FILE, datastore={**SAN, "BRIDGE_LIST": "node1"})
    assert alone.words("NO_ISCSI") == ()
    assert OWN_NAME in bridged.words("NO_ISCSI")


def test_hostname_stands_for_this_machine_among_others() -> None:
    names = resolve("v7000", NO_FILE, datastore={**SAN, "NO_ISCSI": "node9 $HOSTNAME"}).words("NO_ISCSI")
    assert names[0] == "node9"
    assert {OWN_NAME, OWN_NAME.split(".")[0]} == set(names[1:])


@pytest.mark.parametrize(
    ("file", "datastore", "expected"),
    [
        ("", {"USE_DDPT": "1"}, "ddpt"),
        ("", {"USE_DDPT": "0"}, "dd"),
        ("[sanstone]\nUSE_DDPT=1\n", {}, "ddpt"),
        ("[sanstone]\nUSE_DDPT=1\n", {"COPY_TOOL": "dd"}, "dd"),
        ("[sanstone]\nCOPY_TOOL=dd\n", {"USE_DDPT": "1"}, "ddpt"),
        ("[sanstone]\nUSE_DDPT=0\n[v7000]\nCOPY_TOOL=qemu-img\n", {}, "qemu-img"),
        ("[sanstone]\nCOPY_TOOL=qemu-img\n[v7000]\nUSE_DDPT=0\n", {}, "dd"),
    ],
)
def test_old_option_speaks_for_its_successor_where_it_stands(
    tmp_path: Path, file: str, datastore: dict[str, str], expected: str
) -> None:
    settings = resolve("v7000", conf(tmp_path, file), datastore={**SAN, **datastore})
    assert settings.text("COPY_TOOL") == expected
    assert settings.warnings == ()


def test_old_option_beside_its_successor_is_ignored_with_a_warning() -> None:
    settings = resolve("v7000", NO_FILE, datastore={**SAN, "USE_DDPT": "1", "COPY_TOOL": "dd"})
    assert settings.text("COPY_TOOL") == "dd"
    assert settings.warnings == ("USE_DDPT of datastore san is ignored: COPY_TOOL is set there too.",)


def test_lock_time_of_the_earlier_addon_is_the_session_time(tmp_path: Path) -> None:
    settings = resolve("v7000", conf(tmp_path, "[v7000]\nFLOCK_TIMEOUT = 300\n"), datastore=SAN)
    assert settings.seconds("SESSION_TIMEOUT") == 300.0


def test_message_names_attribute_value_place_and_what_is_allowed() -> None:
    error = refusal({**SAN, "COPYRATE": "500"})
    assert error.message == "COPYRATE=500 of datastore san is not allowed: a whole number from 0 to 100."
    assert error.hint == "Change it with: onedatastore update 100."


def test_message_for_a_value_in_the_file_names_the_line(tmp_path: Path) -> None:
    config = conf(tmp_path, "# first\n\n[v7000]\nRSIZE = 3\ncopyrate = 500\n")
    error = refusal(SAN, config)
    assert f"in {tmp_path}/sanstone.conf, line 5, is not allowed" in error.message
    assert error.hint.endswith("line 5.")


def test_all_problems_are_told_at_once() -> None:
    error = refusal({"NAME": "san", "COPYRATE": "500", "GRAINSIZE": "1"}, image={"RSIZE": "x", "NAME": "web"})
    assert error.message.startswith("COPYRATE=500")
    assert error.hint.endswith("3 more problems are in the log.")
    assert [problem.message.split(" ")[0] for problem in error.problems] == [
        "COPYRATE=500",
        "GRAINSIZE=1",
        "RSIZE=x",
        "MGMT",
    ]
    assert all(problem.message in error.details for problem in error.problems)


def test_missing_address_is_refused() -> None:
    assert refusal({"NAME": "san"}).message == "MGMT of datastore san is missing."
    assert refusal({"NAME": "san", "MGMT": "  "}).message == "MGMT of datastore san is missing."


def test_long_value_is_cut_in_the_message() -> None:
    assert len(refusal({**SAN, "IO_GROUP": "x" * 4000}).message) < 200


def test_name_of_a_datastore_cannot_inject_a_command_into_the_hint() -> None:
    error = refusal({"NAME": "a; reboot\n", "MGMT": "x", "COPYRATE": "500"})
    assert error.message.isprintable()
    assert "update 'a; reboot'" in error.hint


@pytest.mark.parametrize(
    "name", ["MGMT", "MDISK_GROUP", "COPIES", "BRIDGE_LIST", "MGMT_USER", "STATE_DIR", "SAFE_DIRS"]
)
def test_image_may_not_say_what_belongs_to_others(name: str) -> None:
    error = refusal(SAN, image={name: "x", "NAME": "web", "ID": "7"})
    assert error.message.startswith(f"{name}=x of image web is not allowed there")
    assert "oneimage update 7" in error.hint


@pytest.mark.parametrize(
    "name", ["MGMT_USER", "MGMT_PASSWORD", "MGMT_KEY", "STATE_DIR", "SSH_OPTIONS", "MGMT_KNOWN_HOSTS"]
)
def test_datastore_may_not_say_how_to_get_in(name: str) -> None:
    error = refusal({**SAN, name: "canary"})
    assert f"{name} is set in sanstone.conf only" in error.message
    assert ("canary" in error.message) is not KNOWN[name].is_secret


@pytest.mark.parametrize(
    ("together", "said"),
    [
        (
            {"COPIES": "2", "MDISK_GROUP": "a b c"},
            "COPIES=2 needs one or two pools, but MDISK_GROUP names 3.",
        ),
        ({"REPLICATION": "1"}, "REPLICATION=1 needs MGMT_AUX and CLUSTER."),
        ({"REPLICATION": "1", "MGMT_AUX": "b"}, "REPLICATION=1 needs CLUSTER."),
        ({"REPLICATION": "1", "CLUSTER": "0" * 16}, "REPLICATION=1 needs MGMT_AUX."),
        ({"FAILOVER": "1"}, "FAILOVER=1 needs MGMT_AUX."),
        ({"FAILOVER": "1", "MGMT_AUX": "V7000-A"}, "MGMT_AUX=V7000-A is the same system as MGMT."),
    ],
)
def test_attributes_that_do_not_fit_are_refused(together: dict[str, str], said: str) -> None:
    assert refusal({**SAN, **together}).message == said


@pytest.mark.parametrize(
    "together",
    [
        {"COPIES": "2", "MDISK_GROUP": "a"},
        {"COPIES": "2", "MDISK_GROUP": "a:b"},
        {"COPIES": "1", "MDISK_GROUP": "a b c"},
        {"REPLICATION": "1", "MGMT_AUX": "b", "CLUSTER": "0" * 16},
        {"MGMT_AUX": "v7000-a"},
    ],
)
def test_attributes_that_fit_are_accepted(together: dict[str, str]) -> None:
    assert resolve("v7000", NO_FILE, datastore={**SAN, **together}).warnings == ()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [("REPLICATION", "Replication is not supported yet"), ("FAILOVER", "Failover is not supported yet")],
)
def test_what_is_not_there_yet_is_refused_clearly(tmp_path: Path, asked: str, sentence: str) -> None:
    second = {"MGMT_AUX": "b", "CLUSTER": "0" * 16}
    in_datastore = resolve("v7000", NO_FILE, datastore={**SAN, **second, asked: "1"})
    in_file = resolve("v7000", conf(tmp_path, f"[v7000]\n{asked}=YES\n"), datastore={**SAN, **second})
    with pytest.raises(NotSupportedError, match=f"{sentence}: {asked}=1 of datastore san"):
        refuse_unsupported(in_datastore)
    with pytest.raises(NotSupportedError, match=f"{asked}=1 in sanstone.conf"):
        refuse_unsupported(in_file)


def test_what_is_there_is_not_refused() -> None:
    refuse_unsupported(resolve("v7000", NO_FILE, datastore=SAN))
    refuse_unsupported(resolve("common", NO_FILE, datastore={}))


@pytest.mark.parametrize(
    ("datastore", "file", "said"),
    [
        ({"SNAPSHOT": "0", "COPYRATE": "0"}, "", "clones are never copied"),
        ({"SAFE_DIRS": "/ /var/tmp"}, "", "SAFE_DIRS holds /"),
        ({}, "[hosts]\nSSH_OPTIONS = -o StrictHostKeyChecking=no\n", "any machine can pose"),
        ({}, "[hosts]\nSSH_OPTIONS = -o 'StrictHostKeyChecking no'\n", "any machine can pose"),
    ],
)
def test_what_is_allowed_but_dangerous_gives_a_warning(
    tmp_path: Path, datastore: dict[str, str], file: str, said: str
) -> None:
    (warning,) = resolve("v7000", conf(tmp_path, file), datastore={**SAN, **datastore}).warnings
    assert said in warning


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("COPY_RATE", "COPYRATE"),
        ("copyrate", "COPYRATE"),
        ("COPYRTAE", "COPYRATE"),
        ("BRIDGELIST", "BRIDGE_LIST"),
        ("MDISKGROUP", "MDISK_GROUP"),
        ("MDISK_GRP", "MDISK_GROUP"),
        ("THIN_PROVISIONING", "THIN_PROVISION"),
        ("GRAIN_SIZE", "GRAINSIZE"),
        ("NOISCSI", "NO_ISCSI"),
        ("IOGROUP", "IO_GROUP"),
    ],
)
def test_misspelt_name_gives_a_warning_with_the_right_one(name: str, meant: str) -> None:
    settings = resolve("v7000", NO_FILE, datastore={**SAN, name: "1"})
    assert settings.warnings == (f"{name} of datastore san has no meaning. Is {meant} meant?",)


@pytest.mark.parametrize(
    "name",
    [
        "DISK_TYPE",
        "COST",
        "LIMIT_MB",
        "CLUSTERS",
        "LABELS",
        "DRIVER",
        "TM_MAD_SYSTEM",
        "CEPH_HOST",
        "OWNER",
        "X",
        "\n",
    ],
)
def test_names_of_others_give_no_warning(name: str) -> None:
    assert resolve("v7000", NO_FILE, datastore={**SAN, name: "1"}).warnings == ()

# SPDX-License-Identifier: Apache-2.0
"""Attributes of the driver iscsi: what datastores of earlier add-ons have holds as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sanstone.settings import ConfigFile, InvalidSettings, attributes, resolve
from tests.settings.samples import NO_FILE, conf

OWN = {
    "HOST": ("localhost", {"nas1": "nas1", "10.0.0.1": "10.0.0.1"}, ("a b", "-a", "nas;1")),
    "BASE_IQN": (
        "iqn.2012-02.org.opennebula",
        {"iqn.2024-01.com.example": "iqn.2024-01.com.example"},
        ("iqn.2012-13.org", "eui.1", "iqn.2012-02.org.a b", "iqn.2012-02.org:a"),
    ),
    "BASE_TID": ("1", {"100": "100"}, ("0", "-1", "x")),
    "PORTALS": (
        "",
        {
            "10.0.1.5  10.0.2.5:3261": "10.0.1.5 10.0.2.5:3261",
            "fe80::1 [fe80::2]:3260": "fe80::1 [fe80::2]:3260",
        },
        ("10.0.1.5;", "a:b:c:", "10.0.1.5:999999", "$(x)"),
    ),
    "VG_NAME": ("vg-one", {"data2": "data2"}, ("vg_one", "vg.one", "-vg", "a b", "a/b")),
    "POOL": ("", {"pool": "pool", "thin_1": "thin_1"}, ("-p", "a/b", "a b", "p;q")),
    "CHAP": ("AUTO", {"no": "NO", "YES": "YES"}, ("maybe", "1")),
}


def test_every_attribute_of_the_driver_is_held_against_its_limits() -> None:
    common = set(attributes("common"))
    assert set(attributes("iscsi")) - common == set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_a_datastore_needs_to_say_nothing(name: str) -> None:
    assert resolve("iscsi", NO_FILE, datastore={"NAME": "san"}).text(name) == OWN[name][0]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, case in OWN.items() for text in case[1]])
def test_an_allowed_value_is_read(name: str, text: str) -> None:
    assert resolve("iscsi", NO_FILE, datastore={name: text}).text(name) == OWN[name][1][text]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, case in OWN.items() for text in case[2]])
def test_a_value_out_of_limits_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(InvalidSettings, match=f"^{name}="):
        resolve("iscsi", NO_FILE, datastore={name: text})


def test_a_host_that_cannot_be_part_of_a_targets_name_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="HOST=nas_1 cannot be part of a target's name"):
        resolve("iscsi", NO_FILE, datastore={"HOST": "nas_1"})


def test_a_section_is_named_after_the_target_host(tmp_path: Path) -> None:
    config = conf(tmp_path, '[iscsi]\nVG_NAME = slow\n[iscsi "nas2"]\nVG_NAME = fast\n')
    assert resolve("iscsi", config, datastore={"HOST": "nas1"}).text("VG_NAME") == "slow"
    assert resolve("iscsi", config, datastore={"HOST": "NAS2"}).text("VG_NAME") == "fast"


def test_access_without_secrets_is_doubted() -> None:
    assert any(
        "CHAP=NO" in each for each in resolve("iscsi", ConfigFile(), datastore={"CHAP": "no"}).warnings
    )

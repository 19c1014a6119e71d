# SPDX-License-Identifier: Apache-2.0
"""The reference in all its forms says what the tables say; what is installed from it is up to date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sanstone.cli import main
from sanstone.cli.installed import oned_conf, sanstone_conf
from sanstone.cli.markdown import markdown
from sanstone.cli.reference import as_json, terminal
from sanstone.cli.template import read_template
from sanstone.settings import DRIVERS, ConfigFile, Scope, attributes, resolve, table

ROOT = Path(__file__).resolve().parents[2]


def test_page_of_the_documentation_is_up_to_date() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == markdown(), (
        "sanstone settings --markdown"
    )


def test_sample_configuration_is_up_to_date() -> None:
    assert (ROOT / "etc/sanstone.conf").read_text(encoding="utf-8") == sanstone_conf()


@pytest.mark.parametrize("driver", DRIVERS)
def test_stanzas_are_up_to_date(driver: str) -> None:
    assert (ROOT / f"etc/oned.conf.d/{driver}.conf").read_text(encoding="utf-8") == oned_conf(driver)


@pytest.mark.parametrize(
    ("option", "made"),
    [
        ("--markdown", markdown()),
        ("--json", as_json(None)),
        ("--sanstone-conf", sanstone_conf()),
    ],
)
def test_command_prints_each_form(option: str, made: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", option]) == 0
    assert capsys.readouterr().out == made


def test_command_prints_the_stanzas_of_a_driver(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "v7000", "--oned-conf"]) == 0
    assert capsys.readouterr().out == oned_conf("v7000")


@pytest.mark.parametrize("driver", [[], ["common"]])
def test_stanzas_need_a_driver(driver: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", *driver, "--oned-conf"]) == 2
    assert "needs a driver" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120, 300])
def test_table_fits_the_terminal(columns: int) -> None:
    text = terminal(None, columns)
    assert max(map(len, text.splitlines())) <= min(max(columns, 60), 120)
    for name in attributes("v7000"):
        assert f"\n{name}" in text


def test_width_of_the_terminal_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["settings", "v7000"])
    assert capsys.readouterr().out == terminal("v7000", 80)


def test_table_tells_default_place_and_meaning() -> None:
    rows = terminal("v7000", 120).split("\nCOPYRATE")[1].split("\nCLEANRATE")[0]
    words = " ".join(rows.split())
    for said in (
        "a whole number from 0 to 100",
        "default: 50",
        "file, datastore, image",
        "mkfcmap",
        "background",
    ):
        assert said in words


def test_json_has_every_attribute_with_its_limits() -> None:
    driver, common = json.loads(as_json("v7000"))
    by_name = {each["name"]: each for part in (driver, common) for each in part["attributes"]}
    assert by_name.keys() == attributes("v7000").keys()
    assert (by_name["COPYRATE"]["minimum"], by_name["COPYRATE"]["maximum"]) == (0, 100)
    assert by_name["GRAINSIZE"]["choices"] == ["64", "256"]
    assert by_name["GRAINSIZE"]["unit"] == "KiB"
    assert by_name["MGMT"]["is_mandatory"] is True
    assert by_name["MGMT_PASSWORD"]["is_secret"] is True
    assert by_name["RSIZE"]["shown_when"] == {"name": "THIN_PROVISION", "value": "1"}
    assert by_name["RSIZE"]["scopes"][-1] == "image"


def test_every_row_of_the_page_has_five_cells() -> None:
    rows = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}
    assert len(rows) == sum(len(table(driver).attributes) for driver in (*DRIVERS, "common"))


def test_sample_configuration_without_its_comment_signs_changes_nothing(tmp_path: Path) -> None:
    lines = [
        line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line
        for line in sanstone_conf().splitlines()
    ]
    path = tmp_path / "sanstone.conf"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    config = ConfigFile.read(path)
    assert config.entries("v7000", "v7000-a.example.com")
    datastore = {"MGMT": "other", "BRIDGE_LIST": "node1"}
    from_file = resolve("v7000", config, datastore=datastore)
    by_default = resolve("v7000", ConfigFile(), datastore=datastore)
    assert [(each.attribute.name, each.value) for each in from_file] == [
        (each.attribute.name, each.value) for each in by_default
    ]
    assert from_file.origin("COPYRATE") == "file"


def test_sample_configuration_names_every_attribute_that_a_file_may_hold() -> None:
    text = sanstone_conf()
    for each in attributes("v7000").values():
        assert (f"\n#{each.name} =" in text) is (each.stands_for is None)


def test_stanzas_are_a_template_that_oned_reads() -> None:
    stanzas = {each.name: each.value for each in read_template(oned_conf("v7000"))}
    assert stanzas["TM_MAD_CONF"] == {
        "NAME": "v7000",
        "LN_TARGET": "NONE",
        "CLONE_TARGET": "SELF",
        "SHARED": "YES",
        "TM_MAD_SYSTEM": "ssh,shared",
        "LN_TARGET_SSH": "NONE",
        "CLONE_TARGET_SSH": "SELF",
        "DISK_TYPE_SSH": "BLOCK",
        "LN_TARGET_SHARED": "NONE",
        "CLONE_TARGET_SHARED": "SELF",
        "DISK_TYPE_SHARED": "BLOCK",
        "DRIVER": "raw",
        "ALLOW_ORPHANS": "YES",
        "PERSISTENT_SNAPSHOTS": "YES",
        "DS_MIGRATE": "YES",
        "DS_LIVE_MIGRATE": "YES",
        "DS_MIGRATE_SNAP": "YES",
    }
    assert stanzas["DS_MAD_CONF"] == {
        "NAME": "v7000",
        "REQUIRED_ATTRS": "DISK_TYPE,MGMT",
        "PERSISTENT_ONLY": "NO",
        "MARKETPLACE_ACTIONS": "export",
    }
    assert stanzas["DATASTORE_ENCRYPTED_ATTR"] == "MGMT_PASSWORD"
    assert "IMAGE_RESTRICTED_ATTR" not in stanzas


@pytest.mark.parametrize("driver", DRIVERS)
def test_stanzas_say_what_snapshots_of_running_disks_need(driver: str) -> None:
    assert f'\n# LIVE_DISK_SNAPSHOTS="kvm-qcow2 kvm-ceph kvm-{driver}"\n' in oned_conf(driver)


def test_stanzas_name_the_lists_to_extend() -> None:
    commented = [line for line in oned_conf("v7000").splitlines() if "ARGUMENTS" in line]
    assert [line.count(",v7000") for line in commented] == [1, 2]
    assert all(line.startswith("#") for line in commented)


def test_no_secret_may_stand_where_every_user_can_read_it() -> None:
    for driver in DRIVERS:
        for each in attributes(driver).values():
            assert not (each.is_secret and {Scope.DATASTORE, Scope.IMAGE} & set(each.scopes))

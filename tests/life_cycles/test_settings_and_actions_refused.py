# SPDX-License-Identifier: Apache-2.0
"""What is wrong is said with attribute, value and what is allowed; malformed calls get one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.scene import REMOTES
from lab.systems import ALL_ARRAYS
from tests.life_cycles.cloud import PROGRAMS, Cloud

pytestmark = pytest.mark.real(*PROGRAMS)

WRONG = {
    "v7000": {
        "COPYRATE": ("500", ["COPYRATE", "500", "0 to 100"]),
        "MDISK_GROUP": ("nowhere", ["MDISK_GROUP", "nowhere", "mdiskgrp0"]),
        "IO_GROUP": ("io_grp9", ["IO_GROUP", "io_grp9", "io_grp0"]),
        "MGMT": ("", ["MGMT"]),
        "GRAINSIZE": ("128", ["GRAINSIZE", "128", "64", "256"]),
        "REPLICATION": ("1", ["REPLICATION"]),
        "FAILOVER": ("1", ["FAILOVER"]),
    },
    "iscsi": {
        "VG_NAME": ("vg-none", ["vg-none", "vg-one"]),
        "HOST": ("tgt_1", ["HOST", "tgt_1"]),
        "BASE_TID": ("none", ["BASE_TID", "none"]),
        "BASE_IQN": ("not an iqn", ["BASE_IQN", "not an iqn"]),
    },
}


def untagged(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not re.match(r"(ERROR|WARN|INFO|DEBUG): ", line)]


@pytest.mark.parametrize(
    ("system", "name"), [(system, name) for system in ALL_ARRAYS for name in WRONG[system]]
)
def test_a_wrong_setting_is_refused_at_monitor_and_at_use(cloud: Cloud, name: str) -> None:
    value, words = WRONG[cloud.driver][name]
    more = {"MGMT_AUX": "v7000-b", "CLUSTER": "0" * 16} if name in ("REPLICATION", "FAILOVER") else {}
    datastore = cloud.datastore("wrong", **{name: value}, **more)
    cloud.oned.monitor_datastore(datastore)
    monitor = cloud.oned.calls[-1]
    assert monitor.action == "monitor"
    image = cloud.image(datastore=datastore, state="ERROR")
    (mkfs,) = cloud.calls("mkfs")
    assert monitor.rc in (3, 4)
    for call in (monitor, mkfs):
        if name == "IO_GROUP" and call is mkfs:  # the box itself refuses it
            words = [value]
        assert call.rc in (3, 4, 5), call.stderr
        assert len(untagged(call.stderr)) == 1
        for word in words:
            assert word in call.stderr
    assert cloud.image_error(image)
    cloud.assert_array(set())


def test_every_link_answers_malformed_input_with_one_line(cloud: Cloud) -> None:
    links = sorted(path.relative_to(REMOTES) for path in REMOTES.glob(f"*/{cloud.driver}/*"))
    assert {str(path.parent) for path in links} == {f"datastore/{cloud.driver}", f"tm/{cloud.driver}"}
    for path in links:
        for argv, stdin in (((), ""), (("1",), "<not xml"), (("a", "b;c", "$(d)"), "x" * 100)):
            answer = cloud.drive(path.parts[0], path.name, *argv, stdin=stdin)
            assert answer.rc in (2, 4), (path, answer)
            assert answer.stdout == ""
            assert len(untagged(answer.stderr)) == 1, (path, answer.stderr)
            assert "Traceback" not in answer.stderr
            if not argv:
                break


def test_the_state_directory_is_the_only_place_that_is_written_to(cloud: Cloud, tmp_path: Path) -> None:
    """Beside the volumes: nothing lies around in the front-end's home or working directory."""
    image = cloud.image()
    cloud.delete(image)
    made = {path.name for path in cloud.directory.iterdir()}
    expected = {
        "state",
        "staging",
        "datastores",
        "vms",
        "hosts",
        "array",
        "sanstone.conf",
        "ssh_config",
        "known_hosts",
    }
    assert made - expected <= {"id", "id.pub"}

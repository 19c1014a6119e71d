# SPDX-License-Identifier: Apache-2.0
"""The harness that kills drivers: it kills where it says, sees what is wrong, and the table runs in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.host import PROGRAMS as HOST_PROGRAMS
from lab.killing.catalog import SCENARIOS
from lab.killing.compare import compare
from lab.killing.steps import Kill, Watch, order, read_steps, take
from lab.killing.table import Case, Cloud, cases, run_case
from lab.killing.world import SYSTEMS, World
from lab.scene import REMOTES
from lab.target import PROGRAMS as TARGET_PROGRAMS

ACTIONS = sorted({path.name for system in SYSTEMS for path in REMOTES.glob(f"*/{system}/*")})
PROGRAMS = (*HOST_PROGRAMS, *TARGET_PROGRAMS, *ACTIONS, "python3", "ssh-keygen", "sleep", "qemu-img")
REAL = pytest.mark.real(*PROGRAMS)

CHOSEN = (
    "tm/ln attach",
    "tm/mvds detach, DATA",
    "tm/premigrate live, BASE",
    "tm/failmigrate live, BASE",
    "datastore/export",
)
QUICK = [case for system in SYSTEMS for case in cases(system, CHOSEN, is_quick=True)]
"""What the suite does; all of it is ``make kill-table``."""


@pytest.fixture(params=SYSTEMS)
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with World(tmp_path / "world", request.param) as world:
        yield world


def kinds(world: World) -> set[str]:
    return {finding.kind for finding in compare(world)}


def test_an_order_to_kill_is_for_one_call_of_one_action(tmp_path: Path) -> None:
    path = tmp_path / "kill"
    order(path, Kill("tm/ln", 2, "after", skip=1))
    assert take(path, "tm/clone") is None
    assert take(path, "tm/ln") is None
    assert take(path, "tm/ln") == Kill("tm/ln", 2, "after")
    assert take(path, "tm/ln") is None


def test_steps_are_written_down_in_order(tmp_path: Path) -> None:
    watch = Watch(tmp_path, "tm/ln")
    assert watch.around("one", lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        watch.around("two", lambda: 1 // 0)
    found = [(step.number, step.name, step.when, step.is_killed) for step in read_steps(tmp_path)]
    assert found == [
        (1, "one", "before", False),
        (1, "one", "after", False),
        (2, "two", "before", False),
        (2, "two", "after", False),
    ]


@REAL
def test_a_cloud_in_order_has_no_findings(world: World) -> None:
    assert compare(world) == []
    vm = world.run(f'IMAGE_ID="{world.data}"')
    world.write(vm, 0, world.pattern())
    assert compare(world) == []
    world.clear()
    assert compare(world) == []


@REAL
def test_a_strange_volume_is_a_leak_and_changed_bytes_are_lost(world: World) -> None:
    world.scene.array.make_foreign("stranger")
    assert kinds(world) == {"leak"}
    world.scene.array.remove("stranger")
    world.array_of(world.san).write(f"one-{world.base}", b"somebody else's")
    assert kinds(world) == {"lost"}


@REAL
@pytest.mark.parametrize("world", ["iscsi"], indirect=True)
def test_what_a_target_host_has_beside_its_volumes_is_a_leak(world: World) -> None:
    target = world.scene.target
    base = ("tgtadm", "--lld", "iscsi", "--op")
    target.run(*base, "new", "--mode", "target", "--tid", "77", "-T", "iqn.2012-02.org.opennebula:x.lv-none")
    target.run(*base, "new", "--mode", "account", "--user", "somebody", "--password", "twelve letters")
    (target.root / "etc/tgt/conf.d/sanstone-0.conf").touch()
    found = [finding.text for finding in compare(world)]
    assert [text.split()[0] for text in found] == ["target", "account", "file"]


@REAL
def test_a_link_to_another_disk_is_wrong(world: World) -> None:
    other = world.filled(persistent=True)
    vm = world.run(f'IMAGE_ID="{world.data}"', f'IMAGE_ID="{other}"')
    first, second = (world.link(world.oned.core.vms[vm], disk) for disk in world.oned.core.vms[vm].disks)
    target = first.readlink()
    first.unlink()
    first.symlink_to(second.readlink())
    assert kinds(world) == {"wrong"}
    first.unlink()
    first.symlink_to(target)
    assert kinds(world) == set()


@REAL
def test_a_killed_driver_is_seen_by_oned_and_at_the_right_step(world: World) -> None:
    world.drivers.take_steps()
    world.drivers.arm(Kill("datastore/mkfs", 2, "after"))
    image = world.new_image()
    world.expect_image(image, "ERROR")
    assert world.oned.calls[-1].rc == -9
    killed = [step for step in world.drivers.take_steps() if step.is_killed]
    assert [(step.number, step.when) for step in killed] == [(2, "after")]
    assert f"one-{image}" in world.array_of(world.san).volumes()
    world.delete_image(image)
    assert kinds(world) == {"leak"}
    world.monitor()
    assert kinds(world) == set()


def test_the_table_names_every_action_that_has_remote_steps() -> None:
    named = {scenario.action for scenario in SCENARIOS}
    there = {f"{path.parts[-3]}/{path.name}" for system in SYSTEMS for path in REMOTES.glob(f"*/{system}/*")}
    assert named <= there
    # without a step beyond the front-end
    assert there - named <= {"datastore/stat", "tm/monitor"}


def test_cases_are_chosen_by_name_or_title() -> None:
    assert {case.what.action for case in cases("v7000", ["tm/context"])} == {"tm/context"}
    assert len(cases("v7000")) > len(SCENARIOS)


def test_a_quick_table_kills_after_each_step_and_goes_on_in_each_way() -> None:
    (case,) = cases("v7000", ["tm/premigrate live, BASE"], is_quick=True)
    kills = list(case.kills())
    assert {when for _, when, _ in kills} == {"after"}
    assert [at for at, _, _ in kills] == list(range(1, len(kills) + 1))
    assert {follow for _, _, follow in kills[:2]} == set(case.what.follow)


@REAL
@pytest.mark.parametrize("case", QUICK, ids=lambda case: f"{case.system} {case.what.action}")
def test_a_killed_action_ends_well(case: Case, tmp_path: Path) -> None:
    cloud = Cloud(tmp_path / "cloud", case.system)
    try:
        report = run_case(case, cloud)
    finally:
        cloud.close()
    assert report.outcomes
    assert [outcome for outcome in report.outcomes if not outcome.is_good] == []

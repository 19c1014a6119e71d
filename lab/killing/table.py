# SPDX-License-Identifier: Apache-2.0
"""Kill every action at every step and look what became of it."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.queues import Queue
from pathlib import Path

from lab.killing.catalog import SCENARIOS
from lab.killing.compare import Finding, compare
from lab.killing.scenarios import Follow, Scenario
from lab.killing.steps import Kill
from lab.killing.world import StuckError, World

__all__ = ["Case", "Cloud", "Outcome", "Report", "cases", "run_case", "run_table"]

_MOST_STEPS = 60
_CASE_LIMIT = 1800.0
"""Seconds after which a case is taken to hang; one with sixty kills takes minutes on a busy machine."""
_EACH_WAY = 4
"""Up to which step a kill is followed by each of the ways to go on; later ones are by one of them in turn."""
_NOT_YET = "not supported yet"
IN_TURN = "in turn"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one kill: at which step, what was asked for then, and what did not agree in the end."""

    number: int
    step: str
    when: str
    findings: tuple[Finding, ...] = ()
    stuck: str = ""
    is_killed: bool = True

    @property
    def is_good(self) -> bool:
        return not self.findings and not self.stuck


@dataclass(frozen=True, slots=True)
class Case:
    """One scenario with one of the ways in which it goes on, by their places in the table.

    ``IN_TURN`` as ``follow``: a kill after each step, each followed by the next of the ways. What is on the
    other side is then the same as before the step that comes next.
    """

    system: str
    scenario: int
    follow: str

    @property
    def what(self) -> Scenario:
        return SCENARIOS[self.scenario]

    def kills(self) -> Iterator[tuple[int, str, str]]:
        """Give step, before or after it, and the way to go on, for all kills that there may be."""
        follows = list(self.what.follow)
        for at, when in itertools.product(range(1, _MOST_STEPS), ("before", "after")):
            if self.follow == IN_TURN:
                if when == "after":
                    yield at, when, follows[at % len(follows)]
            elif at <= _EACH_WAY or (at + follows.index(self.follow)) % len(follows) == 0:
                yield at, when, self.follow


@dataclass(slots=True)
class Report:
    """All outcomes of a case; ``missing`` is why there are none."""

    case: Case
    outcomes: list[Outcome] = field(default_factory=list)
    missing: str = ""
    seconds: float = 0.0


def cases(system: str, wanted: Sequence[str] = (), *, is_quick: bool = False) -> list[Case]:
    """List what there is to do for the actions whose ``kind/name`` or title holds one of ``wanted``."""
    return [
        Case(system, number, follow)
        for number, scenario in enumerate(SCENARIOS)
        if not wanted or any(word in f"{scenario.action} {scenario.title}" for word in wanted)
        for follow in ((IN_TURN,) if is_quick else scenario.follow)
    ]


def run_case(case: Case, cloud: Cloud) -> Report:
    """Kill the action at its first, second, ... step until it ends before that.

    A cloud in which something is left is not used again.
    """
    report = Report(case)
    started = time.monotonic()
    for at, when, follow in case.kills():
        try:
            outcome = _kill(cloud.world(), case.what, at, when, follow)
        except StuckError as err:
            outcome = Outcome(at, "?", when, (), f"nothing can be deleted: {err}")
        if isinstance(outcome, str):
            report.missing = outcome
        if not isinstance(outcome, Outcome):
            break
        report.outcomes.append(outcome)
        if not outcome.is_good:
            cloud.close()
        if not outcome.is_killed:
            break
    report.seconds = time.monotonic() - started
    return report


def _kill(world: World, scenario: Scenario, at: int, when: str, follow: str) -> Outcome | str | None:
    """Make one kill; None when the action was over before, a text when there is no such action."""
    number = scenario.setup(world)
    calls = len(world.oned.calls)
    world.drivers.take_steps()
    world.drivers.arm(Kill(scenario.action, at, when, scenario.skip))
    stuck = ""
    try:
        scenario.go(world, number)
    except StuckError as err:
        stuck = str(err)
    world.drivers.disarm()
    killed = [step for step in world.drivers.take_steps() if step.is_killed]
    world.take_notice()
    result: Outcome | str | None = None
    if killed:
        stuck = stuck or _go_on(world, scenario.follow[follow], number)
        world.monitor()
        findings = tuple(compare(world))
        result = Outcome(at, killed[0].name, when, findings, stuck)
    else:
        made = [call for call in world.oned.calls[calls:] if f"{call.kind}/{call.action}" == scenario.action]
        if not made:
            result = f"never called: {stuck or world.complaints()}"
        elif any(_NOT_YET in call.stderr for call in made):
            result = _NOT_YET
        elif stuck or any(call.rc for call in made):
            result = Outcome(at, "not killed", when, (), stuck or made[-1].stderr.strip(), is_killed=False)
    return _cleared(world, result)


def _go_on(world: World, follow: Follow, number: int) -> str:
    try:
        follow(world, number)
    except StuckError as err:
        return str(err)
    return ""


def _cleared(world: World, result: Outcome | str | None) -> Outcome | str | None:
    """Delete all that there is, so that the next case finds an empty cloud; what is left then is said too."""
    world.clear()
    if world.unfinished():
        world.monitor()
    left = tuple(compare(world))
    if isinstance(result, Outcome) and left:
        return replace(result, findings=tuple(dict.fromkeys((*result.findings, *left))))
    if left:
        return Outcome(0, "not killed", "", left, is_killed=False)
    return result


class Cloud:
    """A world in ``folder``, and another one after that has been closed."""

    def __init__(self, folder: Path, system: str) -> None:
        self._folder = folder
        self.system = system
        self._count = 0
        self._world: World | None = None

    def world(self) -> World:
        if self._world is None:
            self._count += 1
            world = World(self._folder / str(self._count), self.system, seed=self._count)
            self._world = world.__enter__()
            world.warm_up()
        return self._world

    def close(self) -> None:
        if self._world is not None:
            self._world.__exit__(None, None, None)
            self._world = None
            shutil.rmtree(self._folder / str(self._count), ignore_errors=True)


def run_table(wanted: Sequence[Case], jobs: int, folder: Path | None = None) -> Iterator[Report]:
    """Run cases in ``jobs`` processes; reports come as they are done."""
    with tempfile.TemporaryDirectory(prefix="sanstone-kill-", dir=folder) as name:
        context = multiprocessing.get_context("spawn")
        tasks: Queue[Case | None] = context.Queue()
        reports: Queue[Report | str] = context.Queue()
        for case in wanted:
            tasks.put(case)
        processes = []
        is_done = False
        for number in range(min(jobs, len(wanted))):
            tasks.put(None)
            arguments = (Path(name) / str(number), tasks, reports)
            process = context.Process(target=_serve, args=arguments, name=f"kill-{number}", daemon=True)
            process.start()
            processes.append(process)
        try:
            for _ in wanted:
                report = reports.get(timeout=_CASE_LIMIT)
                if isinstance(report, str):
                    raise RuntimeError(report)
                yield report
            is_done = True
        finally:
            for process in processes:
                process.join(30 if is_done else 0)
                if process.is_alive():
                    process.terminate()
                    process.join(5)


def _serve(folder: Path, tasks: Queue[Case | None], reports: Queue[Report | str]) -> None:
    """Work through cases, in a process of its own."""
    cloud: Cloud | None = None
    try:
        while (case := tasks.get()) is not None:
            if cloud is not None and cloud.system != case.system:
                cloud.close()
                cloud = None
            cloud = cloud or Cloud(folder / case.system, case.system)
            reports.put(run_case(case, cloud))
    except BaseException:
        reports.put(traceback.format_exc())
    finally:
        if cloud is not None:
            cloud.close()

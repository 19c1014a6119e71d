# SPDX-License-Identifier: Apache-2.0
"""Plays stories and says of each operation what was not as recorded, and what is not as it should be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.life_cycles import truth
from lab.life_cycles.cloud import HOSTS, Cloud
from lab.life_cycles.record import OPERATIONS, Call, plain_call, recorded_calls, without_date

__all__ = ["Player", "Result", "Step", "Story"]


@dataclass(frozen=True)
class Step:
    """Requests that are one recorded operation, or (without a name) lead to the next.

    ``trouble`` is set up before and withdrawn after; it is given the cloud. ``own_words``: the error that is
    shown is the driver's, so that only what comes before it is compared.
    """

    requests: tuple[tuple[Any, ...], ...]
    name: str = ""
    next_ids: dict[str, int] = field(default_factory=dict)
    trouble: Callable[[Cloud], object] | None = None
    own_words: bool = False
    misses_disks: bool = False
    is_parallel: bool = False


@dataclass(frozen=True)
class Story:
    """Operations that share a cloud, in an order in which each has what it needs.

    ``system_datastore`` is what it needs for 103 and 104 where it may choose.
    """

    name: str
    steps: tuple[Step, ...]
    has_two_arrays: bool = False
    system_datastore: str = "own"

    @property
    def operations(self) -> list[str]:
        return [step.name for step in self.steps if step.name]


@dataclass(frozen=True)
class Result:
    """How an operation went; ``problems`` is empty when all was as it should be."""

    operation: str
    system: str
    seconds: float
    problems: tuple[str, ...]

    @property
    def is_green(self) -> bool:
        return not self.problems


class Player:
    """Plays one story in a cloud of its own."""

    def __init__(self, story: Story, system: str, system_datastore: str, directory: Path) -> None:
        self.story = story
        self.system = system
        self.system_datastore = story.system_datastore if system_datastore == "own" else system_datastore
        self.cloud = Cloud(
            directory, system, system_datastore=self.system_datastore, has_two_arrays=story.has_two_arrays
        )
        self._standing: set[str] = set()
        self._before: list[str] = []
        self._left_on_two: set[str] = set()
        self._samples: list[tuple[str, str, bool, set[tuple[str, str]]]] = []

    def play(self, until: str | None = None) -> Iterator[Result]:
        """Play the story, to its end or ``until`` an operation, and yield what came of each operation."""
        with self.cloud:
            for step in self.story.steps:
                started = time.monotonic()
                found = self._play(step)
                if not step.name:
                    self._before += [f"(before it) {text}" for text in found]
                    continue
                found, self._before = [*self._before, *found], []
                yield Result(step.name, self.system, time.monotonic() - started, tuple(found))
                if step.name == until:
                    return

    def _play(self, step: Step) -> list[str]:
        cloud, oned = self.cloud, self.cloud.oned
        for kind, number in step.next_ids.items():
            oned.core.last_ids[kind] = number - 1
        calls, events = len(oned.calls), len(oned.events)
        self._samples.clear()
        self._left_on_two = {name for _, name in cloud.model.half_moved}
        cloud.guests.may_miss_disks = step.misses_disks
        if step.trouble is not None:
            step.trouble(cloud)
        answer: list[Any] = [True]
        try:
            with cloud.watched(self._sample):
                for request in step.requests:
                    answer = cloud.ask(*request)
        except TimeoutError as err:
            return [f"oned: {err}"]
        finally:
            cloud.recover()
        made = oned.calls[calls:]
        cloud.learn(made)
        found = list(self._guests())
        if step.name:
            found += self._not_as_recorded(step, answer, [e.as_recorded() for e in oned.events[events:]])
            found += self._other_calls(step.name, [self._plain(call) for call in made])
        elif not answer[0]:
            found.append(f"oned refused: {answer[1]}")
        found += self._during_migration()
        if found:
            found += [
                f"{call.driver}/{call.action} said: {call.stderr.strip()[:300]}" for call in made if call.rc
            ]
        there = truth.problems(cloud)
        found += [text for text in there if text not in self._standing]
        self._standing = set(there)
        cloud.write_all()
        return found

    def _guests(self) -> Iterator[str]:
        yield from self.cloud.guests.complaints
        self.cloud.guests.complaints.clear()

    # the record

    def _not_as_recorded(self, step: Step, answer: list[Any], events: list[list[object]]) -> Iterator[str]:
        recorded = OPERATIONS[step.name]
        if events != recorded.get("events", []):
            yield f"events are {events}, recorded are {recorded['events']}"
        rpc = recorded.get("rpc")
        if rpc is not None:
            wanted = [rpc["ok"], rpc["value"], rpc["code"]]
            given = answer[:3]
            if step.own_words and not rpc["ok"]:
                wanted[1], given[1] = _prefix(wanted[1]), _prefix(given[1])
            if step.name != "image-backup-restore" and given != wanted:
                yield f"the answer is {given}, recorded is {wanted}"
        yield from self._states(recorded, step)

    def _states(self, recorded: dict[str, Any], step: Step) -> Iterator[str]:
        core = self.cloud.oned.core
        vms = [event[1] for event in recorded.get("events", []) if event[0] == "VM"]
        images = [event[1] for event in recorded.get("events", []) if event[0] == "IMAGE"]
        value = recorded.get("rpc", {}).get("value")
        vm = core.vms.get(vms[-1]) if vms else None
        if vms and vm is None:
            yield f"there is no VM {vms[-1]}"
        if vm is not None and "end" in recorded:
            wanted, there = (
                f"{recorded['end']['STATE']}/{recorded['end']['LCM_STATE']}",
                f"{vm.state.name}/{vm.lcm_state.name}",
            )
            if there != wanted:
                yield f"VM {vm.id} is {there}, recorded is {wanted}"
        if vm is not None and "vm_ERROR" in recorded:
            text = vm.user_template.get("ERROR")
            yield from _error(text, recorded["vm_ERROR"], step.own_words)
        if "image_ERROR" in recorded:
            image = core.images.get(value if value in images else images[-1])
            yield from _error(
                image.template.get("ERROR") if image else "", recorded["image_ERROR"], step.own_words
            )

    def _plain(self, call: Any) -> Call:
        below = self.cloud.directory / "cloud"
        folders = {str(below / name): f"/var/lib/one/{name}" for name in ("datastores", "vms")}
        return plain_call(call, self.system, {**folders, str(self.cloud.files): "/var/tmp"})

    def _other_calls(self, name: str, made: list[Call]) -> Iterator[str]:
        recorded = recorded_calls(name)
        if (
            name == "datastore-monitor"
        ):  # in no order; 102 and 108 are of a driver of the record's, 112 of BLOCK
            recorded = sorted((call for call in recorded if call.argv[0] not in ("102", "108")), key=str)
            made = sorted((call for call in made if call.argv[0] != "112"), key=str)
        if self.system_datastore in ("shared", "ssh"):  # other drivers, and one that passes calls on
            made = [call for call in made if not (call.action.endswith("migrate") and len(call.argv) == 6)]
            made = [Call(call.kind, "rec", call.action, call.argv) for call in made]
        for number, (theirs, ours) in enumerate(zip(recorded, made, strict=False), 1):
            if ours != theirs:
                yield f"call {number} is {ours}, recorded is {theirs}"
                return
        if len(made) != len(recorded):
            extra = (made if len(made) > len(recorded) else recorded)[min(len(made), len(recorded)) :]
            yield f"{len(made)} calls instead of {len(recorded)}: {', '.join(map(str, extra))}"

    # two hosts

    def _sample(self, driver: str, action: str, argv: tuple[str, ...], is_over: bool) -> None:
        mappings = {pair for array in self.cloud.arrays for pair in array.mappings()}
        self._samples.append((driver, action, is_over, mappings))

    def _during_migration(self) -> Iterator[str]:
        """Only between premigrate and postmigrate or failmigrate may two hosts have a volume."""
        is_allowed = False
        for driver, action, is_over, mappings in self._samples:
            is_ours = driver == self.system
            if is_ours and action == "premigrate" and not is_over:
                is_allowed = True
            shared = self._on_two_hosts(mappings)
            if shared and not is_allowed:
                yield f"{', '.join(sorted(shared))} on two hosts {'after' if is_over else 'before'} {action}"
                return
            if is_ours and action in ("postmigrate", "failmigrate") and is_over:
                is_allowed = False

    def _on_two_hosts(self, mappings: set[tuple[str, str]]) -> set[str]:
        model = self.cloud.model
        allowed = {name for _, name in model.half_moved} | self._left_on_two
        cdroms = {name for key, name in model.volumes.items() if self.cloud.disk(*key).is_cdrom}
        return {
            name for _, name in mappings
            if name not in cdroms | allowed and all((host, name) in mappings for host in HOSTS)
        }  # fmt: skip


def _error(text: str, recorded: str, own_words: bool) -> Iterator[str]:
    there, wanted = without_date(text), without_date(recorded)
    if own_words:
        if not _remainder(there) and _remainder(wanted):
            yield f"the error {there!r} says nothing of the driver's"
        there, wanted = _prefix(there), _prefix(wanted)
    if there != wanted:
        yield f"the error is {there!r}, recorded is {wanted!r}"


def _prefix(text: object) -> str:
    head, colon, _ = str(text).partition(": ")
    return head + colon


def _remainder(text: str) -> str:
    return text.partition(": ")[2]

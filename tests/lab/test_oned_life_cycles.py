# SPDX-License-Identifier: Apache-2.0
"""The stand-in for oned does in every recorded operation what a real oned 7.4.0 did.

Calls, documents, events, states, error texts and answers are compared with the record.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lab.oned import Answer, DriverCall, HostCall, Oned, QuietHypervisor
from tests.lab.test_oned_recorder import PROGRAMS, make_datastores, recorded_config
from tests.lab.test_oned_story import LIFE_CYCLES, PLAYED, RECORD, STORY, Step

pytestmark = pytest.mark.real(*PROGRAMS)


class RecordedHypervisor(QuietHypervisor):
    """Answers as the recorded vmm scripts did."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}

    def execute(self, call: HostCall) -> Answer:
        default = Answer(0, "one-deploy-id" if call.action == "deploy" else "", "")
        return self.answers.get(call.action, default)


@dataclass
class Played:
    """What an operation of the story came to."""

    rpc: list[Any]
    calls: list[dict[str, Any]]
    events: list[list[Any]]
    states: dict[str, str]
    errors: dict[str, str]


def recorded_calls(name: str) -> list[dict[str, Any]]:
    path = RECORD / "calls" / f"{name}.jsonl"
    if not path.exists():
        return []
    calls = [json.loads(line) for line in path.read_text().splitlines()]
    return [call for call in calls if "argv" in call]


class Player:
    """Plays the story against a stand-in and keeps what came of each operation."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answers = directory / "answers"
        self.hypervisor = RecordedHypervisor()
        self.oned = Oned(recorded_config(directory, hypervisor=self.hypervisor))
        self.played: dict[str, Played] = {}

    def play(self) -> None:
        """Play the whole story."""
        with self.oned:
            self.proxy = xmlrpc.client.ServerProxy(self.oned.endpoint)
            with self.proxy:
                make_datastores(self.oned)
                self.oned.monitor_all()
                for step in STORY:
                    self.play_step(step)

    def play_step(self, step: Step) -> None:
        for kind, number in step.next_ids.items():
            self.oned.core.last_ids[kind] = number - 1
        self.prepare(step)
        calls, events = len(self.oned.calls), len(self.oned.events)
        for request in step.requests:
            answer = self.request(request)
            self.oned.wait_idle(20)
            assert step.name or answer[0], (request, answer)
        if step.name:
            self.played[step.name] = Played(
                rpc=answer,
                calls=[self.shown(call) for call in self.oned.calls[calls:]],
                events=[event.as_recorded() for event in self.oned.events[events:]],
                states={
                    **{f"IMAGE {i.id}": i.state.name for i in self.oned.core.images.values()},
                    **{
                        f"VM {v.id}": f"{v.state.name}/{v.lcm_state.name}"
                        for v in self.oned.core.vms.values()
                    },
                },
                errors={
                    **{f"IMAGE {i.id}": i.template.get("ERROR") for i in self.oned.core.images.values()},
                    **{f"VM {v.id}": v.user_template.get("ERROR") for v in self.oned.core.vms.values()},
                },
            )

    def prepare(self, step: Step) -> None:
        """Let drivers and hypervisor answer as they did when the operation was recorded."""
        for old in self.answers.iterdir():
            old.unlink()
        self.hypervisor.answers = {}
        for name, text in step.failing:
            (self.answers / name).write_text(f"echo {shlex.quote(text)} >&2\nexit 1\n")
        for call in recorded_calls(step.name) if step.name else ():
            result = call["result"]
            answer = Answer(result["rc"], result["stdout"], result["stderr"])
            if call["kind"] == "vmm":
                self.hypervisor.answers[call["action"]] = answer
                continue
            script = f"printf %s {shlex.quote(answer.stdout)}\nprintf %s {shlex.quote(answer.stderr)} >&2\n"
            path = self.answers / f"{call['kind']}.{call['driver']}.{call['action']}"
            if not path.exists():
                path.write_text(f"{script}exit {answer.rc}\n")

    def request(self, request: tuple[Any, ...]) -> list[Any]:
        method, *parameters = request
        if method == "monitor":
            self.oned.monitor_all()
            return [True]
        session = self.oned.session
        if method.startswith("plain:"):
            session, method = "plain:plainpass", method.removeprefix("plain:")
        answer: list[Any] = getattr(self.proxy, method)(session, *parameters)
        return answer

    def shown(self, call: DriverCall) -> dict[str, Any]:
        return {
            "kind": call.kind,
            "driver": call.driver,
            "action": call.action,
            "where": call.where,
            "argv": [self.plain(decoded(argument)) for argument in call.argv],
            "stdin_encoding": call.stdin_encoding,
            "stdin": self.plain(call.stdin),
        }

    def plain(self, text: str) -> str:
        """Write paths as they were on the machine of the record."""
        for name in ("datastores", "vms"):
            text = text.replace(str(self.directory / name), f"/var/lib/one/{name}")
        return text


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Player:
    player = Player(tmp_path_factory.mktemp("oned"))
    player.play()
    return player


IGNORED = frozenset(
    [
        "REGTIME",
        "MODTIME",
        "STIME",
        "ETIME",
        "PSTIME",
        "PETIME",
        "RSTIME",
        "RETIME",
        "ESTIME",
        "EETIME",
        "REQUEST_ID",
        "DATE",
        "TIME",
        "UUID",
    ]
)


def tree(element: ElementTree.Element) -> Any:
    """Write a document as nested lists, without what differs from one run to the next."""
    children = [tree(child) for child in element if child.tag not in IGNORED]
    text = (element.text or "").strip()
    if element.tag == "ERROR":
        text = re.sub(r"^\w+ \w+ +\d+ [\d:]+ \d+ ?", "", text)
    if element.tag == "NAME":
        text = re.sub(r"^(\d+) \d\d-\w{3} [\d.]{8}$", r"\1 DATE", text)
    return [
        element.tag,
        text,
        *(f"{key}={value}" for key, value in sorted(element.attrib.items())),
        *children,
    ]


def decoded(argument: str) -> str:
    """Decode an argument that is a document in base64."""
    try:
        text = base64.b64decode(argument, validate=True).decode()
    except ValueError:
        return argument
    return text if text.startswith("<") else argument


def argument(recorded: Any, made: str) -> tuple[Any, Any]:
    """Give both in a form that can be compared: documents as trees."""
    if isinstance(recorded, dict):
        return tree(ElementTree.fromstring(recorded["base64_xml"])), tree(ElementTree.fromstring(made))
    return recorded, made


def ordered(name: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort the calls of operations whose order is left to chance."""
    return sorted(calls, key=lambda call: str(call["argv"])) if name == "datastore-monitor" else calls


@pytest.mark.parametrize("name", PLAYED)
def test_the_same_drivers_are_called(player: Player, name: str) -> None:
    calls = player.played[name].calls
    recorded = ordered(name, recorded_calls(name))
    made = ordered(name, calls)
    if name == "datastore-monitor":
        made = [call for call in made if call["argv"] != ["112"]]
    shape = ("kind", "driver", "action", "where", "stdin_encoding")
    assert [[call[key] for key in shape] for call in made] == [
        [call[key] for key in shape] for call in recorded
    ]
    for theirs, ours in zip(recorded, made, strict=True):
        assert len(ours["argv"]) == len(theirs["argv"])
        for expected, got in map(argument, theirs["argv"], ours["argv"]):
            assert got == expected


@pytest.mark.parametrize("name", PLAYED)
def test_the_same_documents_are_given(player: Player, name: str) -> None:
    made = ordered(name, player.played[name].calls)
    if name == "datastore-monitor":
        made = [call for call in made if call["argv"] != ["112"]]
    for theirs, ours in zip(ordered(name, recorded_calls(name)), made, strict=True):
        if not theirs["stdin"]:
            assert not ours["stdin"]
            continue
        expected, got = (ElementTree.fromstring(call["stdin"]) for call in (theirs, ours))
        if expected.tag == "domain":
            assert list(map(tree, got.iter("disk"))) == list(map(tree, expected.iter("disk")))
            continue
        assert tree(got) == tree(expected)


@pytest.mark.parametrize("name", PLAYED)
def test_the_same_states_are_passed(player: Player, name: str) -> None:
    played, recorded = player.played[name], LIFE_CYCLES[name]
    assert played.events == recorded["events"]
    if "end" in recorded and not isinstance(recorded["rpc"]["value"], str):
        end = recorded["end"]
        number = (
            next(event[1] for event in reversed(recorded["events"]) if event[0] == "VM")
            if recorded["events"]
            else None
        )
        if number is not None:
            assert played.states[f"VM {number}"] == f"{end['STATE']}/{end['LCM_STATE']}"


def without_date(text: str) -> str:
    return re.sub(r"^\w+ \w+ +\d+ [\d:]+ \d+ ?: ", "", text)


@pytest.mark.parametrize(
    "name", [name for name in PLAYED if {"vm_ERROR", "image_ERROR"} & set(LIFE_CYCLES[name])]
)
def test_the_same_error_is_shown(player: Player, name: str) -> None:
    played, recorded = player.played[name], LIFE_CYCLES[name]
    for key, kind in (("vm_ERROR", "VM"), ("image_ERROR", "IMAGE")):
        if key in recorded:
            events = [event[1] for event in recorded["events"] if event[0] == kind]
            number = recorded["rpc"]["value"] if recorded["rpc"]["value"] in events else events[-1]
            assert without_date(played.errors[f"{kind} {number}"]) == without_date(recorded[key])


@pytest.mark.parametrize("name", [name for name in PLAYED if "rpc" in LIFE_CYCLES[name]])
def test_the_same_answer_is_given(player: Player, name: str) -> None:
    recorded = LIFE_CYCLES[name]["rpc"]
    assert player.played[name].rpc[:3] == [recorded["ok"], recorded["value"], recorded["code"]]

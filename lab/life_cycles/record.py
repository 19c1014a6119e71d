# SPDX-License-Identifier: Apache-2.0
"""What a real oned 7.4.0 did in each operation: its driver calls, events, answers and errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lab.oned import DriverCall

__all__ = ["OPERATIONS", "Call", "plain_call", "recorded_calls", "without_date"]

RECORD = Path(__file__).resolve().parents[2] / "tests/data/opennebula-7.4"

OPERATIONS: dict[str, dict[str, Any]] = json.loads((RECORD / "life-cycles.json").read_text())

_DOCUMENT = "(document)"
_OUR_SOURCE = re.compile(r"(?:frontend:)?(?:iqn\.[^ ]+[.:])?(?:lv-)?one-(\d+)")
_SYNCHRONOUS = ("stat", "restore")  # their argument is a counter


@dataclass(frozen=True, slots=True)
class Call:
    """A driver call in the words of the record: ``rec`` is the driver that is meant."""

    kind: str
    driver: str
    action: str
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((f"{self.kind}/{self.driver}/{self.action}", *self.argv))


@cache
def _image_of_source() -> dict[str, str]:
    found = {}
    for path in (RECORD / "calls").glob("*.jsonl"):
        for call in map(json.loads, path.read_text().splitlines()):
            if call["kind"] == "datastore" and call["action"] in ("cp", "mkfs", "clone") and "argv" in call:
                words = call["result"]["stdout"].split()
                if words:
                    found[words[0]] = call["argv"][0]
    return found


def recorded_calls(name: str) -> list[Call]:
    """Read the calls of an operation; sources of images are written ``image N``."""
    path = RECORD / "calls" / f"{name}.jsonl"
    if not path.exists():
        return []
    calls = [json.loads(line) for line in path.read_text().splitlines()]
    return [_recorded(call) for call in calls if "argv" in call]


def _recorded(call: dict[str, Any]) -> Call:
    argv = []
    for argument in call["argv"]:
        if isinstance(argument, dict):
            argv.append(_DOCUMENT)
            continue
        image = _image_of_source().get(argument.removeprefix("frontend:")) or _image_of_source().get(argument)
        argv.append(f"image {image}" if image else argument)
    return _plain(call["kind"], call["driver"], call["action"], argv)


def plain_call(call: DriverCall, system: str, folders: dict[str, str]) -> Call:
    """Write a call that was made as the record would: ``folders`` is path to recorded path."""
    argv = []
    for argument in call.argv:
        text = argument
        for here, there in folders.items():
            text = text.replace(here, there)
        match = _OUR_SOURCE.fullmatch(text)
        if match:
            text = f"image {match[1]}"
        elif len(text) > 200 and ":" not in text:
            text = _DOCUMENT
        argv.append(text)
    driver = "rec" if call.driver == system or call.kind == "vmm" else call.driver
    return _plain(call.kind, driver, call.action, argv)


def _plain(kind: str, driver: str, action: str, argv: list[str]) -> Call:
    if kind == "datastore" and action in _SYNCHRONOUS:
        argv = ["(number)"]
    argv = [re.sub(r"deployment\.\d+$", "deployment.K", argument) for argument in argv]
    if kind == "vmm" and action in ("attach_disk", "detach_disk"):
        argv[2:4] = ["(target)", "(index)"]  # the letter depends on what the VM had before
    return Call(kind, driver, action.partition(".")[0], tuple(argv))


def without_date(text: str) -> str:
    """Take the date from an error attribute."""
    return re.sub(r"^\w+ \w+ +\d+ [\d:]+ \d+ ?: ", "", text)

# SPDX-License-Identifier: Apache-2.0
"""The restricted shell of the box: command lines, listings, refusals.

Several commands travel in one line. Reading ones are joined by ``;echo;``, so that an empty line parts
their listings; changing ones follow ``set -e``, so that the first refusal stops the rest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sanstone.arrays.v7000 import codes
from sanstone.arrays.v7000.codes import RefusedError, find_code
from sanstone.errors import ArrayError, BusyError, ConfigurationError, ConnectError
from sanstone.transport.ssh import Reply, SSHSession
from sanstone.transport.waiting import Deadline, pause

__all__ = ["Answer", "Row", "Terminal", "command", "detail", "rows"]

log = logging.getLogger(__name__)

Row = dict[str, str]

_DELIMITER = "!"
_PLAIN = re.compile(r"[A-Za-z0-9_.:%+=-]+")
_QUOTED = re.compile(r"[A-Za-z0-9_.:%+=* -]+")
_COMPLAINT = re.compile(r"CMMVC\d{4}[EW]\b")
_PROBED = ("lsnode", "lsportip", "lsip")
"""Commands that not every family and firmware has."""
_HARMLESS = codes.ABSENT | codes.UNKNOWN_COMMAND | {codes.NOT_MAPPED}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a chain of reading commands said: one section of lines per command, and all complaints."""

    sections: tuple[tuple[str, ...], ...]
    complaints: tuple[str, ...]

    def codes(self) -> frozenset[str]:
        return frozenset(found[0] for line in self.complaints if (found := find_code(line)))


def word(value: str) -> str:
    """One word of a command line. The box's shell knows no escapes, so only harmless characters pass."""
    if _PLAIN.fullmatch(value):
        return value
    if _QUOTED.fullmatch(value) and value == value.strip():
        return f'"{value}"'
    raise ConfigurationError(
        f"{value!r} cannot be sent to the box.",
        "Names there have letters, digits, spaces, '.', '-' and '_' only.",
    )


def command(*words: str) -> str:
    """One command from its words."""
    return " ".join(word(each) for each in words)


def listing(*words: str) -> str:
    """A reading command whose columns are parted by a character that no value holds."""
    return f"{word(words[0])} -delim {_DELIMITER} {command(*words[1:])}".rstrip()


def rows(section: Sequence[str]) -> list[Row]:
    """Read a concise view: the header names the columns, whatever the firmware appended."""
    if not section:
        return []
    names = section[0].split(_DELIMITER)
    return [dict(zip(names, line.split(_DELIMITER), strict=False)) for line in section[1:] if line]


def detail(section: Sequence[str]) -> Row:
    """Read a detailed view; of a key that repeats, the first counts."""
    found: Row = {}
    for line in section:
        key, _, value = line.partition(_DELIMITER)
        found.setdefault(key, value)
    return found


class Terminal:
    """Command lines on one box, each within ``timeout`` seconds.

    Before that, ``patience`` seconds may pass until a session is free.
    """

    def __init__(self, session: SSHSession, *, timeout: float, patience: float | None = None) -> None:
        self.session = session
        self.timeout = timeout
        self.patience = timeout if patience is None else patience

    @property
    def name(self) -> str:
        return self.session.login.address

    def ask(self, *commands: str) -> Answer:
        """Run reading commands; one about an object that is not there has an empty section and a complaint.

        Raises: ArrayError or what else a refusal means: nothing is taken to be absent because of it.
        """
        line = ";echo;".join(commands)
        answer = _answer(self._execute(line), len(commands), self.name)
        for complaint in answer.complaints:
            if _is_refusal(complaint, answer.sections):
                code, text = find_code(complaint) or ("", complaint)
                raise RefusedError(self.name, code, text, line).as_error("A question was not answered")
        return answer

    def change(self, *commands: str, then: Sequence[str] = ()) -> Answer:
        """Run changing commands up to the first refusal, then reading ones.

        Raises: RefusedError.
        """
        reading = [f"echo;{each}" for each in then]
        line = ";".join(["set -e", *commands, *reading])
        reply = self._execute(line)
        if reply.code != 0:
            raise self._refused(reply, line)
        answer = _answer(reply, len(then) + 1, self.name)
        for complaint in answer.complaints:
            log.warning("%s: %s", self.name, complaint)
        return Answer(answer.sections[1:], answer.complaints)

    def attempt(self, change: str, *reading: str) -> Answer:
        """Run one changing command and, whatever became of it, reading ones: the first section is its own.

        Raises: as ``ask``, for the reading ones.
        """
        answer = _answer(self._execute(";echo;".join([change, *reading])), len(reading) + 1, self.name)
        own, *rest = answer.sections
        if any(_is_refusal(complaint, rest) for complaint in answer.complaints):
            # Whose refusal it is cannot be seen, and what could not be read is not absent.
            rest = list(self.ask(*reading).sections)
        return Answer((own, *rest), answer.complaints)

    def _refused(self, reply: Reply, line: str) -> RefusedError | ArrayError:
        found = find_code(reply.stderr) or find_code(reply.stdout)
        if found is None:
            return ArrayError(
                f"{self.name} ended a command with exit code {reply.code} and no reason.",
                "See the box's event log.",
                details=f"{line}\n{reply.stdout}{reply.stderr}",
            )
        return RefusedError(self.name, *found, line, made=reply.stdout.count("successfully created"))

    def _execute(self, line: str) -> Reply:
        deadline = Deadline(self.patience)
        interval = 0.1
        while True:
            self.session.reserve()
            reply = self.session.execute(line, deadline=Deadline(self.timeout))
            busy = find_code(reply.stdout.split("\n", 1)[0] or reply.stderr)
            if busy is None or busy[0] != codes.TOO_MANY_SESSIONS:
                return reply
            self.session.close()
            if deadline.left < interval:
                raise BusyError(
                    f"{self.name} had no session free for {self.patience:.0f} s ({busy[0]}).",
                    "Close other logins on the box, or lower ARRAY_SESSIONS, then run the action again.",
                )
            pause(interval)
            interval = min(interval * 2, 2.0)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line for line in text.splitlines() if line.strip())


def _is_refusal(complaint: str, sections: Sequence[Sequence[str]]) -> bool:
    """Tell whether a complaint can be the reason why a section is empty, and says more than "not there"."""
    if all(sections):
        return False
    found = find_code(complaint)
    if found is None:
        return not any(name in complaint for name in _PROBED)
    return not (found[0] in _HARMLESS or found[0].endswith("W"))


def _answer(reply: Reply, count: int, box: str) -> Answer:
    """Part listings and complaints, which may come on standard output as well."""
    sections, complaints = [], list(_lines(reply.stderr))
    for section in _sections(reply, count, box):
        said = [line for line in section if _COMPLAINT.match(line)]
        sections.append(tuple(line for line in section if line not in said))
        complaints += said
    return Answer(tuple(sections), tuple(complaints))


def _sections(reply: Reply, count: int, box: str) -> tuple[tuple[str, ...], ...]:
    found: list[tuple[str, ...]] = []
    lines: list[str] = []
    for line in reply.stdout.splitlines():
        if line or len(found) == count - 1:
            lines.append(line.rstrip("\r"))
        else:
            found.append(tuple(lines))
            lines = []
    found.append(tuple(lines))
    if len(found) != count:
        raise ConnectError(
            f"{box} answered {len(found)} of {count} questions.",
            "Run the action again.",
            details=reply.stdout + reply.stderr,
        )
    return tuple(found)

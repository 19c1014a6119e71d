# SPDX-License-Identifier: Apache-2.0
"""A command line as the restricted shell of the box reads it: quotes, ``;`` chains, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from lab.v7000.errors import ShellError

__all__ = ["Statement", "parse"]

BLANKS = " \t"
OPERATORS = "|&()"
REDIRECTIONS = "<>"
EXPANSIONS = "$`"


@dataclass(frozen=True, slots=True)
class Statement:
    """One command of a chain: its words without quotes, and its text as it was sent."""

    words: tuple[str, ...]
    text: str


def parse(line: str) -> tuple[Statement, ...]:
    """Split a line into statements.

    Nothing of a line runs when any part of it is not taken. Pipes, expansions, conditions and
    background jobs are refused although a real box's shell knows some of them: no driver may rely on them.

    Raises: ShellError with status 2 for bad syntax, 1 for what is restricted.
    """
    return tuple(_Reader(line).statements())


class _Reader:
    def __init__(self, line: str) -> None:
        self.line = line
        self.at = 0

    def statements(self) -> list[Statement]:
        found: list[Statement] = []
        words: list[str] = []
        begin = 0
        while self.at < len(self.line):
            sign = self.line[self.at]
            if sign in BLANKS:
                self.at += 1
            elif sign == ";" and not words:
                raise _unexpected(";;" if self.line[self.at - 1 : self.at] == ";" else ";")
            elif sign in ";\n":
                if words:
                    found.append(Statement(tuple(words), self.line[begin : self.at].strip()))
                words = []
                self.at += 1
                begin = self.at
            elif sign == "#":
                while self.at < len(self.line) and self.line[self.at] != "\n":
                    self.at += 1
            else:
                words.append(self.word())
        if words:
            found.append(Statement(tuple(words), self.line[begin : self.at].strip()))
        return found

    def word(self) -> str:
        out: list[str] = []
        while self.at < len(self.line):
            sign = self.line[self.at]
            if sign in BLANKS + ";\n":
                break
            if sign == "'":
                out.append(self.single())
            elif sign == '"':
                out.append(self.double())
            elif sign == "\\":
                out.append(self.line[self.at + 1 : self.at + 2])
                self.at += 2
            else:
                self.refuse(sign)
                out.append(sign)
                self.at += 1
        return "".join(out)

    def refuse(self, sign: str) -> None:
        if sign in OPERATORS:
            twice = self.line[self.at : self.at + 2]
            raise _unexpected(twice if twice in ("&&", "||") else sign)
        if sign in REDIRECTIONS:
            raise ShellError("restricted: cannot redirect output", 1)
        if sign in EXPANSIONS:
            raise ShellError(f"`{sign}': restricted", 1)

    def single(self) -> str:
        end = self.line.find("'", self.at + 1)
        if end < 0:
            raise ShellError("unexpected EOF while looking for matching `''", 2)
        inner = self.line[self.at + 1 : end]
        self.at = end + 1
        return inner

    def double(self) -> str:
        out: list[str] = []
        self.at += 1
        while self.at < len(self.line):
            sign = self.line[self.at]
            if sign == '"':
                self.at += 1
                return "".join(out)
            if sign == "\\" and self.line[self.at + 1 : self.at + 2] in ('"', "\\", "$", "`"):
                out.append(self.line[self.at + 1])
                self.at += 2
                continue
            if sign in EXPANSIONS:
                raise ShellError(f"`{sign}': restricted", 1)
            out.append(sign)
            self.at += 1
        raise ShellError("unexpected EOF while looking for matching `\"'", 2)


def _unexpected(token: str) -> ShellError:
    return ShellError(f"syntax error near unexpected token `{token}'", 2)

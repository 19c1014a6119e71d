# SPDX-License-Identifier: Apache-2.0
"""What a sudoers file lets a user run, as sudo reads the part of it that the add-on uses."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Sudoers"]

FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


class Sudoers:
    """Command aliases and who may run them as root without a password.

    ``*`` in arguments matches blanks and slashes too; a command without arguments may be run with any.
    """

    def __init__(self, text: str, user: str = "oneadmin") -> None:
        self._aliases: dict[str, list[str]] = {}
        self._allowed: list[str] = []
        lines = re.sub(r"\\\n\s*", " ", text).splitlines()
        for line in lines:
            line = line.partition("#")[0].strip() if not line.lstrip().startswith("#") else ""
            if line.startswith("Cmnd_Alias"):
                name, _, commands = line.removeprefix("Cmnd_Alias").partition("=")
                self._aliases[name.strip()] = _split(commands)
            elif match := re.match(rf"{re.escape(user)}\s+ALL\s*=\s*\(root\)\s*NOPASSWD:\s*(.*)", line):
                self._allowed += _split(match[1])

    @classmethod
    def read(cls, path: Path) -> Sudoers:
        return cls(path.read_text(encoding="utf-8"))

    @property
    def programs(self) -> set[str]:
        """Names of the programs that may be run."""
        return {Path(command.split()[0]).name for command in self._commands()}

    def allows(self, argv: Sequence[str]) -> bool:
        """Tell whether ``sudo -n argv...`` runs; a program without a path is looked for as sudo does."""
        name = argv[0]
        candidates = [name] if "/" in name else [f"{folder}/{name}" for folder in FOLDERS]
        given = " ".join(argv[1:])
        return any(self._fits(command, candidates, given) for command in self._commands())

    @staticmethod
    def _fits(command: str, candidates: Sequence[str], given: str) -> bool:
        program, _, pattern = command.partition(" ")
        if not any(fnmatch.fnmatchcase(candidate, program) for candidate in candidates):
            return False
        if not pattern:
            return True
        if pattern.strip() == '""':
            return not given
        if pattern.startswith("^"):
            return re.fullmatch(pattern.strip().removeprefix("^").removesuffix("$"), given) is not None
        return fnmatch.fnmatchcase(given, re.sub(r"\\([,:=\\])", r"\1", pattern.strip()))

    def _commands(self) -> list[str]:
        found: list[str] = []
        for each in self._allowed:
            found += self._aliases.get(each, [each])
        return found


def _split(commands: str) -> list[str]:
    """Split at commas that no backslash stands before."""
    return [part.strip() for part in re.split(r"(?<!\\),", commands) if part.strip()]

# SPDX-License-Identifier: Apache-2.0
"""sanstone.conf: sections, their attributes, and on which line each stands."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sanstone.errors import ConfigurationError
from sanstone.settings.problems import InvalidSettings, Problem, printable
from sanstone.settings.resemblance import closest
from sanstone.settings.tables import DRIVERS, attributes, names_in_section

__all__ = ["DEFAULT_PATH", "ConfigFile", "Entry"]

DEFAULT_PATH = Path("/etc/one/sanstone.conf")

_Sections = dict[tuple[str, str], dict[str, "Entry"]]

_HEADER = re.compile(r"\s*\[(?P<header>.+)\]")
_SECTION = re.compile(r'(?P<name>[A-Za-z0-9_]+)(?:\s+"(?P<box>[^"]+)")?')
_OPTION = re.compile(r"\s*(?P<name>[^\s=#;][^=]*?)\s*=")


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands behind the = and on which line, from 1."""

    text: str = field(repr=False)
    line: int


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a configuration file says. Values are checked when they are used, in ``resolve``.

    ``sections`` is keyed by section and box: ``("v7000", "")`` and ``("v7000", "v7000-a")``.
    """

    path: Path | None = None
    sections: Mapping[tuple[str, str], Mapping[str, Entry]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path | None = None, environ: Mapping[str, str] | None = None) -> ConfigFile:
        """Read ``path``, or the file that SANSTONE_CONF names, or the default one, which need not exist.

        Raises: ConfigurationError, with file and line, for what cannot be read or understood.
        """
        environ = os.environ if environ is None else environ
        named = path or (Path(environ["SANSTONE_CONF"]) if environ.get("SANSTONE_CONF") else None)
        path = named or DEFAULT_PATH
        try:
            content = path.read_bytes()
            mode = path.stat().st_mode
        except FileNotFoundError as err:
            if named is None:
                return cls()
            raise ConfigurationError(
                f"The configuration file {path} does not exist.",
                "Make it, or correct SANSTONE_CONF." if path == named else "",
            ) from err
        except (OSError, ValueError) as err:
            reason = err.strerror if isinstance(err, OSError) else str(err)
            raise ConfigurationError(
                f"The configuration file {path} cannot be read: {reason}.",
                "The user oneadmin needs to read it.",
            ) from err
        text = _decode(path, content)
        sections, problems = _sections(path, text)
        if problems:
            raise InvalidSettings(problems)
        return cls(path, sections, _exposed_secrets(path, sections) if mode & 0o004 else ())

    def entries(self, section: str, box: str = "") -> Mapping[str, Entry]:
        """What a section says; nothing when it is not there. A box is named in any case of letters."""
        return self.sections.get((section, box.lower()), {})


def _decode(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as err:
        line = content[: err.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}, line {line}, is not UTF-8.", "Save the file as UTF-8.") from err
    for number, line_text in enumerate(text.split("\n"), start=1):
        if not line_text.replace("\t", " ").isprintable():
            raise ConfigurationError(
                f"{path}, line {number}, holds a character that cannot be printed.", "Write the line again."
            )
    return text


def _sections(path: Path, text: str) -> tuple[_Sections, list[Problem]]:
    """Read all sections, and list what has no meaning in them.

    Raises: ConfigurationError when the text has another form.
    """
    parser = configparser.RawConfigParser(
        delimiters=("=",),
        comment_prefixes=("#", ";"),
        strict=True,
        empty_lines_in_values=False,
        default_section="\0",  # no section speaks for all others: a name that no file can hold
    )
    parser.optionxform = str.upper  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text, source=str(path))
    except configparser.Error as err:
        raise InvalidSettings([_syntax_problem(path, err)]) from err
    lines = _lines(text)
    sections: _Sections = {}
    problems: list[Problem] = []
    for header in parser.sections():
        line = lines.get((header, ""), 1)
        match = _SECTION.fullmatch(header.strip())
        key = (match["name"].lower(), (match["box"] or "").lower()) if match else ("", "")
        known = names_in_section(*key)
        if known is None:
            problems.append(_unknown_section(path, line, header))
            continue
        if key in sections:
            problems.append(_repeated_section(path, line, header))
            continue
        sections[key] = {
            name: Entry(value, lines.get((header, name), line)) for name, value in parser.items(header)
        }
        problems += [
            _unknown_name(path, entry.line, header, key[0], name, tuple(known))
            for name, entry in sections[key].items()
            if name not in known
        ]
    return sections, problems


def _exposed_secrets(path: Path, sections: _Sections) -> tuple[str, ...]:
    return tuple(
        f"{path} holds {name}, and every user can read it: chown root:oneadmin, chmod 640."
        for (section, box), entries in sections.items()
        for name, entry in entries.items()
        if entry.text and (names_in_section(section, box) or {})[name].is_secret
    )


def _syntax_problem(path: Path, err: configparser.Error) -> Problem:
    """Say in one sentence what the parser found; its own texts run over several lines."""
    if isinstance(err, configparser.MissingSectionHeaderError):
        return Problem(
            f"{path}, line {err.lineno}, stands before the first section.", "Begin the file with [sanstone]."
        )
    if isinstance(err, configparser.DuplicateSectionError):
        return _repeated_section(path, err.lineno or 1, err.section)
    if isinstance(err, configparser.DuplicateOptionError):
        return Problem(
            f"{path}, line {err.lineno}: {err.option} is in [{err.section}] already.", "Keep one of the two."
        )
    if isinstance(err, configparser.ParsingError) and err.errors:
        return Problem(
            f"{path}, line {err.errors[0][0]}, is not of the form NAME = value.",
            "A comment begins with #, a section stands in [ ].",
        )
    return Problem(f"{path} cannot be understood.", str(err).splitlines()[0])


def _lines(text: str) -> dict[tuple[str, str], int]:
    """Find where each section (its header alone) and each attribute begins; the parser does not keep it."""
    found: dict[tuple[str, str], int] = {}
    header = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if match := _HEADER.match(line):
            header = match["header"]
            found.setdefault((header, ""), number)
        elif match := _OPTION.match(line):
            found.setdefault((header, match["name"].upper()), number)
    return found


def _repeated_section(path: Path, line: int, header: str) -> Problem:
    return Problem(
        f"{path}, line {line}: section [{printable(header)}] is there already.",
        "Put all attributes of a section in one place.",
    )


def _unknown_section(path: Path, line: int, header: str) -> Problem:
    sections = ("sanstone", "hosts", *DRIVERS)
    names = ", ".join(f"[{name}]" for name in sections)
    return Problem(
        f"{path}, line {line}: there is no section [{printable(header)}].",
        f'Sections are {names}, and one for a single system: [{DRIVERS[0]} "its address"].',
    )


def _unknown_name(
    path: Path, line: int, header: str, section: str, name: str, known: tuple[str, ...]
) -> Problem:
    message = f"{path}, line {line}: {printable(name)} has no meaning in [{printable(header)}]."
    elsewhere = [
        other
        for other in ("sanstone", "hosts", *DRIVERS)
        if other != section and name in (names_in_section(other, "") or {})
    ]
    if elsewhere:
        return Problem(message, f"It belongs in [{elsewhere[0]}].")
    if any(name in attributes(driver) for driver in DRIVERS):
        return Problem(message, "It belongs in the template of a datastore.")
    near = closest(name, known)
    return Problem(message, f"Is {near} meant?" if near else "sanstone settings lists what there is.")

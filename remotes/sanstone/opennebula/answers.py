# SPDX-License-Identifier: Apache-2.0
"""What a driver says to oned: exit code, standard output, and standard error in the form that oned takes.

The rules were recorded from 7.4 and read in the source of 6.10 and 7.4 (DriverExecHelper, CommandManager):

- Exit code 0: standard output is the answer. Else standard error is the message.
- From 7.0 each line ``ERROR|INFO|WARN|DEBUG: [id] text`` is only logged, for the object ``id`` if given, so
  that a text's leading digits would be taken for one. Other lines are glued together without a separator.
- 6.10 takes all lines, blanks between.
- A VM keeps 100 characters, oned's own prefix among them (``Error executing image transfer script: ``).

So the text for people is the first line and the only one without a tag; all else stands in tagged lines.
Nothing but printable ASCII goes out: oned's drivers may run with any locale, and the text ends in XML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sanstone.errors import RequestError, SanstoneError
from sanstone.model import MIB, Capacity

__all__ = [
    "LINE_LIMIT",
    "SCRIPT_LINE_LIMIT",
    "Answer",
    "datablock_source",
    "failure",
    "image_source",
    "import_info",
    "log_line",
    "monitor",
    "size_in_mib",
    "success",
]

LINE_LIMIT = 99
# What is left of a VM's 100 characters for an action of a transfer script, which most of tm's are.
SCRIPT_LINE_LIMIT = 60

Level = Literal["ERROR", "WARN", "INFO", "DEBUG"]

_TAG = re.compile(r"(ERROR|INFO|WARN|DEBUG):")
_LONGEST_LOG_LINE = 8192
_LONGEST_DETAIL = 400
_MOST_DETAILS = 40
_SOURCE = re.compile(r"[!-~]{1,1024}")
_FORMAT = re.compile(r"[A-Za-z0-9_-]{1,32}")


@dataclass(frozen=True, slots=True)
class Answer:
    """How a driver's process ends."""

    code: int
    stdout: str
    stderr: str


def success(stdout: str = "", *, log: Iterable[str] = ()) -> Answer:
    """Answer that all went well; ``log`` are lines of ``log_line``."""
    return Answer(0, stdout, "".join(log))


def failure(
    error: BaseException,
    *,
    version: str = "7.4",
    object_id: int | None = None,
    limit: int = LINE_LIMIT,
) -> Answer:
    """Answer that it went wrong, for people in one line of at most ``limit`` characters, and for the log.

    ``object_id`` is the VM or image under which oned logs the rest. Before 7.0, where the message holds every
    line, details are left out.
    """
    if isinstance(error, SanstoneError):
        code, hint, exit_code, details = error.code, error.hint, error.exit_code, error.details
        message = clean(error.message) or f"{type(error).__name__} without a message."
    else:
        code, hint, exit_code, details = SanstoneError.code, "", SanstoneError.exit_code, _origin(error)
        message = clean(f"Unexpected {type(error).__name__}: {error}")
    hint = clean(hint)
    line, is_whole = _line_for_people(message, hint, code, max(limit, 20))
    lines = [line + "\n"]
    if not is_whole:
        lines.append(log_line("ERROR", f"{code} {message} {hint}", object_id))
    if not version.startswith(("5.", "6.")):
        lines.extend(log_line("INFO", text, object_id) for text in _shorten(details))
    return Answer(exit_code, "", "".join(lines))


def log_line(level: Level, text: str, object_id: int | None = None) -> str:
    """Form one line that oned only logs; empty when there is no text. It ends with a newline."""
    text = clean(text)
    if not text:
        return ""
    if len(text) > _LONGEST_LOG_LINE:
        text = text[:_LONGEST_LOG_LINE] + "..."
    if object_id is not None:
        return f"{level}: {object_id} {text}\n"
    return f"{level}: {'- ' if text[0].isdigit() else ''}{text}\n"


def image_source(source: str, format: str) -> str:
    """Form the answer of ``cp`` and ``clone``.

    Raises: RequestError for a source or format that oned would cut or not take.
    """
    if not _FORMAT.fullmatch(format):
        raise RequestError(f"The format {format[:40]!r} cannot be given to oned.")
    return f"{datablock_source(source)} {format}"


def datablock_source(source: str) -> str:
    """Form the answer of ``mkfs``: oned takes the whole line as SOURCE.

    Raises: RequestError for a source with blanks or characters that are not printable ASCII.
    """
    if not _SOURCE.fullmatch(source):
        raise RequestError(f"The source {source[:60]!r} cannot be given to oned: no blanks, printable ASCII.")
    return source


def size_in_mib(size: int) -> str:
    """Form the answer of ``stat`` from bytes, rounded up.

    Raises: RequestError for a negative size.
    """
    if size < 0:
        raise RequestError(f"A size of {size} bytes cannot be given to oned.")
    return str(-(-size // MIB))


def monitor(capacity: Capacity) -> str:
    """Form the answer of ``monitor`` from bytes; what is used is rounded up, what is free down."""
    used, total, free = -(-capacity.used // MIB), capacity.total // MIB, capacity.free // MIB
    return f"USED_MB={max(used, 0)}\nTOTAL_MB={max(total, 0)}\nFREE_MB={max(free, 0)}"


def import_info(source: str, md5: str, size: int, format: str, removal: str) -> str:
    """Form the answer of ``export``: where the file is, ``size`` in bytes as a disk, and how to remove it.

    ``source`` and ``removal`` are split on blanks by those who use them (market_mad/remotes/http/import).

    Raises: RequestError for a source that oned cannot take.
    """
    told = {
        "IMPORT_SOURCE": datablock_source(source),
        "MD5": md5,
        "SIZE": size_in_mib(size),
        "FORMAT": format,
        "DISPOSE": "YES",
        "DISPOSE_CMD": removal,
    }
    if any("]]>" in text for text in told.values()):
        raise RequestError("What is exported cannot be told to oned.")
    parts = "".join(f"<{key}><![CDATA[{text}]]></{key}>" for key, text in told.items())
    return f"<IMPORT_INFO>{parts}</IMPORT_INFO>"


def clean(text: str) -> str:
    """Bring any text into one line of printable ASCII that is no tagged line."""
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    text = re.sub(r"[\x00-\x20\x7f]+", " ", text).strip().replace("]]>", "]] >")
    return _TAG.sub(r"\1 -", text, count=1) if _TAG.match(text) else text


def _line_for_people(message: str, hint: str, code: str, limit: int) -> tuple[str, bool]:
    """Fit what is most needed into ``limit`` characters; the flag says that nothing was left out."""
    both = f"{message} {hint}".strip()
    for line in (f"{both} [{code}]", both):
        if len(line) <= limit:
            return line, True
    for line in (f"{message} [{code}]", message):
        if len(line) <= limit:
            return line, False
    return _cut(message, limit), False


def _cut(text: str, limit: int) -> str:
    """Cut at the end of a sentence that fills most of the line, else at a word, else anywhere."""
    head = text[:limit]
    sentence = max(head.rfind(". "), head.rfind("; "))
    if sentence >= limit * 0.6:
        return head[:sentence] + "."
    head = text[: limit - 3]
    blank = head.rfind(" ")
    return (head[:blank] if blank >= limit // 2 else head).rstrip(" ,;:") + "..."


def _shorten(details: str) -> list[str]:
    """Split details into lines, the middle left out when there are too many."""
    lines = [line for line in details.splitlines() if line.strip()]
    if len(lines) > _MOST_DETAILS:
        half = _MOST_DETAILS // 2
        lines = [*lines[:half], f"... {len(lines) - 2 * half} lines left out ...", *lines[-half:]]
    return [clean(line)[:_LONGEST_DETAIL] for line in lines]


def _origin(error: BaseException) -> str:
    """Name the place where an error that nobody foresaw was raised, for a report of it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    frame = trace.tb_frame
    return f"raised in {frame.f_globals.get('__name__', '?')}, {frame.f_code.co_name}, line {trace.tb_lineno}"

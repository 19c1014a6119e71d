# SPDX-License-Identifier: Apache-2.0
"""The edge towards oned: read the call, have it carried out, answer in the form that oned takes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import FrameType

from sanstone.errors import RequestError, SanstoneError
from sanstone.opennebula import answers, messages

__all__ = ["main"]

_LARGEST_REQUEST = 33 * 1024 * 1024
_LEVELS: dict[int, answers.Level] = {
    logging.DEBUG: "DEBUG",
    logging.INFO: "INFO",
    logging.WARNING: "WARN",
}


class _ForOned(logging.Handler):
    """Keep log lines for the end: 6.10 shows a VM's owner the beginning of standard error, tagged or not."""

    def __init__(self) -> None:
        super().__init__()
        self.object_id: int | None = None
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        level = _LEVELS.get(record.levelno, "ERROR")
        self.lines.append(answers.log_line(level, record.getMessage(), self.object_id))


def main(argv: Sequence[str]) -> int:
    """Run the action that the script's own path names; return the exit code."""
    log = logging.getLogger("sanstone")
    for_oned = _ForOned()
    log.setLevel(logging.INFO)
    log.addHandler(for_oned)
    try:
        with _as_a_driver():
            answer = answers.success(_perform(argv, for_oned))
    except SanstoneError as err:
        answer = _failure(err, argv, for_oned)
    except KeyboardInterrupt:
        answer = _failure(SanstoneError("The action was interrupted.", "Run it again."), argv, for_oned)
    except Exception as err:  # the border: whatever it is, oned gets one clear line
        answer = _failure(err, argv, for_oned)
    finally:
        log.removeHandler(for_oned)
    sys.stderr.write(answer.stderr + "".join(for_oned.lines))
    sys.stderr.flush()
    sys.stdout.write(answer.stdout)
    sys.stdout.flush()
    return answer.code


def _failure(err: BaseException, argv: Sequence[str], for_oned: _ForOned) -> answers.Answer:
    """oned cuts what a VM's owner sees much earlier than what an image's owner sees."""
    is_tm = _called_as(argv)[-3:-2] == ("tm",)
    limit = answers.SCRIPT_LINE_LIMIT if is_tm else answers.LINE_LIMIT
    return answers.failure(err, limit=limit, object_id=for_oned.object_id)


def _called_as(argv: Sequence[str]) -> tuple[str, ...]:
    """Find by which link this was called, from wherever; links are not followed, their names are the call."""
    return PurePath(os.path.abspath(argv[0])).parts  # noqa: PTH100 (resolve would follow links)


@contextmanager
def _as_a_driver() -> Iterator[None]:
    """Say nothing but the answer, and take away what is half made when told to end."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if is_main else None
    # What a library says by itself would stand, untagged, in what oned shows to users.
    last_resort, logging.lastResort = logging.lastResort, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.lastResort = last_resort
        if is_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _perform(argv: Sequence[str], for_oned: _ForOned) -> str:
    parts = _called_as(argv)
    if len(parts) < 3 or parts[-3] not in ("datastore", "tm"):
        raise RequestError(
            f"{argv[0]} is not called from datastore/DRIVER/ or tm/DRIVER/.", "oned calls it by such a link."
        )
    kind, driver, action = parts[-3:]
    # without standard input, as with an empty one, there is no document
    stdin = sys.stdin.buffer.read(_LARGEST_REQUEST) if sys.stdin else b""
    request = messages.parse(kind, driver, action, argv[1:], stdin)
    for_oned.object_id = getattr(request, "vm_id", None)
    from sanstone.actions import Site, perform
    from sanstone.settings import ConfigFile

    with Site(ConfigFile.read(None), remotes=Path(*parts[:-3])) as site:
        return perform(request, site)

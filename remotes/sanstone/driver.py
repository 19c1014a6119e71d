# SPDX-License-Identifier: Apache-2.0
"""The edge towards oned: read the call, have it carried out, answer in the form that oned takes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import PurePath

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
    is_tm = PurePath(argv[0]).parts[-3:-2] == ("tm",)
    limit = answers.SCRIPT_LINE_LIMIT if is_tm else answers.LINE_LIMIT
    return answers.failure(err, limit=limit, object_id=for_oned.object_id)


def _perform(argv: Sequence[str], for_oned: _ForOned) -> str:
    parts = PurePath(argv[0]).parts
    if len(parts) < 3 or parts[-3] not in ("datastore", "tm"):
        raise RequestError(
            f"{argv[0]} is not called from datastore/DRIVER/ or tm/DRIVER/.", "oned calls it by such a link."
        )
    kind, driver, action = parts[-3:]
    request = messages.parse(kind, driver, action, argv[1:], sys.stdin.buffer.read(_LARGEST_REQUEST))
    for_oned.object_id = getattr(request, "vm_id", None)
    from sanstone.actions import Site, perform
    from sanstone.settings import ConfigFile

    with Site(ConfigFile.read(None)) as site:
        return perform(request, site)

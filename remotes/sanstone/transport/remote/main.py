# SPDX-License-Identifier: Apache-2.0
"""Run a list of operations and say what came of them.

The answer is framed by lines that begin with a mark the caller chose, so that a login shell's greetings do no
harm: ``MARK step N``, ``MARK progress "text"`` and at the end ``MARK result {...}``.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from typing import BinaryIO

from sanstone.transport.remote import run
from sanstone.transport.remote.errors import NodeError
from sanstone.transport.remote.run import Context, Deadline, Json

__all__ = ["main"]

_OVERTIME = 1.0
"""How long after its deadline an operation is interrupted (a third) and the program ends in any case."""


class Frames:
    """What goes back, one line per frame; lines of several threads do not mix."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._lock = threading.Lock()

    def send(self, kind: str, content: object) -> None:
        # The line break in front ends whatever somebody else left unfinished.
        line = f"\n{self._mark} {kind} {json.dumps(content)}\n".encode("ascii")
        with self._lock:
            while line:
                line = line[os.write(1, line) :]


def main(package: str, request: Json, upload: BinaryIO) -> int:
    """Run what ``request`` lists until one fails; return an exit code.

    ``package`` is the program's own: its OPERATIONS map the name of an operation to module and function, its
    PRIVILEGED and RIGHTS say what runs as root and which file grants it.
    """
    program = importlib.import_module(package)
    run.privileged.update(program.PRIVILEGED)
    run.rights = program.RIGHTS
    frames = Frames(request["mark"])
    deadline = Deadline(float(request["deadline"]))
    operations: list[Json] = request["operations"]
    current = {"index": 0}
    watchdog = threading.Timer(deadline.seconds + _OVERTIME, _give_up, (frames, operations, current))
    watchdog.daemon = True
    watchdog.start()
    _interrupt_at_the_end(deadline, operations, current)
    results: list[Json | None] = []
    uploads = [index for index, operation in enumerate(operations) if operation["op"] == "PutFile"]
    try:
        for index, operation in enumerate(operations):
            current["index"] = index
            frames.send("step", index)
            context = Context(
                deadline, lambda text: frames.send("progress", text), upload, index == (uploads or [0])[-1]
            )
            results.append(_perform(package, program.OPERATIONS, operation, context))
        signal.setitimer(signal.ITIMER_REAL, 0)
        frames.send("result", {"results": results})
    except BrokenPipeError:
        return 1
    except Exception as err:  # the border: whatever happens becomes an answer
        frames.send("result", {"error": _describe(err), "index": current["index"]})
        return 1
    return 0


def _interrupt_at_the_end(deadline: Deadline, operations: list[Json], current: dict[str, int]) -> None:
    """Let time's end, or an order to end, come as an exception, so that what was begun is cleaned up."""

    def interrupt(number: int, frame: object) -> None:
        why = (
            "was told to end" if number == signal.SIGTERM else f"did not end within {deadline.seconds:.0f} s"
        )
        raise NodeError("DeadlineError", f"{operations[current['index']]['op']} {why}.")

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, deadline.seconds + _OVERTIME / 3)


def _perform(
    package: str, operations: dict[str, tuple[str, str]], operation: Json, context: Context
) -> Json | None:
    context.deadline.check("waiting for its turn")
    try:
        module, function = operations[operation["op"]]
    except KeyError:
        raise NodeError("RequestError", f"There is no operation {operation.get('op')!r}.") from None
    found: Json | None = getattr(importlib.import_module(f"{package}.{module}"), function)(operation, context)
    return found


def _describe(err: Exception) -> Json:
    if isinstance(err, NodeError):
        return {"family": err.family, "message": err.message, "hint": err.hint, "details": err.details}
    details = traceback.format_exc()
    if isinstance(err, OSError):
        family = "CapacityError" if err.errno in (errno.ENOSPC, errno.EDQUOT) else "HostError"
        what = f"{err.filename}: {err.strerror}" if err.filename else str(err.strerror or err)
        return {"family": family, "message": f"{what}.", "hint": "", "details": details}
    return {
        "family": "HostError",
        "message": f"The node program failed: {type(err).__name__}: {err}.",
        "hint": "This is a defect of the add-on; please report it with the log.",
        "details": details,
    }


def _give_up(frames: Frames, operations: list[Json], current: dict[str, int]) -> None:
    """Answer and end although something hangs, most likely on a disk that does not answer."""
    index = current["index"]
    name = operations[index]["op"] if index < len(operations) else "?"
    error = {
        "family": "DeadlineError",
        "message": f"{name} hangs; the machine has something that does not answer.",
        "hint": "See the paths (multipath -ll) and the kernel's log, then run the action again.",
        "details": "",
    }
    frames.send("result", {"error": error, "index": index})
    sys.stderr.flush()
    os._exit(1)

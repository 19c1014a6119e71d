# SPDX-License-Identifier: Apache-2.0
"""Tell a running QEMU something over its monitor socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from lab.vm.errors import VMError

__all__ = ["ask"]

DEADLINE = 30.0


def ask(path: Path, command: str, **arguments: object) -> Any:
    """Run one QMP command and return its answer.

    Raises: VMError when QEMU is not there or refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(path))
            with sock.makefile("rw", encoding="utf-8") as stream:
                stream.readline()  # the greeting
                for name, values in (("qmp_capabilities", {}), (command, arguments)):
                    stream.write(json.dumps({"execute": name, "arguments": values}) + "\n")
                    stream.flush()
                    answer = _answer(stream)
                return answer
    except OSError as err:
        raise VMError(f"QEMU does not answer at {path}: {err}") from err


def _answer(stream: Any) -> Any:
    for line in stream:
        message = json.loads(line)
        if "error" in message:
            raise VMError(f"QEMU refused: {message['error'].get('desc')}")
        if "return" in message:
            return message["return"]
    raise VMError("QEMU ended while it was asked.")

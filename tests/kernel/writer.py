# SPDX-License-Identifier: Apache-2.0
"""A writer on a host that never pauses, and knows what has to be on the volume in the end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import TracebackType

from tests.kernel.node import PATIENCE, Node, until

__all__ = ["Writer", "Written"]

BLOCK = 4096
SLOTS = 64

# Past the page cache, each block with its number, round and round; an error ends it.
PROGRAM = """
import json, mmap, os, signal, sys, time
path, slots = sys.argv[1], int(sys.argv[2])
on = [True]
signal.signal(signal.SIGUSR1, lambda *_: on.clear())
fd = os.open(path, os.O_RDWR | os.O_DIRECT)
block = mmap.mmap(-1, 4096)
count, longest, error = 0, 0.0, ""
while on:
    block[:8] = count.to_bytes(8, "big")
    began = time.monotonic()
    try:
        os.pwrite(fd, block, count % slots * 4096)
    except OSError as err:
        error = str(err)
        break
    longest = max(longest, time.monotonic() - began)
    count += 1
    if not count % 16:
        with open("/tmp/writer.count", "w") as file:
            file.write(str(count))
    time.sleep(0.005)
os.close(fd)
print(json.dumps({"count": count, "longest": longest, "error": error}), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Written:
    """``count`` blocks, the slowest in ``longest`` seconds; ``error``: the kernel's words, or empty."""

    count: int
    longest: float
    error: str

    @property
    def content(self) -> bytes:
        """What the first SLOTS blocks of the volume hold."""
        last = self.count - 1
        numbers = [last - (last - slot) % SLOTS for slot in range(SLOTS)]
        return b"".join(number.to_bytes(8, "big").ljust(BLOCK, b"\0") for number in numbers)


class Writer:
    """Writes to ``path`` on ``node`` until ``stop``."""

    def __init__(self, node: Node, path: str) -> None:
        self._node = node
        node.sh("cat > /tmp/writer.py; rm -f /tmp/writer.count", stdin=PROGRAM.encode())
        self._pid = node.sh(
            f"setsid python3 /tmp/writer.py {path} {SLOTS} > /tmp/writer.out 2>&1 < /dev/null & echo $!"
        ).strip()

    def __enter__(self) -> Writer:
        until(lambda: self.count() > SLOTS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._node.sh(f"kill -KILL {self._pid} 2> /dev/null; true")

    def count(self) -> int:
        """Return how many blocks it has written, as far as it has told."""
        text = self._node.sh("cat /tmp/writer.count 2> /dev/null; true").strip()
        return int(text or 0)

    def go_on(self) -> None:
        """Wait until it writes."""
        before = self.count()
        until(lambda: self.count() > before + SLOTS)

    def stop(self) -> Written:
        self._node.sh(f"kill -USR1 {self._pid}; timeout {PATIENCE:.0f} tail --pid={self._pid} -f /dev/null")
        return Written(**json.loads(self._node.sh("cat /tmp/writer.out")))

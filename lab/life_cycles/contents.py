# SPDX-License-Identifier: Apache-2.0
"""What volumes hold, as the model knows it and as it is found."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MIB", "Content"]

MIB = 1 << 20
_ZEROS = bytes(MIB)


@dataclass(frozen=True, slots=True)
class Content:
    """``size`` bytes: the MiB that ``blocks`` has by number, zeros elsewhere."""

    size: int
    blocks: Mapping[int, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, path: Path) -> Content:
        """Read a file or device; holes are not read."""
        size, blocks = _data(path)
        return cls(size, blocks)

    def written(self, offset: int, data: bytes) -> Content:
        """Give what it is after a write that stays within one MiB."""
        number, start = divmod(offset, MIB)
        block = bytearray(self.blocks.get(number, _ZEROS))
        block[start : start + len(data)] = data
        return Content(self.size, {**self.blocks, number: bytes(block)})

    def resized(self, size: int) -> Content:
        """Give what it is with more room at its end."""
        return Content(size, self.blocks)

    @property
    def digest(self) -> str:
        """SHA-256 of the size and of every MiB that is not zeros, with its number."""
        digest = hashlib.sha256(str(self.size).encode())
        for number, block in sorted(self.blocks.items()):
            digest.update(b"\n%d\n" % number)
            digest.update(block.ljust(MIB, b"\0"))
        return digest.hexdigest()

    def differs_from(self, other: Content) -> str:
        """Say where another content differs; empty when it does not."""
        if self.digest == other.digest:
            return ""
        if self.size != other.size:
            return f"{other.size} bytes instead of {self.size}"
        numbers = self.blocks.keys() | other.blocks.keys()
        wrong = [
            n for n in sorted(numbers) if self.blocks.get(n, _ZEROS).ljust(MIB, b"\0")
            != other.blocks.get(n, _ZEROS).ljust(MIB, b"\0")
        ]  # fmt: skip
        return f"sha256 {other.digest[:12]} instead of {self.digest[:12]}: MiB {', '.join(map(str, wrong))}"


def _data(path: Path) -> tuple[int, dict[int, bytes]]:
    """Read the size and the MiB that are not zeros, by number."""
    blocks = {}
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        number = 0
        while number * MIB < size:
            number = _next_data(file.fileno(), number * MIB) // MIB
            block = os.pread(file.fileno(), MIB, number * MIB)
            if not block:
                break
            if block.strip(b"\0"):
                blocks[number] = block
            number += 1
    return size, blocks


def _next_data(handle: int, offset: int) -> int:
    """Find where the next hole ends."""
    try:
        return os.lseek(handle, offset, os.SEEK_DATA)
    except OSError as err:
        return 1 << 62 if err.errno == errno.ENXIO else offset

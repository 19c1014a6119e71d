# SPDX-License-Identifier: Apache-2.0
"""What hardly ever changes on a machine, remembered between actions.

Kept in a small file per machine for ``LIFETIME`` seconds, and thrown away when an answer contradicts it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["LIFETIME", "Facts"]

log = logging.getLogger(__name__)

LIFETIME = 600.0


class Facts:
    """The remembered facts of one machine; ``directory`` None remembers for this object's life only."""

    def __init__(self, directory: Path | None, machine: str) -> None:
        name = "".join(char if char.isalnum() or char in "-_." else "_" for char in machine)
        self._path = directory / f"{name}.json" if directory else None
        self._known: dict[str, Any] | None = None

    def get(self, key: str) -> Any:
        """Recall a fact, None when it is unknown or too old."""
        found = self._load().get(key)
        if not found or not 0 <= time.time() - found["at"] < LIFETIME:
            return None
        return found["value"]

    def put(self, key: str, value: Any) -> None:
        known = self._load()
        known[key] = {"at": time.time(), "value": value}
        if self._path is None:
            return
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(json.dumps(known))
            temporary.replace(self._path)
        except OSError as err:  # what cannot be remembered is asked again
            log.info("%s cannot be kept: %s", self._path, err.strerror)

    def forget(self) -> None:
        self._known = {}
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _load(self) -> dict[str, Any]:
        if self._known is None:
            self._known = {}
            if self._path is not None:
                try:
                    self._known = dict(json.loads(self._path.read_text()))
                except (OSError, ValueError, TypeError):
                    self._known = {}
        return self._known

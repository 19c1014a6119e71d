# SPDX-License-Identifier: Apache-2.0
"""The ledger of volumes that we made: nothing is ours by its name alone.

It is written before the array is asked: one small file per volume, replaced atomically, below the state
directory. An entry without a WWID says that the volume was about to be made when its name was free there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sanstone.errors import BusyError, ConfigurationError
from sanstone.transport.waiting import Deadline, wait_until

__all__ = ["Entry", "Ledger"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A volume that we made or were about to make on ``array``."""

    array: str
    name: str
    wwid: str | None = None
    is_ready: bool = False
    is_doomed: bool = False

    def covers(self, wwid: str) -> bool:
        """Tell whether this entry is about the volume that has ``wwid`` now."""
        return self.wwid is None or self.wwid == wwid


class Ledger:
    """Entries and locks below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, array: str, name: str) -> Entry | None:
        try:
            return _read(self._path(array, name))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as err:
            raise ConfigurationError(
                f"The ledger's entry for {name} on {array} cannot be read.",
                f"Look at {self._path(array, name)} and remove it if the volume is not ours.",
            ) from err

    def begin(self, array: str, name: str) -> Entry:
        """Write down that ``name`` is about to be made."""
        return self._write(Entry(array, name))

    def made(self, entry: Entry, wwid: str) -> Entry:
        """Write down which volume it became."""
        return self._write(replace(entry, wwid=wwid))

    def ready(self, entry: Entry) -> Entry:
        """Write down that its contents are complete."""
        return self._write(replace(entry, is_ready=True))

    def doom(self, array: str, name: str, wwid: str) -> Entry:
        """Write down that the volume shall be deleted as soon as the array can."""
        return self._write(Entry(array, name, wwid, is_ready=True, is_doomed=True))

    def doomed(self, array: str) -> list[Entry]:
        """List the volumes of ``array`` whose deletion was put off."""
        found = []
        for path in sorted(self.directory.glob(f"volumes/{_safe(array)}.*.json")):
            try:
                entry = _read(path)
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if entry.is_doomed and entry.array == array:
                found.append(entry)
        return found

    def forget(self, array: str, name: str) -> None:
        self._path(array, name).unlink(missing_ok=True)

    @contextmanager
    def lock(self, array: str, name: str, *, seconds: float) -> Iterator[None]:
        """Hold one volume: two actions on it follow one another.

        Raises: BusyError when another action held it for ``seconds``.
        """
        path = self._folder("locks") / f"{_safe(array)}.{_safe(name)}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = Deadline(seconds)

            def free() -> bool | None:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
                return True

            try:
                wait_until(free, deadline, f"Volume {name}", longest=0.2)
            except Exception as err:
                raise BusyError(
                    f"Another action has been working on volume {name} for {seconds:.0f} s.",
                    "Wait for it to end, then run the action again.",
                ) from err
            yield
        finally:
            os.close(handle)

    def _folder(self, kind: str) -> Path:
        folder = self.directory / kind
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as err:
            raise ConfigurationError(
                f"The state directory {self.directory} cannot be used: {err.strerror}.",
                "Set STATE_DIR in sanstone.conf to a directory of the user that runs oned.",
            ) from err
        return folder

    def _path(self, array: str, name: str) -> Path:
        return self.directory / "volumes" / f"{_safe(array)}.{_safe(name)}.json"

    def _write(self, entry: Entry) -> Entry:
        path = self._folder("volumes") / self._path(entry.array, entry.name).name
        temporary = path.with_suffix(f".{os.getpid()}")
        with temporary.open("w") as file:
            json.dump(asdict(entry), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        return entry


def _read(path: Path) -> Entry:
    fields = json.loads(path.read_text())
    return Entry(
        fields["array"],
        fields["name"],
        fields["wwid"],
        fields["is_ready"],
        fields.get("is_doomed", False),
    )


def _safe(text: str) -> str:
    return "".join(char if char.isalnum() or char in "-_" else f"%{ord(char):x}" for char in text)

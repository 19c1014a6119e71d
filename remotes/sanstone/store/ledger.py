# SPDX-License-Identifier: Apache-2.0
"""The ledger of volumes that we made: nothing is ours by its name alone.

It is written before the array is asked: one small file per volume, replaced atomically, below the state
directory. An entry without a WWID says that the volume was about to be made when its name was free there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sanstone.errors import ConfigurationError
from sanstone.names import is_backup, is_snapshot_of
from sanstone.store.locks import Locks, safe

__all__ = ["Entry", "Ledger"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A volume that we made or were about to make on ``array``.

    ``content`` says what was put on it, so that an id which comes again is not taken for the same thing;
    ``at`` is when it was begun, in seconds since 1970.
    """

    array: str
    name: str
    wwid: str | None = None
    is_ready: bool = False
    is_doomed: bool = False
    content: str = ""
    at: float = field(default=0.0, compare=False)

    def covers(self, wwid: str) -> bool:
        """Tell whether this entry is about the volume that has ``wwid`` now."""
        return self.wwid is None or self.wwid == wwid


class Ledger:
    """Entries and locks below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.locks = Locks(directory / "locks")

    def find(self, array: str, name: str) -> Entry | None:
        try:
            return _read(self._path(array, name))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise ConfigurationError(
                f"The ledger's entry for {name} on {array} cannot be read.",
                f"Look at {self._path(array, name)} and remove it if the volume is not ours.",
            ) from err

    def begin(self, array: str, name: str, content: str = "") -> Entry:
        """Write down that ``name`` is about to be made, to hold ``content``."""
        return self._write(Entry(array, name, content=content, at=time.time()))

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
        return [entry for entry in self._entries(array) if entry.is_doomed]

    def begun(self, array: str) -> list[Entry]:
        """List the volumes of ``array`` that somebody is making, or that a killed action left incomplete."""
        return [entry for entry in self._entries(array) if not entry.is_ready]

    def snapshots(self, array: str, name: str) -> list[Entry]:
        """List the snapshots of a volume that we made or were about to make."""
        entries = self._entries(array, f"{safe(name)}-[sb]*")
        return [entry for entry in entries if is_snapshot_of(name, entry.name)]

    def backups(self, array: str) -> list[Entry]:
        """List the states of volumes of ``array`` that backups have taken."""
        return [entry for entry in self._entries(array, "*-b*") if is_backup(entry.name)]

    def _entries(self, array: str, pattern: str = "*") -> list[Entry]:
        found = []
        for path in sorted(self.directory.glob(f"volumes/{safe(array)}.{pattern}.json")):
            try:
                entry = _read(path)
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if entry.array == array:
                found.append(entry)
        return found

    def forget(self, array: str, name: str) -> None:
        self._remove(self._path(array, name))

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            raise self._unusable(err) from err

    def visit(self, array: str, name: str, host: str) -> None:
        """Write down that a volume, not made by us perhaps, is about to be on a host only to be copied."""
        path = self._folder("visits") / self._path(array, name).name
        self._put(path, {"array": array, "name": name, "host": host})

    def visited(self, array: str, name: str) -> str | None:
        """Tell on which host a volume was left, for nobody is on a visit when its lock is free."""
        try:
            return str(
                json.loads((self.directory / "visits" / self._path(array, name).name).read_text())["host"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def visits(self, array: str) -> list[str]:
        """List the volumes of ``array`` that are on a visit, or were left there."""
        found = []
        for path in sorted(self.directory.glob(f"visits/{safe(array)}.*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                fields = json.loads(path.read_text())
                if fields["array"] == array:
                    found.append(str(fields["name"]))
        return found

    def left(self, array: str, name: str) -> None:
        """Write down that the visit is over."""
        self._remove(self.directory / "visits" / self._path(array, name).name)

    @contextmanager
    def lock(self, array: str, name: str, *, seconds: float) -> Iterator[None]:
        """Hold one volume: two actions on it follow one another.

        Raises: BusyError when another action held it for ``seconds``.
        """
        with self.locks.hold(array, name, seconds=seconds):
            yield

    def _folder(self, kind: str) -> Path:
        folder = self.directory / kind
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as err:
            raise self._unusable(err) from err
        return folder

    def _unusable(self, err: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"The state directory {self.directory} cannot be used: {err.strerror}.",
            "It must be on a disk with free space and belong to the user that runs oned (STATE_DIR).",
        )

    def _path(self, array: str, name: str) -> Path:
        return self.directory / "volumes" / f"{safe(array)}.{safe(name)}.json"

    def _write(self, entry: Entry) -> Entry:
        self._put(self._folder("volumes") / self._path(entry.array, entry.name).name, asdict(entry))
        return entry

    def _put(self, path: Path, fields: dict[str, object]) -> None:
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            with temporary.open("w") as file:
                json.dump(fields, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync(path.parent)
        except OSError as err:
            with suppress(OSError):
                temporary.unlink()
            raise self._unusable(err) from err


def _sync(directory: Path) -> None:
    """Let a rename outlive a power failure."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> Entry:
    fields = json.loads(path.read_text())
    return Entry(
        fields["array"],
        fields["name"],
        fields["wwid"],
        fields["is_ready"],
        fields.get("is_doomed", False),
        fields.get("content", ""),
        fields.get("at", 0.0),
    )

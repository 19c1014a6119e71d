# SPDX-License-Identifier: Apache-2.0
"""Locks on volumes, which also tell what an action has left undone.

A lock is a file that its holder removes at the end. One that is there without a holder was left by an action
that was killed or failed, and says where that action was about to bring the volume: it stays until somebody
has put things in order (``settling``).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sanstone.errors import BusyError, ConfigurationError, DeadlineError
from sanstone.transport.waiting import Deadline, wait_until

__all__ = ["Locks", "Place"]

_HELD = b"held\n"
_LARGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where an action brings a volume: to ``host``, with ``link`` to its device, or by way of ``file``.

    ``vm`` is given for the two hosts of a live migration of that VM: such a place stays written down until it
    is forgotten, for nobody may say how the migration ended.
    """

    host: str
    link: str | None = None
    file: str | None = None
    vm: int | None = None


class Locks:
    """The locks below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def hold(self, array: str, name: str, *, seconds: float) -> Iterator[None]:
        """Hold one volume: two actions on it follow one another.

        Raises: BusyError when another action held it for ``seconds``.
        """
        path = self._path(array, name)
        handle = self._wait(path, name, seconds)
        before = _read(handle)
        was_left = before.startswith(_HELD)
        try:
            if not was_left:
                self._replace(handle, _HELD + before)
            yield
        except BaseException:
            was_left = True  # what is left undone is told by the file
            raise
        finally:
            if not was_left:
                with suppress(OSError, ConfigurationError):
                    staying = [place for place in _places(_read(handle)) if place.vm is not None]
                    if staying:
                        self._replace(handle, _lines(staying))
                    else:
                        # Names come and go; a file for each of them would stay for ever.
                        path.unlink()
            os.close(handle)

    def note(self, array: str, name: str, place: Place) -> None:
        """Write down, while the volume is held, where it is about to be brought; else do nothing."""
        try:
            handle = os.open(self._path(array, name), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            return
        try:
            if place not in _places(_read(handle)):
                self._write(handle, json.dumps(asdict(place)).encode() + b"\n")
        finally:
            os.close(handle)

    def places(self, array: str, name: str) -> list[Place]:
        """List what was noted of a volume and never put in order."""
        with suppress(OSError):
            return _places(self._path(array, name).read_bytes())
        return []

    def migrating(self, array: str, name: str, vm: int) -> list[Place]:
        """List the hosts of a migration of ``vm`` of which nobody has said how it ended."""
        return [place for place in self.places(array, name) if place.vm == vm]

    def forget_migration(self, array: str, name: str, vm: int) -> None:
        """Strike out, while the volume is held, the places of a migration that has ended."""
        try:
            handle = os.open(self._path(array, name), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        try:
            text = _read(handle)
            held = _HELD if text.startswith(_HELD) else b""
            self._replace(handle, held + _lines([place for place in _places(text) if place.vm != vm]))
        finally:
            os.close(handle)

    def left(self, array: str) -> list[str]:
        """List the volumes of ``array`` that are held, or whose action was killed."""
        prefix = f"{safe(array)}."
        return sorted(path.name.removeprefix(prefix) for path in self.directory.glob(f"{prefix}*"))

    @contextmanager
    def settling(self, array: str, name: str) -> Iterator[list[Place]]:
        """Hold a volume whose action was killed; what is raised leaves all as it is for the next time.

        Raises: BusyError when somebody works on it.
        """
        path = self._path(array, name)
        handle = self._wait(path, name, 0.0)
        try:
            yield _places(_read(handle))
            with suppress(OSError):
                path.unlink()
        finally:
            os.close(handle)

    def _path(self, array: str, name: str) -> Path:
        return self.directory / f"{safe(array)}.{safe(name)}"

    def _wait(self, path: Path, name: str, seconds: float) -> int:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as err:
            raise self._unusable(err) from err
        try:
            return wait_until(lambda: self._take(path), Deadline(seconds), f"Volume {name}", longest=0.2)
        except DeadlineError as err:
            raise BusyError(
                f"Another action has been working on volume {name} for {seconds:.0f} s.",
                "Wait for it to end, then run the action again.",
            ) from err

    def _take(self, path: Path) -> int | None:
        """Lock the file that bears the name now: its last holder may just have removed the one we opened."""
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise self._unusable(err) from err
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None

    def _write(self, handle: int, text: bytes) -> None:
        try:
            os.write(handle, text)
        except OSError as err:
            raise self._unusable(err) from err

    def _replace(self, handle: int, text: bytes) -> None:
        """Write a whole file anew, at no moment without its beginning."""
        try:
            os.pwrite(handle, text, 0)
            os.ftruncate(handle, len(text))
        except OSError as err:
            raise self._unusable(err) from err

    def _unusable(self, err: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"The state directory {self.directory.parent} cannot be used: {err.strerror}.",
            "It must be on a disk with free space and belong to the user that runs oned (STATE_DIR).",
        )


def _read(handle: int) -> bytes:
    return os.pread(handle, _LARGEST, 0)


def _lines(places: list[Place]) -> bytes:
    return b"".join(json.dumps(asdict(place)).encode() + b"\n" for place in places)


def _places(text: bytes) -> list[Place]:
    """Read the notes; the last of them may have been cut off in the middle."""
    found = []
    for line in text.splitlines():
        with suppress(ValueError, TypeError):
            found.append(Place(**json.loads(line)))
    return found


def safe(text: str) -> str:
    """Spell a name so that it can be one of a file."""
    return "".join(char if char.isalnum() or char in "-_" else f"%{ord(char):x}" for char in text)

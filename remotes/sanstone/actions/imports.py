# SPDX-License-Identifier: Apache-2.0
"""Where an image comes from: a path on the front-end or a URL; allowed or not, how large, undamaged."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sanstone.errors import (
    CapacityError,
    ConfigurationError,
    DataSafetyError,
    DeadlineError,
    HostError,
    NotFoundError,
    NotSupportedError,
    RequestError,
)
from sanstone.settings import Settings
from sanstone.transport.command import Command, run
from sanstone.transport.waiting import Deadline

__all__ = ["ImageFile", "fetch", "fetch_backup", "remove_left_folders", "scratch_folder", "size_of"]

log = logging.getLogger(__name__)

_ALWAYS_RESTRICTED = ("/etc/one", "/var/lib/one")
_CHUNK = 1 << 20
_HEAD = 512
_QCOW2 = b"QFI\xfb"
_QCOW2_DATA_FILE = 1 << 2
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_SECTOR = 512
# As they are, and not packed for the way: sizes and checksums are those of the file.
_HEADERS = {"Accept-Encoding": "identity"}
_PREFIX = "sanstone-scratch-"
_OLD = 60.0
_DIGEST = re.compile(r"[0-9a-fA-F]+")
_INSPECT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A disk image on the front-end: ``size`` bytes as a disk, ``data`` bytes allocated."""

    path: Path
    format: str
    size: int
    data: int


def size_of(path: str, settings: Settings) -> int:
    """Tell how many bytes the disk at ``path`` (a file or a URL) has, without fetching it.

    Raises: NotFoundError, DataSafetyError for a restricted directory, RequestError for what is no image.
    """
    if not _is_url(path):
        return inspect(allowed(path, settings)).size
    import requests

    wanted = {**_HEADERS, "Range": f"bytes=0-{_HEAD - 1}"}
    head = b""
    try:
        with requests.get(
            path, headers=wanted, stream=True, timeout=settings.seconds("CONNECT_TIMEOUT")
        ) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_content(_HEAD):
                head += chunk
                if len(head) >= _HEAD:
                    break
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
            length = whole if answer.status_code == 206 else answer.headers.get("Content-Length", "")
    except (requests.RequestException, ValueError) as err:
        raise _unreachable(path, err) from err
    _refuse_packed(head, _shown(path))
    size = _size_in_header(head)
    if size is not None:
        return size
    if head.startswith(b"vhdxfile"):
        raise RequestError(
            f"How large the disk in {_shown(path)} is stands deep in it.",
            "Download the image first, or convert it: qemu-img convert -O qcow2.",
        )
    if not length.isdigit():
        raise RequestError(
            f"The server does not tell how large {_shown(path)} is.", "Give SIZE, or download it first."
        )
    return int(length)


@contextmanager
def fetch(path: str, template: Mapping[str, str], settings: Settings) -> Iterator[ImageFile]:
    """Have the image at ``path`` (a file or a URL) as a file on the front-end, its checksum verified.

    A download is removed at the end.

    Raises: as ``size_of``; DataSafetyError when MD5 or SHA1 of the image's template do not match.
    """
    if _is_of_backup(path, template):
        with scratch_folder(_staging(settings)) as folder:
            yield fetch_backup(path, folder / "image", settings)
        return
    if _is_url(path):
        with scratch_folder(_staging(settings)) as folder:
            target = folder / "image"
            _download(path, target, template, settings)
            yield inspect(target)
        return
    source = allowed(path, settings)
    _verify(source, template)
    yield inspect(source)


def fetch_backup(url: str, target: Path, settings: Settings) -> ImageFile:
    """Have OpenNebula's downloader bring a disk out of a backup datastore, whose drivers made ``url``."""
    downloader = settings.path("REMOTES_DIR") / "datastore" / "downloader.sh"
    argv = [str(downloader), "--nodecomp", url, str(target)]
    run(Command.of(argv, deadline=settings.seconds("COPY_TIMEOUT")))
    return inspect(target)


def _is_of_backup(path: str, template: Mapping[str, str]) -> bool:
    """Tell whether one.image.restore asks for an image: the backup's driver gives its own URL as PATH.

    FROM_BACKUP_DS names the datastore, for which oned has looked (BackupRestore and ImageAPI of 7.4.0); only
    a URL of that datastore is taken.
    """
    datastore = template.get("FROM_BACKUP_DS", "").strip()
    return datastore.isdecimal() and bool(re.fullmatch(rf"(?:restic|rsync)://{datastore}/[!-~]+", path))


def allowed(path: str, settings: Settings) -> Path:
    """Resolve ``path`` and refuse directories that users must not read.

    As OpenNebula's own file system driver has it: SAFE_DIRS are let in, RESTRICTED_DIRS are not, and the
    directories with OpenNebula's configuration never are unless they are safe.
    """
    if not path.startswith("/"):
        raise RequestError(f"PATH {path!r} is neither an absolute path nor an http(s) URL.")
    try:
        source = Path(path).resolve(strict=True)
    except (OSError, RuntimeError) as err:
        raise NotFoundError(f"There is no image file {path!r} on the front-end.") from err
    restricted = (*settings.words("RESTRICTED_DIRS"), *_ALWAYS_RESTRICTED, str(Path.home()))
    if _is_under(source, restricted) and not _is_under(source, settings.words("SAFE_DIRS")):
        raise DataSafetyError(
            "Not allowed to copy image file.",
            f"{source.parent} is restricted: use a directory of SAFE_DIRS, or change RESTRICTED_DIRS.",
        )
    if not source.is_file():
        raise NotFoundError(f"{path!r} on the front-end is not a file.")
    return source


def inspect(path: Path) -> ImageFile:
    """Read what kind of image a file is.

    Raises: DataSafetyError for an image that refers to other files, which could be anybody's.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as err:
        raise NotFoundError(f"The image {path.name} cannot be read: {err.strerror}.") from err
    _refuse_packed(head, path.name)
    if _qcow2_refers(head):
        raise _refers(path)
    command = Command.of(["qemu-img", "info", "--output=json", "--", str(path)], deadline=_INSPECT_SECONDS)
    try:
        found = json.loads(run(command).stdout)
    except HostError as err:
        if "not installed" in err.message:
            raise
        raise RequestError(
            f"The image {path.name} cannot be read as a disk.", "See: qemu-img info", err.details
        ) from err
    specific = found.get("format-specific", {}).get("data", {})
    extents = [extent.get("filename") for extent in specific.get("extents") or []]
    named = [found.get("backing-filename"), specific.get("data-file"), *extents]
    if any(name and not _is_same(path, name) for name in named):
        raise _refers(path)
    return ImageFile(path, found["format"], found["virtual-size"], found["actual-size"])


def _is_same(path: Path, name: str) -> bool:
    with suppress(OSError):
        return Path(name).samefile(path)
    return False


def _refers(path: Path) -> DataSafetyError:
    return DataSafetyError(
        f"The image {path.name} refers to another file, which is not copied.",
        "Convert it to an image that stands alone: qemu-img convert -O qcow2.",
    )


def _qcow2_refers(head: bytes) -> bool:
    """Tell whether a QCOW2 names another file; qemu-img would open that one before it could say so."""
    if len(head) < 80 or not head.startswith(_QCOW2):
        return False
    version, backing = struct.unpack(">IQ", head[4:16])
    features = struct.unpack(">Q", head[72:80])[0] if version >= 3 else 0
    return bool(backing or features & _QCOW2_DATA_FILE)


def _size_in_header(head: bytes) -> int | None:
    """Read how large the disk in an image is, None when it is as large as its file (or nobody can tell)."""
    if head.startswith(_QCOW2) and len(head) >= 32:
        return int(struct.unpack(">Q", head[24:32])[0])
    if head.startswith(b"KDMV") and len(head) >= 20:  # VMDK, sparse or stream-optimized
        return int(struct.unpack("<Q", head[12:20])[0]) * _SECTOR
    if head[64:68] == b"\x7f\x10\xda\xbe" and len(head) >= 376:  # VDI
        return int(struct.unpack("<Q", head[368:376])[0])
    if head.startswith(b"conectix") and len(head) >= 56:  # VHD, dynamic
        return int(struct.unpack(">Q", head[48:56])[0])
    return None


def _refuse_packed(head: bytes, name: str) -> None:
    """Refuse what would be taken for a raw disk, and would not be one."""
    for magic, kind in _PACKED.items():
        if head.startswith(magic):
            raise NotSupportedError(
                f"The image {name} is packed ({kind}), which is not supported yet.", "Unpack it first."
            )


def _is_url(path: str) -> bool:
    try:
        scheme = urlsplit(path).scheme if "://" in path else ""
    except ValueError as err:
        raise RequestError(f"PATH {path[:60]!r} is no URL: {err}.") from err
    if scheme and scheme not in ("http", "https"):
        raise NotSupportedError(f"Images come from a path, http or https, not from {scheme}.")
    return bool(scheme)


def _is_under(path: Path, folders: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(Path(folder).resolve()) for folder in folders)


def _staging(settings: Settings) -> Path:
    folder = settings.path("STAGING_DIR")
    if not folder.is_dir():
        raise ConfigurationError(
            f"STAGING_DIR={folder} is not a directory of the front-end.",
            "Make it, writable for the user that runs oned.",
        )
    return folder


@contextmanager
def scratch_folder(staging: Path) -> Iterator[Path]:
    """Make a directory for one action, locked while it is used; remove those of processes that are gone."""
    _remove_left_folders(staging)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=staging, ignore_cleanup_errors=True) as name:
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(handle)


def remove_left_folders(settings: Settings) -> None:
    """Remove the directories that killed actions have left on the front-end."""
    for folder in {settings.path("STAGING_DIR"), Path(tempfile.gettempdir())}:
        _remove_left_folders(folder)


def _remove_left_folders(staging: Path) -> None:
    for folder in staging.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            found = folder.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _OLD:
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                log.warning("%s, left by an action that was killed, is removed", folder)
            finally:
                os.close(handle)


def _download(url: str, target: Path, template: Mapping[str, str], settings: Settings) -> None:
    import requests

    deadline = Deadline(settings.seconds("COPY_TIMEOUT"))
    check = _Checksums(template)
    done, shown = 0, 0
    try:
        with (
            requests.get(
                url, headers=_HEADERS, stream=True, timeout=settings.seconds("CONNECT_TIMEOUT")
            ) as answer,
            target.open("wb") as file,
        ):
            answer.raise_for_status()
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() and not answer.headers.get("Content-Encoding") else 0
            _check_space(target.parent, total)
            for chunk in answer.iter_content(_CHUNK):
                if deadline.is_over:
                    raise DeadlineError(f"Downloading {_shown(url)} took more than {deadline.seconds:.0f} s.")
                check.update(chunk)
                file.write(chunk)
                done += len(chunk)
                if total and done * 10 // total > shown:
                    shown = done * 10 // total
                    log.info("downloaded %d %% of %s", shown * 10, _shown(url))
    except (requests.RequestException, ValueError) as err:
        raise _unreachable(url, err) from err
    except OSError as err:
        raise CapacityError(
            f"The download cannot be stored in {target.parent.parent}: {err.strerror}.",
            "Make room there, or set STAGING_DIR.",
        ) from err
    if total and done < total:
        raise NotFoundError(f"{_shown(url)} ended after {done} of {total} bytes.", "Try again.")
    check.verify(_shown(url))


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CapacityError(
            f"{folder.parent} has {free >> 20} MiB free, the download needs {-(-needed >> 20)} MiB.",
            "Make room there, or set STAGING_DIR.",
        )


def _shown(url: str) -> str:
    """A URL without the credentials and parameters that it may carry."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


def _unreachable(url: str, err: Exception) -> NotFoundError:
    status = getattr(getattr(err, "response", None), "status_code", None)
    reason = f"the server answers {status}" if status else type(err).__name__
    return NotFoundError(
        f"{_shown(url)} cannot be read: {reason}.",
        "See whether the front-end reaches that server.",
    )


def _verify(source: Path, template: Mapping[str, str]) -> None:
    check = _Checksums(template)
    if not check.wanted:
        return
    try:
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                check.update(chunk)
    except OSError as err:
        raise NotFoundError(f"The image {source.name} cannot be read: {err.strerror}.") from err
    check.verify(source.name)


class _Checksums:
    """MD5 and SHA1 of an image's template, which oned's users give along with PATH."""

    def __init__(self, template: Mapping[str, str]) -> None:
        self.wanted = {
            kind: template[kind].strip().lower() for kind in ("MD5", "SHA1", "SHA256") if template.get(kind)
        }
        for kind, value in self.wanted.items():
            if not _DIGEST.fullmatch(value):
                raise RequestError(f"{kind} of the image is not a checksum in hexadecimal.")
        self._found = {kind: hashlib.new(kind.lower(), usedforsecurity=False) for kind in self.wanted}

    def update(self, chunk: bytes) -> None:
        for digest in self._found.values():
            digest.update(chunk)

    def verify(self, name: str) -> None:
        for kind, digest in self._found.items():
            if digest.hexdigest() != self.wanted[kind]:
                raise DataSafetyError(
                    f"{kind} of {name} is {digest.hexdigest()}, not {self.wanted[kind]}.",
                    "The file is damaged or another one: fetch it again, or correct the checksum.",
                )

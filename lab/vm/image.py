# SPDX-License-Identifier: Apache-2.0
"""One disk image for all machines, built once into the cache and named by what went into it.

Two layers: the packages (see ``rootfs``), minutes; and on top the project's own files of ``etc/``, the init
script and keys, seconds. A build works in a folder of its own, which is renamed when it is whole: it may be
killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab.prepare import cache
from lab.vm.errors import VMError
from lab.vm.rootfs import make_rootfs, rootfs_key, run
from lab.vm.waiting import until

__all__ = [
    "HOST_KEY_ALIAS",
    "Image",
    "build_image",
    "can_build_soon",
    "find_image",
    "image_key",
    "merge_iscsid",
    "shipped_files",
]

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
HOST_KEY_ALIAS = "sanstone-lab"
DISK_SIZE = 3 << 30
STEP_DEADLINE = 300.0
LOCK_DEADLINE = 1800.0
UNUSED_FOR = 7 * 24 * 3600.0
WHOLE = "made-from"

# Where an administrator puts what etc/ ships: role, folder below etc/, destination, mode.
SHIPPED = (
    ("host", "multipath/conf.d", "etc/multipath/conf.d", 0o644),
    ("host", "udev/rules.d", "etc/udev/rules.d", 0o644),
    ("host", "sbin", "usr/local/sbin", 0o755),
    ("array", "tgt", "etc/tgt", 0o600),
    ("array", "systemd/system/tgt.service.d", "etc/systemd/system/tgt.service.d", 0o644),
)
SUDOERS = {"host": "sudoers.d/sanstone", "array": "sudoers.d/sanstone-target"}

SSHD = "UseDNS no\nMaxStartups 200\nMaxSessions 100\nPrintMotd no\nPrintLastLog no\n"
# What LVM finds on a guest's disk it holds open: hosts look at nothing, the array at its own disk.
LVM = {
    "host": 'devices { global_filter = [ "r|.*|" ] }\n',
    "array": 'devices { global_filter = [ "a|^/dev/vdb$|", "r|.*|" ] }\nactivation { monitoring = 0 }\n',
}


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine boots from, and the keys to get in (as root and as oneadmin)."""

    folder: Path
    kernel: Path
    initrd: Path

    @property
    def disk(self) -> Path:
        """The root file system, raw; a machine writes to a layer of its own above it."""
        return self.folder / "disk.img"

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The key of all machines, under the name HOST_KEY_ALIAS."""
        return self.folder / "known_hosts"


def shipped_files(etc: Path = ROOT / "etc") -> dict[tuple[str, str], tuple[Path, int]]:
    """Return what goes on machines of each role: (role, destination) to file and mode."""
    files = {}
    for role, folder, destination, mode in SHIPPED:
        for file in sorted((etc / folder).rglob("*")):
            if file.is_file():
                files[role, f"{destination}/{file.relative_to(etc / folder)}"] = (file, mode)
    for role, name in SUDOERS.items():
        if (etc / name).is_file():
            files[role, f"etc/{name}"] = (etc / name, 0o440)
    return files


def image_key(etc: Path = ROOT / "etc") -> str:
    """Return what names the upper layer: a hash of the lower one's key and of all that is put on top."""
    digest = hashlib.sha256(rootfs_key().encode())
    sources = {str(place): (file, mode) for place, (file, mode) in shipped_files(etc).items()}
    sources["iscsid.conf"] = (etc / "iscsi/iscsid.conf.sanstone", 0o600)
    sources |= {name: (HERE / name, 0o755) for name in ("init.sh", "start-target.sh", "image.py")}
    for name, (file, mode) in sorted(sources.items()):
        digest.update(f"{name} {mode} ".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def find_image() -> Image | None:
    """Return the image for the present sources, None when it has to be built first."""
    folder = _home() / f"image-{image_key()}"
    if not (folder / WHOLE).is_file():
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)
    rootfs = _home() / f"rootfs-{rootfs_key()}"
    return Image(folder, rootfs / "vmlinuz", rootfs / "initrd")


def can_build_soon() -> bool:
    """Return whether a build would take seconds: the packages are there, and this is root."""
    return os.geteuid() == 0 and (_home() / f"rootfs-{rootfs_key()}" / WHOLE).is_file()


def build_image(say: Callable[[str], None] = lambda text: None) -> Image:
    """Return the image for the present sources, building what is missing of it; one process at a time.

    Raises: VMError when it cannot be built.
    """
    if found := find_image():
        return found
    home = _home()
    with _lock(home / "lock"):
        if found := find_image():
            return found
        _remove_remains(home)
        rootfs = home / f"rootfs-{rootfs_key()}"
        if not (rootfs / WHOLE).is_file():
            say("The lab's machines: fetching and unpacking Debian packages (once, some minutes) ...")
            _build(rootfs, lambda folder: make_rootfs(folder, home / "archives"))
        say("The lab's machines: making the disk image (once, some seconds) ...")
        _build(home / f"image-{image_key()}", lambda folder: _make_image(folder, rootfs / "tree"))
        _remove_unused(home)
    made = find_image()
    if made is None:
        raise VMError("Files of the image changed while it was built; please start again.")
    return made


def _home() -> Path:
    path = cache() / "vm"
    path.mkdir(exist_ok=True)
    return path


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        until(lambda: _is_locked(lock), LOCK_DEADLINE, f"The end of another build ({path})")
        yield


def _is_locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _build(folder: Path, make: Callable[[Path], None]) -> None:
    """Let ``make`` fill a new folder, then give it its name."""
    work = Path(tempfile.mkdtemp(prefix="build-", dir=folder.parent))
    work.chmod(0o755)
    try:
        make(work)
        (work / WHOLE).write_text(folder.name + "\n")
        os.sync()
        work.rename(folder)
    finally:
        _remove(work)


def _remove_remains(home: Path) -> None:
    """Remove what a killed build left; its processes and mounts went with it."""
    for work in home.glob("build-*"):
        _remove(work)


def _remove(folder: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    if below := [point for point in mounts if Path(point).is_relative_to(folder)]:
        raise VMError(f"{folder} has mounts below it, so that it is not removed: umount {' '.join(below)}")
    shutil.rmtree(folder, ignore_errors=True)


def _remove_unused(home: Path) -> None:
    """Remove images of sources of long ago; a machine that still runs from one keeps its open files."""
    current = {f"rootfs-{rootfs_key()}", f"image-{image_key()}"}
    for folder in [*home.glob("rootfs-*"), *home.glob("image-*")]:
        if folder.name not in current and folder.stat().st_mtime < time.time() - UNUSED_FOR:
            _remove(folder)


def _make_image(folder: Path, rootfs: Path) -> None:
    tree = folder / "tree"
    run(["cp", "-a", "--reflink=auto", str(rootfs), str(tree)], deadline=STEP_DEADLINE)
    _install_keys(folder, tree)
    _put(tree / "etc/ssh/sshd_config.d/lab.conf", SSHD)
    _put(tree / "init.lab", (HERE / "init.sh").read_text(), 0o755)
    _put(tree / "usr/local/lib/lab/start-target", (HERE / "start-target.sh").read_text(), 0o755)
    iscsid = (tree / "etc/iscsi/iscsid.conf").read_text()
    ours = (ROOT / "etc/iscsi/iscsid.conf.sanstone").read_text()
    _put(tree / "etc/iscsi/iscsid.conf", merge_iscsid(iscsid, ours), 0o600)
    roles = tree / "usr/local/share/lab"
    for role, text in LVM.items():
        _put(roles / role / "etc/lvm/lvmlocal.conf", text)
    for (role, destination), (file, mode) in shipped_files().items():
        _put(roles / role / destination, file.read_text(), mode)
        if "sudoers.d/" in destination:
            inside = f"/usr/local/share/lab/{role}/{destination}"
            run(["chroot", str(tree), "visudo", "-c", "-f", inside], deadline=STEP_DEADLINE)
    disk = folder / "disk.img"
    disk.touch()
    os.truncate(disk, DISK_SIZE)
    run(
        ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-L", "root", "-d", str(tree), str(disk)],
        deadline=STEP_DEADLINE,
    )
    shutil.rmtree(tree)


def _put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _install_keys(folder: Path, tree: Path) -> None:
    """Make the key of the people who log in and the key of the machines, new for each image."""
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", ""]
    run([*keygen, "-C", "sanstone-lab", "-f", str(folder / "id_ed25519")], deadline=STEP_DEADLINE)
    host_key = tree / "etc/ssh/ssh_host_ed25519_key"
    run([*keygen, "-C", "sanstone-lab", "-f", str(host_key)], deadline=STEP_DEADLINE)
    algorithm, blob = host_key.with_suffix(".pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"{HOST_KEY_ALIAS} {algorithm} {blob}\n")
    public = (folder / "id_ed25519.pub").read_text()
    for home in ("root", "var/lib/one"):
        owner = (tree / home).stat()
        _put(tree / home / ".ssh/authorized_keys", public, 0o600)
        (tree / home / ".ssh").chmod(0o700)
        for path in (tree / home / ".ssh", tree / home / ".ssh/authorized_keys"):
            os.chown(path, owner.st_uid, owner.st_gid)


def merge_iscsid(theirs: str, ours: str) -> str:
    """Return iscsid.conf with our values in the place of theirs, and added where it has none."""
    for name, value in re.findall(r"(?m)^(node\.[^ =]+) *= *(.*)$", ours):
        line = f"{name} = {value}"
        theirs, count = re.subn(rf"(?m)^{re.escape(name)} *=.*$", line.replace("\\", r"\\"), theirs)
        if not count:
            theirs += f"{line}\n"
    return theirs

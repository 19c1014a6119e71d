# SPDX-License-Identifier: Apache-2.0
"""The lower layer of the image: Debian's packages, unpacked by debootstrap into a folder of the cache.

It takes minutes and needs root, so it is made once for a list of packages. All that runs is in a mount and
process namespace of its own: when the build is killed, its processes and mounts are gone with it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lab.vm.errors import VMError

__all__ = ["KEYRING", "PACKAGES", "RELEASE", "make_rootfs", "mirror", "rootfs_key", "run"]

# Counts up when make_rootfs does something else: then the layer is made anew.
RECIPE = 1
RELEASE = "bookworm"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (
    # a kernel that is small and made for virtual machines, and what starts it
    *("linux-image-cloud-amd64", "initramfs-tools", "udev", "kmod", "tini"),
    # the array, and paramiko for a simulated box on it (cffi: debootstrap resolves no virtual packages)
    *("lvm2", "socat", "thin-provisioning-tools", "tgt", "python3-paramiko", "python3-cffi-backend"),
    # the host
    *("open-iscsi", "multipath-tools", "dmsetup", "qemu-utils", "e2fsprogs", "xfsprogs"),
    # both
    *("openssh-server", "sudo", "python3", "iproute2", "iputils-ping"),
    *("procps", "psmisc", "fdisk", "lsscsi", "sg3-utils"),
)
# OpenNebula's packages give their user this number and this home.
ONEADMIN = ("--uid", "9869", "--home-dir", "/var/lib/one", "--create-home", "--shell", "/bin/bash")
# What the initial ram disk needs to find the disk; the usual hundreds of modules take seconds to unpack.
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/apt/lists")

DEBOOTSTRAP_DEADLINE = 1500.0
CHROOT_DEADLINE = 300.0


def rootfs_key() -> str:
    """Return what names this layer: a hash of all that goes into it but the mirror."""
    ingredients = (RECIPE, RELEASE, PACKAGES, ONEADMIN, BOOT_MODULES, NOT_NEEDED)
    return hashlib.sha256(repr(ingredients).encode()).hexdigest()[:16]


def make_rootfs(folder: Path, archives: Path) -> None:
    """Fill ``folder`` with ``tree``, ``vmlinuz`` and ``initrd``; ``archives`` keeps what was downloaded.

    Raises: VMError with the last lines of what the programs wrote.
    """
    if os.geteuid():
        raise VMError("Building the lab's image needs root (debootstrap, chroot): sudo make lab ARGS=build")
    if not KEYRING.is_file():
        raise VMError(f"{KEYRING} is missing: sudo apt install debian-archive-keyring")
    tree = folder / "tree"
    archives.mkdir(exist_ok=True)
    run(
        [
            *("debootstrap", "--variant=minbase", "--arch=amd64", "--merged-usr", "--force-check-gpg"),
            *(f"--keyring={KEYRING}", f"--cache-dir={archives}", f"--include={','.join(PACKAGES)}"),
            *(RELEASE, str(tree), mirror()),
        ],
        deadline=DEBOOTSTRAP_DEADLINE,
        environment=_proxy(),
    )
    # "*" is no password, and unlike the "!" of a new account it does not lock sshd's way in
    _chroot(tree, "useradd", *ONEADMIN, "--password", "*", "oneadmin")
    datastores = tree / "var/lib/one/datastores"
    datastores.mkdir()
    os.chown(datastores, 9869, 9869)
    (tree / "etc/initramfs-tools/conf.d/lab").write_text("MODULES=list\nCOMPRESS=lz4\nRESUME=none\n")
    (tree / "etc/initramfs-tools/modules").write_text("\n".join(BOOT_MODULES) + "\n")
    _chroot(tree, "update-initramfs", "-u", "-k", "all")
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        (newest,) = (tree / "boot").glob(pattern)
        shutil.move(newest, folder / name)
    for name in NOT_NEEDED:
        shutil.rmtree(tree / name, ignore_errors=True)
    for archive in (tree / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()


def _chroot(tree: Path, *argv: str) -> None:
    run(["chroot", str(tree), *argv], deadline=CHROOT_DEADLINE)


def run(argv: Sequence[str], *, deadline: float, environment: Mapping[str, str] | None = None) -> str:
    """Run a step of a build, which ends with this process and leaves no mount; return what it wrote.

    Raises: VMError when it fails or takes longer than ``deadline`` seconds.
    """
    alone = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"]
    try:
        done = subprocess.run(
            [*alone, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "LC_ALL": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
                **(environment or {}),
            },
            timeout=deadline,
            check=False,
        )
    except FileNotFoundError as err:
        raise VMError(f"{err.filename} is missing: sudo apt install util-linux") from err
    except subprocess.TimeoutExpired as err:
        raise VMError(f"{argv[0]} did not end within {deadline:.0f} s.") from err
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        last = "\n".join(text.splitlines()[-15:])
        raise VMError(f"{argv[0]} failed with exit code {done.returncode}:\n{last}")
    return text


def _proxy() -> dict[str, str]:
    """Return the environment that makes debootstrap take the way to the mirror that apt takes."""
    if shutil.which("apt-config") is None:
        return {}
    text = run(["apt-config", "dump", "Acquire::http::Proxy"], deadline=30)
    found = re.search(r'^Acquire::http::Proxy "(http[^"]+)"', text, re.MULTILINE)
    return {"http_proxy": found[1]} if found else {}


def mirror(sources: Path = Path("/etc/apt")) -> str:
    """Return the address of the Debian mirror that this machine's apt uses, else Debian's own."""
    files = [sources / "sources.list", *sorted(sources.glob("sources.list.d/*"))]
    for file in files:
        if file.suffix not in (".list", ".sources") or not file.is_file():
            continue
        read = _stanzas if file.suffix == ".sources" else _lines
        for address, suites, components in read(file.read_text("utf-8", "replace")):
            # security and backports live elsewhere at some mirrors: a plain suite is the archive itself
            is_archive = "main" in components and any(re.fullmatch(r"[a-z]+", suite) for suite in suites)
            if is_archive and re.fullmatch(r"https?://\S*/debian/?", address):
                return address.rstrip("/")
    return DEFAULT_MIRROR


Source = tuple[str, list[str], list[str]]


def _lines(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        if found := re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)", line):
            yield found[1], [found[2]], found[3].split()


def _stanzas(text: str) -> Iterator[Source]:
    for stanza in re.split(r"\n\s*\n", text):
        joined = re.sub(r"\n[ \t]+", " ", re.sub(r"(?m)^#.*\n?", "", stanza))
        fields = {
            name.strip().lower(): value.split()
            for name, colon, value in (line.partition(":") for line in joined.splitlines())
            if colon
        }
        if fields.get("enabled", ["yes"]) != ["no"] and "deb" in fields.get("types", []):
            for address in fields.get("uris", []):
                yield address, fields.get("suites", []), fields.get("components", [])

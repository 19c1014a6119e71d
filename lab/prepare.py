# SPDX-License-Identifier: Apache-2.0
"""Set up what ``make demo``, ``lab`` and ``test`` need: Debian packages, a virtual environment, images.

It runs before anything is installed, so it uses the standard library only. It is quick when all is there, and
where something is missing that it may not install it says so in one sentence.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["PACKAGE_OF", "PrepareError", "cache", "default_image", "missing_packages", "path_with_sbin"]

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
OLDEST_PYTHON = (3, 10)

# The package that brings a program, on Debian 12, 13 and Ubuntu 22.04, 24.04.
PACKAGE_OF = {
    "tgtd": "tgt",
    "tgtadm": "tgt",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    # qemu-utils from QEMU 8 on, before that in what qemu-system-x86 depends on
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-system-x86_64": "qemu-system-x86",
    "iscsi-inq": "libiscsi-bin",
    "iscsi-ls": "libiscsi-bin",
    "nbdfuse": "libnbd-bin",
    "fusermount3": "fuse3",
    "genisoimage": "genisoimage",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ssh-keyscan": "openssh-client",
    "mkfs.ext4": "e2fsprogs",
    "debootstrap": "debootstrap",
    "mke2fs": "e2fsprogs",
}
# what only builds the image of the lab's virtual machines
FOR_MACHINES = ("debootstrap",)
KEYRING = ("debian-archive-keyring", Path("/usr/share/keyrings/debian-archive-keyring.gpg"))
ISCSI_BLOCK_DRIVER = ("qemu-block-extra", "/usr/lib", "*/qemu/block-iscsi.so")

# A hybrid image: it boots as a CD-ROM and as a disk, and its GRUB speaks on the serial console.
GUEST_PACKAGE = "grub-rescue-pc"
GUEST_IMAGE = "usr/lib/grub-rescue/grub-rescue-cdrom.iso"

APT_DEADLINE = 1200.0
PIP_DEADLINE = 1200.0
IMAGE_DEADLINE = 3600.0
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_SET_ASIDE = Path("/usr/sbin/policy-rc.d.before-sanstone")
POLICY_TEXT = "#!/bin/sh\n# written by Sanstone's lab for the time of one installation\nexit 101\n"


class PrepareError(Exception):
    """One sentence that says what is missing and what to do."""


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def cache() -> Path:
    """Return the folder for what can be fetched or built again, outside the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base, "sanstone")
    path.mkdir(parents=True, exist_ok=True)
    return path


def path_with_sbin() -> str:
    """Return PATH with the folders in which an ordinary Debian user does not look, but tgtd lives."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def missing_packages(purpose: str = "test") -> list[str]:
    """Name the packages of programs and modules that are not here, each once."""
    missing = {PACKAGE_OF[name] for name in _missing_programs(purpose)}
    if purpose != "demo" and not KEYRING[1].is_file():
        missing.add(KEYRING[0])
    package, folder, pattern = ISCSI_BLOCK_DRIVER
    if not any(Path(folder).glob(pattern)):
        missing.add(package)
    if importlib.util.find_spec("ensurepip") is None and not _environment_is_current():
        missing.add(f"python{sys.version_info.major}.{sys.version_info.minor}-venv")
    if "qemu-system-common" in missing:
        missing.add("qemu-utils")
    return sorted(missing)


def prepare_packages(purpose: str) -> None:
    """Install what is missing, as root or by sudo without a password.

    Raises: PrepareError with the command to run, when neither is possible or the installation failed.
    """
    packages = missing_packages(purpose)
    if not packages:
        return
    by_hand = f"sudo apt install {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        raise PrepareError(
            f"These programs are needed and this is no Debian or Ubuntu, so please install what brings them: "
            f"{', '.join(_missing_programs(purpose) or packages)}."
        )
    if os.geteuid() == 0:
        _install(packages)
    elif _may_sudo():
        install = ["sudo", "-n", sys.executable, str(Path(__file__).resolve()), "install", *packages]
        if subprocess.run(install, timeout=APT_DEADLINE * 2, check=False).returncode:
            raise PrepareError(f"The installation failed, see above; please run this by hand: {by_hand}")
    else:
        raise PrepareError(f"Some packages are missing, please install them and start again: {by_hand}")
    if left := missing_packages(purpose):
        what = ", ".join(_missing_programs(purpose)) or "a module or a file"
        raise PrepareError(f"{' '.join(left)} installed, and still not found: {what}.")


def _missing_programs(purpose: str) -> list[str]:
    path = path_with_sbin()
    wanted = [name for name in PACKAGE_OF if purpose != "demo" or name not in FOR_MACHINES]
    return sorted(name for name in wanted if not shutil.which(name, path=path))


def _may_sudo() -> bool:
    return shutil.which("sudo") is not None and not _run(["sudo", "-n", "true"], deadline=10).code


class _Ended:
    """Exit code and combined output of a program."""

    def __init__(self, code: int, output: str) -> None:
        self.code = code
        self.output = output


def _run(
    argv: Sequence[str], *, deadline: float, cwd: Path | None = None, env: dict[str, str] | None = None
) -> _Ended:
    try:
        ended = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=deadline,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return _Ended(124, _text(late.stdout) + f"\n{argv[0]} did not finish within {deadline:.0f} s")
    return _Ended(ended.returncode, _text(ended.stdout))


def _text(output: bytes | str | None) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""


def _install(packages: Sequence[str]) -> None:
    """Install ``packages`` as root; the lists of packages are fetched only when they lack one."""
    say(f"Installing {' '.join(packages)} (once) ...")
    quiet = {
        "DEBIAN_FRONTEND": "noninteractive",
        "NEEDRESTART_SUSPEND": "1",
        "LC_ALL": "C.UTF-8",
    }
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    install = [*apt, "install", "--no-install-recommends", "--no-upgrade", *packages]
    with _no_daemons():
        ended = _run(install, deadline=APT_DEADLINE, env=quiet)
        if ended.code:
            update = _run([*apt, "update"], deadline=APT_DEADLINE, env=quiet)
            again = _run(install, deadline=APT_DEADLINE, env=quiet)
            ended = _Ended(again.code, update.output + again.output)
    if ended.code:
        _show(ended.output, "apt")
        raise PrepareError(f"apt-get could not install {' '.join(packages)}, its words are above.")
    if "tgt" in packages and Path("/run/systemd/system").is_dir():
        # the lab starts daemons of its own; the machine's shall not come up at the next boot
        _run(["systemctl", "--quiet", "disable", "tgt.service"], deadline=60)


def _show(output: str, name: str) -> None:
    with tempfile.NamedTemporaryFile("w", prefix=f"sanstone-{name}-", suffix=".log", delete=False) as log:
        log.write(output)
    say("\n".join(output.splitlines()[-25:]))
    say(f"(all of it: {log.name})")


@contextlib.contextmanager
def _no_daemons() -> Iterator[None]:
    """Keep packages from starting their services while they are installed, then leave all as it was."""
    _put_policy_back()
    if POLICY.exists():
        POLICY.rename(POLICY_SET_ASIDE)
    POLICY.write_text(POLICY_TEXT)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        _put_policy_back()


def _put_policy_back() -> None:
    """Undo what an installation did, also one that was cut off."""
    if POLICY.exists() and POLICY.read_text() == POLICY_TEXT:
        POLICY.unlink()
    if POLICY_SET_ASIDE.exists():
        POLICY_SET_ASIDE.rename(POLICY)


def _environment_key() -> str:
    """What the virtual environment was made from: a change of any of it makes it anew."""
    digest = hashlib.sha256()
    for name in ("setup.cfg", "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{sys.version} {sys.base_prefix} {ROOT}".encode())
    return digest.hexdigest()


def _environment_is_current() -> bool:
    key = VENV / "made-from"
    return key.is_file() and key.read_text() == _environment_key()


def prepare_environment() -> None:
    """Make ``.venv`` with the project and its test tools, unless it is there and current."""
    if _environment_is_current():
        return
    say("Setting up .venv (once) ...")
    made = _run([sys.executable, "-m", "venv", "--clear", str(VENV)], deadline=300)
    if made.code:
        _show(made.output, "venv")
        raise PrepareError(f"{sys.executable} could not make a virtual environment, its words are above.")
    pip = [str(VENV / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    filled = _run([*pip, "--editable", ".[test]"], deadline=PIP_DEADLINE, cwd=ROOT)
    if filled.code:
        _show(filled.output, "pip")
        raise PrepareError("pip could not fetch what setup.cfg names: is the package index within reach?")
    (VENV / "made-from").write_text(_environment_key())


def default_image() -> Path:
    """Return a small bootable disk image in raw format that Debian and Ubuntu ship, fetching it if need be.

    GRUB starts from it within a second, in software emulation too, and writes "GNU GRUB" to the console.
    No root is needed: the package is unpacked into the cache, not installed.

    Raises: PrepareError when it cannot be fetched.
    """
    installed = Path("/", GUEST_IMAGE)
    if installed.is_file():
        return installed
    image = cache() / "images" / "grub-rescue.raw"
    if not image.is_file():
        image.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=image.parent, prefix="fetch-") as folder:
            _fetch_package(GUEST_PACKAGE, Path(folder))
            Path(folder, "unpacked", GUEST_IMAGE).replace(image)
    return image


def _fetch_package(package: str, folder: Path) -> None:
    """Download ``package`` for amd64 and unpack it below ``folder``/unpacked, with apt's checks."""
    if shutil.which("apt-get") is None:
        raise PrepareError(
            "The default image comes from a Debian package: name another one, IMAGE=path or URL."
        )
    own_lists = []
    for option, name in (("Dir::State::lists", "lists"), ("Dir::Cache", "cache")):
        (folder / name / "partial").mkdir(parents=True)
        own_lists += ["-o", f"{option}={folder / name}"]
    own_lists += ["-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64"]
    apt = ["apt-get", "-q"] + (["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else [])
    ended = _run([*apt, "download", package], deadline=APT_DEADLINE, cwd=folder)
    if ended.code:
        say(f"Fetching {package} (once) ...")
        _run([*apt, *own_lists, "update"], deadline=APT_DEADLINE, cwd=folder)
        ended = _run([*apt, *own_lists, "download", package], deadline=APT_DEADLINE, cwd=folder)
    archives = list(folder.glob("*.deb"))
    if ended.code == 0 and archives:
        ended = _run(["dpkg-deb", "-x", str(archives[0]), str(folder / "unpacked")], deadline=120)
    if ended.code or not archives:
        _show(ended.output, "apt")
        raise PrepareError(
            f"The default image comes from the package {package}, which apt-get could not fetch: "
            f"name another one, IMAGE=path or URL."
        )


def prepare_fuse() -> None:
    """Make sure that hosts in user space can show their disks as files."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise PrepareError(
            "/dev/fuse is missing or not for you: load the module fuse, or start the container "
            "with --device /dev/fuse --cap-add SYS_ADMIN."
        )


def prepare_machines() -> None:
    """Build the image of the lab's virtual machines, or say why their tests will be skipped.

    Raises: PrepareError in continuous integration, where nothing may be skipped.
    """
    python = str(VENV / "bin/python")
    build = [python, "-m", "lab.vm", "build"]
    try:
        done = subprocess.run(build, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=IMAGE_DEADLINE, check=False)
        is_built = done.returncode == 0
    except subprocess.TimeoutExpired:
        say(f"The image was not ready within {IMAGE_DEADLINE:.0f} s.")
        is_built = False
    if not is_built:
        if os.environ.get("CI") == "true":
            raise PrepareError("The image of the lab's virtual machines could not be built, see above.")
        say("Tests with a real kernel will be skipped.")


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (cache() / "prepare.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str]) -> int:
    """Run ``prepare.py environment | demo | lab | test | check``; ``install`` is the part that needs root.

    ``check`` is ``test`` and the image of the lab's virtual machines.
    """
    what, *packages = argv or ["test"]
    if sys.version_info < OLDEST_PYTHON:
        say(f"Python 3.10 or newer is needed, and {sys.executable} is older: make PYTHON=python3.11 ...")
        return 1
    started = time.monotonic()
    try:
        if what == "install":
            _install(packages)
            return 0
        with _one_at_a_time():
            if what != "environment":
                prepare_packages(what)
            if what == "demo":
                prepare_fuse()
            prepare_environment()
        if what == "check":
            prepare_machines()
    except PrepareError as err:
        say(str(err))
        return 1
    except KeyboardInterrupt:
        return 130
    if time.monotonic() - started > 5:
        say("Set up.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

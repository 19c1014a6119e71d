# SPDX-License-Identifier: Apache-2.0
"""What no test may do unless it says so: start a process, sleep, or speak to another machine.

A test opens what it needs by name: ``@pytest.mark.real("tgtd", "qemu-img")``. The names are those of
programs, without their directory (``python3`` for any Python), or one of

``sleep``    ``time.sleep`` on the main thread;
``network``  addresses beyond loopback;
``fork``     ``os.fork``.

The interpreter's own audit events are used, so it does not matter which module starts the process, or how it
imported the function. What was refused fails the test even if a handler or a thread swallowed the exception.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from lab.prepare import PACKAGE_OF, path_with_sbin

ROOT = Path(__file__).resolve().parents[1]
# where the program for hosts pauses between two looks; the library does not use time.sleep for that
WAITING = ROOT / "remotes/sanstone/transport/remote/run.py"
MACHINES = "tests/kernel/"
_LONGEST = ("kernel", "killing", "life_cycles", "arrays")
TIME_TO_END = 3.0  # seconds that threads, processes and mounts have to go away after a module

hypothesis.settings.register_profile("sanstone", deadline=None, database=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("sanstone")


class Refused(BaseException):
    """A test did what it had not asked for. No ``except Exception`` can hide it."""


Lasting = Callable[[], set[int]]
"""Returns the ids of processes and threads that something of the whole session has at this moment."""


class _Guard:
    """What the running test may do. There is one per process, because audit hooks cannot be taken away."""

    def __init__(self) -> None:
        self.is_on = False
        self.allowed: frozenset[str] = frozenset()
        self.refusals: list[Refused] = []
        self.lasting: list[Lasting] = []

    def refuse(self, what: str, name: str) -> None:
        refused = Refused(f'{what}; a test that needs this says @pytest.mark.real("{name}")')
        self.refusals.append(refused)
        raise refused

    def start_of(self, program: Any) -> None:
        name = _program_name(program)
        if name not in self.allowed:
            self.refuse(f"{name} was about to be started", name)

    def speak_to(self, family: int, address: Any) -> None:
        if family not in (socket.AF_INET, socket.AF_INET6) or "network" in self.allowed:
            return
        host = address[0] if isinstance(address, tuple) else address
        if not _is_loopback(host):
            self.refuse(f"{address!r} is outside loopback", "network")

    def look_up(self, host: Any) -> None:
        if _is_name(host) and not _is_loopback(host) and "network" not in self.allowed:
            self.refuse(f"the name {host!r} was about to be looked up", "network")


guard = _Guard()


def _program_name(program: Any) -> str:
    name = Path(os.fsdecode(program)).name
    return "python3" if re.fullmatch(r"python(3(\.\d+)?)?", name) else name


def _is_loopback(host: Any) -> bool:
    text = os.fsdecode(host) if isinstance(host, (str, bytes)) else ""
    if text == "localhost":
        return True
    try:
        address = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _is_name(host: Any) -> bool:
    """Whether ``host`` has to be looked up; a numeric address has not, and None is this machine."""
    if not host:
        return False
    try:
        ipaddress.ip_address(os.fsdecode(host).split("%")[0])
    except ValueError:
        return True
    return False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not guard.is_on or not event.startswith(("subprocess.", "os.", "socket.")):
        return
    if event == "subprocess.Popen":
        executable, argv = args[0], args[1]
        first = argv if isinstance(argv, (str, bytes, os.PathLike)) else next(iter(argv), executable)
        guard.start_of(first)
    elif event in ("os.posix_spawn", "os.exec"):
        guard.start_of(args[0])
    elif event == "os.spawn":
        guard.start_of(args[1])
    elif event == "os.system":
        guard.start_of("sh")
    elif event in ("os.fork", "os.forkpty"):
        if "fork" not in guard.allowed:
            guard.refuse("the process was about to fork", "fork")
    elif event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        if args[1] is not None:
            guard.speak_to(args[0].family, args[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        guard.look_up(args[0])


_real_sleep = time.sleep


def _sleep(seconds: float) -> None:
    """Refuse to sleep on the main thread for code of this project; a simulator's threads may pause."""
    if guard.is_on and seconds > 0 and "sleep" not in guard.allowed and _is_called_by_us():
        guard.refuse(f"time.sleep({seconds}) was called on the main thread", "sleep")
    _real_sleep(seconds)


def _is_called_by_us() -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False
    caller = Path(sys._getframe(2).f_code.co_filename)
    return caller.is_relative_to(ROOT) and not caller.is_relative_to(sys.prefix) and caller != WAITING


def pytest_configure(config: pytest.Config) -> None:
    os.environ["PATH"] = path_with_sbin()
    if _only_hands_out_tests(config):
        os.environ.setdefault("PYTHONHASHSEED", "0")  # all processes must list the same tests in one order
        return
    time.sleep = _sleep  # type: ignore[assignment]
    sys.addaudithook(_audit)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Be on guard from here on: what pytest and its plugins do before is their own affair."""
    guard.is_on = not _only_hands_out_tests(session.config)


def _only_hands_out_tests(config: pytest.Config) -> bool:
    """Whether other processes run the tests (pytest -n), which this one starts."""
    return not hasattr(config, "workerinput") and bool(getattr(config.option, "numprocesses", None))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let one process have all tests of a module, which share what it starts, and all of the machines."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::", 1)[0]
            return MACHINES if module.startswith(MACHINES) else module

    return ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let several processes begin with what takes longest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: _turn(item.path.relative_to(ROOT / "tests").parts[0]))


def _turn(folder: str) -> int:
    return _LONGEST.index(folder) if folder in _LONGEST else len(_LONGEST)


def pytest_unconfigure() -> None:
    guard.is_on = False
    time.sleep = _real_sleep


def _names(item: pytest.Item) -> frozenset[str]:
    """Return what the marks of the test, its class, its module and its parameters open."""
    names: set[str] = set()
    for mark in item.iter_markers("real"):
        if not mark.args or mark.kwargs or not all(isinstance(name, str) for name in mark.args):
            raise pytest.UsageError(f'{item.nodeid}: write real("program", ...), with the names of programs')
        names.update(mark.args)
    return frozenset(names)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    guard.allowed = _names(item)
    missing = sorted(name for name in guard.allowed if name in PACKAGE_OF and not shutil.which(name))
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGE_OF[name] for name in missing))
        reason = f"{', '.join(missing)} not found: sudo apt install {packages}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Fail a test that did what was refused and hid it; one that failed has said enough."""
    try:
        yield
    except BaseException:
        guard.refusals.clear()
        raise
    _fail_for_refusals()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Fail for what fixtures and threads were refused; nothing is open between two tests."""
    try:
        yield
    finally:
        guard.allowed = frozenset()
    _fail_for_refusals()


def _fail_for_refusals() -> None:
    refusals, guard.refusals = guard.refusals, []
    if refusals:
        pytest.fail("hidden, but refused: " + "; ".join(map(str, refusals)), pytrace=False)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a home directory, and an environment without OpenNebula's variables and ours."""
    path = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("ONE_", "SANSTONE_", "XDG_")) or name in ("SSH_AUTH_SOCK", "SSH_ASKPASS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    return path


@pytest.fixture(autouse=True, scope="module")
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail when the tests of a module leave a thread, a child process or a mount.

    It is torn down after the module's own fixtures, so that a simulator may serve all tests of its module.
    """
    below = tmp_path_factory.getbasetemp()
    before = set(_leftovers(below))
    yield
    _expect_nothing_more_than(before, below)


@pytest.fixture(scope="session")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lasting]]:
    """Take the names of what a fixture of the whole session runs: that is left after a module, and no more.

    The fixture appends a function, see ``Lasting``, and is torn down before this one, which wants all gone.
    """
    below = tmp_path_factory.getbasetemp()
    before = set(_leftovers(below))
    yield guard.lasting
    guard.lasting.clear()
    _expect_nothing_more_than(before, below)


def _expect_nothing_more_than(before: set[str], below: Path) -> None:
    end = time.monotonic() + TIME_TO_END
    while (left := set(_leftovers(below)) - before) and time.monotonic() < end:
        threading.Event().wait(0.02)
    if left:
        pytest.fail("left behind: " + "; ".join(sorted(left)), pytrace=False)


def _leftovers(below: Path) -> Iterator[str]:
    lasting = {number for one in guard.lasting for number in one()}
    for thread in threading.enumerate():
        if thread.ident not in lasting:
            yield f"thread {thread.name} ({thread.ident})"
    yield from _children(lasting)
    mounts = Path("/proc/self/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        point = line.split()[1].encode("latin-1", "replace").decode("unicode_escape")
        if Path(point).is_relative_to(below):
            yield f"mount {point}"


def _children(lasting: set[int]) -> Iterator[str]:
    for task in Path("/proc/self/task").glob("*/children"):
        for pid in task.read_text().split():
            if int(pid) in lasting:
                continue
            try:
                words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            yield f"process {pid} {os.fsdecode(words[0]) or '(ended, not waited for)'}"

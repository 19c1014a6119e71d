# SPDX-License-Identifier: Apache-2.0
"""The guards of conftest.py hold: a project of offenders is run in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

OFFENDERS = """
import os, pty, socket, subprocess, threading, time
from subprocess import Popen
from time import sleep
import pytest

TRUE = ["true"]

def test_subprocess_run(): subprocess.run(TRUE)
def test_imported_popen(): Popen(TRUE)
def test_shell(): subprocess.run("true", shell=True)
def test_os_system(): os.system("true")
def test_posix_spawn(): os.posix_spawn("/bin/true", TRUE, {})
def test_fork(): os.fork() or os._exit(0)
def test_forkpty(): pty.fork()[0] or os._exit(0)
def test_exec(): os.execv("/bin/true", TRUE)
def test_sleep(): time.sleep(0.001)
def test_imported_sleep(): sleep(0.001)

def test_hidden_by_a_handler():
    try:
        subprocess.run(TRUE)
    except BaseException:
        pass

def test_hidden_in_a_thread():
    def start():
        try:
            subprocess.run(TRUE)
        except BaseException:
            pass
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

@pytest.mark.real("false")
def test_another_program_than_named(): subprocess.run(TRUE)

def connect(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(address)

def test_connect(): connect(socket.AF_INET, ("192.0.2.1", 9))
def test_connect_by_ipv6(): connect(socket.AF_INET6, ("2001:db8::1", 9))
def test_name(): socket.getaddrinfo("array.example", 22)

def test_send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", ("192.0.2.1", 9))

def test_listen_to_all():
    with socket.socket() as sock:
        sock.bind(("", 0))

@pytest.fixture
def offending_fixture():
    try:
        subprocess.run(TRUE)
    except BaseException:
        pass

def test_fixture(offending_fixture): pass
"""

HONEST = """
import os, socket, subprocess, threading, time
from pathlib import Path
import pytest

@pytest.mark.real("true")
def test_named_program(): subprocess.run(["true"], check=True, timeout=10)

@pytest.mark.real("true")
def test_named_program_by_path(): subprocess.run(["/bin/true"], check=True)

@pytest.mark.real("sleep")
def test_named_sleep(): time.sleep(0.001)

@pytest.mark.real("fork")
def test_named_fork(): os.waitpid(os.fork() or os._exit(0), 0)

@pytest.mark.real("network")
def test_named_network():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))

def test_yielding_is_no_sleep(): time.sleep(0)

def test_thread_may_pause():
    thread = threading.Thread(target=time.sleep, args=(0.001,))
    thread.start()
    thread.join()

def test_loopback(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()):
            pass
        socket.getaddrinfo("localhost", 22)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))

@pytest.fixture(params=[pytest.param("true", marks=pytest.mark.real("true"))])
def program(request): return request.param

def test_parameter_carries_the_mark(program): subprocess.run([program], check=True)

@pytest.mark.real("unheard-of")
def test_program_of_the_test_itself_is_not_looked_up(): pass

def test_home_is_new_and_environment_clean():
    assert os.environ["HOME"] != os.environ["OUTER"]
    assert not list(Path.home().iterdir())
    assert "ONE_AUTH" not in os.environ and "SANSTONE_CONF" not in os.environ
"""

MODULE_MARK = """
import subprocess
import pytest
pytestmark = pytest.mark.real("true")
def test_module_mark(): subprocess.run(["true"], check=True)
"""

LEAVING = """
import os, threading
import pytest

def test_thread():
    threading.Thread(target=threading.Event().wait, args=(60,), name="lingering", daemon=True).start()

@pytest.mark.real("fork", "tail")
def test_process():
    if not os.fork():
        os.execlp("tail", "tail", "-f", "/dev/null", f"--pid={os.getppid()}")
"""

LASTING = """
import os, subprocess
import pytest

@pytest.fixture(scope="session")
def daemon(lasting):
    with subprocess.Popen(["tail", "-f", "/dev/null", f"--pid={os.getpid()}"]) as process:
        lasting.append(lambda: {process.pid})
        yield
        process.kill()

@pytest.fixture(scope="session")
def careless(lasting):
    process = subprocess.Popen(["tail", "-f", "/dev/null", f"--pid={os.getpid()}"])
    lasting.append(lambda: {process.pid})
    yield

@pytest.mark.real("tail")
def test_it(FIXTURE): pass
"""

MISSING_PROGRAM = """
import pytest
@pytest.mark.real("genisoimage")
def test_missing(): raise AssertionError("not to be reached")
"""


def run_inner(folder: Path, module: str, **environment: str) -> dict[str, str]:
    """Run ``module`` as a project with the same conftest and settings, and return each test's outcome."""
    tests = folder / "tests"
    tests.mkdir(parents=True)
    tests.joinpath("test_inner.py").write_text(module)
    for name in ("lab/prepare.py", "tests/conftest.py", "setup.cfg"):
        folder.joinpath(name).parent.mkdir(exist_ok=True)
        folder.joinpath(name).write_bytes((ROOT / name).read_bytes())
    report = folder / "report.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"],
        cwd=folder,
        env={**os.environ, "OUTER": os.environ["HOME"], "SANSTONE_CONF": "x", "ONE_AUTH": "x", **environment},
        stdout=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        words = "passed"
        if bad is not None:
            words = f"failed: {bad.get('message')} {bad.text}"
        elif skipped is not None:
            words = f"skipped: {skipped.get('message')}"
        name = (case.get("name") or "").split("[")[0]
        if not outcomes.get(name, "passed").startswith("failed"):
            outcomes[name] = words
    return outcomes


def names_in(module: str) -> set[str]:
    return {line[4:].split("(")[0] for line in module.splitlines() if line.startswith("def test_")}


@pytest.mark.real("python3")
def test_every_offender_fails_and_is_told_what_to_name(tmp_path: Path) -> None:
    outcomes = run_inner(tmp_path, OFFENDERS)
    assert outcomes.keys() == names_in(OFFENDERS)
    assert {name for name, words in outcomes.items() if 'says @pytest.mark.real("' not in words} == set()


@pytest.mark.real("python3")
def test_what_is_named_and_loopback_pass(tmp_path: Path) -> None:
    outcomes = run_inner(tmp_path, HONEST)
    assert outcomes == dict.fromkeys(names_in(HONEST), "passed")


@pytest.mark.real("python3")
def test_mark_of_a_module_is_enough(tmp_path: Path) -> None:
    assert run_inner(tmp_path, MODULE_MARK) == {"test_module_mark": "passed"}


@pytest.mark.real("python3")
def test_what_a_module_leaves_behind_is_named(tmp_path: Path) -> None:
    words = run_inner(tmp_path, LEAVING)["test_process"]
    assert "left behind: process " in words
    assert "thread lingering" in words


@pytest.mark.real("python3")
def test_what_is_named_as_lasting_outlives_a_module_but_not_the_session(tmp_path: Path) -> None:
    honest = run_inner(tmp_path / "honest", LASTING.replace("FIXTURE", "daemon"))
    careless = run_inner(tmp_path / "careless", LASTING.replace("FIXTURE", "careless"))
    assert honest == {"test_it": "passed"}
    assert "left behind: process " in careless["test_it"]


@pytest.mark.real("python3")
@pytest.mark.parametrize(("ci", "outcome"), [("", "skipped"), ("true", "failed")])
def test_missing_program_is_named_and_fails_in_ci_only(tmp_path: Path, ci: str, outcome: str) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (words,) = run_inner(tmp_path / "inner", MISSING_PROGRAM, PATH=str(empty), CI=ci).values()
    assert words.startswith(outcome)
    assert "sudo apt install genisoimage" in words

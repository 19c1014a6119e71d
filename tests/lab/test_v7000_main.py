# SPDX-License-Identifier: Apache-2.0
"""The box as a program of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.v7000.__main__ import arguments, config

pytestmark = pytest.mark.real("python3")


def start(*argv: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "lab.v7000", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def children(parent: int) -> list[int]:
    """Return what a process started; one of its threads may end while this looks."""
    found: list[int] = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_tells_how_to_reach_it_and_leaves_nothing_behind(tmp_path: Path, ending: signal.Signals) -> None:
    secret, directory = tmp_path / "secret", tmp_path / "box"
    secret.write_text("canary\n")
    argv = ["--directory", str(directory), "--user", "oneadmin", "--password-file", str(secret)]
    with start(*argv, "--host", "node1=iqn.2020-01.org.example:node1", "--pool", "p=1T") as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(4)]
        (daemon,) = children(process.pid)
        assert (directory / "volumes").is_dir()
        process.send_signal(ending)
        assert process.wait(30) == 0
    assert told[0].startswith("v7000-a: ssh -p ")
    assert told[1].startswith("host key: [127.0.0.1]:")
    assert [line.split()[:2] for line in told[2:]] == [
        ["target", f"iqn.1986-03.com.ibm:2145.v7000-a.node{at}"] for at in (1, 2)
    ]
    assert not any("canary" in line for line in told)
    assert list(directory.iterdir()) == []
    assert not Path(f"/proc/{daemon}").exists()


def test_without_a_way_to_log_in_it_does_not_start() -> None:
    with start() as process:
        assert process.wait(30) == 2


def test_options_become_a_configuration(tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAA somebody\n")
    line = f"--pool a=2G --pool b=1T --authorized-key {key} --latency 0.08 --session-limit 2 --name box"
    made = config(arguments().parse_args(line.split()))
    assert made.pools == {"a": 2 << 30, "b": 1 << 40}
    assert made.users["superuser"].keys == ("ssh-ed25519 AAAA somebody",)
    assert (made.latency, made.session_limit, made.name, made.data_plane) == (0.08, 2, "box", False)

# SPDX-License-Identifier: Apache-2.0
"""The edge towards oned: however the script is called, and whatever a library has to say."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.scene import REMOTES
from sanstone import driver
from sanstone.driver import main

TAGGED = re.compile(r"(ERROR|INFO|WARN|DEBUG): ")
SCRIPT = REMOTES / "sanstone-driver"


@pytest.fixture
def link(tmp_path: Path) -> Path:
    folder = tmp_path / "tm" / "v7000"
    folder.mkdir(parents=True)
    link = folder / "ln"
    link.symlink_to(SCRIPT)
    return link


def call(argv: list[str], cwd: Path, **more: object) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        argv,
        cwd=cwd,
        env={"PATH": path, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **{"stdin": subprocess.DEVNULL, **more},
    )


@pytest.mark.real("ln", "python3")
def test_a_relative_call_is_understood(link: Path, tmp_path: Path) -> None:
    for argv, cwd in ((["./ln"], link.parent), (["tm/v7000/ln"], tmp_path), (["../v7000/ln"], link.parent)):
        done = call(argv, cwd)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("tm/v7000/ln takes 4 arguments, not 0.")


@pytest.mark.real("sh", "python3")
def test_without_standard_input_there_is_no_document(tmp_path: Path) -> None:
    link = tmp_path / "datastore" / "v7000" / "monitor"
    link.parent.mkdir(parents=True)
    link.symlink_to(SCRIPT)
    done = call(["sh", "-c", 'exec "$0" 100 <&-', str(link)], tmp_path)
    assert done.returncode == 2
    assert "Unexpected" not in done.stderr


@pytest.mark.real("python3")
def test_a_link_to_the_python_of_a_virtual_environment_leads_into_it(tmp_path: Path) -> None:
    remotes = tmp_path / "remotes"
    package = remotes / "sanstone"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "driver.py").write_text("import sys\ndef main(argv):\n    print(sys.prefix)\n    return 0\n")
    script = remotes / "sanstone-driver"
    script.write_bytes(SCRIPT.read_bytes())
    venv.create(tmp_path / "venv", symlinks=True)
    (package / "python").symlink_to(tmp_path / "venv" / "bin" / "python")
    done = call([sys.executable, str(script)], tmp_path)
    assert done.stdout.strip() == str(tmp_path / "venv")


@pytest.fixture
def babbler() -> Iterator[int]:
    """The port of something that is no SSH server."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.sendall(b"HTTP/1.0 400 Bad Request\r\n" * 200)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_what_a_library_says_by_itself_is_not_shown_to_users(
    babbler: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "known_hosts").write_text("")
    conf = tmp_path / "sanstone.conf"
    conf.write_text(
        f"[sanstone]\nSTATE_DIR = {tmp_path / 'state'}\n[v7000]\nMGMT_PORT = {babbler}\n"
        f"MGMT_KNOWN_HOSTS = {tmp_path / 'known_hosts'}\nMGMT_PASSWORD = secret-word\nCONNECT_TIMEOUT = 2\n"
    )
    conf.chmod(0o600)
    monkeypatch.setenv("SANSTONE_CONF", str(conf))
    request = (
        "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>100</ID><NAME>san</NAME><DS_MAD>v7000</DS_MAD>"
        "<TM_MAD>v7000</TM_MAD><TYPE>0</TYPE><TEMPLATE><MGMT>127.0.0.1</MGMT></TEMPLATE></DATASTORE>"
        "</DS_DRIVER_ACTION_DATA>"
    )
    stdin = io.BytesIO(base64.b64encode(request.encode()))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    code = main([str(REMOTES / "datastore" / "v7000" / "monitor"), "100"])
    said = capfd.readouterr()
    assert (code, said.out) == (9, "")
    first, *rest = said.err.splitlines()
    assert "cannot be reached over SSH" in first
    assert [line for line in rest if not TAGGED.match(line)] == []
    assert "secret-word" not in said.err
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):  # paramiko's watch over a handshake that failed
            thread.cancel()


def test_a_process_that_is_told_to_end_takes_away_what_it_has_half_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def perform(*_: object) -> str:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # a second one does not disturb the cleaning
            cleaned.append(True)
        return ""

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(driver, "_perform", perform)
    assert main(["/remotes/tm/v7000/ln"]) == 1
    assert "was interrupted" in capsys.readouterr().err
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before

# SPDX-License-Identifier: Apache-2.0
"""The box's shell and its SSH face: chains, exit status, faults, limits, latency, death."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from lab.v7000 import Box, BoxConfig, ManualClock, User

MKVDISK = "mkvdisk -name {} -mdiskgrp mdiskgrp0 -iogrp 0 -size 1 -unit gb"
DEADLINE = 20.0
USERS = {"oneadmin": User(password="canary")}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def box(clock: ManualClock) -> Iterator[Box]:
    with Box(BoxConfig(clock=clock, users=USERS)) as box:
        yield box


def volumes(box: Box) -> list[str]:
    return [line.split(":")[1] for line in box.run("lsvdisk -delim : -nohdr")[0].splitlines()]


def connect(box: Box) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    key = box.ssh.host_key
    client.get_host_keys().add(f"[{box.ssh_host}]:{box.ssh_port}", key.get_name(), key)
    try:
        client.connect(
            box.ssh_host,
            box.ssh_port,
            "oneadmin",
            "canary",
            allow_agent=False,
            look_for_keys=False,
            timeout=DEADLINE,
        )
    except BaseException:
        client.close()
        raise
    return client


def ssh(client: paramiko.SSHClient, line: str) -> tuple[str, str, int]:
    stdin, stdout, stderr = client.exec_command(line, timeout=DEADLINE)
    try:
        return stdout.read().decode(), stderr.read().decode(), stdout.channel.recv_exit_status()
    finally:
        for stream in (stdin, stdout, stderr):
            stream.close()


def test_a_create_command_answers_one_line_and_a_change_nothing(box: Box) -> None:
    assert box.run(MKVDISK.format("one-1")) == ("Virtual Disk, id [0], successfully created\n", "", 0)
    assert box.run("rmvdisk one-1") == ("", "", 0)


def test_a_failure_is_one_line_on_stderr_and_status_1(box: Box) -> None:
    stdout, stderr, code = box.run("rmvdisk one-1")
    assert (stdout, code) == ("", 1)
    assert stderr.startswith("CMMVC5753E ")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("prefix", ["", "svcinfo "])
def test_the_prefix_of_a_reading_command_is_optional(box: Box, prefix: str) -> None:
    assert box.run(f"{prefix}lsiogrp -nohdr -delim :")[0].startswith("0:io_grp0:2:")


@pytest.mark.parametrize("name", ["one-1", '"one-1"', "'one-1'", 'one"-"1', r"one\-1"])
def test_names_may_be_quoted(box: Box, name: str) -> None:
    box.run(MKVDISK.format("one-1"))
    assert box.run(f"svctask rmvdisk {name}") == ("", "", 0)


def test_a_chain_goes_on_after_a_failure_and_ends_with_the_last_status(box: Box) -> None:
    stdout, stderr, code = box.run(f"rmvdisk absent; {MKVDISK.format('one-1')};echo")
    assert stdout == "Virtual Disk, id [0], successfully created\n\n"
    assert stderr.startswith("CMMVC5753E")
    assert code == 0


def test_set_e_stops_a_chain_at_the_first_failure(box: Box) -> None:
    line = f"set -e ; svctask {MKVDISK.format('one-1')} ; rmvdisk absent ; svctask {MKVDISK.format('one-2')}"
    assert box.run(line)[2] == 1
    assert volumes(box) == ["one-1"]


def test_sleep_waits_and_nothing_after_a_refused_line_runs(box: Box, clock: ManualClock) -> None:
    assert box.run("sleep 5; echo done") == ("done\n", "", 0)
    assert clock.waited == 5
    assert box.run("sleep soon")[2] == 1


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("lsvdisk | grep one", 2),
        ("lsvdisk && lsvdisk", 2),
        ("lsvdisk &", 2),
        ("lsvdisk > /tmp/x", 1),
        ("echo $HOME", 1),
        ('echo "`id`"', 1),
        ("echo 'open", 2),
        ('echo "open', 2),
        ("; lsvdisk", 2),
        ("lsvdisk ;; lsvdisk", 2),
        ("set -x", 1),
        ("ls", 127),
        ("/bin/ls", 127),
    ],
)
def test_what_a_restricted_shell_does_not_take_is_refused(box: Box, line: str, status: int) -> None:
    stdout, stderr, code = box.run(line)
    assert (stdout, code) == ("", status)
    assert stderr.startswith("rbash: ")


def test_no_part_of_a_line_runs_when_its_end_is_bad(box: Box) -> None:
    assert box.run(f"{MKVDISK.format('one-1')}; echo 'x")[2] == 2
    assert volumes(box) == []


@pytest.mark.parametrize("sign", ["|", ";", "$", "`", ">", "&&", "*", "#"])
def test_signs_in_single_quotes_are_plain(box: Box, sign: str) -> None:
    assert box.run(f"echo 'a{sign}b'") == (f"a{sign}b\n", "", 0)


@pytest.mark.parametrize("line", ["svctask nosuch", "svcinfo nosuch", "svctask lsvdisk", "svcinfo rmvdisk x"])
def test_a_prefix_refuses_a_command_that_is_not_its_own(box: Box, line: str) -> None:
    word = line.split()[1]
    assert box.run(line) == ("", f"CMMVC5987E [{word}] is not a valid command line option.\n", 1)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("lsvdisk -colour red", "CMMVC5709E [-colour] "),
        ("lsvdisk -delim", "CMMVC5708E The [-delim] "),
        ("lsvdisk -nohdr -nohdr", "CMMVC5737E "),
        ("lsvdisk one-1 -nohdr", "CMMVC5709E [-nohdr] "),
        ("lsvdisk -delim ::", "CMMVC5738E "),
        ("lsiogrp io_grp0", "CMMVC5709E [io_grp0] "),
        ("lsvdisk b\u00e4d", "CMMVC6017E "),
        ("rmvdisk", "CMMVC5701E "),
        ("mkvdisk -name x", "CMMVC5707E "),
    ],
)
def test_options_are_checked(box: Box, line: str, code: str) -> None:
    stdout, stderr, status = box.run(line)
    assert (stdout, status) == ("", 1)
    assert stderr.startswith(code)


def test_latency_is_taken_by_each_command_of_a_chain(box: Box, clock: ManualClock) -> None:
    box.latency = 0.25
    box.run("lsvdisk; lssystem; echo")
    assert clock.waited == 0.5


def test_changing_commands_run_one_after_the_other_and_reading_ones_do_not() -> None:
    inside, most = [], {"change": 0, "read": 0}
    both = threading.Barrier(2)

    class Watching(ManualClock):
        def wait(self, seconds: float, interrupted: object) -> None:
            kind = "change" if threading.current_thread().name.startswith("change") else "read"
            inside.append(kind)
            if kind == "read":
                both.wait(DEADLINE)  # both are in here at once, or this breaks
            most[kind] = max(most[kind], inside.count(kind))
            inside.remove(kind)

    def run(box: Box, kind: str, *lines: str) -> None:
        threads = [
            threading.Thread(target=box.run, args=(line,), name=f"{kind}-{at}")
            for at, line in enumerate(lines)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)

    with Box(BoxConfig(clock=Watching(), latency=1.0)) as box:
        run(box, "read", "lsvdisk", "lsiogrp")
        assert most["read"] == 2
        run(box, "change", *(MKVDISK.format(f"one-{at}") for at in range(4)))
        assert most["change"] == 1
        assert len(box.journal.commands) == 6


def test_the_journal_tells_lines_commands_codes_and_connections(box: Box, clock: ManualClock) -> None:
    box.latency = 0.5
    with connect(box) as client:
        ssh(client, "lsvdisk ; rmvdisk absent")
        ssh(client, "lsiogrp")
    assert box.journal.connections == 1
    assert [(line.user, line.text) for line in box.journal.lines] == [
        ("oneadmin", "lsvdisk ; rmvdisk absent"),
        ("oneadmin", "lsiogrp"),
    ]
    told = [(one.line, one.text, one.status, one.code, one.seconds) for one in box.journal.commands]
    assert told == [
        (1, "lsvdisk", 0, None, 0.5),
        (1, "rmvdisk absent", 1, "CMMVC5753E", 0.5),
        (2, "lsiogrp", 0, None, 0.5),
    ]


def test_the_journal_keeps_no_secret_and_can_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    with Box(BoxConfig(journal=file)) as box:
        box.add_host("node1", "iqn.2020-01.org.example:node1")
        box.run("svctask chhost -chapsecret canary node1")
        assert "canary" not in repr(box.journal)
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [entry["kind"] for entry in entries] == ["line", "command"] * 2
    assert entries[-1]["text"] == "svctask chhost -chapsecret *** node1"
    assert "canary" not in file.read_text()


def test_a_fault_refuses_as_often_as_it_is_told(box: Box) -> None:
    fault = box.faults.add("^mkvdisk", times=2, code="CMMVC8710E")
    answers = [box.run(MKVDISK.format("one-1"))[1][:10] for _ in range(3)]
    assert answers == ["CMMVC8710E", "CMMVC8710E", ""]
    assert (fault.hits, volumes(box)) == (2, ["one-1"])


def test_a_warning_comes_with_the_work_done(box: Box) -> None:
    box.faults.add("mkvdisk", code="CMMVC6372W")
    stdout, stderr, code = box.run(MKVDISK.format("one-1"))
    assert (stdout, stderr[:10], code) == ("", "CMMVC6372W", 1)
    assert volumes(box) == ["one-1"]


@pytest.mark.parametrize(("drop", "left"), [("before", []), ("after", ["one-1"])])
def test_a_dropped_connection_ends_the_chain_before_or_after_the_work(
    box: Box, drop: str, left: list[str]
) -> None:
    box.faults.add("mkvdisk", drop=drop)
    line = f"{MKVDISK.format('one-1')}; {MKVDISK.format('one-2')}"
    with pytest.raises(ConnectionResetError):
        box.run(line)
    assert volumes(box) == left
    box.faults.add("mkvdisk", drop=drop)
    with connect(box) as client:
        stdin, stdout, stderr = client.exec_command(MKVDISK.format("one-3"), timeout=DEADLINE)
        assert stdout.channel.recv_exit_status() == -1
        for stream in (stdin, stdout, stderr):
            stream.close()
    assert box.journal.commands[-1].dropped
    assert ("one-3" in volumes(box)) is (drop == "after")


def test_a_fault_can_hang_and_can_end_with_a_bare_status(box: Box, clock: ManualClock) -> None:
    box.faults.add("lsvdisk", hang=30)
    box.faults.add("lsiogrp", exit=255)
    assert box.run("lsvdisk -nohdr") == ("", "", 0)
    assert clock.waited == 30
    assert box.run("lsiogrp") == ("", "", 255)


def test_a_session_over_the_limit_is_told_so_on_its_first_line(box: Box) -> None:
    box.session_limit = 1
    with connect(box) as first:
        assert ssh(first, "lsvdisk -nohdr") == ("", "", 0)
        with connect(box) as second:
            stdout, stderr, code = ssh(second, MKVDISK.format("one-1"))
            assert stdout.startswith("CMMVC7017E Login has failed")
            assert (stderr, code) == ("", 1)
        assert ssh(first, "lsvdisk -nohdr") == ("", "", 0)
    assert volumes(box) == []


def test_the_rest_of_a_chain_runs_although_its_client_left(box: Box, clock: ManualClock) -> None:
    reached, go = threading.Event(), threading.Event()

    def wait(seconds: float, interrupted: object) -> None:
        reached.set()
        go.wait(DEADLINE)

    clock.wait = wait  # type: ignore[method-assign]
    client = connect(box)
    streams = client.exec_command(f"sleep 1; {MKVDISK.format('one-1')}", timeout=DEADLINE)
    assert reached.wait(DEADLINE)
    for stream in streams:
        stream.close()
    client.close()
    go.set()
    deadline = time.monotonic() + DEADLINE
    while not volumes(box) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert volumes(box) == ["one-1"]


def test_a_dead_box_cuts_everything_and_comes_back_with_what_it_had(box: Box) -> None:
    with connect(box) as client:
        ssh(client, MKVDISK.format("one-1"))
        port = box.ssh_port
        box.die()
        with pytest.raises((paramiko.SSHException, EOFError, OSError)):
            ssh(client, "lsvdisk")
    with pytest.raises(OSError, match=r"Unable to connect|refused"):
        connect(box)
    with pytest.raises(ConnectionRefusedError):
        box.run("lsvdisk")
    box.revive()
    assert box.ssh_port == port
    with connect(box) as client:
        assert ssh(client, "lsvdisk -nohdr -delim :")[0].startswith("0:one-1:")


def test_death_ends_a_command_that_waits() -> None:
    with Box(BoxConfig(users=USERS)) as box, connect(box) as client:
        streams = client.exec_command("echo begun; sleep 3600; echo over", timeout=DEADLINE)
        assert streams[1].readline() == "begun\n"
        started = time.monotonic()
        box.die()
        assert time.monotonic() - started < 20
        assert streams[1].channel.recv_exit_status() == -1
        for stream in streams:
            stream.close()


def test_the_host_key_is_given_as_a_known_hosts_line(box: Box) -> None:
    name, kind, key = box.known_hosts_line("v7000-a").split()
    assert (name, kind) == ("v7000-a", "ssh-ed25519")
    assert key == box.ssh.host_key.get_base64()

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import os
import shlex
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanstone.errors import DeadlineError, HostError
from sanstone.transport.command import Command, quote, run
from sanstone.transport.waiting import Deadline, wait_until

shell = pytest.mark.real("sh")


def sh(
    script: str, *arguments: str, deadline: float = 10, stdin: bytes = b"", ok: tuple[int, ...] = (0,)
) -> Command:
    return Command.of(["sh", "-c", script, "sh", *arguments], deadline=deadline, stdin=stdin, ok=ok)


class Stalled(io.BytesIO):
    """A source that gives a little and then nothing, until it is let go."""

    def __init__(self) -> None:
        super().__init__(b"some bytes")
        self.release = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        if not chunk:
            self.release.wait(30)
        return chunk


@shell
def test_both_outputs_and_the_exit_code_come_back() -> None:
    done = run(sh("cat; echo err >&2; exit 3", stdin=b"out", ok=(3,)))

    assert (done.code, done.stdout, done.stderr, done.text) == (3, b"out", b"err\n", "out")


@shell
def test_another_exit_code_is_an_error_with_the_last_words() -> None:
    with pytest.raises(HostError, match=r"exit code 5\): last words") as caught:
        run(sh("echo first >&2; echo last words >&2; exit 5"))

    assert caught.value.details == "first\nlast words"


@pytest.mark.real("no-such-program")
def test_a_missing_program_is_named() -> None:
    with pytest.raises(HostError, match="no-such-program is not installed on front-end"):
        run(Command.of(["no-such-program"], deadline=1))


@pytest.mark.real("plain-file")
def test_a_program_that_may_not_be_run_is_named(tmp_path: Path) -> None:
    program = tmp_path / "plain-file"
    program.write_text("#!/bin/sh\n")

    with pytest.raises(HostError, match="may not be run"):
        run(Command.of([str(program)], deadline=1))


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True


@shell
def test_the_deadline_ends_the_command_with_all_its_children(tmp_path: Path) -> None:
    started = time.monotonic()

    with pytest.raises(DeadlineError):
        run(sh(f"sleep 60 & echo $! > {tmp_path}/pid; wait", deadline=0.5))

    assert time.monotonic() - started < 30
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: has_ended(pid) or None, Deadline(10), f"The end of process {pid}")


@shell
def test_a_command_that_will_not_end_is_killed() -> None:
    started = time.monotonic()

    with pytest.raises(DeadlineError):
        run(sh("trap '' TERM; while :; do sleep 0.1; done", deadline=0.3))

    assert time.monotonic() - started < 30


@shell
def test_an_ended_command_may_clean_up(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError):
        run(sh(f"trap 'touch {tmp_path}/clean; exit' TERM; while :; do sleep 0.05; done", deadline=0.5))

    assert (tmp_path / "clean").exists()


@shell
def test_outputs_are_read_while_an_upload_is_written() -> None:
    size = 8 << 20

    done = run(sh("tee /dev/stderr"), upload=io.BytesIO(bytes(size)))

    assert (len(done.stdout), len(done.stderr)) == (size, size)


@shell
def test_an_upload_follows_standard_input() -> None:
    assert run(sh("cat", stdin=b"head "), upload=io.BytesIO(b"and tail")).stdout == b"head and tail"


@shell
def test_a_reader_that_stalls_does_not_hold_past_the_deadline() -> None:
    started = time.monotonic()

    with pytest.raises(DeadlineError):
        run(sh("exec sleep 60", deadline=0.5), upload=io.BytesIO(bytes(8 << 20)))

    assert time.monotonic() - started < 30


@shell
def test_a_source_that_stalls_does_not_hold_past_the_deadline() -> None:
    source = Stalled()
    started = time.monotonic()

    with pytest.raises(DeadlineError):
        run(sh("cat", deadline=0.5), upload=source)

    assert time.monotonic() - started < 30
    source.release.set()


@shell
def test_a_reader_that_goes_away_shows_in_its_exit_code() -> None:
    assert run(sh("exit 4", ok=(4,)), upload=io.BytesIO(bytes(8 << 20))).code == 4


@shell
def test_an_error_of_the_source_ends_the_command_and_is_passed_on() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError("hung up")

    with pytest.raises(ConnectionResetError, match="hung up"):
        run(sh("cat"), upload=Broken())


@shell
def test_output_is_handed_on_as_it_comes(tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    seen: list[bytes] = []

    def take(chunk: bytes) -> None:
        seen.append(chunk)
        if len(seen) == 1:
            fifo.write_bytes(b"go")

    done = run(sh('echo first; cat "$1"', str(fifo)), on_output=take)

    assert seen[0] == b"first\n"
    assert b"".join(seen) == done.stdout == b"first\ngo"


@shell
def test_what_a_listener_raises_ends_the_command() -> None:
    def refuse(chunk: bytes) -> None:
        raise ValueError("not like this")

    started = time.monotonic()
    with pytest.raises(ValueError, match="not like this"):
        run(sh("echo x; sleep 60"), on_output=refuse)
    assert time.monotonic() - started < 30


@shell
def test_a_child_in_the_background_does_not_keep_the_caller() -> None:
    started = time.monotonic()

    done = run(sh("sleep 20 & echo done"))

    assert done.stdout == b"done\n"
    assert time.monotonic() - started < 15


def test_standard_input_appears_in_no_text() -> None:
    assert "secret" not in repr(Command.of(["x"], deadline=1, stdin=b"secret"))


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_a_quoted_line_splits_into_the_same_words(words: list[str]) -> None:
    assert shlex.split(quote(words)) == words


@shell
@pytest.mark.parametrize(
    "word", ["a b", "$(id)", "`id`", "a'b", 'a"b', "a\nb", "\\", "*", "~", "#", "ä", "", "!!"]
)
def test_a_shell_takes_a_quoted_word_as_it_is(word: str) -> None:
    assert run(sh(f"printf %s {quote([word])}")).text == word


def test_a_nul_is_refused() -> None:
    with pytest.raises(HostError, match="NUL"):
        quote(["a\0b"])

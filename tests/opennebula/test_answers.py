# SPDX-License-Identifier: Apache-2.0
"""What a driver says, read back as oned reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanstone import errors
from sanstone.errors import ArrayError, CapacityError, RequestError, SanstoneError
from sanstone.model import MIB, Capacity
from sanstone.opennebula import answers as a

RECORDED = Path(__file__).parents[1] / "data" / "opennebula-7.4"
TAGGED = re.compile(r"(ERROR|INFO|WARN|DEBUG):\s+([0-9]+)?\s*(.*)")
BLANKS = " \t\n\v\f\r\0"


def _read_by_74(stderr: str) -> tuple[str, list[tuple[str, str | None, str]]]:
    """Read standard error by the rule of 7.4: the error text, and (level, id, text) of what is logged."""
    text, logged = "", []
    for line in stderr.split("\n"):
        line = line.strip(BLANKS)
        if match := TAGGED.fullmatch(line):
            logged.append((match[1], match[2], match[3].strip(BLANKS)))
        else:
            text += line
    return text.strip(BLANKS), logged


def _read_by_610(stderr: str) -> str:
    return stderr.replace("\n", " ").strip(BLANKS)


def test_rule_of_74_is_as_recorded() -> None:
    cycles = json.loads((RECORDED / "life-cycles.json").read_text())
    seen = 0
    for name in ("plain", "delimited", "tagged"):
        operation = f"image-create-cp-fails-{name}"
        calls = (RECORDED / "calls" / f"{operation}.jsonl").read_text().splitlines()
        stderr = json.loads(calls[-1])["result"]["stderr"]
        text, _ = _read_by_74(stderr)
        assert cycles[operation]["image_ERROR"].endswith(f"in the datastore: {text}")
        seen += 1
    assert seen == 3


any_text = st.text(max_size=300) | st.lists(
    st.sampled_from(["ERROR: 7 x", "INFO:", "WARN: ", "\n", "\r", "\0", "]]>", "\x1b[31m", "é", "word", " "])
).map("".join)


@given(any_text, any_text, any_text, st.none() | st.integers(0, 9), st.integers(20, 99))
@example("ERROR: 5 x", "", "", None, 99)
@example("\ud800\u2028\x85", "\n", "\r\n", 3, 60)
@example("x" * 99, "y", "ERROR:", None, 99)
def test_people_get_one_short_line_whatever_the_texts(
    message: str, hint: str, details: str, object_id: int | None, limit: int
) -> None:
    error = SanstoneError(message, hint, details)
    answer = a.failure(error, object_id=object_id, limit=limit)
    first, _, rest = answer.stderr.partition("\n")
    text, logged = _read_by_74(answer.stderr)
    assert text == first
    assert 0 < len(text) <= limit <= a.LINE_LIMIT
    assert answer.stderr.endswith("\n")
    assert answer.stderr.isascii()
    assert answer.stderr.replace("\n", "").isprintable()
    assert "]]>" not in answer.stderr
    assert len(logged) == rest.count("\n")
    assert all(number == (None if object_id is None else str(object_id)) for _, number, _ in logged)
    assert (answer.code, answer.stdout) == (1, "")


@given(any_text, any_text)
def test_nothing_of_message_and_hint_is_lost(message: str, hint: str) -> None:
    answer = a.failure(SanstoneError(message, hint))
    heard = _read_by_610(answer.stderr)
    for text in (message, hint):
        assert a.clean(text) in heard


def test_message_hint_and_code_stand_together_when_they_fit() -> None:
    answer = a.failure(CapacityError("Pool P0 is full.", "Make room."))
    assert answer == a.Answer(8, "", "Pool P0 is full. Make room. [SAN070]\n")


def test_hint_goes_to_the_log_when_it_does_not_fit() -> None:
    answer = a.failure(
        ArrayError("The array refused to map volume one-7 to node3.", "h" * 80, "CMMVC5842E gone"),
        object_id=14,
    )
    assert answer.stderr.splitlines() == [
        "The array refused to map volume one-7 to node3. [SAN100]",
        f"ERROR: 14 SAN100 The array refused to map volume one-7 to node3. {'h' * 80}",
        "INFO: 14 CMMVC5842E gone",
    ]


def test_long_message_is_cut_at_the_end_of_a_sentence() -> None:
    first = "Volume one-img-7 is still mapped to node3 with LUN 4 and cannot be removed."
    answer = a.failure(
        SanstoneError(f"{first} It was mapped there by a migration that failed some time ago.")
    )
    assert answer.stderr.splitlines()[0] == first


def test_long_sentence_is_cut_at_a_word() -> None:
    line = a.failure(SanstoneError("wordy " * 40)).stderr.splitlines()[0]
    assert line.endswith("wordy...")
    assert 90 < len(line) <= 99


def test_line_for_a_transfer_script_survives_oned_whole() -> None:
    line = a.failure(SanstoneError("word " * 40), limit=a.SCRIPT_LINE_LIMIT).stderr.splitlines()[0]
    assert len("Error executing image transfer script: " + line) < 100


def test_texts_of_an_array_cannot_fake_lines() -> None:
    answer = a.failure(SanstoneError("bad\nERROR: 3 faked", details="one\nDEBUG: 5 faked\r\nINFO: 6 faked"))
    text, logged = _read_by_74(answer.stderr)
    assert text == "bad ERROR: 3 faked [SAN000]"
    assert [entry[:2] for entry in logged] == [("INFO", None)] * 3


def test_digits_at_the_start_are_not_taken_for_an_id() -> None:
    _, logged = _read_by_74(a.log_line("INFO", "5 volumes mapped"))
    assert logged == [("INFO", None, "- 5 volumes mapped")]
    _, logged = _read_by_74(a.log_line("WARN", "5 volumes mapped", 14))
    assert logged == [("WARN", "14", "5 volumes mapped")]


def test_many_details_are_shortened_in_the_middle() -> None:
    details = "\n".join(f"line {number}" for number in range(1000))
    _, logged = _read_by_74(a.failure(SanstoneError("m", details=details)).stderr)
    assert len(logged) == 41
    assert (logged[0][2], logged[20][2], logged[-1][2]) == (
        "line 0",
        "... 960 lines left out ...",
        "line 999",
    )


def test_details_stay_out_of_the_message_that_6_10_shows() -> None:
    error = SanstoneError("m", details="a long output")
    assert "a long output" not in _read_by_610(a.failure(error, version="6.10.2").stderr)
    assert "a long output" in a.failure(error, version="7.4.0").stderr


def test_unforeseen_error_names_its_place_and_no_trace() -> None:
    try:
        raise KeyError("wwid\nERROR: 3 x")
    except KeyError as error:
        answer = a.failure(error)
    text, logged = _read_by_74(answer.stderr)
    assert text.startswith("Unexpected KeyError: 'wwid")
    assert len(logged) == 1
    assert "test_unforeseen_error_names_its_place_and_no_trace" in logged[0][2]
    assert "Traceback" not in answer.stderr
    assert ".py" not in answer.stderr
    assert answer.code == 1


@pytest.mark.parametrize("kind", [getattr(errors, name) for name in errors.__all__])
def test_each_family_keeps_its_exit_code(kind: type[SanstoneError]) -> None:
    answer = a.failure(kind("What happened."))
    assert 0 < answer.code == kind.exit_code < 126
    assert answer.stderr == f"What happened. [{kind.code}]\n"


def test_success_brings_stdout_and_log_lines() -> None:
    answer = a.success("one-7 raw", log=[a.log_line("INFO", "mapped", 7), a.log_line("INFO", " ")])
    assert answer == a.Answer(0, "one-7 raw", "INFO: 7 mapped\n")


def test_sources_are_given_as_oned_takes_them() -> None:
    assert a.image_source("iqn.1986-03.com.ibm:2145.c1.node1.one-7", "raw").split() == [
        "iqn.1986-03.com.ibm:2145.c1.node1.one-7",
        "raw",
    ]
    assert a.datablock_source("one-7") == "one-7"


@pytest.mark.parametrize("source", ["", "a b", "a\n", "a\tb", "a\0", "é", "x" * 1025])
def test_source_that_oned_would_cut_is_refused(source: str) -> None:
    with pytest.raises(RequestError):
        a.image_source(source, "raw")
    with pytest.raises(RequestError):
        a.datablock_source(source)


@pytest.mark.parametrize("format", ["", "r w", "raw\n"])
def test_format_that_oned_would_not_take_is_refused(format: str) -> None:
    with pytest.raises(RequestError):
        a.image_source("one-7", format)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (1, "1"), (MIB, "1"), (MIB + 1, "2"), (10**15, "953674317")]
)
def test_size_is_rounded_up(size: int, text: str) -> None:
    assert a.size_in_mib(size) == text


def test_negative_size_is_refused() -> None:
    with pytest.raises(RequestError):
        a.size_in_mib(-1)


def test_capacity_never_promises_more_than_there_is() -> None:
    capacity = Capacity(total=10 * MIB + 5, used=MIB + 1, free=9 * MIB - 1)
    assert a.monitor(capacity) == "USED_MB=2\nTOTAL_MB=10\nFREE_MB=8"


def test_overcommitted_pool_has_nothing_free() -> None:
    assert a.monitor(Capacity(total=MIB, used=2 * MIB, free=-MIB)) == "USED_MB=2\nTOTAL_MB=1\nFREE_MB=0"

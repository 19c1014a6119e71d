# SPDX-License-Identifier: Apache-2.0
"""OpenNebula's template form, read as its own scanner reads it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanstone.cli.template import TemplateAttribute, read_template
from sanstone.errors import RequestError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# only a comment", []),
        ("A=1", [("A", "1", 1)]),
        ("a = b\n", [("A", "b", 1)]),
        ("  A\t=\t1  \n\n B = 2", [("A", "1", 1), ("B", "2", 3)]),
        ("A = 1 # why\nB=2#c\n", [("A", "1", 1), ("B", "2", 2)]),
        ('A = "x y" B = z', [("A", "x y", 1), ("B", "z", 1)]),
        ('A = "x # y = [z], w"', [("A", "x # y = [z], w", 1)]),
        ('A = "say \\"hi\\""', [("A", 'say "hi"', 1)]),
        ('A = "two\nlines"\nB = 1', [("A", "two\nlines", 1), ("B", "1", 3)]),
        ("A =\nB = 1", [("A", "", 1), ("B", "1", 2)]),
        ("A =", [("A", "", 1)]),
        ('A = ""', [("A", "", 1)]),
        ("A = 1\r\nB = 2\r\n", [("A", "1", 1), ("B", "2", 2)]),
        ('A = [ B = "1", c = 2 ]', [("A", {"B": "1", "C": "2"}, 1)]),
        ('A = [\n  B = "1",\n  C = "2"\n]\nD = 3', [("A", {"B": "1", "C": "2"}, 1), ("D", "3", 5)]),
        ("A = []", [("A", {}, 1)]),
        ("A = 1\nA = 2", [("A", "1", 1), ("A", "2", 2)]),
        ("MGMT = fe80::1", [("MGMT", "fe80::1", 1)]),
    ],
)
def test_template_is_read(text: str, expected: list[tuple[str, object, int]]) -> None:
    assert read_template(text) == [TemplateAttribute(*each) for each in expected]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("A", 1, "A is not followed by ="),
        ("A = 1\nB = node1 node2\n", 2, "node2 is not followed by ="),
        ('A = 1\n\nB = "x', 3, "quotation mark of B is never closed"),
        ("= 1", 1, "'=' stands where a name belongs"),
        ("A = ,", 1, "begins with ','"),
        ('A = [ B = "1" C = "2" ]', 1, "a comma or ] is missing before 'C'"),
        ('A = [ B = "1"', 1, "is missing before the end"),
        ("A = [ B = 1,", 1, "the end stands where a name belongs"),
        ("A = [ B = ]", 1, "A/B has a value that begins with ']'"),
        ("<DATASTORE/>", 1, "this is XML"),
        ("A-B = 1", 1, "A is not followed by ="),
    ],
)
def test_what_oned_would_refuse_is_refused_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_template(text)
    assert caught.value.message.startswith(f"Line {line}: ")
    assert said in caught.value.message


@example("1=[")
@example("A = [ B = 1,")
@given(st.text(alphabet=st.sampled_from('AB1 ="[],#\n\\<\t'), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = read_template(text)
    except RequestError:
        return
    assert all(each.name and each.line >= 1 for each in found)


@given(
    st.text(max_size=30).filter(
        lambda text: not text.endswith("\\") and "\r" not in text and '\\"' not in text
    )
)
def test_quoted_value_comes_back_as_it_was(value: str) -> None:
    quoted = value.replace('"', '\\"')
    assert read_template(f'A = "{quoted}"\nB = 1')[0].value == value

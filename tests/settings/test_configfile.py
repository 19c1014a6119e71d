# SPDX-License-Identifier: Apache-2.0
"""sanstone.conf: what is understood, what is refused with its line, and how it keeps passwords."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanstone.errors import ConfigurationError
from sanstone.secret import Secret
from sanstone.settings import (
    ConfigFile,
    attributes,
    resolve,
)
from tests.settings.samples import SAN, conf, explains_itself, outcome, refusal


def test_missing_default_file_is_an_empty_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sanstone.settings.configfile.DEFAULT_PATH", tmp_path / "none")
    assert ConfigFile.read(environ={}).sections == {}


def test_environment_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "other.conf"
    path.write_text("[v7000]\nCOPYRATE = 1\n")
    config = ConfigFile.read(environ={"SANSTONE_CONF": str(path)})
    assert resolve("v7000", config, datastore=SAN).integer("COPYRATE") == 1


def test_named_file_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pytest.raises(ConfigurationError, match="none does not exist"):
        ConfigFile.read(path)
    with pytest.raises(ConfigurationError, match="none does not exist"):
        ConfigFile.read(environ={"SANSTONE_CONF": str(path)})


def test_directory_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ConfigFile.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("COPYRATE = 1\n", 1, "before the first section"),
        ("[v7000]\nCOPYRATE\n", 2, "not of the form"),
        ("[v7000]\nCOPYRATE = 1\n\nCOPYRATE = 2\n", 4, "COPYRATE is in [v7000] already"),
        ("[v7000]\n[hosts]\n[v7000]\n", 3, "already"),
        ('[v7000 "a"]\n[v7000 "A"]\n', 2, "already"),
        ("[sanstone]\n[v700]\n", 2, "no section [v700]"),
        ("[DEFAULT]\nCOPYRATE=1\n", 1, "no section [DEFAULT]"),
        ('[hosts "a"]\n', 1, "no section"),
        ("[v7000 a]\n", 1, "no section"),
        ("[sanstone]\n\nCOPYTOOL = dd\n", 3, "COPYTOOL has no meaning"),
        ("[sanstone]\nMGMT_USER = a\n", 2, "MGMT_USER has no meaning"),
        ("[v7000]\nSTATE_DIR = /a\n", 2, "STATE_DIR has no meaning"),
        ('[v7000 "a"]\nMGMT = b\n', 2, "MGMT has no meaning"),
        ("[v7000]\nCOPYRATE = 1\x00\n", 2, "cannot be printed"),
        ("[v7000]\n# \u202e\n", 2, "cannot be printed"),
    ],
)
def test_file_that_is_not_understood_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        conf(tmp_path, text)
    assert f"sanstone.conf, line {line}" in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[sanstone]\nCOPYTOOL = dd\n", "Is COPY_TOOL meant?"),
        ("[sanstone]\nMGMT_USER = a\n", "It belongs in [v7000]."),
        ("[v7000]\nSTATE_DIR = /a\n", "It belongs in [sanstone]."),
        ("[sanstone]\nSSH_OPTIONS = -4\n", "It belongs in [hosts]."),
    ],
)
def test_hint_says_where_a_name_belongs(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        conf(tmp_path, text)
    assert caught.value.hint == hint


def test_file_that_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "sanstone.conf"
    path.write_bytes(b"[v7000]\nCOPYRATE = \xff\n")
    with pytest.raises(ConfigurationError, match="line 2, is not UTF-8"):
        ConfigFile.read(path)


def test_value_over_two_lines_is_refused(tmp_path: Path) -> None:
    config = conf(tmp_path, "[v7000]\nMDISK_GROUP = a\n  b\n")
    assert "MDISK_GROUP=a?b" in refusal(SAN, config).message


def test_comments_windows_lines_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "sanstone.conf"
    path.write_bytes(b"\xef\xbb\xbf# a\r\n[v7000]\r\n; b\r\nCOPYRATE=7\r\n\r\n")
    assert resolve("v7000", ConfigFile.read(path), datastore=SAN).integer("COPYRATE") == 7


def test_percent_sign_in_a_password_is_not_interpreted(tmp_path: Path) -> None:
    config = conf(tmp_path, "[v7000]\nMGMT_PASSWORD = 100%(x)s #1\n")
    assert resolve("v7000", config, datastore=SAN).secret("MGMT_PASSWORD") == Secret("100%(x)s #1")


def test_password_that_everybody_can_read_gives_a_warning(tmp_path: Path) -> None:
    text = "[v7000]\nMGMT_PASSWORD = canary\n"
    assert resolve("v7000", conf(tmp_path, text, 0o640), datastore=SAN).warnings == ()
    (warning,) = resolve("v7000", conf(tmp_path, text, 0o644), datastore=SAN).warnings
    assert "every user can read it" in warning
    assert "canary" not in warning


def test_password_is_read_from_its_file(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("geheim wort\nsecond line\n")
    password.chmod(0o640)
    config = conf(tmp_path, f"[v7000]\nMGMT_PASSWORD_FILE = {password}\n")
    secret = resolve("v7000", config, datastore=SAN).secret("MGMT_PASSWORD")
    assert secret == Secret("geheim wort")


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (None, 0o600, "cannot be read"),
        (b"", 0o600, "first line is empty"),
        (b"\nx", 0o600, "first line is empty"),
        (b"canary\n", 0o604, "can be read by every user"),
        (b"\xff\n", 0o600, "cannot be read"),
    ],
)
def test_password_file_that_is_unfit_is_refused(
    tmp_path: Path, content: bytes | None, mode: int, said: str
) -> None:
    password = tmp_path / "password"
    if content is not None:
        password.write_bytes(content)
        password.chmod(mode)
    settings = resolve("v7000", conf(tmp_path, f"[v7000]\nMGMT_PASSWORD_FILE={password}\n"), datastore=SAN)
    with pytest.raises(ConfigurationError, match=said) as caught:
        settings.secret("MGMT_PASSWORD")
    assert "canary" not in str(caught.value)


def test_two_places_for_the_password_are_refused(tmp_path: Path) -> None:
    config = conf(tmp_path, "[v7000]\nMGMT_PASSWORD = canary\nMGMT_PASSWORD_FILE = /x\n")
    error = refusal(SAN, config)
    assert "both set" in error.message
    assert "canary" not in str(error) + error.details


def test_secret_is_not_shown_by_anything(tmp_path: Path) -> None:
    config = conf(tmp_path, "[v7000]\nMGMT_PASSWORD = canary\nCOPYRATE = 1\n")
    settings = resolve("v7000", config, datastore=SAN)
    shown = [repr(settings), repr(config), *(repr(each) + each.shown for each in settings)]
    assert "canary" not in "".join(shown)


@given(
    content=st.one_of(
        st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
    )
)
@example(content=b"[v7000]\n =1\n")
@example(content=b"[\x00]\nA=1\n")
@example(content=b"[v7000]\n  a\n  COPYRATE=1\n")
def test_any_file_is_read_or_refused_with_a_reason(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.conf"
    path.write_bytes(content)
    path.chmod(0o600)
    assert explains_itself(outcome(lambda: resolve("v7000", ConfigFile.read(path), datastore=SAN)))


LINES = st.tuples(
    st.sampled_from(["", "[v7000]", "[sanstone]", '[v7000 "v7000-a"]', "  ", "#"]),
    st.sampled_from([*attributes("v7000"), "OTHER"]),
    st.sampled_from([" = ", "=", ":", " "]),
    st.text(alphabet=string.printable, max_size=12),
).map("".join)


@given(lines=st.lists(LINES, max_size=8))
def test_any_lines_of_a_file_are_read_or_refused_with_a_reason(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.conf"
    path.write_text("\n".join(["[v7000]", *lines]))
    path.chmod(0o600)
    assert explains_itself(outcome(lambda: resolve("v7000", ConfigFile.read(path), datastore=SAN)))

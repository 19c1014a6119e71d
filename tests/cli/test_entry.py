# SPDX-License-Identifier: Apache-2.0
"""The command as a person meets it: exit codes, errors, pipes, Ctrl-C, and how fast it starts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sanstone
from sanstone import errors
from sanstone.cli import main
from sanstone.cli.commands import COMMANDS

LIBRARY = Path(sanstone.__file__).parents[1]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "sanstone.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(LIBRARY), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_command_names_a_function_that_is_there() -> None:
    for command in COMMANDS:
        module, name = command.run.split(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("arguments", [["--help"], *([command.name, "--help"] for command in COMMANDS)])
def test_help_is_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert "usage: sanstone" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["settings", "--json", "--markdown"], ["check"]])
def test_wrong_usage_ends_like_a_request_that_is_not_understood(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == errors.RequestError.exit_code
    assert capsys.readouterr().err.startswith("usage: sanstone")


def test_error_is_a_sentence_with_a_hint_and_the_exit_code_of_its_class(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["settings", "nosuch"]) == errors.NotSupportedError.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "sanstone: There is no driver 'nosuch'.\n  Drivers of this version: v7000, iscsi.\n"


def test_ctrl_c_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sanstone.cli.settings.run", interrupted)
    assert main(["settings"]) == 130
    assert capsys.readouterr().err == ""


def test_defect_is_shown_with_a_request_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: object) -> int:
        raise ZeroDivisionError("divided")

    monkeypatch.setattr("sanstone.cli.settings.run", broken)
    assert main(["settings"]) == 70
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: divided" in shown
    assert shown.endswith("Please report it with the lines above.\n")


@pytest.mark.real("python3")
def test_version_is_printed_by_the_module() -> None:
    ended = run("--version")
    assert (ended.returncode, ended.stdout) == (0, f"sanstone {sanstone.__version__}\n")


@pytest.mark.real("python3")
def test_reader_that_goes_away_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "sanstone.cli", "settings", "--json"],
            env={**os.environ, "PYTHONPATH": str(LIBRARY)},
            stdout=write_end,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.real("python3")
def test_text_beyond_ascii_is_printed_in_any_locale(tmp_path: Path) -> None:
    template = tmp_path / "t"
    template.write_text(
        'NAME = "B\u00fccher"\nDS_MAD = v7000\nMGMT = a\nSTAGING_DIR = /b\u00fccher\n', encoding="utf-8"
    )
    ended = run("check", str(template), LC_ALL="POSIX", PYTHONIOENCODING="ascii", SANSTONE_CONF=os.devnull)
    assert ended.returncode == errors.ConfigurationError.exit_code
    assert "TM_MAD is missing" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.real("python3")
def test_start_imports_nothing_that_the_command_does_not_need() -> None:
    code = (
        "import sys, json; from sanstone.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(LIBRARY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(json.loads(ended.stdout.splitlines()[-1]))
    assert not loaded & {
        "paramiko",
        "pyone",
        "requests",
        "configparser",
        "sanstone.settings",
        "sanstone.actions",
    }

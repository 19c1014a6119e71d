# SPDX-License-Identifier: Apache-2.0
"""What a reader of the repository relies on: commands that exist, links that resolve, a stated licence."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sanstone

ROOT = Path(__file__).resolve().parents[1]
SPDX = "# SPDX-License-Identifier: Apache-2.0"
GENERATED = {".git", ".venv", "__pycache__", "build", "dist", "sanstone.egg-info"}
CACHES = re.compile(r"\.\w+_cache|\.hypothesis")
RECORDED = ROOT / "tests/data"


def files() -> Iterator[Path]:
    """Yield the files of the checkout, without what tools generate and without recorded data."""
    for folder, names, found in os.walk(ROOT):
        names[:] = [name for name in names if name not in GENERATED and not CACHES.fullmatch(name)]
        if RECORDED not in (Path(folder), *Path(folder).parents):
            yield from (Path(folder, name) for name in found if not Path(folder, name).is_symlink())


def texts() -> Iterator[tuple[str, str]]:
    for file in files():
        raw = file.read_bytes()
        if b"\0" not in raw:
            yield str(file.relative_to(ROOT)), raw.decode()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_commands_in_the_documents_are_make_targets() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci/run", *ROOT.glob("docs/**/*.md")]
    named = {
        target
        for document in documents
        for target in re.findall(
            r"(?:^|`)make (?:[A-Z]+=\S+ )*([a-z][\w-]*)", document.read_text(), re.MULTILINE
        )
    }
    assert named >= {"demo", "test"}
    assert named <= make_targets()


def test_readme_offers_two_commands() -> None:
    (block,) = re.findall(r"```sh\n(make .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [line.split("#")[0].strip() for line in block.splitlines()] == ["make demo", "make test"]


def test_ci_runs_what_the_readme_says() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


def test_files_know_no_machine() -> None:
    places = re.compile("|".join([re.escape(str(ROOT)) + r"\b", r"/home/[a-z]", r"/Users/\w"]))
    assert [name for name, text in texts() if places.search(text)] == []


def test_every_script_states_the_licence_first() -> None:
    silent = []
    for name, text in texts():
        if not text:
            continue
        first, _, rest = text.partition("\n")
        is_script = first.startswith("#!")
        if name.endswith((".py", ".sh")) or is_script or name in ("Makefile", "setup.cfg"):
            stated = rest.partition("\n")[0] if is_script else first
            silent += [name] * (stated != SPDX)
    assert silent == []


def test_links_of_the_documents_resolve() -> None:
    broken = []
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = document.read_text()
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target, _, anchor = link.partition("#")
            if ":" in target:
                continue
            file = (document.parent / target).resolve() if target else document
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{document.relative_to(ROOT)}: {link}")
    assert broken == []


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    documents = {str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")} - {"README.md"}
    assert {name for name in documents if f"]({name})" not in index} == set()


def test_every_dependency_has_its_reason() -> None:
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    requirement = re.compile(r"    [a-zA-Z][\w-]*([<>=~!]=?[\d.]+)?$")
    section, unreasoned, seen = "", [], 0
    for above, line in zip(["", *lines], lines, strict=False):
        if re.match(r"\S.*=$|\[.*\]$", line):
            section = line
        if section in ("install_requires =", "test =") and requirement.match(line):
            seen += 1
            unreasoned += [line.strip()] * (not above.startswith("    # "))
    assert seen >= 3
    assert unreasoned == []


def test_library_imports_only_what_setup_cfg_names() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = {
        re.split(r"[<>=~! ]", line)[0] for line in config["options"]["install_requires"].split("\n") if line
    }
    imported = {
        name.split(".")[0]
        for file in (ROOT / "remotes/sanstone").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in modules_of(node)
    }
    assert imported - set(sys.stdlib_module_names) - {"sanstone"} <= named


def modules_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


def test_changelog_has_an_entry_for_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(
        rf"^## \[{re.escape(sanstone.__version__)}\] - (unreleased|\d{{4}}-\d\d-\d\d)$", text, re.M
    )


@pytest.mark.real("make", "python3")
def test_make_help_names_the_two_commands() -> None:
    answer = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, timeout=30)
    assert "make demo" in answer.stdout
    assert "make test" in answer.stdout

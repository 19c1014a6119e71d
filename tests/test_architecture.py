# SPDX-License-Identifier: Apache-2.0
"""The house stands as docs/architecture.md draws it: imports point down, and in no circle.

The imports are read from the source, also those in functions and under ``TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
import graphlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sanstone.opennebula.messages import DATASTORE_ACTIONS, TM_ACTIONS

ROOT = Path(__file__).resolve().parents[1]
REMOTES = ROOT / "remotes"

# The floor of each room; the same table stands in docs/architecture.md.
FLOORS = {
    "remotes/datastore": 5,
    "remotes/tm": 5,
    "sanstone.cli": 5,
    "sanstone.driver": 5,
    "sanstone.actions": 4,
    "sanstone.arrays": 3,
    "sanstone.hosts": 3,
    "sanstone.store": 3,
    "sanstone.opennebula": 2,
    "sanstone.transport": 2,
    "sanstone.settings": 2,
    "sanstone.names": 2,
    "sanstone.model": 1,
    "sanstone.errors": 1,
    "sanstone.secret": 1,
}
FLOORS_WITHOUT_NEIGHBOURS = {3}
FLOORS_FOR_THE_LAB = {1, 2}
LINES = 600

# What runs on another machine brings nothing along, and that has nothing of ours installed.
REMOTE = "sanstone.transport.remote"
NODES = ("sanstone.hosts.node", "sanstone.arrays.iscsi.node", REMOTE)

# Where a pause between two looks is made: one place in the library, one in the programs for other machines.
WAITING = {"sanstone.transport.waiting", "sanstone.transport.remote.run"}

# What oned asks of a datastore for backups only, which none of the drivers is.
BACKUP = {"backup", "backup_cancel", "increment_flatten", "restore"}
ENTRY_POINTS = {"datastore": set(DATASTORE_ACTIONS) - BACKUP, "tm": set(TM_ACTIONS)}
DRIVERS = ["iscsi", "v7000"]


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


LIBRARY = {module_name(file, REMOTES): file for file in python_files("remotes")}


def imported_names(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of all that is imported; ``from a import b`` yields ``a.b``."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def lines_for_types_only(source: str) -> set[int]:
    """Return the lines below ``if TYPE_CHECKING``, which are never executed."""
    return {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for line in range(node.lineno, (node.body[-1].end_lineno or node.lineno) + 1)
    }


def imports_of(file: Path, root: Path) -> list[tuple[int, str]]:
    return list(imported_names(file.read_text(), module_name(file, root), file.name == "__init__.py"))


def library_module(name: str) -> str | None:
    """Return the module of the library that the import of ``name`` needs, None for somebody else's."""
    while name not in LIBRARY:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


def room_of(module: str) -> str | None:
    return next((room for room in FLOORS if module == room or module.startswith(room + ".")), None)


def arrows(*, within_rooms_executed_only: bool = False) -> Iterator[tuple[str, str, str]]:
    """Yield importing module, imported module and where that stands, within the library."""
    for module, file in LIBRARY.items():
        types_only = lines_for_types_only(file.read_text()) if within_rooms_executed_only else set()
        for line, name in imports_of(file, REMOTES):
            imported = library_module(name)
            if imported is None or imported == module:
                continue
            if line not in types_only or room_of(imported) != room_of(module):
                yield module, imported, f"{file.relative_to(ROOT)}:{line}"


def fault(module: str, imported: str) -> str:
    """Say what is wrong with an import, empty if nothing is. The version in ``sanstone`` is for everybody."""
    above, below = room_of(module), room_of(imported)
    if imported == "sanstone" or above is None or below is None or above == below:
        return ""
    if FLOORS[below] > FLOORS[above]:
        return f"{module} on floor {FLOORS[above]} imports {imported} from floor {FLOORS[below]}"
    if FLOORS[below] == FLOORS[above] and FLOORS[below] in FLOORS_WITHOUT_NEIGHBOURS:
        return f"{module} imports its neighbour {imported}"
    return ""


def test_table_of_rooms_is_the_one_in_the_document() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.partition("## The rooms")[2].partition("\n## ")[0]
    drawn = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| (.+?) \|", section, re.MULTILINE):
        drawn.update(dict.fromkeys(re.findall(r"`([^`]+)`", rooms), int(floor)))
    assert drawn == FLOORS


def test_every_module_has_a_room() -> None:
    homeless = [module for module in LIBRARY if room_of(module) is None and module != "sanstone"]
    assert homeless == [], "give them a floor in docs/architecture.md and in FLOORS"


def test_imports_point_down() -> None:
    faults = [f"{where}: {words}" for a, b, where in arrows() if (words := fault(a, b))]
    assert faults == []


def test_rule_for_imports_finds_what_points_up_or_aside() -> None:
    assert fault("sanstone.transport.ssh", "sanstone.arrays.base")
    assert fault("sanstone.arrays.v7000", "sanstone.hosts.client")
    assert fault("sanstone.errors", "sanstone.model") == ""
    assert fault("sanstone.actions.tm", "sanstone.hosts.client") == ""


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import sanstone.hosts.ops", ["sanstone.hosts.ops"]),
        ("from sanstone.hosts import ops, run", ["sanstone.hosts.ops", "sanstone.hosts.run"]),
        ("from . import scsi", ["sanstone.hosts.scsi"]),
        ("from ..model import Volume", ["sanstone.model.Volume"]),
        ("def f():\n    from .. import errors", ["sanstone.errors"]),
        ("if TYPE_CHECKING:\n    from lab import sshd", ["lab.sshd"]),
    ],
)
def test_all_forms_of_import_are_seen(source: str, names: list[str]) -> None:
    assert [name for _, name in imported_names(source, "sanstone.hosts.client", False)] == names


def test_imports_go_in_no_circle() -> None:
    """Within a room, two modules may know one another's types; between rooms not even that."""
    graph: dict[str, set[str]] = {module: set() for module in LIBRARY}
    for module, imported, _ in arrows(within_rooms_executed_only=True):
        graph[module].add(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as err:
        pytest.fail(" imports ".join(reversed(err.args[1])))


def test_library_knows_neither_lab_nor_tests_nor_bench() -> None:
    strangers = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in LIBRARY.values()
        for line, name in imports_of(file, REMOTES)
        if name.split(".")[0] in {"lab", "tests", "bench"}
    ]
    assert strangers == []


def test_lab_knows_only_the_lower_floors() -> None:
    too_high = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in python_files("lab")
        for line, name in imports_of(file, ROOT)
        if (module := library_module(name)) and module != "sanstone"
        if FLOORS.get(room_of(module) or "") not in FLOORS_FOR_THE_LAB
    ]
    assert too_high == []


@pytest.mark.parametrize("node", NODES)
def test_program_for_other_machines_needs_the_standard_library_only(node: str) -> None:
    foreign = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for module, file in LIBRARY.items()
        if module == node or module.startswith(node + ".")
        for line, name in imports_of(file, REMOTES)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not f"{name}.".startswith((node + ".", REMOTE + "."))
    ]
    assert foreign == []


def test_library_pauses_in_its_places_for_waiting_only() -> None:
    places = {
        module
        for module, file in LIBRARY.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "time.sleep")
        or (isinstance(node, ast.ImportFrom) and node.module == "time" and "sleep" in ast.unparse(node))
    }
    assert places <= WAITING, "wait for the thing itself with sanstone.transport.waiting"


def test_nothing_passes_through_a_shell() -> None:
    through_a_shell = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in python_files("remotes", "lab", "bench")
        for node in ast.walk(ast.parse(file.read_text()))
        if (isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) != "False")
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.system", "os.popen"})
    ]
    assert through_a_shell == []


@pytest.mark.parametrize("kind", ENTRY_POINTS)
@pytest.mark.parametrize("driver", DRIVERS)
def test_entry_points_are_links_to_the_one_script(driver: str, kind: str) -> None:
    script = REMOTES / "sanstone-driver"
    assert script.is_file()
    assert os.access(script, os.X_OK)
    folder = REMOTES / kind / driver
    links = {path.name: path.readlink() for path in folder.iterdir() if path.is_symlink()}
    assert {path.name for path in folder.iterdir()} == links.keys(), "there is something beside links"
    assert set(links.values()) == {Path("../../sanstone-driver")}
    assert links.keys() == ENTRY_POINTS[kind]


def test_no_driver_has_entry_points_by_the_way() -> None:
    assert {path.name for kind in ENTRY_POINTS for path in (REMOTES / kind).glob("*")} == set(DRIVERS)


def test_modules_can_be_read_in_one_go() -> None:
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for file in python_files("remotes", "lab", "bench", "tests")
    }
    assert {name: lines for name, lines in lengths.items() if lines > LINES} == {}

# SPDX-License-Identifier: Apache-2.0
"""The lab's virtual machines as far as nothing has to boot; what boots is in tests/kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lab.vm import image as image_module
from lab.vm.__main__ import arguments
from lab.vm.errors import VMError
from lab.vm.image import build_image, find_image, image_key, merge_iscsid, shipped_files
from lab.vm.lab import Lab
from lab.vm.qemu import Wiring
from lab.vm.rootfs import mirror

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = {"array1": 1, "node1": 11, "node2": 12}


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """Return a copy of etc/ that may be changed."""
    return Path(shutil.copytree(ROOT / "etc", tmp_path / "etc"))


# the key of the image


@pytest.mark.parametrize(
    "name",
    [
        "sudoers.d/sanstone",
        "multipath/conf.d/sanstone.conf",
        "udev/rules.d/90-sanstone.rules",
        "iscsi/iscsid.conf.sanstone",
    ],
)
def test_a_changed_file_of_etc_makes_another_image(etc: Path, name: str) -> None:
    before = image_key(etc)
    with (etc / name).open("a") as file:
        file.write("# one more line\n")
    assert image_key(etc) != before


def test_a_new_file_for_the_array_makes_another_image(etc: Path) -> None:
    shutil.rmtree(etc / "tgt", ignore_errors=True)
    before = image_key(etc)
    (etc / "tgt/conf.d").mkdir(parents=True)
    (etc / "tgt/conf.d/new.conf").write_text("# nothing yet\n")
    assert image_key(etc) != before


def test_what_no_machine_gets_makes_no_other_image(etc: Path) -> None:
    before = image_key(etc)
    (etc / "sanstone.conf").write_text("[sanstone]\n")
    assert image_key(etc) == before


def test_each_role_gets_its_rights_and_no_other(etc: Path) -> None:
    (etc / "sudoers.d/sanstone-target").write_text("# the target host's\n")
    rights = {key: file.name for key, (file, mode) in shipped_files(etc).items() if "sudoers.d" in key[1]}
    assert rights == {
        ("host", "etc/sudoers.d/sanstone"): "sanstone",
        ("array", "etc/sudoers.d/sanstone-target"): "sanstone-target",
    }


def test_values_for_iscsid_take_the_place_of_others() -> None:
    theirs = "node.startup = automatic\nnode.session.timeo.replacement_timeout = 120\nkeep = me\n"
    ours = "# why\nnode.startup = manual\nnode.session.scan = manual\n#node.session.auth.username = NAME\n"
    assert merge_iscsid(theirs, ours).splitlines() == [
        "node.startup = manual",
        "node.session.timeo.replacement_timeout = 120",
        "keep = me",
        "node.session.scan = manual",
    ]


def test_where_no_image_was_built_a_lab_says_what_to_do(tmp_path: Path) -> None:
    assert find_image() is None
    with pytest.raises(VMError, match="make lab ARGS=build"):
        Lab(tmp_path / "lab").start()


# a build that is killed


@pytest.fixture
def quick_layers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have layers that take no time; return what was made."""
    made: list[str] = []

    def rootfs(folder: Path, archives: Path) -> None:
        made.append("rootfs")
        for name in ("vmlinuz", "initrd"):
            (folder / name).write_text(name)

    def disk(folder: Path, tree: Path) -> None:
        made.append("image")
        (folder / "disk.img").write_text("disk")

    monkeypatch.setattr(image_module, "make_rootfs", rootfs)
    monkeypatch.setattr(image_module, "_make_image", disk)
    return made


def test_an_image_is_built_once(quick_layers: list[str]) -> None:
    image = build_image()
    assert image == build_image() == find_image()
    assert image.kernel.read_text() == "vmlinuz"
    assert quick_layers == ["rootfs", "image"]


def test_packages_are_not_fetched_again_for_a_changed_init_script(quick_layers: list[str]) -> None:
    shutil.rmtree(build_image().folder)
    build_image()
    assert quick_layers == ["rootfs", "image", "image"]


def test_a_build_that_failed_leaves_nothing_that_counts(
    home: Path, quick_layers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, tree: Path) -> None:
        (folder / "disk.img").write_text("half a disk")
        raise VMError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(image_module, "_make_image", fail)
        with pytest.raises(VMError, match="no space left"):
            build_image()
    assert find_image() is None
    images = home / ".cache/sanstone/vm"
    (images / "build-of-a-killed-one").mkdir()
    build_image()
    assert not list(images.glob("build-*"))


# the mirror


@pytest.mark.parametrize(
    ("name", "text", "address"),
    [
        ("sources.list", "deb http://mirror.example/debian bookworm main\n", "http://mirror.example/debian"),
        (
            "sources.list",
            "# deb http://no.example/debian bookworm main\n"
            "deb [signed-by=/k] https://mirror.example/debian/ trixie main contrib\n",
            "https://mirror.example/debian",
        ),
        ("sources.list", "deb http://mirror.example/debian bookworm-updates main\n", None),
        ("sources.list", "deb http://archive.example/ubuntu noble main\n", None),
        (
            "sources.list.d/debian.sources",
            "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n"
            "Components: main\nSigned-By: /k\n",
            "http://mirror.example/debian",
        ),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://security.example/debian-security\nSuites: bookworm-security\n"
            "Components: main\n\nTypes: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: bookworm\n"
            "Components: main\n",
            None,
        ),
        ("sources.list", "", None),
    ],
)
def test_the_mirror_is_the_one_of_this_machines_apt(
    tmp_path: Path, name: str, text: str, address: str | None
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert mirror(tmp_path) == (address or "http://deb.debian.org/debian")


# the machines' wiring


def wiring(name: str) -> Wiring:
    role = "array" if name.startswith("array") else "host"
    return Wiring(name, role, f"iqn.2020-01.org.example:{name}", NUMBERS, Path("/run/lab"))


def test_both_ends_of_every_link_meet() -> None:
    ends: dict[str, dict[str, str]] = {}
    for name in NUMBERS:
        for word in wiring(name).network_arguments({22: 0}):
            if word.startswith("dgram,"):
                fields = dict(field.split("=", 1) for field in word.split(",")[1:])
                ends[fields["local.path"]] = fields
    assert len(ends) == 2 * 3 * 2  # networks, pairs, ends
    for path, fields in ends.items():
        assert ends[fields["remote.path"]]["remote.path"] == path


def test_machines_are_reached_from_loopback_only_and_reach_nothing() -> None:
    (management,) = (word for word in wiring("node1").network_arguments({22: 0}) if word.startswith("user,"))
    assert management == "user,id=mgmt-net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"


def test_every_network_card_has_an_address_of_its_own() -> None:
    macs = [
        word.rpartition("mac=")[2]
        for name in NUMBERS
        for word in wiring(name).network_arguments({22: 0})
        if "mac=" in word
    ]
    assert len(set(macs)) == len(macs) == 3 * (1 + 2 * 2)


def test_without_a_lab_the_commands_for_a_person_say_so() -> None:
    options = arguments().parse_args(["status"])
    with pytest.raises(VMError, match="The lab is not up: make lab"):
        options.function(options)

# SPDX-License-Identifier: Apache-2.0
"""What users write into names, paths and attributes reaches no shell: it works or is refused in one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lab.oned import Answer
from lab.systems import ALL_ARRAYS
from tests.life_cycles.cloud import MIB, PROGRAMS, Cloud, RefusedError, written_file

pytestmark = pytest.mark.real(*PROGRAMS)

CONTENT = os.urandom(4 * MIB)
SECRET = "s3cret-of-the-box"

# in each, COMMAND is a command that makes a file
INJECTIONS = (
    "; COMMAND ;",
    "$(COMMAND)",
    "`COMMAND`",
    "' ; COMMAND ; '",
    '" ; COMMAND ; "',
    "| COMMAND",
    "&& COMMAND",
    "--option COMMAND",
)
PLAIN = (
    "two words",
    "-rf",
    "--help",
    "it's",
    'a "quote"',
    "ünïcödé ✓",
    "*",
    "~root",
    "a\\b",
    "%s%n",
    "x" * 200,
)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that only an injected command would make."""
    return tmp_path / "canary"


def command(canary: Path) -> str:
    return f"touch {canary}"


def assert_untouched(cloud: Cloud, canary: Path) -> None:
    """No command ran, no trace and no secret is in what the drivers said, and failures have one line."""
    assert not canary.exists()
    for call in cloud.oned.calls:
        assert_said_well(Answer(call.rc, call.stdout, call.stderr))
    secrets = (cloud.scene.key.read_text(), cloud.oned.session, SECRET)
    said = "".join(call.stderr + call.stdout for call in cloud.oned.calls)
    assert not any(secret in said for secret in secrets)


def assert_said_well(answer: Answer) -> None:
    assert "Traceback" not in answer.stderr
    assert "Unexpected" not in answer.stderr
    untagged = [
        line for line in answer.stderr.splitlines() if not re.match(r"(ERROR|WARN|INFO|DEBUG): ", line)
    ]
    assert len(untagged) == (1 if answer.rc else 0)


def test_files_with_hostile_names_are_imported(cloud: Cloud, canary: Path) -> None:
    texts = [text.replace("COMMAND", f"touch {canary.name}") for text in INJECTIONS]
    names = [*texts, *PLAIN]
    images = []
    for name in names:
        if name not in ("it's", texts[1], texts[2]):
            path = written_file(cloud.files / name, CONTENT)
            call = f"<PATH>{xml(str(path))}</PATH>"
            answer = cloud.drive("datastore", "stat", "1", stdin=document(cloud, call))
            assert (answer.rc, answer.stdout.strip()) == (0, "4"), (name, answer.stderr)
            continue
        images.append(cloud.imported(CONTENT, name))
        assert cloud.stored(f"one-{images[-1]}") == CONTENT
    assert_untouched(cloud, canary)
    assert [path for path in Path.cwd().glob(canary.name)] == []
    cloud.delete(*images)


def xml(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&apos;").replace('"', "&quot;")


def document(cloud: Cloud, image: str, **datastore: str) -> str:
    """What oned hands to ``stat``; ``datastore`` are attributes of the datastore."""
    attributes = {
        **cloud.array.attributes(),
        "BRIDGE_LIST": "node1",
        "SAFE_DIRS": str(cloud.files),
        "NO_ISCSI": "",
        **datastore,
    }
    template = "".join(f"<{name}>{xml(value)}</{name}>" for name, value in attributes.items())
    return (
        f"<DS_DRIVER_ACTION_DATA><IMAGE>{image}</IMAGE><DATASTORE><ID>100</ID><NAME>san</NAME><TYPE>0</TYPE>"
        f"<DS_MAD>{cloud.driver}</DS_MAD><TM_MAD>{cloud.driver}</TM_MAD><TEMPLATE>{template}</TEMPLATE></DATASTORE>"
        "</DS_DRIVER_ACTION_DATA>"
    )


def test_a_path_with_an_entity_is_decoded_once(cloud: Cloud) -> None:
    path = written_file(cloud.files / "it's &amp; more", CONTENT)
    answer = cloud.drive("datastore", "stat", "1", stdin=document(cloud, f"<PATH>{xml(str(path))}</PATH>"))
    assert (answer.rc, answer.stdout.strip()) == (0, "4"), answer.stderr


@pytest.mark.parametrize(
    "path", ["-o/etc/passwd", "relative.raw", "ftp://host/x", "file:///etc/passwd", "/", "/dev/null", "/\x01"]
)
def test_a_path_that_is_none_is_refused(cloud: Cloud, path: str) -> None:
    text = path.replace("\x01", "a&#10;b")
    answer = cloud.drive("datastore", "stat", "1", stdin=document(cloud, f"<PATH>{text}</PATH>"))
    assert answer.rc != 0
    assert_said_well(answer)


def test_names_and_attributes_of_images_reach_no_shell(cloud: Cloud, canary: Path) -> None:
    path = written_file(cloud.files / "disk.raw", CONTENT)
    made = []
    for name in ("x" * 300, "-rf ünïcödé ✓ two  words 100% *"):
        made.append(cloud.image(NAME=name, PATH=path, DESCRIPTION=f"$({command(canary)})"))
    for injection in INJECTIONS[1:4]:
        text = injection.replace("COMMAND", command(canary))
        wrong = cloud.image(PATH=path, MD5=text, SIZE=1, state="ERROR")
        assert "not a checksum" in cloud.image_error(wrong)
        cloud.delete(wrong)
        failed = cloud.image(FS=text, SIZE=1, state="ERROR")
        assert cloud.image_error(failed)
        cloud.delete(failed)
    assert_untouched(cloud, canary)
    cloud.assert_array({f"one-{image}" for image in made})
    cloud.delete(*made)


@pytest.mark.parametrize(
    ("system", "name"),
    [
        (system, name)
        for system, own in (("v7000", ("MGMT", "MDISK_GROUP", "IO_GROUP")), ("iscsi", ("HOST", "VG_NAME")))
        for name in (*own, "BRIDGE_LIST", "BASE_IQN", "STAGING_DIR", "COPY_TOOL", "NO_ISCSI")
        if system in ALL_ARRAYS
    ],
)
def test_attributes_of_a_datastore_reach_no_shell(cloud: Cloud, canary: Path, name: str) -> None:
    for injection in INJECTIONS[:3]:
        hostile = {name: injection.replace("COMMAND", command(canary))}
        answer = cloud.drive("datastore", "monitor", "100", stdin=document(cloud, "", **hostile))
        assert answer.rc == 3, answer.stderr
        assert name in answer.stderr
        assert_said_well(answer)
    assert not canary.exists()


def test_names_of_vms_and_context_reach_no_shell(cloud: Cloud, canary: Path) -> None:
    image = cloud.filled(CONTENT)
    text = f"$({command(canary)}) ; {command(canary)} # ` ' ünïcödé"
    rest = f'CPU="0.1"\nMEMORY="64"\nDISK=[IMAGE_ID="{image}"]\nCONTEXT=[ROLE="{text}"]'
    try:
        vm = int(cloud.call("vm.allocate", f'NAME="{text}"\n{rest}', True))
    except RefusedError:  # by oned itself
        vm = int(cloud.call("vm.allocate", f'NAME="x"\n{rest}', True))
    cloud.deploy(vm)
    assert_untouched(cloud, canary)
    cloud.act(vm, "terminate-hard", "DONE")
    assert_untouched(cloud, canary)
    cloud.delete(image)


def test_the_file_system_of_a_volatile_disk_reaches_no_shell(cloud: Cloud, canary: Path) -> None:
    vm = cloud.make_vm(f'TYPE="fs",SIZE="8",FORMAT="raw",FS="$({command(canary)})"')
    cloud.call("vm.deploy", vm, 0, False, cloud.system, "")
    assert_untouched(cloud, canary)
    cloud.recover(vm, "delete", "DONE")


def test_arguments_of_disk_actions_are_checked(cloud: Cloud, canary: Path) -> None:
    hostile = [injection.replace("COMMAND", command(canary)) for injection in INJECTIONS[:3]]
    place = f"node1:{cloud.directory}/datastores/101/0/disk.0"
    for text in hostile:
        for argv in (
            ("ln", f"frontend:{text}", place, "0", "100"),
            ("ln", "frontend:one-0", f"{text}{place}", "0", "100"),
            ("clone", "frontend:one-0", f"{place}{text}", "0", "100"),
            ("mkimage", "8", text, place, "0", "100"),
            ("delete", place, text, "100"),
        ):
            answer = cloud.drive("tm", *argv)
            assert answer.rc != 0
            assert_said_well(answer)
    assert not canary.exists()


def test_the_password_of_the_box_is_in_no_message(tmp_path: Path) -> None:
    with Cloud(tmp_path, settings={"MGMT_PASSWORD": SECRET, "MGMT_KEY": "/nonexistent"}) as cloud:
        (cloud.directory / "sanstone.conf").chmod(0o600)
        image = cloud.image(state="ERROR")
        assert cloud.image_error(image)
        assert SECRET not in "".join(call.stderr for call in cloud.oned.calls)
        assert_said_well(Answer(1, "", cloud.calls("mkfs")[0].stderr))

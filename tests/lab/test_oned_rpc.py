# SPDX-License-Identifier: Apache-2.0
"""The stand-in for oned answers as a real oned 7.4.0 did: recorded requests are sent byte by byte."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyone
import pytest

from lab.oned import ApiEvent, Oned, StateEvent
from lab.oned.model import Snapshot
from lab.oned.rpc import RpcServer
from lab.oned.states import ImageState, LcmState
from tests.lab.test_oned_recorder import PROGRAMS, make_datastores, recorded_config
from tests.lab.test_oned_story import FULL, RECORD

pytestmark = pytest.mark.real(*PROGRAMS)

TOKEN = "f0" * 32
#: Recorded requests that are not replayed, and why.
NOT_COVERED = {
    name: "hooks are not built"
    for name in (
        "one.hook.allocate-api",
        "one.hook.allocate-datastore-refused",
        "one.hook.allocate-info-call-refused",
        "one.hook.allocate-state-vm",
        "one.hook.allocate-state-vm-without-on",
        "one.hook.allocate-vm-without-lcm-state",
    )
}


class Scene:
    """A stand-in with what the recorded requests ask for, made when it is needed."""

    def __init__(self, oned: Oned, directory: Path) -> None:
        self.oned = oned
        self.directory = directory
        self.admin = oned.core.users[0]

    def image(self, number: int, kind: str = "DATABLOCK", extra: str = "", datastore: int = 100) -> None:
        if number in self.oned.core.images:
            return
        self.oned.core.last_ids["IMAGE"] = number - 1
        origin = 'SIZE="16"' if kind == "DATABLOCK" else 'PATH="/var/tmp/os.raw"'
        text = f'NAME="image-{number}"\nTYPE="{kind}"\n{origin}\n{extra}'
        self.oned.images.allocate(self.admin, text, datastore)
        self.oned.wait(number, "READY")

    def vm(self, number: int, disks: str = 'DISK=[IMAGE_ID="1"]', is_running: bool = True) -> None:
        self.images()
        self.oned.core.last_ids["VM"] = number - 1
        self.oned.vms.allocate(self.admin, f'NAME="v"\nMEMORY="64"\nCPU="0.1"\n{disks}', True)
        if is_running:
            self.oned.vms.deploy(self.admin, number, 0, False, 103)
            self.oned.wait_vm(number, "RUNNING")

    def images(self) -> None:
        self.image(1, "OS")
        self.image(2, extra='PERSISTENT="YES"')
        self.image(3)
        self.image(4, "CDROM")

    def answer(self, name: str, script: str) -> None:
        (self.directory / "answers" / name).write_text(script)

    def next_id(self, kind: str, number: int) -> None:
        self.oned.core.last_ids[kind] = number - 1

    def token(self) -> None:
        self.oned.core.users[2].tokens[TOKEN] = -1

    def with_snapshot(self) -> None:
        self.images()
        self.oned.core.images[2].snapshots.items.append(Snapshot(0, "s", 0, 16))

    def locked(self) -> None:
        self.image(39)
        self.oned.core.images[39].state = ImageState.LOCKED

    def in_prolog(self) -> None:
        self.vm(31)
        self.oned.core.vms[31].lcm_state = LcmState.PROLOG

    def powered_off(self) -> None:
        self.image(33)
        self.vm(27)
        self.oned.vms.action(self.admin, "poweroff", 27)
        self.oned.wait_vm(27, "POWEROFF")

    def backup(self) -> None:
        self.answer("datastore.recbak.restore", "echo 1\nexit 0\n")
        self.image(23)
        self.oned.core.images[23].datastore_id = 109

    def other(self) -> None:
        self.oned.datastores.allocate(self.admin, f'NAME="oktmp"\n{SAN}')


SAN = 'DS_MAD="rec"\nTM_MAD="rec"\nDISK_TYPE="BLOCK"'

PREPARE: dict[str, Callable[[Scene], object]] = {
    "one.datastore.allocate-ok": lambda scene: scene.next_id("DATASTORE", 111),
    "one.datastore.delete-not-empty": Scene.images,
    "one.datastore.delete-ok": lambda scene: (scene.next_id("DATASTORE", 111), scene.other()),
    "one.datastore.enable-image-ds": lambda scene: (scene.next_id("DATASTORE", 111), scene.other()),
    "one.image.allocate-ok": lambda scene: scene.next_id("IMAGE", 1),
    "one.image.allocate-oversize-as-oneadmin-accepted": lambda scene: (
        scene.next_id("IMAGE", 35),
        scene.answer("datastore.rec.stat", "echo 999999999\nexit 0\n"),
    ),
    "one.image.allocate-plain-user": lambda scene: (
        scene.oned.monitor_datastore(100),
        scene.next_id("IMAGE", 32),
    ),
    "one.image.allocate-not-enough-space": lambda scene: setattr(
        scene.oned.core.datastores[101], "free_mb", 0
    ),
    "one.image.allocate-stat-failed": lambda scene: scene.answer(
        "datastore.rec.stat", "echo cannot stat it >&2\nexit 1\n"
    ),
    "one.image.clone-other-tm": lambda scene: (scene.images(), scene.next_id("IMAGE", 15)),
    "one.image.delete-in-use": lambda scene: scene.vm(0),
    "one.image.delete-locked": Scene.locked,
    "one.image.info-ok": Scene.images,
    "one.image.persistent-in-use": lambda scene: scene.vm(0),
    "one.image.persistent-not-authorized": Scene.images,
    "one.image.persistent-ok": lambda scene: scene.image(14),
    "one.image.persistent-with-snapshots": Scene.with_snapshot,
    "one.image.restore": Scene.backup,
    "one.image.snapshotdelete-missing": Scene.images,
    "one.user.info-by-token": Scene.token,
    "one.user.login-revoke": Scene.token,
    "one.vm.action-wrong-state": Scene.in_prolog,
    "one.vm.allocate-hold": lambda scene: (scene.images(), scene.next_id("VM", 0)),
    "one.vm.attach-missing-image": lambda scene: scene.vm(21),
    "one.vm.backup-ok": lambda scene: scene.vm(0),
    "one.vm.deploy-ok": lambda scene: scene.vm(0, is_running=False),
    "one.vm.deploy-other-tm": lambda scene: scene.vm(13, is_running=False),
    "one.vm.diskresize-shrink": lambda scene: scene.vm(21),
    "one.vm.info-ok": lambda scene: scene.vm(0, FULL),
    "one.vm.info-running": lambda scene: scene.vm(21, FULL),
    "one.vm.restore": Scene.powered_off,
}

REQUESTS = sorted(path.name.removesuffix(".request.xml") for path in (RECORD / "rpc").glob("*.request.xml"))


@pytest.fixture
def oned(tmp_path: Path) -> Iterator[Oned]:
    with Oned(recorded_config(tmp_path)) as oned:
        make_datastores(oned)
        yield oned


@pytest.fixture
def scene(oned: Oned, tmp_path: Path) -> Scene:
    return Scene(oned, tmp_path)


def send(oned: Oned, request: bytes) -> bytes:
    host, port = oned.endpoint.removeprefix("http://").removesuffix("/RPC2").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request("POST", "/RPC2", request, {"Content-Type": "text/xml"})
        return connection.getresponse().read()
    finally:
        connection.close()


def call(oned: Oned, method: str, *parameters: Any, session: str = "") -> list[Any]:
    with xmlrpc.client.ServerProxy(oned.endpoint) as proxy:
        answer: list[Any] = getattr(proxy, method)(session or oned.session, *parameters)
        return answer


def shape(response: bytes) -> list[str]:
    """Give the types of the values of an answer."""
    return [
        value[0].tag for value in ElementTree.fromstring(response).iter("value") if value[0].tag != "array"
    ]


def text_of(value: Any) -> str:
    """Give an error text without what differs in each run: the position of a syntax error."""
    return re.sub(r"at line \d+, columns .*", "at line N", str(value))


@pytest.mark.parametrize("name", [name for name in REQUESTS if name not in NOT_COVERED])
def test_a_recorded_request_is_answered_as_it_was(oned: Oned, scene: Scene, name: str) -> None:
    PREPARE.get(name, lambda _: None)(scene)
    recorded = (RECORD / "rpc" / f"{name}.response.xml").read_bytes()
    response = send(oned, (RECORD / "rpc" / f"{name}.request.xml").read_bytes())
    oned.wait_idle()
    (expected,), _ = xmlrpc.client.loads(recorded)
    (got,), _ = xmlrpc.client.loads(response)
    assert shape(response) == shape(recorded)
    assert got[0] == expected[0]
    assert got[2:] == expected[2:]
    if isinstance(expected[1], str) and expected[1].startswith("<"):
        assert ElementTree.fromstring(got[1]).tag == ElementTree.fromstring(expected[1]).tag
    elif expected[1] != TOKEN:
        assert text_of(got[1]) == text_of(expected[1])


def test_every_recorded_request_is_sent_or_said_not_to_be() -> None:
    assert set(NOT_COVERED) < set(REQUESTS)
    assert set(PREPARE) <= set(REQUESTS)


# -- the XML of objects


def order(element: ElementTree.Element) -> Any:
    """Give the order of the elements; of several of a kind the first counts."""
    names = list(dict.fromkeys(child.tag for child in element))
    return [element.tag, [order(next(c for c in element if c.tag == name)) for name in names]]


def recorded_order(name: str) -> Any:
    return order(ElementTree.parse(RECORD / "xml" / f"{name}.xml").getroot())


def order_of(oned: Oned, method: str, number: int) -> Any:
    return order(ElementTree.fromstring(call(oned, method, number, False)[1]))


@pytest.mark.parametrize("name", ["datastore-just-allocated", "datastore-system-rec", "datastore-system-ssh"])
def test_datastores_have_the_recorded_elements(oned: Oned, name: str) -> None:
    numbers = {"datastore-just-allocated": 111, "datastore-system-rec": 103, "datastore-system-ssh": 107}
    oned.datastores.allocate(oned.core.users[0], f'NAME="x"\n{SAN}\nMGMT="v7000-c"')
    oned.core.datastores[111] = oned.core.datastores.pop(113)
    expected = recorded_order(name)
    got = order_of(oned, "one.datastore.info", numbers[name])
    if name == "datastore-system-rec":  # TYPE is in the template only after an update
        oned.datastores.update(oned.core.users[0], 103, 'A="1"', 1)
    assert got == expected


def test_images_have_the_recorded_elements(oned: Oned, scene: Scene) -> None:
    scene.image(1, "OS")
    assert order_of(oned, "one.image.info", 1) == recorded_order("image-ready-os")
    scene.image(2, extra='PERSISTENT="YES"')
    assert order_of(oned, "one.image.info", 2) == recorded_order("image-ready-datablock-persistent")


def test_vms_have_the_recorded_elements(oned: Oned, scene: Scene) -> None:
    scene.vm(0, FULL)
    assert order_of(oned, "one.vm.info", 0) == recorded_order("vm-running")
    pool = ElementTree.fromstring(call(oned, "one.vmpool.info", -2, -1, -1, -1, "")[1])
    recorded = ElementTree.parse(RECORD / "xml" / "vmpool-list.xml").getroot()
    assert order(pool) == order(recorded)


def test_users_have_the_recorded_elements(oned: Oned) -> None:
    assert order_of(oned, "one.user.info", 0) == recorded_order("user-oneadmin")


UPDATES = [
    ("one.datastore.update-merge1", "datastore-after-update-merge1"),
    ("one.datastore.update-mode-xml", "datastore-after-update-xml"),
    ("one.datastore.update-empty-value", "datastore-after-update-empty-value"),
    ("one.datastore.update-merge1-change-mads", "datastore-after-update-merge1-change-mads"),
    ("one.datastore.update-merge0", "datastore-after-update-merge0"),
    ("one.datastore.update-merge0-restore", "datastore-after-update-merge0-restore"),
]


@pytest.mark.parametrize(("name", "after"), UPDATES, ids=[after for _, after in UPDATES])
def test_an_updated_datastore_has_the_recorded_template(oned: Oned, name: str, after: str) -> None:
    oned.monitor_datastore(101)
    expected = ElementTree.parse(RECORD / "xml" / f"{after}.xml").getroot()
    before = {"datastore-after-update-merge1": []}.get(
        after, [UPDATES[0][0]] if "merge0" not in after else []
    )
    for request in (*before, name):
        send(oned, (RECORD / "rpc" / f"{request}.request.xml").read_bytes())
    got = ElementTree.fromstring(call(oned, "one.datastore.info", 101, True)[1])

    def attributes(root: ElementTree.Element) -> dict[str, Any]:
        template = root.find("TEMPLATE")
        assert template is not None
        return {e.tag: {c.tag: c.text for c in e} if len(e) else (e.text or "") for e in template}

    theirs, ours = attributes(expected), attributes(got)
    assert {k: v for k, v in ours.items() if k in theirs} == {k: v for k, v in theirs.items() if k in ours}
    if "merge" in after:
        assert set(ours) == set(theirs)
        assert got.findtext("TOTAL_MB") == expected.findtext("TOTAL_MB")


# -- pyone, encryption, events


def test_pyone_understands_the_answers(oned: Oned, scene: Scene) -> None:
    scene.vm(0, FULL)
    one = pyone.OneServer(oned.endpoint, session=oned.session)
    try:
        assert one.system.version() == "7.4.0"
        vm = one.vm.info(0)
        assert [disk["DISK_ID"] for disk in vm.TEMPLATE["DISK"]] == ["0", "1", "2", "3", "4"]
        assert vm.HISTORY_RECORDS.HISTORY[-1].HOSTNAME == "h1"
        assert [image.ID for image in one.imagepool.info(-2, -1, -1).IMAGE] == [4, 3, 2, 1]
        assert one.datastore.info(100).TEMPLATE["MGMT"] == "v7000-a"
        assert [host.NAME for host in one.hostpool.info().HOST] == ["h2", "h1"]
        assert [each.ID for each in one.vmpool.info(-2, -1, -1, -1).VM] == [0]
        assert one.user.info(-1).NAME == "oneadmin"
        with pytest.raises(pyone.OneNoExistsException):
            one.image.info(99)
        with pytest.raises(pyone.OneAuthenticationException):
            pyone.OneServer(oned.endpoint, session="oneadmin:no").image.info(1)
    finally:
        one("close")()


def test_an_encrypted_attribute_is_plain_for_an_administrator_who_asks_only(oned: Oned) -> None:
    call(oned, "one.datastore.update", 101, 'NETAPP_PASS="s3cret"', 1)
    plain = "plain:plainpass"

    def shown(decrypt: bool, session: str = "") -> str | None:
        document = call(oned, "one.datastore.info", 101, decrypt, session=session)[1]
        return ElementTree.fromstring(document).findtext("TEMPLATE/NETAPP_PASS")

    assert shown(True) == "s3cret"
    sealed = shown(False)
    assert sealed not in (None, "s3cret")
    assert shown(True, plain) == shown(False, plain) == sealed
    call(oned, "one.datastore.update", 101, f'NETAPP_PASS="{sealed}"', 1)
    assert shown(True) == "s3cret"


def test_subscribers_hear_of_states_and_requests_also_failed_ones(oned: Oned) -> None:
    heard: list[StateEvent | ApiEvent] = []
    oned.subscribe(heard.append)
    call(oned, "one.image.allocate", 'NAME="a"\nTYPE="DATABLOCK"\nSIZE="16"', 100, True)
    oned.wait_idle()
    call(oned, "one.image.delete", 77, False)
    call(oned, "one.image.info", 0, False)
    requests = [(event.method, event.is_success) for event in heard if isinstance(event, ApiEvent)]
    states = [event.as_recorded() for event in heard if isinstance(event, StateEvent)]
    assert requests == [("one.image.allocate", True), ("one.image.delete", False)]
    assert states == [["IMAGE", 0, "READY"]]
    assert all(event.document.startswith("<IMAGE>") for event in heard if isinstance(event, StateEvent))


def test_a_client_that_is_killed_while_it_waits_is_no_event(capfd: pytest.CaptureFixture[str]) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def slow(user: object) -> int:
        asked.set()
        assert may_answer.wait(10)
        return 1

    server = RpcServer(("127.0.0.1", 0), {"slow": slow}, lambda session: session, lambda *noted: None)
    server.start()
    try:
        with socket.create_connection(server.address) as client:
            body = xmlrpc.client.dumps(("session",), "slow").encode()
            client.sendall(b"POST /RPC2 HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert asked.wait(10)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        may_answer.set()
    finally:
        server.stop()
    assert capfd.readouterr() == ("", "")

# SPDX-License-Identifier: Apache-2.0
"""Questions to an endpoint that answers with recorded bodies, or not at all."""

from __future__ import annotations

import html
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sanstone.errors import (
    ConfigurationError,
    ConflictError,
    ConnectError,
    DeadlineError,
    NotFoundError,
    RequestError,
    SanstoneError,
)
from sanstone.opennebula.api import OpenNebula

RECORDED = Path(__file__).parents[1] / "data" / "opennebula-7.4"
SESSION = "oneadmin:opennebula"

Respond = Callable[[bytes, int], bytes]


class Endpoint:
    """A listening socket that answers each request by ``respond(body, number of the request)``.

    It waits for nothing: what is not answered is left open until the test ends.
    """

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.bodies: list[bytes] = []
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/RPC2"
        self._thread = threading.Thread(target=self._serve, name="endpoint")
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            self.bodies.append(_request(connection))
            answer = self.respond(self.bodies[-1], len(self.bodies))
            try:
                connection.sendall(answer)
                if answer:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for connection in self._open:
            connection.close()


def _request(connection: socket.socket) -> bytes:
    read = b""
    while chunk := connection.recv(65536):
        read += chunk
        head, blank, body = read.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        if blank and length and len(body) >= int(length[1]):
            return body
    return b""


@contextmanager
def _endpoint(respond: Respond) -> Iterator[Endpoint]:
    endpoint = Endpoint(respond)
    try:
        yield endpoint
    finally:
        endpoint.close()


def _http(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _recorded(name: str) -> bytes:
    return _http((RECORDED / "rpc" / f"{name}.response.xml").read_bytes())


def _value(text: str) -> bytes:
    body = (
        "<methodResponse><params><param><value><array><data><value><boolean>1</boolean></value>"
        f"<value><string>{html.escape(text)}</string></value><value><i4>0</i4></value>"
        "</data></array></value></param></params></methodResponse>"
    )
    return _http(body.encode())


def _always(answer: bytes) -> Respond:
    return lambda _body, _number: answer


def _parameters(body: bytes) -> tuple[str, list[str]]:
    text = body.decode()
    method = re.search(r"<methodName>(.*?)</methodName>", text)
    assert method is not None
    return method[1], re.findall(r"<value><\w+>(.*?)</\w+></value>", text)


def test_datastore_is_asked_for_with_its_secrets_decrypted() -> None:
    with _endpoint(_always(_recorded("one.datastore.info-decrypt-true"))) as endpoint:
        datastore = OpenNebula(endpoint.url, SESSION).datastore(101)
    assert (datastore.id, datastore.name) == (101, "san2")
    assert datastore.template["NETAPP_PASS"] == "s3cret"
    assert [_parameters(body) for body in endpoint.bodies] == [("one.datastore.info", [SESSION, "101", "1"])]


def test_datastore_is_asked_for_again_without_decryption_when_that_is_refused() -> None:
    refused = _recorded("one.datastore.update-not-authorized")
    plain = _recorded("one.datastore.info-by-plain-user")
    with _endpoint(lambda _body, number: refused if number == 1 else plain) as endpoint:
        datastore = OpenNebula(endpoint.url, SESSION).datastore(100)
    assert datastore.ds_mad == "rec"
    assert _parameters(endpoint.bodies[1]) == ("one.datastore.info", [SESSION, "100"])


def test_image_is_read() -> None:
    with _endpoint(_always(_recorded("one.image.info-ok"))) as endpoint:
        image = OpenNebula(endpoint.url, SESSION).image(1)
    assert image.source.startswith("/var/lib/one/datastores/rec/")
    assert endpoint.bodies[0].count(SESSION.encode()) == 1


def test_vm_is_read() -> None:
    with _endpoint(_always(_recorded("one.vm.info-running"))) as endpoint:
        vm = OpenNebula(endpoint.url, SESSION).vm(21)
    assert vm.disks
    assert vm.host in ("h1", "h2")


def test_one_object_answers_many_threads() -> None:
    with _endpoint(_always(_recorded("one.vm.info-running"))) as endpoint:
        one = OpenNebula(endpoint.url, SESSION)
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(one.vm(1).id)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_hosts_are_read_from_the_pool_and_found_by_name() -> None:
    pool = (RECORDED / "xml" / "hostpool-list.xml").read_text()
    with _endpoint(_always(_value(pool))) as endpoint:
        one = OpenNebula(endpoint.url, SESSION)
        assert {"h1", "h2"} <= {host.name for host in one.hosts()}
        assert one.host("h2").id == 1
        with pytest.raises(NotFoundError, match="no host 'h9'"):
            one.host("h9")
    assert _parameters(endpoint.bodies[0]) == ("one.hostpool.info", [SESSION])


def test_host_is_asked_for_by_number() -> None:
    with _endpoint(_always(_value((RECORDED / "xml" / "host-monitored.xml").read_text()))) as endpoint:
        assert OpenNebula(endpoint.url, SESSION).host(0).name == "h1"
    assert _parameters(endpoint.bodies[0]) == ("one.host.info", [SESSION, "0", "0"])


def test_all_vms_come_with_whole_documents() -> None:
    vms = [
        (RECORDED / "xml" / f"{name}.xml").read_text().split("?>", 1)[1]
        for name in ("vm-running", "vm-stopped")
    ]
    with _endpoint(_always(_value(f"<VM_POOL>{''.join(vms)}</VM_POOL>"))) as endpoint:
        found = OpenNebula(endpoint.url, SESSION).vms()
    assert [vm.state for vm in found] == [3, 4]
    assert endpoint.bodies[0].count(b"infoextended") == 1


def test_version_is_told() -> None:
    with _endpoint(_always(_recorded("one.system.version"))) as endpoint:
        assert OpenNebula(endpoint.url, SESSION).version() == "7.4.0"


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ("one.image.info-missing", NotFoundError, "OpenNebula has no image 9999."),
        ("authentication-failed", ConnectError, "does not let user oneadmin in"),
        ("authentication-expired-token", ConnectError, "does not let user oneadmin in"),
        ("one.datastore.update-not-authorized", ConnectError, "may not see image 9999"),
        ("one.vm.action-wrong-state", ConflictError, "refuses image 9999"),
        ("one.datastore.update-parse-error", RequestError, "did not understand"),
    ],
)
def test_refusal_becomes_an_error_with_what_to_do(answer: str, kind: type[SanstoneError], said: str) -> None:
    with _endpoint(_always(_recorded(answer))) as endpoint, pytest.raises(kind) as caught:
        OpenNebula(endpoint.url, SESSION).image(9999)
    assert said in caught.value.message
    assert caught.value.hint


FAULT = (
    b"<methodResponse><fault><value><struct><member><name>faultCode</name><value><i4>-506</i4></value></member>"
    b"<member><name>faultString</name><value><string>No method for oneadmin:opennebula</string></value>"
    b"</member></struct></value></fault></methodResponse>"
)


def test_fault_is_a_refusal() -> None:
    with _endpoint(_always(_http(FAULT))) as endpoint, pytest.raises(RequestError) as caught:
        OpenNebula(endpoint.url, SESSION).image(1)
    assert "No method for" in caught.value.details
    assert "opennebula" not in caught.value.details


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        _http(b""),
        _http(b"<html>login</html>"),
        _http(b"<methodResponse><params>"),
        _http(b"<methodResponse><params/></methodResponse>"),
        _http(b"<methodResponse><params><param><value><i4>x</i4></value></param></params></methodResponse>"),
        _http(b"<methodResponse><params><param><value><i4>1</i4></value></param></params></methodResponse>"),
        _http(b"<methodResponse><array></array></array></methodResponse>"),
        _http(b"\xff\xfe\x00"),
        _http(b"down", "503 Service Unavailable"),
        _http(b"", "302 Found"),
        _value("<IMAGE>"),
        _value("no document"),
    ],
)
def test_what_is_not_oned_is_told_apart(answer: bytes) -> None:
    with _endpoint(_always(answer)) as endpoint, pytest.raises(ConnectError) as caught:
        OpenNebula(endpoint.url, SESSION).image(1)
    assert "OpenNebula" in caught.value.message
    assert caught.value.hint


def test_connection_that_breaks_off_is_a_connect_error() -> None:
    whole = _recorded("one.image.info-ok")
    with _endpoint(_always(whole[: len(whole) // 2])) as endpoint, pytest.raises(ConnectError):
        OpenNebula(endpoint.url, SESSION).image(1)


def test_closed_port_is_a_connect_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectError, match="cannot be reached: Connection refused"):
        OpenNebula(f"http://127.0.0.1:{port}/RPC2", SESSION).image(1)


def test_silence_ends_at_the_deadline() -> None:
    with _endpoint(_always(b"")) as endpoint:
        started = time.monotonic()
        with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
            OpenNebula(endpoint.url, SESSION, deadline=0.2).image(1)
        assert 0.15 < time.monotonic() - started < 20


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
def test_slow_trickle_ends_at_the_deadline_as_a_whole(start: bytes) -> None:
    stop = threading.Event()

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(start)
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        started = time.monotonic()
        try:
            with pytest.raises(DeadlineError):
                OpenNebula(f"http://127.0.0.1:{listener.getsockname()[1]}/RPC2", SESSION, 0.4).image(1)
            assert time.monotonic() - started < 20
        finally:
            stop.set()
            thread.join(5)


def test_no_default_time_out_is_left_for_other_sockets() -> None:
    with _endpoint(_always(_recorded("one.system.version"))) as endpoint:
        OpenNebula(endpoint.url, SESSION, deadline=3).version()
    assert socket.getdefaulttimeout() is None


def test_session_comes_from_the_home_directory(home: Path) -> None:
    (home / ".one").mkdir()
    (home / ".one" / "one_auth").write_text("someone:canary\n")
    with _endpoint(_always(_recorded("authentication-failed"))) as endpoint:
        (home / ".one" / "one_endpoint").write_text(endpoint.url + "\n")
        with pytest.raises(ConnectError) as caught:
            OpenNebula().image(1)
    assert b"someone:canary" in endpoint.bodies[0]
    assert "user someone" in caught.value.message
    assert "canary" not in f"{caught.value} {caught.value.details} {caught.value.args}"


def test_environment_goes_before_files(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".one").mkdir()
    (home / ".one" / "one_auth").write_text("wrong:wrong\n")
    (tmp_path / "auth").write_text("right:right\n")
    with _endpoint(_always(_recorded("one.system.version"))) as endpoint:
        monkeypatch.setenv("ONE_XMLRPC", endpoint.url)
        monkeypatch.setenv("ONE_AUTH", str(tmp_path / "auth"))
        OpenNebula().version()
    assert b"right:right" in endpoint.bodies[0]


def test_missing_session_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_AUTH", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="missing does not exist"):
        OpenNebula()


@pytest.mark.parametrize("content", [b"", b"canary", b"\xff:canary"])
def test_file_without_a_session_is_a_configuration_error(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "auth").write_bytes(content)
    monkeypatch.setenv("ONE_AUTH", str(tmp_path / "auth"))
    with pytest.raises(ConfigurationError) as caught:
        OpenNebula()
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["localhost:2633", "ftp://h/RPC2", "http://", "http://h:x/", "http://[::1/", "/x"]
)
def test_endpoint_that_is_no_url_is_a_configuration_error(endpoint: str) -> None:
    with pytest.raises(ConfigurationError):
        OpenNebula(endpoint, SESSION)


def test_password_in_the_endpoint_is_not_shown() -> None:
    with (
        _endpoint(_always(_http(b"", "401 Unauthorized"))) as endpoint,
        pytest.raises(ConnectError) as caught,
    ):
        OpenNebula(endpoint.url.replace("http://", "http://me:canary@"), SESSION).image(1)
    assert "canary" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)

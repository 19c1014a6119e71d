# SPDX-License-Identifier: Apache-2.0
"""Questions to oned, by pyone, with a deadline for each call as a whole.

pyone's own transport never ends when oned hangs (its timeout does not reach the sockets of requests), so the
transport here is ours. Objects come as oned's XML and are read by ``documents``, as in a driver.
"""

from __future__ import annotations

import http.client
import io
import logging
import os
import socket
import ssl
import time
import urllib.parse
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sanstone.errors import (
    ConfigurationError,
    ConflictError,
    ConnectError,
    DeadlineError,
    NotFoundError,
    RequestError,
    SanstoneError,
)
from sanstone.opennebula.documents import (
    DatastoreDocument,
    HostDocument,
    ImageDocument,
    VmDocument,
    read_datastore,
    read_host,
    read_image,
    read_vm,
)
from sanstone.opennebula.markup import Element

__all__ = ["OpenNebula"]

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "http://localhost:2633/RPC2"
MAX_REPLY = 256 * 1024 * 1024  # all VMs of a large cloud
MAX_SESSION = 4096

_AUTHENTICATION, _AUTHORIZATION, _NO_EXISTS, _ACTION, _XML_RPC_API = 0x0100, 0x0200, 0x0400, 0x0800, 0x1000


class _RefusalError(Exception):
    """oned answered no: its words and its number."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class _GarbledError(Exception):
    """What came back is no XML-RPC, or more of it than is ever expected."""


class OpenNebula:
    """oned, asked as the user of a session file (oneadmin in drivers).

    ``endpoint``: given, or ONE_XMLRPC, or ~/.one/one_endpoint, or oned on this machine. ``session``:
    ``user:password``, or the file ONE_AUTH, or ~/.one/one_auth, or oneadmin's own. ``deadline`` is in
    seconds, for each call.

    All questions raise ConnectError (no answer, or not let in), DeadlineError, NotFoundError, ConflictError
    and RequestError. The object may be shared by threads.
    """

    def __init__(
        self, endpoint: str | None = None, session: str | None = None, deadline: float = 15.0
    ) -> None:
        self._endpoint = endpoint or _default_endpoint()
        parts = _split(self._endpoint)
        self._session = session or _default_session()
        self._deadline = deadline
        # What errors name: without a user and password that may be in the URL
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._server: Any = None

    def datastore(self, datastore_id: int) -> DatastoreDocument:
        """Ask for a datastore; oneadmin gets attributes that oned keeps encrypted as plain text."""
        what = f"datastore {datastore_id}"
        try:
            reply = self._ask(what, "one.datastore.info", datastore_id, True)
        except _RefusalError as refusal:
            if refusal.code not in (_AUTHORIZATION, _XML_RPC_API):
                raise self._explain(what, refusal) from refusal
            reply = self._text(what, "one.datastore.info", datastore_id)
        return read_datastore(self._document(what, reply))

    def image(self, image_id: int) -> ImageDocument:
        """Ask for an image."""
        what = f"image {image_id}"
        return read_image(self._document(what, self._text(what, "one.image.info", image_id, False)))

    def vm(self, vm_id: int) -> VmDocument:
        """Ask for a virtual machine, those that are DONE included."""
        what = f"VM {vm_id}"
        return read_vm(self._document(what, self._text(what, "one.vm.info", vm_id, False)))

    def xml(self, kind: str, number: int) -> str:
        """Ask for the document of a ``datastore`` (as plain text), ``image`` or ``vm`` as oned writes it."""
        return self._text(f"{kind} {number}", f"one.{kind}.info", number, kind == "datastore")

    def host(self, host: str | int) -> HostDocument:
        """Ask for a host by name or number."""
        if isinstance(host, int):
            what = f"host {host}"
            return read_host(self._document(what, self._text(what, "one.host.info", host, False)))
        for found in self.hosts():
            if found.name == host:
                return found
        raise NotFoundError(f"OpenNebula has no host {host!r}.", "See 'onehost list'.")

    def hosts(self) -> tuple[HostDocument, ...]:
        """Ask for all hosts."""
        return tuple(read_host(entry) for entry in self._pool("HOST", "one.hostpool.info"))

    def vms(self) -> tuple[VmDocument, ...]:
        """Ask for all virtual machines that are not DONE, with whole documents (of all users)."""
        # all, from the first to the last, any state but DONE, no search
        return tuple(
            read_vm(entry) for entry in self._pool("VM", "one.vmpool.infoextended", -2, -1, -1, -1, "")
        )

    def version(self) -> str:
        """Ask for oned's version."""
        return self._text("the version", "one.system.version")

    def _pool(self, tag: str, method: str, *arguments: int | str) -> Iterator[Element]:
        what = f"all {tag.lower()}s"
        return self._document(what, self._text(what, method, *arguments)).all(tag)

    def _document(self, what: str, text: str) -> Element:
        try:
            return Element.parse(text, MAX_REPLY)
        except RequestError as err:
            raise ConnectError(
                f"OpenNebula's answer about {what} cannot be read: {err.message}", self._hint()
            ) from err

    def _text(self, what: str, method: str, *arguments: int | bool | str) -> str:
        try:
            return self._ask(what, method, *arguments)
        except _RefusalError as refusal:
            raise self._explain(what, refusal) from refusal

    def _ask(self, what: str, method: str, *arguments: int | bool | str) -> str:
        started = time.monotonic()
        server = self._connected()
        try:
            reply = server._do_request(method, server._cast_parms(arguments))
        except TimeoutError as err:
            raise DeadlineError(
                f"OpenNebula at {self._shown} did not tell about {what} within {self._deadline:g} s.",
                "See whether oned runs and is not overloaded.",
            ) from err
        except (_GarbledError, xmlrpc.client.ProtocolError, http.client.HTTPException, ssl.SSLError) as err:
            said = f"HTTP status {err.errcode}" if isinstance(err, xmlrpc.client.ProtocolError) else str(err)
            raise ConnectError(
                f"What answers at {self._shown} is not OpenNebula's API ({self._mask(said[:80])}).",
                self._hint(),
            ) from err
        except OSError as err:
            raise ConnectError(
                f"OpenNebula at {self._shown} cannot be reached: {err.strerror or err}.", self._hint()
            ) from err
        except Exception as err:
            if type(err).__module__.partition(".")[0] != "pyone":  # what it makes of an XML-RPC fault
                raise
            raise _RefusalError(self._mask(str(err)), _XML_RPC_API) from err
        log.debug("%s about %s in %.3f s", method, what, time.monotonic() - started)
        return self._value(reply)

    def _value(self, reply: Any) -> str:
        """Take the value of oned's array [succeeded, value or text, code, ...]."""
        is_array = isinstance(reply, (list, tuple)) and len(reply) >= 3
        if not is_array or not isinstance(reply[0], bool) or not isinstance(reply[1], str):
            raise ConnectError(f"OpenNebula at {self._shown} answered in an unknown form.", self._hint())
        if not reply[0]:
            raise _RefusalError(self._mask(reply[1]), reply[2] if isinstance(reply[2], int) else 0)
        return reply[1]

    def _explain(self, what: str, refusal: _RefusalError) -> SanstoneError:
        if refusal.code == _AUTHENTICATION:
            return ConnectError(
                f"OpenNebula does not let {self._user()} in.",
                "Look at the session in ONE_AUTH or ~/.one/one_auth; a token may have run out.",
                refusal.text,
            )
        if refusal.code == _AUTHORIZATION:
            return ConnectError(
                f"{self._user()} may not see {what} in OpenNebula.", "Ask as oneadmin.", refusal.text
            )
        if refusal.code == _NO_EXISTS:
            return NotFoundError(f"OpenNebula has no {what}.", "It may have been deleted.", refusal.text)
        if refusal.code == _ACTION:
            return ConflictError(
                f"OpenNebula refuses {what}: {refusal.text}.", "See its state.", refusal.text
            )
        return RequestError(
            f"OpenNebula did not understand the question for {what}.",
            "Is its version one from 6.10 to 7.x?",
            refusal.text,
        )

    def _user(self) -> str:
        return f"user {self._session.partition(':')[0]}"

    def _hint(self) -> str:
        return "See whether oned runs there, and whether ONE_XMLRPC is right."

    def _mask(self, text: str) -> str:
        for secret in (self._session, self._session.partition(":")[2]):
            if secret:
                text = text.replace(secret, "***")
        return text

    def _connected(self) -> Any:
        if self._server is None:
            import pyone  # takes 150 ms, which only those pay who ask

            # From 7.2 OneServer is a function that also looks for gRPC
            module = getattr(pyone, "server_xrpc", None)
            kind = module.OneServerXRPC if module else pyone.OneServer
            server = kind(self._endpoint, session=self._session)
            server._ServerProxy__transport = _Transport(self._endpoint, self._deadline)
            self._server = server
        return self._server


class _Transport(xmlrpc.client.Transport):
    """One connection for each call, and no wait longer than what is left of its deadline."""

    def __init__(self, endpoint: str, deadline: float) -> None:
        super().__init__()
        self._parts = urllib.parse.urlsplit(endpoint)
        self._deadline = deadline

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:
        """Send one call and return what came back.

        Raises: TimeoutError, OSError, http.client.HTTPException, ProtocolError and _GarbledError.
        """
        end = time.monotonic() + self._deadline
        connection = self._to_oned(end)
        try:
            connection.connect()
            connection.sock.settimeout(_left(end))
            connection.request("POST", handler or "/RPC2", request_body, {"Content-Type": "text/xml"})
            with connection.getresponse() as response:
                if response.status != 200:
                    raise xmlrpc.client.ProtocolError(str(host), response.status, response.reason, {})
                return self._read(response)
        finally:
            connection.close()

    def _to_oned(self, end: float) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        connection = (
            http.client.HTTPSConnection(
                host, port, timeout=self._deadline, context=ssl.create_default_context()
            )
            if self._parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=self._deadline)
        )

        def respond(sock: socket.socket, method: str | None = None, **_: Any) -> http.client.HTTPResponse:
            return http.client.HTTPResponse(_Stream(sock, end), method=method)  # type: ignore[arg-type]

        connection.response_class = respond  # type: ignore[assignment]
        return connection

    def _read(self, response: http.client.HTTPResponse) -> Any:
        parser, target = self.getparser()
        size = 0
        while chunk := response.read1(1 << 16):
            if (size := size + len(chunk)) > MAX_REPLY:
                raise _GarbledError(f"more than {MAX_REPLY} bytes")
            try:
                parser.feed(chunk)
            except Exception as err:  # the parser raises whatever an odd document leads it to
                raise _GarbledError(type(err).__name__) from err
        try:
            parser.close()
            return target.close()
        except xmlrpc.client.Fault:
            raise
        except Exception as err:
            raise _GarbledError(type(err).__name__) from err


class _Stream(io.RawIOBase):
    """What a socket receives, each time waiting only as long as the whole call may still take.

    The connection closes its socket as soon as it knows that the server will: the file keeps it open.
    """

    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)
        self._end = end

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._end))
        return self._file.readinto(buffer) or 0

    def close(self) -> None:
        self._file.close()
        super().close()


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the call's time is over")
    return left


def _split(endpoint: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(endpoint)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise ConfigurationError(
        "The endpoint of OpenNebula is no http or https URL.",
        f"Set ONE_XMLRPC to something like {DEFAULT_ENDPOINT}.",
    )


def _home() -> Path:
    return Path(os.environ.get("HOME") or "/var/lib/one")


def _default_endpoint() -> str:
    if endpoint := os.environ.get("ONE_XMLRPC"):
        return endpoint
    try:
        return _first_line(_home() / ".one" / "one_endpoint") or DEFAULT_ENDPOINT
    except FileNotFoundError:
        return DEFAULT_ENDPOINT


def _default_session() -> str:
    """Read the session where OpenNebula's own commands look for it, then oneadmin's.

    Raises: ConfigurationError when there is none that can be read.
    """
    given = os.environ.get("ONE_AUTH")
    places = [Path(given)] if given else [_home() / ".one" / "one_auth", Path("/var/lib/one/.one/one_auth")]
    for place in places:
        try:
            session = _first_line(place)
        except FileNotFoundError:
            continue
        if ":" not in session:
            raise ConfigurationError(
                f"{place} holds no USER:PASSWORD.", "Write it as oneadmin's one_auth is."
            )
        return session
    raise ConfigurationError(
        f"There is no session for OpenNebula: {' or '.join(map(str, places))} does not exist.",
        "Run this as oneadmin, or set ONE_AUTH.",
    )


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(MAX_SESSION).strip()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeError) as err:
        said = err.strerror if isinstance(err, OSError) else "not UTF-8"
        raise ConfigurationError(f"{path} cannot be read: {said}.", "Run this as oneadmin.") from err

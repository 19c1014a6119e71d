# SPDX-License-Identifier: Apache-2.0
"""The XML-RPC interface: requests become calls, what comes back becomes oned's answer array."""

from __future__ import annotations

import inspect
import threading
import xmlrpc.client
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

from lab.oned.errors import Code, RefusedError

__all__ = ["RpcServer", "write_answer"]

Handler = Callable[..., object]
_LARGEST_REQUEST = 16 << 20


def write_answer(answer: tuple[object, ...]) -> bytes:
    """Write the array as oned does; the last of five values is an eight byte integer."""
    values = "".join(f"<value>{_value(value, number == 4)}</value>\n" for number, value in enumerate(answer))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<methodResponse>\n<params>\n'
        f"<param><value><array><data>\n{values}</data></array></value></param>\n</params>\n</methodResponse>\n"
    ).encode()


def _value(value: object, is_long: bool) -> str:
    if isinstance(value, bool):
        return f"<boolean>{int(value)}</boolean>"
    if isinstance(value, int):
        return f"<i8>{value}</i8>" if is_long else f"<i4>{value}</i4>"
    return f"<string>{escape(str(value))}</string>"


class RpcServer:
    """Serves ``methods`` at /RPC2; ``authenticate`` makes a user of a session, ``note`` is told answers."""

    def __init__(
        self,
        address: tuple[str, int],
        methods: Mapping[str, Handler],
        authenticate: Callable[[str], object],
        note: Callable[[str, tuple[object, ...], tuple[object, ...]], None],
    ) -> None:
        self._methods = methods
        self._authenticate = authenticate
        self._note = note
        outer = self

        class _Request(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def handle(self) -> None:
                with suppress(ConnectionError):  # who asked may have been killed meanwhile
                    super().handle()

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                if length > _LARGEST_REQUEST:
                    self.send_error(413)
                    return
                body = outer.answer(self.rfile.read(length))
                self.send_response(200)
                self.send_header("Content-Type", "text/xml; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        class _Server(ThreadingHTTPServer):
            daemon_threads = False
            block_on_close = True

        self._server = _Server(address, _Request)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="oned-rpc", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Give the address that is listened on."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End to serve."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: bytes) -> bytes:
        """Answer one request."""
        try:
            parameters, method = xmlrpc.client.loads(request, use_builtin_types=True)
        except Exception as error:  # whatever the parser raises, the client sent it
            return xmlrpc.client.dumps(xmlrpc.client.Fault(-503, f"Call is not valid XML: {error}")).encode()
        handler = self._methods.get(str(method))
        if handler is None:
            return xmlrpc.client.dumps(xmlrpc.client.Fault(-506, f"Method '{method}' not defined")).encode()
        return write_answer(self.call(str(method), handler, parameters))

    def call(self, method: str, handler: Handler, parameters: tuple[Any, ...]) -> tuple[object, ...]:
        """Carry out one request and give the answer array."""
        answer: tuple[object, ...]
        try:
            user = self._authenticate(str(parameters[0]) if parameters else "")
            try:
                inspect.signature(handler).bind(user, *parameters[1:])
            except TypeError as error:
                raise RefusedError(Code.INTERNAL, f"Wrong parameters: {error}") from error
            answer = (True, handler(user, *parameters[1:]), 0)
        except RefusedError as refused:
            answer = (False, f"[{method}] {refused.text}", int(refused.code), refused.object_id, -1)
        self._note(method, tuple(parameters[1:]), answer)
        return answer

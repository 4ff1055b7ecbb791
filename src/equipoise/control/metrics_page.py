"""One HTTP page with the metrics.

Callers cannot use up resources: at most a few kilobytes of a request are read, for a few seconds,
and only a few requests are answered at a time.
"""

from __future__ import annotations

import logging
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from socketserver import TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Event, Thread
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from equipoise.errors import EquipoiseError

logger = logging.getLogger("equipoise.runtime")

LOOPBACK = "127.0.0.1"

_MOST_REQUEST_BYTES = 1 << 14
_MOST_AT_A_TIME = 16
_SECONDS = 5.0  # time after which a silent caller is disconnected


def listen(
    collector: Collector, port: int, host: str = LOOPBACK, *, asked: Event | None = None
) -> int:
    """Serve the metrics over HTTP until the process ends.

    On a loopback address, a request must also name a loopback host. This refuses web pages in a
    browser on this machine that reach the address through another host name (DNS rebinding).

    Parameters
    ----------
    collector
        Collector of the metrics.
    port, host
        Port and address to listen at; port 0 takes any free port.
    asked
        Event to set when a program sends a POST to ``/look`` to have the loads looked at now;
        ``None`` to refuse that. Pages in a browser and other machines are always refused.

    Returns
    -------
    The port that is listened at.

    Raises
    ------
    EquipoiseError
        An address or a port that cannot be used; ``asked`` at an address that other machines reach.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server = _Server(registry, host, port, asked)
    except (OSError, OverflowError, UnicodeError) as error:
        raise EquipoiseError(
            f"The metrics cannot be served at port {port} of {host!r}: {error}."
        ) from error
    if asked is not None and not server.is_loopback:
        server.server_close()
        raise EquipoiseError(
            f"Other machines can reach {host!r}, but only programs on this machine may ask for a "
            "look at the loads; listen at 127.0.0.1, or leave that request out."
        )
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_port)


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True

    def __init__(
        self, registry: CollectorRegistry, host: str, port: int, asked: Event | None
    ) -> None:
        self.registry, self.asked = registry, asked
        self._free = BoundedSemaphore(_MOST_AT_A_TIME)
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        self.is_loopback = _is_loopback(str(address[0]))
        super().__init__((host, port), _Page)

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or disconnect if too many requests are open."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, *_: object) -> None:
        """Ignore callers that have disconnected, but log a metric that cannot be computed."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.exception("Prometheus got no answer.")


class _Page(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "equipoise", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain"
    timeout = _SECONDS
    raw_requestline: bytes

    def setup(self) -> None:
        """Limit the bytes that are read of a request."""
        super().setup()
        self.rfile: Any = _Bounded(self.rfile)

    def parse_request(self) -> bool:
        """Refuse a request that is too long, has a body, or names another machine."""
        if not self.raw_requestline.endswith(b"\n"):
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            return False
        if not super().parse_request():
            return False
        self.close_connection = True
        if self.rfile.is_full:
            self.send_error(431)
        elif self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.send_error(413)
        elif self.server.is_loopback and not _is_loopback(_name(self.headers.get("Host", ""))):
            self.send_error(421)
        else:
            return True
        return False

    def do_GET(self) -> None:
        """Answer with all metrics, in the format that the request accepts."""
        if urlsplit(self.path).path not in ("/", "/metrics"):
            self.send_error(404)
            return
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        text = encode(self.server.registry)
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        """Have the loads looked at; a browser names the page that asks, and is refused."""
        if self.server.asked is None or self.path != "/look":
            self.send_error(404)
        elif "Origin" in self.headers:
            self.send_error(403)
        else:
            self.server.asked.set()
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


class _Bounded:
    """The first bytes of a request; the rest is not read."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, _MOST_REQUEST_BYTES

    @property
    def is_full(self) -> bool:
        return self._left == 0

    def readline(self, limit: int) -> bytes:
        line: bytes = self._file.readline(min(limit, self._left))
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._file.close()


def _name(host: str) -> str:
    """Return the host of a header ``Host``, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or LOOPBACK
    except ValueError:
        return host


def _is_loopback(name: str) -> bool:
    """Tell whether a host name or address is this machine's loopback."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"

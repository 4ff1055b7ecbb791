from __future__ import annotations

import socket
import urllib.error
import urllib.request
from contextlib import ExitStack
from threading import Event

import pytest

from equipoise.control.metrics import Metrics
from equipoise.errors import EquipoiseError


@pytest.fixture(scope="module")
def port() -> int:
    metrics = Metrics()
    metrics.take_ranks(3, 1.0, wanted=3, process="p0", rank=0)
    return metrics.listen(0)


def said(port: int, request: bytes) -> str:
    """The whole answer to the bytes of a request."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as caller:
        caller.sendall(request)
        parts = []
        while part := caller.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


def test_answers_prometheus(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "equipoise_ranks 3.0\n" in page.read().decode()
    modern = {"Accept": "application/openmetrics-text;version=1.0.0"}
    request = urllib.request.Request(f"http://localhost:{port}/metrics", headers=modern)
    with urllib.request.urlopen(request) as page:
        assert page.read().decode().endswith("# EOF\n")


def test_a_port_that_is_taken_is_refused(port):
    with pytest.raises(EquipoiseError, match=f"served at port {port} of '127.0.0.1'"):
        Metrics().listen(port)


@pytest.mark.parametrize(("where", "reachable"), [({}, False), ({"host": "0.0.0.0"}, True)])
def test_answers_other_machines_only_if_told_to(where, reachable):
    port = Metrics().listen(0, **where)
    # Every address in 127/8 is this machine's: one that nobody listens at refuses.
    with socket.socket() as caller:
        assert (caller.connect_ex(("127.0.0.2", port)) == 0) is reachable


def post(port: int, path: str = "/look", *headers: str) -> str:
    """The first line of the answer to a POST."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Length: 0", *headers]
    return said(port, "\r\n".join([*lines, "", ""]).encode()).partition("\r\n")[0]


def test_a_look_is_asked_for_where_that_is_allowed():
    asked = Event()
    port = Metrics().listen(0, asked=asked)
    assert post(port, "/metrics") == "HTTP/1.0 404 Not Found"
    assert post(port, "/look", "Origin: http://127.0.0.1:8000") == "HTTP/1.0 403 Forbidden"
    assert not asked.is_set()
    assert post(port) == "HTTP/1.0 202 Accepted"
    assert asked.is_set()


def test_a_look_is_not_asked_for_where_nobody_allows_it(port):
    assert post(port) == "HTTP/1.0 404 Not Found"


def test_only_this_machine_asks_for_looks():
    with pytest.raises(EquipoiseError, match="only programs on this machine may ask for a look"):
        Metrics().listen(0, "0.0.0.0", asked=Event())


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 300])
def test_an_address_that_is_none_is_refused(host):
    with pytest.raises(EquipoiseError, match="metrics cannot be served"):
        Metrics().listen(0, host)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: [::1]:9400\r\n\r\n", 200),
        (b"GET /metrics?name=x HTTP/1.1\r\nHost: LOCALHOST\r\n\r\n", 200),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics HTTP/1.1\r\nHost: example.com\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1.example.com\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nHost: [\r\n\r\n", 421),
        (b"GET /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 413),
        (b"GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 404),
        (b"GET /" + 20000 * b"a" + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + 20000 * b"a" + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + 90 * (b"X: " + 500 * b"a" + b"\r\n") + b"\r\n", 431),
        (b"<script>alert(1)</script> / HTTP/1.1\r\n\r\n", 501),
    ],
)
def test_what_is_asked_otherwise_is_refused(port, request_, code):
    answer = said(port, request_)
    assert answer.split(" ")[1] == str(code)
    assert "text/plain" in answer
    assert ("equipoise_ranks" in answer) is (code == 200)


def test_callers_that_say_nothing_do_not_pile_up(port):
    with ExitStack() as waiting:
        silent = [
            waiting.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(16)
        ]
        assert said(port, b"") == ""  # one too many: hung up on at once
        silent[0].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert silent[0].recv(12) == b"HTTP/1.0 200"

"""The dashboard's server over real HTTP: what it answers, and what it refuses."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from dataclasses import asdict

import pytest

from equipoise.engines.served_models import served_models
from equipoise.errors import EquipoiseError
from equipoise.report.dashboard import MOST_BODY_BYTES, Dashboard, DashboardServer
from equipoise.report.monitor.address import Addresses
from equipoise.simulate.what_if import Question, WhatIf

SMALL = {"model": "gpt-oss-20b", "num_ranks": 8}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def what_if():
    return WhatIf(served_models())


@pytest.fixture(scope="module")
def server(what_if):
    group = Addresses(["http://127.0.0.1:1/metrics"])
    with DashboardServer(Dashboard(what_if, group), 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return reply, reply.read()
    finally:
        connection.close()


def refusal(server, *arguments, **more):
    reply, body = ask(server, *arguments, **more)
    document = json.loads(body)
    assert list(document) == ["error"]
    return reply.status, document["error"]


def raw(server, request: bytes) -> bytes:
    """What bytes that no client would send get."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        connection.sendall(request)
        return connection.makefile("rb").read()


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


def test_answers_are_those_of_the_library(server, what_if):
    reply, body = ask(server, "POST", "/api/what-if", json.dumps(SMALL), JSON)
    assert reply.status == 200
    expected = what_if.answer(Question.of(SMALL))
    assert json.loads(body) == json.loads(json.dumps(asdict(expected)))


def test_choices_name_what_there_is(server):
    document = json.loads(ask(server, "GET", "/api/choices")[1])
    assert document["model"]["deepseek-v3"] == {"experts": 256, "layers": 58}
    assert document["gpu"]["h100"] == "H100 SXM"
    assert (document["recording"], document["metrics"]) == (None, "http://127.0.0.1:1/metrics")
    assert document["defaults"] == asdict(Question())


def test_a_group_that_is_gone_is_told_and_no_failure(server):
    reply, body = ask(server, "GET", "/api/live")
    assert reply.status == 200
    assert "does not answer" in json.loads(body)["error"]


@pytest.mark.parametrize(
    "path", ["/", "/dashboard.js", "/dashboard-charts.js", "/palette.css", "/dashboard.css"]
)
def test_pages_load_nothing_from_elsewhere_and_run_no_foreign_script(server, path):
    reply, body = ask(server, "GET", path)
    assert reply.status == 200
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert b"https://" not in body
    assert b"style=" not in body
    assert b"innerHTML" not in body


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/dashboard.css/../page.html",
        "/page.html",
        "/%00",
    ],
)
def test_paths_lead_to_no_file(server, path):
    status, sentence = refusal(server, "GET", path)
    assert (status, sentence) == (404, "There is no such address here.")


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org", "127.0.0.1@example.org", "[", "10.0.0.1", ""]
)
@pytest.mark.parametrize("path", ["/", "/api/choices", "/api/live"])
def test_foreign_hosts_are_refused(server, host, path):
    status, sentence = refusal(server, "GET", path, headers={"Host": host})
    assert status == 403
    assert "127.0.0.1 and localhost only" in sentence


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8760"])
def test_names_of_this_machine_are_answered(server, host):
    assert ask(server, "GET", "/", headers={"Host": host})[0].status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Length": str(MOST_BODY_BYTES + 1)}, 413),
        ({"Content-Length": "9" * 5000}, 413),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "²"}, 411),
        ({"Transfer-Encoding": "chunked"}, 411),
    ],
)
def test_what_a_foreign_page_could_send_is_not_read(server, headers, status):
    lines = {"Host": "localhost", **JSON} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    request = f"POST /api/what-if HTTP/1.1\r\n{head}\r\n".encode("latin-1")
    assert raw(server, request).split()[1] == str(status).encode()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("", "The question: is not JSON"),
        ("{", "The question: is not JSON"),
        ('{"skew": NaN}', "The question: is damaged JSON: NaN is not a number."),
        ('{"skew": 1, "skew": 2}', "The question: The key 'skew' appears twice"),
        ("[" * 4000, "The question:"),
        ('{"num_ranks": 999}', "num_ranks is 999; expected 2 to 256."),
        ('{"model": "<img src=x onerror=alert(1)>"}', "There is no model '<img src=x"),
        ("\xff", "The question:"),
    ],
)
def test_wrong_questions_get_a_sentence(server, body, sentence):
    data = body.encode("latin-1")
    status, said = refusal(server, "POST", "/api/what-if", body=data, headers=JSON)
    assert status == 400
    assert said.startswith(sentence)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/api/what-if", 405), ("POST", "/", 405), ("PUT", "/", 501), ("DELETE", "/x", 501)],
)
def test_other_methods_are_refused(server, method, path, status):
    assert refusal(server, method, path, headers=JSON)[0] == status


def test_what_is_no_http_gets_no_echo(server):
    reply = raw(server, b"<script>alert(1)</script> / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert reply.split()[1] == b"501"
    assert b"script" not in reply.partition(b"\r\n\r\n")[2]


def test_without_metrics_there_is_no_live_view(what_if):
    with DashboardServer(Dashboard(what_if), 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        status, sentence = refusal(running, "GET", "/api/live")
        running.shutdown()
    assert status == 404
    assert sentence == "No group is watched; start the dashboard with --metrics."


def test_a_port_in_use_is_refused(server, what_if):
    with pytest.raises(EquipoiseError, match=f"Port {server.server_port} cannot be listened on"):
        DashboardServer(Dashboard(what_if), server.server_port)

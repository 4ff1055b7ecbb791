"""The dashboard's server: what-if questions and the live view of a group, for this machine only.

Three limits make it safe. It answers a fixed list of addresses, so no path leads to a file. It
answers only requests that name this machine as host, so a foreign page cannot use the reader's
browser to ask. And it reads only a few kilobytes of a question.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from equipoise.errors import EquipoiseError
from equipoise.json_text import parse_json
from equipoise.report.monitor.look import Source
from equipoise.report.monitor.monitor import Monitor
from equipoise.simulate.what_if import Question, WhatIf

LOOPBACK = "127.0.0.1"
MOST_BODY_BYTES = 1 << 12
"""Largest size of a question in bytes."""

_HOSTS = {"127.0.0.1", "localhost", "::1"}
_JSON = "application/json; charset=utf-8"
_SECONDS = 10.0  # longest time for which a connection may be silent
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FILES = {
    "/": ("dashboard.html", "text/html; charset=utf-8"),
    "/palette.css": ("palette.css", "text/css; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
    "/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
    "/dashboard-charts.js": ("dashboard-charts.js", "text/javascript; charset=utf-8"),
}


class Reply(NamedTuple):
    """An HTTP answer: status, content type and content."""

    status: HTTPStatus
    kind: str
    body: bytes


@dataclass(frozen=True)
class _Route:
    method: str
    answer: Callable[[bytes], Reply]


class Dashboard:
    """The answers of the server, without HTTP.

    Parameters
    ----------
    what_if
        Service that answers what-if questions.
    group
        Running group to show, followed as ``equipoise monitor`` follows it; ``None`` for no live
        view.
    """

    def __init__(self, what_if: WhatIf, group: Source | None = None) -> None:
        self._what_if, self._group = what_if, group
        self._monitor = Monitor("" if group is None else group.name)
        self._one_at_a_time, self._one_look = threading.Lock(), threading.Lock()
        self._routes = {
            "/api/choices": _Route("GET", lambda _: _json(self._choices())),
            "/api/what-if": _Route("POST", self._answer),
            "/api/live": _Route("GET", lambda _: self._live()),
        }
        self._routes |= {path: _Route("GET", _file(*file)) for path, file in _FILES.items()}

    def refusal(self, method: str, path: str, headers: Message) -> Reply | None:
        """Return the refusal of a request, or ``None`` if it is answered."""
        if _hostname(f"//{headers.get('Host', '')}") not in _HOSTS:
            return _refuse(
                HTTPStatus.FORBIDDEN, "This server answers to 127.0.0.1 and localhost only."
            )
        route = self._routes.get(path)
        if route is None:
            return _refuse(HTTPStatus.NOT_FOUND, "There is no such address here.")
        if method != route.method:
            return _refuse(HTTPStatus.METHOD_NOT_ALLOWED, f"This address takes {route.method}.")
        if method == "POST":
            return _refused_body(headers)
        return None

    def reply(self, path: str, body: bytes) -> Reply:
        """Answer a request that is not refused."""
        try:
            return self._routes[path].answer(body)
        except EquipoiseError as error:
            return _refuse(HTTPStatus.BAD_REQUEST, str(error))

    def _choices(self) -> dict[str, Any]:
        address = None if self._group is None else self._group.name
        return {**self._what_if.choices, "metrics": address, "defaults": asdict(Question())}

    def _answer(self, body: bytes) -> Reply:
        question = Question.of(parse_json(body, "The question"))
        with self._one_at_a_time:
            answer = self._what_if.answer(question)
        return _json(asdict(answer))

    def _live(self) -> Reply:
        if self._group is None:
            return _refuse(
                HTTPStatus.NOT_FOUND, "No group is watched; start the dashboard with --metrics."
            )
        with self._one_look:
            try:
                self._monitor.take(self._group.look())
            except EquipoiseError as error:  # the group cannot be read; this server has not failed
                return _json({"error": str(error)})
            return _json(self._monitor.as_dict())


class DashboardServer(ThreadingHTTPServer):
    """An HTTP server of a dashboard, for this machine.

    Parameters
    ----------
    dashboard
        Dashboard to serve.
    port
        Port on 127.0.0.1; 0 takes any free port.

    Raises
    ------
    EquipoiseError
        A port that cannot be used.
    """

    daemon_threads = True

    def __init__(self, dashboard: Dashboard, port: int) -> None:
        self.dashboard = dashboard
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise EquipoiseError(
                f"Port {port} cannot be listened on: {error}. Give another one, or 0 for any."
            ) from error

    @property
    def url(self) -> str:
        """Address of the dashboard."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def serve_until_interrupted(self) -> None:
        """Serve until Ctrl-C."""
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: DashboardServer
    timeout = _SECONDS
    server_version, sys_version = "equipoise", ""

    def do_GET(self) -> None:
        self._respond("GET")

    def do_POST(self) -> None:
        self._respond("POST")

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log requests, because the terminal belongs to the user."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send errors of the protocol like all others, without repeating the request."""
        del message, explain
        self._send(_refuse(HTTPStatus(code), f"{HTTPStatus(code).phrase}."))

    def _respond(self, method: str) -> None:
        path, dashboard = self.path.partition("?")[0], self.server.dashboard
        reply = dashboard.refusal(method, path, self.headers)
        if reply is None:
            body = self.rfile.read(int(self.headers["Content-Length"])) if method == "POST" else b""
            reply = dashboard.reply(path, body)
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.close_connection = True
        self.send_response(reply.status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)


def _refused_body(headers: Message) -> Reply | None:
    """Refuse a body that another site's page could send without asking, or that is too long."""
    origin = headers.get("Origin")
    if origin is not None and _hostname(origin) not in _HOSTS:
        return _refuse(HTTPStatus.FORBIDDEN, "Only the dashboard's own page may ask this.")
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        return _refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A question is application/json.")
    length = headers.get("Content-Length", "")
    if not (length.isascii() and length.isdecimal()):
        return _refuse(HTTPStatus.LENGTH_REQUIRED, "A question comes with its Content-Length.")
    if len(length) > len(str(MOST_BODY_BYTES)) or int(length) > MOST_BODY_BYTES:
        return _refuse(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"A question has at most {MOST_BODY_BYTES:,} bytes.",
        )
    return None


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _file(name: str, kind: str) -> Callable[[bytes], Reply]:
    source = files("equipoise.report") / "templates" / name
    return lambda _: Reply(HTTPStatus.OK, kind, source.read_bytes())


def _json(document: Any, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    return Reply(status, _JSON, json.dumps(document, allow_nan=False).encode())


def _refuse(status: HTTPStatus, sentence: str) -> Reply:
    return _json({"error": sentence}, status)

"""Requests to an address, with limits on time and size whatever it answers."""

from __future__ import annotations

import io
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import SplitResult, urlsplit

from equipoise.errors import EquipoiseError, FormatError
from equipoise.report.monitor.exposition import Page, look_at_pages
from equipoise.report.monitor.look import Look, harmless

PATIENCE_SECONDS = 5.0
_MOST_BYTES = 1 << 22
_PIECE = 1 << 16
_TEXT = "text/plain; version=0.0.4"


class Addresses:
    """A source: the processes of a serving group, each with an address for Prometheus.

    Parameters
    ----------
    urls
        Addresses, such as ``http://127.0.0.1:9400/metrics``.
    clock
        Function that returns the time in seconds since 1970.
    patience_seconds
        Longest time that one answer may take.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        clock: Callable[[], float] = time.time,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._urls = {url: checked_url(url) for url in urls}
        self._clock, self._patience = clock, patience_seconds

    @property
    def name(self) -> str:
        """First address, and the number of others."""
        first, *more = self._urls
        return harmless(first) + (f" and {len(more)} more" if more else "")

    @property
    def look_url(self) -> SplitResult:
        """Address of the first process that takes a POST for fresh figures, if that is allowed."""
        return next(iter(self._urls.values()))._replace(path="/look", query="")

    def look(self) -> list[Look]:
        """Read all processes that answer; raise ``EquipoiseError`` if none does."""
        with ThreadPoolExecutor(min(len(self._urls), 16)) as pool:
            answers = dict(zip(self._urls, pool.map(self._page, self._urls.values()), strict=True))
        silent = {harmless(url): a for url, a in answers.items() if isinstance(a, str)}
        pages = [answer for answer in answers.values() if isinstance(answer, Page)]
        if not pages:
            raise EquipoiseError("; ".join(f"{url}: {why}" for url, why in silent.items()))
        return [look_at_pages(pages, time=self._clock(), silent=silent)]

    def _page(self, url: SplitResult) -> Page | str:
        """Read the page of an address, or return the reason why it cannot be read."""
        try:
            return Page(ask(url, patience_seconds=self._patience))
        except FormatError as error:
            return str(error)


def checked_url(url: str) -> SplitResult:
    """Split an address into its parts, and add ``http://`` and ``/metrics`` if they are missing.

    Raises
    ------
    EquipoiseError
        A text that is not an address, or another protocol.
    """
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_right = urlsplit(""), False
    plain = whole.isprintable() and whole.isascii() and " " not in whole
    if parts.scheme not in ("http", "https") or not (parts.hostname and port_is_right and plain):
        raise EquipoiseError(
            f"{harmless(url)!r} is not an address; expected one such as http://127.0.0.1:9400/metrics."
        )
    return parts._replace(path="/metrics") if parts.path in ("", "/") else parts


def ask(url: SplitResult, *, method: str = "GET", patience_seconds: float) -> str:
    """Send a request to an address and return the answer as text.

    The whole exchange has one deadline, so that a server that answers very slowly, or never stops,
    is given up like a silent one.

    Raises
    ------
    FormatError
        No answer, an answer that is too long or too slow, or an error status.
    """
    try:
        data = _exchange(url, method, time.monotonic() + patience_seconds)
    except TimeoutError:
        raise FormatError(f"it has not answered in full within {patience_seconds:g} s.") from None
    except OSError as error:
        raise FormatError(f"it does not answer ({error.strerror or error}).") from error
    response = HTTPResponse(_Answer(data), method=method)  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read()
    except (HTTPException, ValueError) as error:
        what = f"its answer is not HTTP, but begins with {harmless(data[:40].decode('latin-1'))!r}"
        raise FormatError(f"{what}." if data else "it has hung up without an answer.") from error
    if not 200 <= response.status < 300:
        raise FormatError(
            f"it answers {response.status} {harmless(response.reason)}; is the path right?"
        )
    return body.decode("utf-8", "replace")


def post(url: SplitResult | None) -> str:
    """Ask an address for fresh figures; return a sentence on the result."""
    if url is None:
        return (
            "Looked again. No address was given to ask the system itself for fresh figures; "
            "it looks when it is due."
        )
    try:
        ask(url, method="POST", patience_seconds=PATIENCE_SECONDS)
    except FormatError as error:
        return f"Asked for fresh figures at {harmless(url.path)}: {error}"
    return f"Asked for fresh figures at {harmless(url.path)}."


def _exchange(url: SplitResult, method: str, deadline: float) -> bytes:
    """Send the request, and read until the other side closes the connection."""
    host = url.hostname or ""
    port = url.port or (443 if url.scheme == "https" else 80)
    target = url.path + (f"?{url.query}" if url.query else "")
    request = (
        f"{method} {target} HTTP/1.0\r\nHost: {url.netloc.rpartition('@')[2]}\r\n"
        f"Accept: {_TEXT}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    with (
        socket.create_connection((host, port), timeout=_left(deadline)) as plain,
        _secured(plain, url) as connection,
    ):
        connection.sendall(request.encode("ascii"))
        pieces: list[bytes] = []
        size = 0
        while True:
            connection.settimeout(_left(deadline))
            piece = connection.recv(_PIECE)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > _MOST_BYTES:
                raise FormatError(f"its answer is longer than {_MOST_BYTES >> 20} MB.")


def _secured(plain: socket.socket, url: SplitResult) -> socket.socket:
    if url.scheme == "http":
        return plain
    return ssl.create_default_context().wrap_socket(plain, server_hostname=url.hostname)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Answer:
    """Received bytes that replace the socket for Python's HTTP parser."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:
        """Return the bytes as a file."""
        return io.BytesIO(self._data)

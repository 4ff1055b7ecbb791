"""Requests to a server over HTTP; every failure becomes an error of one sentence."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import parse_json

_MAX_ANSWER_BYTES = 1 << 30
_QUOTED = 200
_NOT_FOUND = 404
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Ignores the environment's proxies, since a server to record is in the same network."""


class NotFoundError(EquipoiseError):
    """The server has no such address."""


@dataclass(frozen=True)
class Server:
    """A server at an address.

    Parameters
    ----------
    url
        Address without a path, such as ``http://127.0.0.1:8000``.
    timeout_seconds
        Longest wait for any answer.
    most_bytes
        Longest answer that is read.
    """

    url: str
    timeout_seconds: float
    most_bytes: int = _MAX_ANSWER_BYTES

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            fine = False
        if not fine:
            raise EquipoiseError(
                f"The address of the server is {self.url[:_QUOTED]!r}; expected one such as "
                "http://127.0.0.1:8000."
            )

    def ask(self, path: str, body: Any = None) -> Any:
        """Return the JSON document at a path; if a body is given, it is posted.

        Raises
        ------
        NotFoundError
            The server has no such path.
        EquipoiseError
            There is no answer, or it is an error or not JSON.
        """
        return parse_json(self.send(path, body), f"{self.url}{path}")

    def send(self, path: str, body: Any = None) -> bytes:
        """Return the answer as bytes; raises what ``ask`` raises."""
        where = f"{self.url.rstrip('/')}{path}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(where, data, {"Content-Type": "application/json"})
            with _DIRECT.open(request, timeout=self.timeout_seconds) as answer:
                content: bytes = answer.read(self.most_bytes + 1)
        except urllib.error.HTTPError as error:
            raise _refused(where, error) from error
        except TimeoutError as error:
            raise EquipoiseError(
                f"{where} did not answer within {self.timeout_seconds:g} s."
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                reason = f"no connection within {self.timeout_seconds:g} s"
            raise EquipoiseError(
                f"{where} cannot be reached: {str(reason)[:_QUOTED]}. Is the server up?"
            ) from error
        if len(content) > self.most_bytes:
            raise EquipoiseError(
                f"{where} answers more than {self.most_bytes >> 20} MiB; expected less."
            )
        return content


def _refused(where: str, error: urllib.error.HTTPError) -> EquipoiseError:
    """Return the error of an answer that reports one."""
    try:
        with error:
            document = parse_json(error.read(_MAX_ANSWER_BYTES), "")
    except (FormatError, OSError, HTTPException):
        document = {}
    said = document.get("error", document) if isinstance(document, dict) else {}
    said = said.get("message", "") if isinstance(said, dict) else said
    reason = " ".join(str(said or error.reason)[:_QUOTED].split())
    kind = NotFoundError if error.code == _NOT_FOUND else EquipoiseError
    return kind(f"{where} answers {error.code}: {reason}.")

"""Requests to a serving engine: arrival times, and lengths of prompts and answers."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_array, as_ids, brief
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import parse_text

MAX_REQUESTS = 1 << 24
MAX_TOKENS = 1 << 24  # longest prompt or answer
MAX_SECONDS = 1e9  # 30 years; up to this, float64 still resolves a microsecond

_COLUMNS = ("arrival_seconds", "prompt_tokens", "output_tokens")
_TIMES = ("arrival_seconds",)
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Requests:
    """Requests in order of arrival.

    Parameters
    ----------
    arrival_seconds
        Arrival times, ``(N,)`` seconds >= 0, ascending.
    prompt_tokens
        Number of tokens of each prompt, ``(N,)``, at least 1; or one number for all.
    output_tokens
        Number of tokens of each answer, including the first, ``(N,)``, >= 1; or one for all.
    """

    arrival_seconds: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __post_init__(self) -> None:
        arrival = _as_arrivals(self.arrival_seconds)
        object.__setattr__(self, "arrival_seconds", arrival)
        for name in ("prompt_tokens", "output_tokens"):
            object.__setattr__(self, name, _as_tokens(name, getattr(self, name), len(arrival)))

    def __len__(self) -> int:
        return len(self.arrival_seconds)


def read_requests(path: str | Path) -> Requests:
    """Read requests from JSON lines or CSV, and sort them by arrival.

    Each line has ``arrival_seconds``, ``prompt_tokens`` and ``output_tokens``, as keys of a JSON
    object or as columns of a CSV file (name ending in ``.csv``) whose first line names them. Other
    keys and columns may be there.

    Raises
    ------
    FormatError
        A file that cannot be read, is empty or has a line that is not a request.
    """
    path = Path(path)
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    columns = {name: array("d" if name in _TIMES else "q") for name in _COLUMNS}
    num_requests = 0
    for number, row in rows:
        if num_requests == MAX_REQUESTS:
            raise FormatError(f"{path} has more than {MAX_REQUESTS:,} requests; expected fewer.")
        num_requests += 1
        for name, column in columns.items():
            column.append(_checked(row.get(name), name, f"{path}, line {number}"))
    if not num_requests:
        raise FormatError(f"{path} has no requests; expected one a line.")
    arrival, prompt, output = map(np.array, columns.values())
    order = np.argsort(arrival, kind="stable")
    return Requests(
        arrival_seconds=arrival[order], prompt_tokens=prompt[order], output_tokens=output[order]
    )


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        row = parse_text(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise FormatError(
                f"{path}, line {number}: {brief(row)}; expected an object with "
                f"{', '.join(_COLUMNS)}."
            )
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(line for _, line in _lines(path))
    try:
        names = [name.strip() for name in next(rows, [])]
        for name in _COLUMNS:
            if names.count(name) != 1:
                raise FormatError(
                    f"{path} has {names.count(name)} columns {name} in its first line; expected "
                    f"one each of {', '.join(_COLUMNS)}."
                )
        for row in rows:
            if len(row) not in (0, len(names)):
                raise FormatError(
                    f"{path}, line {rows.line_num}: {len(row)} values; expected {len(names)}."
                )
            if row:
                yield rows.line_num, {name: _number(row[names.index(name)]) for name in _COLUMNS}
    except csv.Error as error:
        raise FormatError(f"{path}, line {rows.line_num}: is not CSV ({error}).") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a text file; refuse very long lines."""
    try:
        if path.exists() and not path.is_file():
            raise FormatError(f"{path} is not a file; expected requests as JSON lines or CSV.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise FormatError(
                        f"{path}, line {number}: has {_LONGEST_LINE:,} characters or more; "
                        "expected one request."
                    )
                yield number, line
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text.") from error
    except (OSError, ValueError) as error:  # ValueError for a path with a null character
        if isinstance(error, EquipoiseError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"{path} cannot be read: {reason}.") from error


def _number(text: str) -> float | int | str:
    """Convert a cell to a number if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _checked(value: Any, name: str, where: str) -> Any:
    """Check a value of a column; raise ``FormatError`` if it is not valid."""
    is_time = name in _TIMES
    known = isinstance(value, (int, float) if is_time else int) and not isinstance(value, bool)
    low, high = (0, MAX_SECONDS) if is_time else (1, MAX_TOKENS)
    if not (known and low <= value <= high):
        kind = "seconds" if is_time else "a whole number"
        raise FormatError(
            f"{where}: {name} is {brief(value)}; expected {kind} from {low} to {high:,.0f}."
        )
    return value


def _as_arrivals(seconds: ArrayLike) -> NDArray[np.float64]:
    x = as_array(seconds, "Arrivals").astype(np.float64)
    if x.ndim != 1 or not 1 <= x.size <= MAX_REQUESTS:
        raise EquipoiseError(
            f"Arrivals have shape {x.shape}; expected (requests,), 1 to {MAX_REQUESTS:,}."
        )
    if not (x.min() >= 0 and x.max() <= MAX_SECONDS):  # also false for NaN
        raise EquipoiseError(
            f"Arrivals are from {brief(x.min())} to {brief(x.max())}; expected seconds from 0 to "
            f"{MAX_SECONDS:,.0f}."
        )
    if (np.diff(x) < 0).any():
        raise EquipoiseError("Arrivals do not ascend; sort the requests by arrival.")
    return x


def _as_tokens(name: str, tokens: ArrayLike, num_requests: int) -> NDArray[np.int64]:
    x = as_ids(tokens, name)
    if x.shape not in ((), (num_requests,)):
        raise EquipoiseError(
            f"{name} has shape {x.shape}; expected ({num_requests},), one for each arrival."
        )
    if not (x.min() >= 1 and x.max() <= MAX_TOKENS):
        raise EquipoiseError(
            f"{name} are from {x.min()} to {x.max()}; expected 1 to {MAX_TOKENS:,}."
        )
    return np.broadcast_to(x.astype(np.int64), num_requests)

"""Published kernel tables: CSV files of times, read into columns.

``moe_compute_KIND.csv`` has times of the slowest rank's share of one layer, and ``alltoall.csv``
has times of one exchange. KIND says what a time means: how loads were drawn, how many draws were
averaged, and which tokens the rank handles.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import brief
from equipoise.errors import FormatError
from equipoise.simulate.draws import Rounding

_MAX_BYTES = 256 << 20
_TEXT = ("gpu", "framework", "version", "kernel", "dtype", "phase", "distribution", "op")
_NUMBERS = ("alpha", "time_us", "seconds")
_TIMES = ("time_us", "seconds")
_LEAST = {"tokens_slowest_rank": -1, "eplb": 0, "num_nodes": 0, "sms": 0}  # 1 for other columns
COMPUTE_COLUMNS = (
    *("gpu", "framework", "version", "kernel", "dtype", "phase", "hidden_size", "inter_size"),
    *("num_experts", "top_k", "num_slots", "ep_size", "distribution", "alpha", "eplb"),
    *("tokens_global", "tokens_slowest_rank", "time_us"),
)
EXCHANGE_COLUMNS = (
    *("gpu", "framework", "version", "kernel", "op", "dtype", "hidden_size", "num_experts"),
    *("top_k", "ep_size", "num_nodes", "sms", "tokens_per_rank", "time_us"),
)


@dataclass(frozen=True)
class Meaning:
    """The meaning of a time in a kind of table.

    Parameters
    ----------
    num_averaged
        Number of random draws that a time averages.
    rounding
        Rule that makes drawn loads add up.
    counts_distinct
        Flag that a rank handles only tokens with a choice on it, not those of all ranks.
    """

    num_averaged: int
    rounding: Rounding
    counts_distinct: bool


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "wideep": Meaning(1, "smallest", counts_distinct=True),
        "deepep": Meaning(5, "by rank", counts_distinct=False),
    }
)
"""The kinds of compute table that can be fitted."""


@dataclass(frozen=True)
class Table:
    """A table as columns by name; ``name`` is that of the file."""

    name: str
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.columns["time_us"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def where(self, chosen: NDArray[Any]) -> Table:
        """Return the chosen rows, by a mask or by index."""
        return Table(self.name, {name: column[chosen] for name, column in self.columns.items()})

    def groups(self, *names: str) -> list[tuple[tuple[Any, ...], NDArray[np.intp]]]:
        """Group rows with equal values in these columns; return values and row indices."""
        codes = np.zeros(len(self), np.int64)
        for name in names:
            values, code = np.unique(self[name], return_inverse=True)
            _, codes = np.unique(codes * len(values) + code, return_inverse=True)
        _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
        return [
            (tuple(self[name][row].item() for name in names), np.flatnonzero(inverse == group))
            for group, row in enumerate(first)
        ]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """Return the measured times."""
        return np.asarray(self["time_us"] * 1e-6)


def read_compute(folder: Path, kind: str) -> Table:
    """Read the table ``moe_compute_KIND.csv`` in a folder."""
    return _read(folder / f"moe_compute_{kind}.csv", COMPUTE_COLUMNS)


def read_exchange(folder: Path) -> Table:
    """Read the table ``alltoall.csv`` in a folder."""
    return _read(folder / "alltoall.csv", EXCHANGE_COLUMNS)


def read_step_seconds(path: Path) -> NDArray[np.float64]:
    """Read the column ``seconds`` of a table with a row for each step."""
    return np.asarray(_read(path, ("seconds",))["seconds"], dtype=np.float64)


def _read(path: Path, names: tuple[str, ...]) -> Table:
    if path.stat().st_size > _MAX_BYTES:
        raise FormatError(f"{path} has more than {_MAX_BYTES >> 20} MiB; expected a kernel table.")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            missing = [name for name in names if name not in header]
            if missing:
                raise FormatError(
                    f"{path} has no column {missing[0]}; expected the columns {', '.join(names)}."
                )
            lines = [(rows.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} is not a CSV file: {error}.") from error
    for number, row in lines:
        if len(row) != len(header):
            raise FormatError(f"{path}, line {number}: {len(row)} values; expected {len(header)}.")
    if not lines:
        raise FormatError(f"{path} has no rows; expected at least one.")
    return Table(
        path.name,
        {
            name: _column(path, name, [(n, row[header.index(name)]) for n, row in lines])
            for name in names
        },
    )


def _column(path: Path, name: str, cells: list[tuple[int, str]]) -> NDArray[Any]:
    """Convert a column to text, whole numbers or numbers, and refuse other values."""
    if name in _TEXT:
        return np.array([text for _, text in cells], dtype=np.str_)
    kind = float if name in _NUMBERS else int
    low, high = (_LEAST.get(name, 1), 2**40) if kind is int else (0, 1e12)
    values = []
    for line, text in cells:
        try:
            value = kind(text)
        except ValueError:
            value = np.nan
        if not low <= value <= high or (name in _TIMES and value == 0):
            expected = "a whole number" if kind is int else "a number"
            least = f"{low} or more" if name not in _TIMES else "above 0"
            raise FormatError(
                f"{path}, line {line}: {name} is {brief(text)}; expected {expected}, {least}."
            )
        values.append(value)
    return np.array(values)

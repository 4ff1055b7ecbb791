"""The matrix of a heat map of layers and ranks, reduced to a size that can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from equipoise.report.summary import TraceSummary


@dataclass(frozen=True)
class HeatMap:
    """The 95th percentile of each rank's load, by layer; neighbours share cells if there are many.

    Parameters
    ----------
    layers
        First and last layer number of each row.
    ranks
        First and last rank of each column.
    multiples
        Rows of numbers, one row for each entry of ``layers`` and one number for each of ``ranks``:
        the 95th percentile over steps of load over mean. A shared cell has the largest of its
        numbers, because others wait for the busiest rank.
    imbalance
        Imbalance of each entry of ``layers``, the largest if several share it; ``None`` without
        load.
    """

    layers: tuple[tuple[int, int], ...]
    ranks: tuple[tuple[int, int], ...]
    multiples: tuple[tuple[float, ...], ...]
    imbalance: tuple[float | None, ...]

    @property
    def joined(self) -> str:
        """Name of what shares cells: ``layers and ranks``, either one, or nothing."""
        parts = []
        if max(b - a for a, b in self.layers):
            parts.append("layers")
        if max(b - a for a, b in self.ranks):
            parts.append("ranks")
        return " and ".join(parts)


def heat_map(summary: TraceSummary, *, max_rows: int, max_columns: int) -> HeatMap:
    """Make a heat map of rank loads with at most ``max_rows`` x ``max_columns`` cells."""
    return joined(
        np.array(summary.rank_p95),
        [layer.layer for layer in summary.layers],
        [layer.balance.imbalance if layer.balance else None for layer in summary.layers],
        max_rows=max_rows,
        max_columns=max_columns,
    )


def joined(
    multiples: NDArray[np.float64],
    layer_ids: Sequence[int],
    imbalance: Sequence[float | None],
    *,
    max_rows: int,
    max_columns: int,
) -> HeatMap:
    """Reduce a matrix of layers and ranks, and the layers' imbalance, to a number of cells."""
    rows = starts(multiples.shape[0], max_rows)
    columns = starts(multiples.shape[1], max_columns)
    cells = np.maximum.reduceat(np.maximum.reduceat(multiples, rows, axis=0), columns, axis=1)
    return HeatMap(
        layers=spans(rows, layer_ids),
        ranks=spans(columns, range(multiples.shape[1])),
        multiples=tuple(tuple(row) for row in cells.tolist()),
        imbalance=tuple(
            max((x for x in imbalance[a:b] if x is not None), default=None)
            for a, b in pairwise([*rows, len(layer_ids)])
        ),
    )


def span_text(span: tuple[int, int]) -> str:
    """Write a span as ``3`` or ``3-5``."""
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"


def starts(size: int, at_most: int) -> list[int]:
    """Divide ``size`` neighbours into at most ``at_most`` runs; return where each starts."""
    return list(range(0, size, -(-size // at_most)))


def spans(first: Sequence[int], ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the first and last id of each run that starts at one of ``first``."""
    ends = [*first[1:], len(ids)]
    return tuple((ids[a], ids[b - 1]) for a, b in zip(first, ends, strict=True))

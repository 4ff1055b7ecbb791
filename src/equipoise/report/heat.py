"""The matrix behind a heat map of layers and ranks, made small enough to show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.report.summary import TraceSummary


@dataclass(frozen=True)
class HeatMap:
    """Loads as multiples of their layer's mean, neighbours joined where there are too many.

    Parameters
    ----------
    layers
        First and last layer number of each row.
    ranks
        First and last rank of each column.
    multiples
        A row of numbers for each entry of ``layers``, one for each of ``ranks``: the largest of
        the cells joined, because it is the busiest rank that others wait for.
    """

    layers: tuple[tuple[int, int], ...]
    ranks: tuple[tuple[int, int], ...]
    multiples: tuple[tuple[float, ...], ...]

    @property
    def joined(self) -> str:
        """What shares cells with its neighbours: ``layers and ranks``, either, or nothing."""
        parts = []
        if max(b - a for a, b in self.layers):
            parts.append("layers")
        if max(b - a for a, b in self.ranks):
            parts.append("ranks")
        return " and ".join(parts)


def heat_map(summary: TraceSummary, *, max_rows: int, max_columns: int) -> HeatMap:
    """The rank loads of a summary in at most ``max_rows`` x ``max_columns`` cells."""
    matrix = np.array(summary.rank_multiples)
    layer_ids = [layer.layer for layer in summary.layers]
    rows = _starts(matrix.shape[0], max_rows)
    columns = _starts(matrix.shape[1], max_columns)
    joined = np.maximum.reduceat(np.maximum.reduceat(matrix, rows, axis=0), columns, axis=1)
    return HeatMap(
        layers=_spans(rows, layer_ids),
        ranks=_spans(columns, list(range(matrix.shape[1]))),
        multiples=tuple(tuple(row) for row in joined.tolist()),
    )


def span_text(span: tuple[int, int]) -> str:
    """``3`` or ``3-5``."""
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"


def _starts(size: int, at_most: int) -> list[int]:
    return list(range(0, size, -(-size // at_most)))


def _spans(starts: list[int], ids: list[int]) -> tuple[tuple[int, int], ...]:
    ends = [*starts[1:], len(ids)]
    return tuple((ids[a], ids[b - 1]) for a, b in zip(starts, ends, strict=True))

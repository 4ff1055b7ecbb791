"""TensorRT-LLM's offline load report, digit for digit.

The engine's script computes with torch in single precision and prints a pandas frame. Neither is
needed here: the sums are taken in the order torch's CPU kernel takes them, because single-precision
addition depends on the order, and the frame is laid out by pandas' default rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement
from equipoise.report.measured import aligned, source_ranks
from equipoise.trace import Trace

Number = TypeVar("Number", bound=np.number)

_COLUMNS = ("mean", "std", "imbalance-ratio")


@dataclass(frozen=True, eq=False)
class TrtllmTable:
    """The engine's report: one row a layer, and their average.

    ``str()`` is what the engine's script prints, without a trailing newline.

    Parameters
    ----------
    layer_ids
        The model's number of each layer, ``L`` of them.
    values
        ``mean``, ``std`` (over ranks or experts, n - 1) and ``imbalance-ratio`` (max/mean - 1),
        each per iteration in float32 and then averaged over iterations, ``(L, 3)`` float64. As in
        the engine, a ratio is NaN where an iteration has no token, ``std`` where there is one rank.
    """

    layer_ids: tuple[int, ...]
    values: NDArray[np.float64]

    @property
    def average(self) -> NDArray[np.float64]:
        """The plain mean over layers, ``(3,)``; layers with NaN are left out, as pandas does."""
        known = ~np.isnan(self.values)
        count = known.sum(axis=0)
        average: NDArray[np.float64] = np.full(3, np.nan)
        np.divide(np.nansum(self.values, axis=0), count, out=average, where=count > 0)
        return average

    def __str__(self) -> str:
        index = [*map(str, self.layer_ids), "average"]
        rows = np.vstack([self.values, self.average])
        return "Load statistics:\n" + _frame_text(index, _COLUMNS, rows)


def trtllm_table(
    trace: Trace,
    *,
    num_ranks: int | None = None,
    placement: Placement | None = None,
    per_expert: bool = False,
) -> TrtllmTable:
    """TensorRT-LLM's ``report_load_statistics`` table of a trace.

    Parameters
    ----------
    trace
        Each step is one iteration.
    num_ranks
        Ranks that hold ``E / R`` experts each, in order; the recorded source ranks (the engine's
        rank files) if ``None``.
    placement
        Project the loads on this placement's slots, every copy taking an equal share, instead.
    per_expert
        Statistics over experts (with a placement: slots) instead of ranks.

    Raises
    ------
    EquipoiseError
        The number of ranks is unknown, does not divide the experts or disagrees with the placement;
        or a layer of the trace is not in the placement.
    """
    if placement is not None:
        placement = aligned(placement, trace, num_ranks)
        loads_TLX = _slot_loads(trace, placement)
        if not per_expert:
            loads_TLX = _sum(_blocks(loads_TLX, placement.num_ranks))
    elif not per_expert:
        blocks = _blocks(trace.counts, _contiguous_ranks(trace, num_ranks))
        loads_TLX = blocks.sum(axis=3, dtype=np.int64).astype(np.float32)
    elif num_ranks is None:
        loads_TLX = trace.counts.astype(np.float32)
    else:
        raise EquipoiseError(
            f"Statistics per expert need no {argument('num_ranks')}; leave one of them out."
        )
    return TrtllmTable(trace.layer_ids, _statistics(loads_TLX))


def _contiguous_ranks(trace: Trace, num_ranks: int | None) -> int:
    """The number of ranks, which divides the experts."""
    num_ranks = source_ranks(trace) if num_ranks is None else num_ranks
    if num_ranks is None:
        raise EquipoiseError(
            f"The trace does not say how many ranks recorded it; give {argument('num_ranks')}, "
            "or ask for statistics per expert."
        )
    if num_ranks < 1 or trace.num_experts % num_ranks:
        raise EquipoiseError(
            f"{trace.num_experts} experts do not divide over {num_ranks} ranks, so it is not known "
            f"which rank held which; give {argument('per_expert')} to compare experts."
        )
    return num_ranks


def _slot_loads(trace: Trace, placement: Placement) -> NDArray[np.float32]:
    """Every slot's equal share of its expert's assignments, ``(T, L, S)``."""
    share: NDArray[np.float32] = np.divide(trace.counts, placement.copies, dtype=np.float32)
    slots = np.broadcast_to(placement.slots, (trace.num_steps, *placement.slots.shape))
    return np.take_along_axis(share, slots, axis=2)


def _blocks(loads_TLX: NDArray[Number], num_ranks: int) -> NDArray[Number]:
    """The equal contiguous blocks of each rank, a view ``(T, L, R, X / R)``."""
    return loads_TLX.reshape(*loads_TLX.shape[:2], num_ranks, -1)


def _statistics(loads_TLX: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean, deviation and imbalance ratio of every layer, ``(L, 3)``."""
    size = loads_TLX.shape[2]
    with np.errstate(invalid="ignore", divide="ignore"):  # no token, or one rank: NaN
        mean_TL = _sum(loads_TLX) / np.float32(size)
        square_TL = loads_TLX.astype(np.float64).var(axis=2) * size  # torch accumulates in double
        std_TL = np.sqrt(square_TL / np.float64(size - 1)).astype(np.float32)
        ratio_TL = loads_TLX.max(axis=2) / mean_TL - np.float32(1)
    columns = [_sum(x.T) / np.float32(len(x)) for x in (mean_TL, std_TL, ratio_TL)]
    return np.stack(columns, axis=1).astype(np.float64)


def _sum(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Float32 sums over the last axis in the order of torch's CPU kernel.

    Eight neighbouring values are summed lane by lane, then the values left over, then the lanes.
    Fewer than eight are summed as one lane.
    """
    size = values.shape[-1]
    lanes = 8 if size >= 8 else 1
    rows = size // lanes
    whole = values[..., : rows * lanes].reshape(*values.shape[:-1], rows, lanes)
    lane_sums = _interleaved_sum(np.moveaxis(whole, -2, 0))
    parts = np.concatenate([values[..., rows * lanes :], lane_sums], axis=-1)
    return _in_order(np.moveaxis(parts, -1, 0))


def _interleaved_sum(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum the first axis in four interleaved series; rows left over join the first of them."""
    quads = len(rows) // 4
    series = _cascade_sum(rows[: quads * 4].reshape(quads, 4, *rows.shape[1:]))
    first = _in_order(np.concatenate([series[:1], rows[quads * 4 :]]))
    return _in_order(np.concatenate([first[None], series[1:]]))


def _cascade_sum(
    rows: NDArray[np.float32], block: int = 16, levels: int = 4
) -> NDArray[np.float32]:
    """Sum the first axis in blocks, the block sums in blocks, and so on; the rests are added up."""
    rests = []
    for level in range(levels):
        whole = len(rows) // block * block if level < levels - 1 else 0
        rests.append(_in_order(rows[whole:]))
        rows = _in_order(rows[:whole].reshape(-1, block, *rows.shape[1:]).swapaxes(0, 1))
    return _in_order(np.stack(rests))


def _in_order(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum the first axis from first to last; ``np.sum`` would pair."""
    total = np.zeros(rows.shape[1:], dtype=np.float32)
    for row in rows:
        total += row
    return total


def _frame_text(index: list[str], columns: tuple[str, ...], values: NDArray[np.float64]) -> str:
    """The default ``repr`` of a pandas frame of floats, ``values`` ``(rows, columns)``.

    Above 60 rows only the first and last five are shown, and a line states the size.
    """
    num_rows = len(index)
    elided = num_rows > 60
    if elided:
        index = index[:5] + index[-5:]
        values = np.vstack([values[:5], values[-5:]])
    blocks = [["", *index]]
    for name, column in zip(columns, values.T, strict=True):
        blocks.append([f" {name}", *_column_text(column)])
    if elided:
        for block in blocks:
            block.insert(6, "...")
    widths = [max(map(len, block)) for block in blocks]
    head, *rest = [
        [cell.ljust(width) if block is blocks[0] else cell.rjust(width) for cell in block]
        for block, width in zip(blocks, widths, strict=True)
    ]
    text = "\n".join(" ".join(row) for row in zip(head, *rest, strict=True))
    return f"{text}\n\n[{num_rows} rows x {len(columns)} columns]" if elided else text


def _column_text(column: NDArray[np.float64]) -> list[str]:
    """Six decimals without common trailing zeros, or exponents where pandas uses them."""
    fixed = _trim([f"{x: .6f}" if x == x else "NaN" for x in column])
    size = np.abs(column)
    tiny = ((size < 1e-6) & (size > 0)).any()
    wide = max(map(len, fixed)) > 12 and (size > 1e6).any()
    if tiny or wide:
        return [f"{x: .6e}" if x == x else "NaN" for x in column]
    return fixed


def _trim(texts: list[str]) -> list[str]:
    """Cut the zeros all numbers end in, but leave each a decimal."""
    numbers = [text for text in texts if text != "NaN"]
    if not numbers:
        return texts
    spare = min(5, min(len(text) - len(text.rstrip("0")) for text in numbers))
    return [text if text == "NaN" else text[: len(text) - spare] for text in texts]

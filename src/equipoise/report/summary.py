"""The summary of a trace: its balance in numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from html import escape
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.balance import imbalance
from equipoise.errors import EquipoiseError
from equipoise.frames import data_frame
from equipoise.placement import Placement
from equipoise.report.attention import Attention, measure_attention
from equipoise.report.drift import Drift, measure_drift
from equipoise.report.labels import without_fine_labels
from equipoise.report.measured import Layout, aligned, source_ranks, unbalanced
from equipoise.report.plots import Plots
from equipoise.report.ranks import Balance, RankView, over_mean
from equipoise.showing import heat_html, in_short, short_name
from equipoise.trace import Trace

_TOP = 10
_MOSTLY_CHANCE = 0.8


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """The summary of one layer.

    Parameters
    ----------
    layer
        Layer number of the model.
    assignments
        Number of assignments over all steps.
    used_experts
        Number of experts with any assignment.
    active_experts
        Mean number of experts with an assignment in a step.
    expert_imbalance
        Load of the hottest expert over the mean expert, over all steps; 1 without load.
    busiest_rank
        Rank with the most load over all steps; ``None`` without load or ranks.
    balance
        Balance over ranks; ``None`` without load or ranks.
    """

    layer: int
    assignments: int
    used_experts: int
    active_experts: float
    expert_imbalance: float
    busiest_rank: int | None
    balance: Balance | None

    __repr__ = in_short


@dataclass(frozen=True, kw_only=True)
class HotExpert:
    """An expert that gets far more than its share.

    Parameters
    ----------
    multiple
        Load over the mean expert of the layer, over all steps.
    share
        Share of the layer's assignments.
    ranks
        Ranks that hold the expert; empty if ranks are unknown.
    """

    layer: int
    expert: int
    multiple: float
    share: float
    ranks: tuple[int, ...]

    __repr__ = in_short


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """The summary of the steps with one value of a label, such as phase ``decode``."""

    label: str
    value: str
    num_steps: int
    assignments: int
    expert_imbalance: float
    balance: Balance | None

    __repr__ = in_short


@dataclass(frozen=True, kw_only=True)
class ExpertCurves:
    """Experts from hottest to coldest, as multiples of their layer's mean, ``E`` numbers each.

    ``median``, ``low`` and ``high`` are the median, 10th and 90th percentile over layers at each
    position; ``steepest`` is the layer with the hottest expert.
    """

    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    steepest: tuple[float, ...]
    steepest_layer: int

    __repr__ = in_short


@dataclass(frozen=True, kw_only=True)
class TraceSummary:
    """A whole trace under one layout. Every key: ``equipoise explain report-json``.

    Parameters
    ----------
    source, format, notes
        Source and format of the trace, and notes of its reader and of this summary.
    num_ranks
        Number of ranks; ``None`` if neither the caller nor the trace gives it. Then only experts
        are compared, and there is no balance.
    layout
        Kind of layout: ``contiguous`` (each expert once, in order), ``placement``, or ``experts``
        without ranks.
    num_slots
        Number of slots ``S`` of the layout; ``None`` without ranks.
    tokens, tokens_per_step
        Number of tokens in the fullest layer, and (fewest, mean, most) per step; ``None`` without
        ``top_k``.
    balance
        Balance over all layers and steps.
    relative_step_time
        Sum of the busiest ranks' loads over the sum of the means; 1.3 is 30 % longer than balanced.
    idle_share
        Share of device time spent waiting for the busiest rank.
    attention
        Imbalance of requests over the ranks; ``None`` if it was not recorded.
    worst_layers
        Numbers of the layers with load, worst first, at most ten.
    rank_p95
        95th percentile over steps of each rank's load over the mean of its step and layer, ``L``
        rows of ``R`` numbers with four decimals. Long traces use 256 evenly spaced steps.
    rank_multiples
        Loads summed over all steps over the mean rank's, ``L`` rows of ``R`` numbers. Moving hot
        spots cancel in the sum.
    """

    source: str
    format: str
    notes: tuple[str, ...]
    num_steps: int
    num_layers: int
    num_experts: int
    num_ranks: int | None
    num_slots: int | None
    top_k: int | None
    layout: str
    assignments: int
    tokens: int | None
    tokens_per_step: tuple[float, float, float] | None
    balance: Balance | None
    relative_step_time: float | None
    idle_share: float | None
    layers: tuple[LayerSummary, ...]
    worst_layers: tuple[int, ...]
    hottest_experts: tuple[HotExpert, ...]
    drift: Drift
    attention: Attention | None
    labels: tuple[LabelSummary, ...]
    rank_p95: tuple[tuple[float, ...], ...]
    rank_multiples: tuple[tuple[float, ...], ...]
    expert_curves: ExpertCurves

    @property
    def plot(self) -> Plots:
        """Drawings on matplotlib: ``plot.heat()``, ``layers()``, ``experts()`` and ``drift()``."""
        return Plots(self)

    def to_frame(self) -> Any:
        """Make a ``DataFrame`` with a row for each layer, in pandas or else in polars.

        Columns are the fields of ``LayerSummary``, with those of its balance in place of it.

        Raises
        ------
        EquipoiseError
            Neither pandas nor polars is installed.
        """
        own = [f.name for f in fields(LayerSummary) if f.name != "balance"]
        columns: dict[str, list[object]] = {
            name: [getattr(x, name) for x in self.layers] for name in own
        }
        for name in (f.name for f in fields(Balance)):
            columns[name] = [getattr(x.balance, name, None) for x in self.layers]
        return data_frame(columns)

    def __repr__(self) -> str:
        balance = ""
        if self.balance is not None:
            balance = (
                f", {self.num_ranks} ranks, imbalance {self.balance.imbalance:.3f} where chance "
                f"alone gives {self.balance.floor:.3f}"
            )
        return (
            f"TraceSummary({self.num_steps} steps, {self.num_layers} layers, {self.num_experts} "
            f"experts{balance}, {short_name(self.source)})"
        )

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.headline)
        if not self.rank_p95:
            return f"<div><code>{escape(repr(self))}</code>{said}</div>"
        return said + heat_html(
            repr(self),
            self.rank_p95,
            "Load of every rank over the mean in one step of twenty, or more: a row for each "
            "layer, a column for each rank.",
        )

    @property
    def headline(self) -> tuple[str, ...]:
        """Result in a few plain sentences."""
        attention = () if self.attention is None else self.attention.headline
        return (*_headline(self), *attention, *self.drift.headline)

    def to_json(self) -> bytes:
        """Write the summary as one JSON object whose keys are the fields."""
        return msgspec.json.encode(self)


def summarise(
    trace: Trace, *, num_ranks: int | None = None, placement: Placement | None = None
) -> TraceSummary:
    """Measure the balance of a trace.

    Parameters
    ----------
    trace
        Trace to measure, step by step; not changed. Use ``Trace.windows`` first to sum steps.
    num_ranks
        Number of ranks ``R`` for a contiguous layout of the experts. ``None`` takes the number of
        recorded source ranks; without these, only experts are compared.
    placement
        Placement to measure instead; copies of an expert take equal shares.

    Raises
    ------
    EquipoiseError
        An empty trace, or a placement with other experts, ranks or layers.
    """
    if not trace.counts.any():
        raise EquipoiseError(
            f"No assignment was recorded in {trace.provenance.source}; record some traffic first."
        )
    trace, dropped = without_fine_labels(trace)
    layout = _layout(trace, num_ranks, placement)
    view = None if layout is None else RankView.of(trace, layout)
    total = trace.total
    tokens = _tokens_per_step(trace)
    layers = _layers(trace, total, view)
    return TraceSummary(
        source=trace.provenance.source,
        format=trace.provenance.format,
        notes=(*trace.provenance.notes, *dropped, *_notes(trace, layout, placement)),
        num_steps=trace.num_steps,
        num_layers=trace.num_layers,
        num_experts=trace.num_experts,
        num_ranks=None if layout is None else layout.num_ranks,
        num_slots=None if layout is None else layout.num_slots,
        top_k=trace.top_k,
        layout=_layout_name(layout, placement),
        assignments=int(total.sum()),
        tokens=None if tokens is None else round(float(tokens.sum())),
        tokens_per_step=(
            None
            if tokens is None
            else (float(tokens.min()), float(tokens.mean()), float(tokens.max()))
        ),
        balance=None if view is None else view.balance(),
        relative_step_time=None if view is None else view.relative_step_time,
        idle_share=None if view is None else 1.0 - 1.0 / view.relative_step_time,
        layers=layers,
        worst_layers=_worst(layers),
        hottest_experts=_hottest(trace, total, layout),
        drift=measure_drift(trace),
        attention=measure_attention(trace),
        labels=_labels(trace, view),
        rank_p95=() if view is None else _rounded(view.p95),
        rank_multiples=() if view is None else _rounded(view.multiples()),
        expert_curves=_expert_curves(trace, total),
    )


def _rounded(matrix: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.round(4).tolist())


def _headline(summary: TraceSummary) -> list[str]:
    balance = summary.balance
    if balance is None or summary.idle_share is None:
        hot = summary.hottest_experts[0]
        return [
            f"The hottest expert carries {hot.multiple:.1f}x the mean of its layer "
            f"(layer {hot.layer}, expert {hot.expert}).",
            "Give the number of ranks to see what that means for devices.",
        ]
    return [
        f"On average the busiest of {summary.num_ranks} ranks carries {balance.imbalance:.2f}x its "
        f"share; chance alone would make it {balance.floor:.2f}x at this step size.",
        _chance_headline(balance),
        f"Where time follows load, ranks spend {summary.idle_share:.0%} of their expert time "
        "waiting for the busiest one.",
    ]


def _chance_headline(balance: Balance) -> str:
    share = f"{balance.chance_share:.0%}"
    if balance.chance_share >= _MOSTLY_CHANCE:
        return f"Chance explains {share} of the imbalance: no placement will remove much of it."
    return f"Chance explains {share} of the imbalance; the rest is skew."


def _layout(trace: Trace, num_ranks: int | None, placement: Placement | None) -> Layout | None:
    if placement is not None:
        return aligned(placement, trace, num_ranks)
    num_ranks = source_ranks(trace) if num_ranks is None else num_ranks
    return None if num_ranks is None else unbalanced(trace, num_ranks)


def _layout_name(layout: Layout | None, placement: Placement | None) -> str:
    if placement is not None:
        return "placement"
    return "experts" if layout is None else "contiguous"


def _notes(trace: Trace, layout: Layout | None, placement: Placement | None) -> list[str]:
    notes = []
    if layout is None:
        notes.append(
            "Only experts are compared, since no number of expert-parallel ranks was given; give "
            "the ranks."
        )
    elif placement is None:
        least, more = divmod(trace.num_experts, layout.num_ranks)
        held = f"each held {least} experts"
        if more:
            held = f"each held {least} experts, and the first {more} ranks one more,"
        notes.append(f"Ranks are measured as if {held} in ascending order, one copy each.")
    elif layout.num_redundant:
        notes.append("Every copy of an expert is taken to serve an equal share of its load.")
    if layout is not None and trace.top_k is None:
        notes.append(
            "The trace does not say how many experts a token takes; the noise floor treats "
            "assignments as independent, which puts it slightly too high."
        )
    return notes


def _tokens_per_step(trace: Trace) -> NDArray[np.float64] | None:
    """Count the tokens in the fullest layer of each step, ``(T,)``."""
    if trace.top_k is None:
        return None
    fullest: NDArray[np.float64] = trace.counts.sum(axis=2, dtype=np.float64).max(axis=1)
    return fullest / trace.top_k


def _layers(
    trace: Trace, total: NDArray[np.int64], view: RankView | None
) -> tuple[LayerSummary, ...]:
    active = np.count_nonzero(trace.counts, axis=2).mean(axis=0)
    used = np.count_nonzero(total, axis=1)
    hottest = imbalance(total)
    return tuple(
        LayerSummary(
            layer=layer,
            assignments=int(total[row].sum()),
            used_experts=int(used[row]),
            active_experts=float(active[row]),
            expert_imbalance=float(hottest[row]),
            busiest_rank=view.busiest(row) if view is not None and total[row].any() else None,
            balance=None if view is None else view.balance(layer=row),
        )
        for row, layer in enumerate(trace.layer_ids)
    )


def _worst(layers: tuple[LayerSummary, ...]) -> tuple[int, ...]:
    def badness(layer: LayerSummary) -> float:
        return layer.expert_imbalance if layer.balance is None else layer.balance.imbalance

    loaded = [layer for layer in layers if layer.assignments]
    return tuple(x.layer for x in sorted(loaded, key=badness, reverse=True)[:_TOP])


def _hottest(
    trace: Trace, total: NDArray[np.int64], layout: Layout | None
) -> tuple[HotExpert, ...]:
    multiple = over_mean(total)
    order = np.argsort(-multiple, axis=None, kind="stable")[:_TOP]
    hot = []
    for row, expert in zip(*np.unravel_index(order, multiple.shape), strict=True):
        if not total[row, expert]:
            break
        hot.append(
            HotExpert(
                layer=trace.layer_ids[row],
                expert=int(expert),
                multiple=float(multiple[row, expert]),
                share=float(total[row, expert] / total[row].sum()),
                ranks=() if layout is None else _holders(layout, int(row), int(expert)),
            )
        )
    return tuple(hot)


def _holders(layout: Layout, row: int, expert: int) -> tuple[int, ...]:
    return tuple(np.flatnonzero(layout.copies_on_rank[row, :, expert]).tolist())


def _labels(trace: Trace, view: RankView | None) -> tuple[LabelSummary, ...]:
    found = []
    for name, values in trace.labels.items():
        for value in dict.fromkeys(values.tolist()):
            steps = values == value
            total = trace.counts[steps].sum(axis=0, dtype=np.int64)
            busy = total[total.any(axis=1)]
            found.append(
                LabelSummary(
                    label=name,
                    value=value,
                    num_steps=int(steps.sum()),
                    assignments=int(total.sum()),
                    expert_imbalance=float(imbalance(busy).mean()) if len(busy) else 1.0,
                    balance=None if view is None else view.balance(steps=steps),
                )
            )
    return tuple(found)


def _expert_curves(trace: Trace, total: NDArray[np.int64]) -> ExpertCurves:
    multiple = -np.sort(-over_mean(total[total.any(axis=1)]), axis=1)
    low, median, high = np.percentile(multiple, [10, 50, 90], axis=0).round(4)
    loaded = np.flatnonzero(total.any(axis=1))
    steepest = int(multiple[:, 0].argmax())
    return ExpertCurves(
        median=tuple(median.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        steepest=tuple(multiple[steepest].round(4).tolist()),
        steepest_layer=trace.layer_ids[loaded[steepest]],
    )

"""What a trace says about balance, in numbers that stand on their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.balance import imbalance
from equipoise.errors import EquipoiseError
from equipoise.noise import TraceNoiseFloor, trace_noise_floor
from equipoise.placement import Placement
from equipoise.report.measured import Layout, aligned, rank_loads, source_ranks, unbalanced
from equipoise.trace import Trace

_TOP = 10
_MOSTLY_CHANCE = 0.8
_MOST_VALUES = 32  # of a label, beyond which it names steps rather than kinds of traffic
_STEPS_AT_ONCE = 64
_MOST_STEPS = 256  # of which a rank's 95th percentile is taken: bounds memory on long recordings
_MOST_WINDOWS = 256  # compared with each other: bounds memory on long recordings
_CALM_WINDOW = 32  # assignments per expert; fewer, and chance hides how a load vector moves


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How unevenly ranks share the work of some layers and steps, each (step, layer) a barrier.

    Barriers without load are left out. Averages do not convert into each other.

    Parameters
    ----------
    imbalance
        Mean of max/mean over the barriers, >= 1.
    imbalance_ratio
        Mean of (max - mean)/mean: the imbalance less 1.
    balancedness
        Mean of mean/max, in (0, 1].
    p95, worst
        95th percentile and largest max/mean.
    of_window
        Max/mean of the load summed over the steps, averaged over layers. Never above the mean
        over equal steps: hot spots that move cancel in a sum, but every step waits for its own.
    floor, floor_std
        Mean and standard deviation of max/mean that chance alone gives steps of this size.
    excess
        ``imbalance - floor``: what skew adds.
    """

    imbalance: float
    imbalance_ratio: float
    balancedness: float
    p95: float
    worst: float
    of_window: float
    floor: float
    floor_std: float
    excess: float

    @property
    def chance_share(self) -> float:
        """The part of ``imbalance - 1`` that chance alone explains, 0 to 1."""
        if self.imbalance <= 1.0:
            return 1.0
        return min(1.0, (self.floor - 1.0) / (self.imbalance - 1.0))


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """One layer.

    Parameters
    ----------
    layer
        The model's number of it.
    assignments
        Over all steps.
    used_experts
        Experts with any assignment at all.
    active_experts
        Mean over steps of the experts with an assignment in that step.
    expert_imbalance
        Load of the hottest expert over the mean expert, over all steps; 1 without load.
    busiest_rank
        The rank with most load over all steps; ``None`` without load or ranks.
    balance
        Over ranks; ``None`` without load or ranks.
    """

    layer: int
    assignments: int
    used_experts: int
    active_experts: float
    expert_imbalance: float
    busiest_rank: int | None
    balance: Balance | None


@dataclass(frozen=True, kw_only=True)
class HotExpert:
    """An expert that gets far more than its share.

    Parameters
    ----------
    multiple
        Its load over the mean expert of its layer, over all steps.
    share
        Its part of the layer's assignments.
    ranks
        The ranks that hold it; empty where ranks are unknown.
    """

    layer: int
    expert: int
    multiple: float
    share: float
    ranks: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LabelDrift:
    """Mean correlation of load vectors within and between the values of one label."""

    within: float | None
    between: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How the experts' loads move from one window to the next.

    Parameters
    ----------
    window_steps
        Steps summed into a window, so that most experts are seen often enough to compare.
    num_windows
        All of them; windows never mix labels.
    correlation
        Mean Pearson correlation of a layer's load vectors in consecutive windows of equal labels.
    total_variation
        Mean share of the load that moved to other experts between such windows, 0 to 1.
    chance_variation
        What ``total_variation`` would be if only chance moved it.
    labels
        For every label of two values or more, how alike its values are. Where ``between`` is far
        below ``within``, a plan made for one value does not serve another.
    """

    window_steps: int
    num_windows: int
    correlation: float | None
    total_variation: float | None
    chance_variation: float | None
    labels: Mapping[str, LabelDrift]

    @property
    def headline(self) -> tuple[str, ...]:
        """A sentence for each label between whose values the hot experts change."""
        return tuple(
            f"Hot experts differ by {name}: loads correlate {x.within:.2f} within one {name} and "
            f"{x.between:.2f} between two, so a plan made for one may not fit another."
            for name, x in self.labels.items()
            if x.within is not None and x.between < x.within / 2
        )


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """The steps that carry one value of a label, such as phase ``decode``."""

    label: str
    value: str
    num_steps: int
    assignments: int
    expert_imbalance: float
    balance: Balance | None


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


@dataclass(frozen=True, kw_only=True)
class TraceSummary:
    """A whole trace under one layout of experts on ranks. Every key: ``docs/report.md``.

    Parameters
    ----------
    source, format, notes
        Where the trace came from and what its reader, and this summary, found.
    num_ranks
        ``None`` where neither the caller nor the trace says: experts only, no balance.
    layout
        ``contiguous`` (each expert once, in order), ``placement``, or ``experts`` without ranks.
    num_slots
        ``S`` of the layout; ``None`` without ranks.
    tokens, tokens_per_step
        In the fullest layer: all, and (fewest, mean, most) per step; ``None`` without ``top_k``.
    balance
        Over all layers and steps.
    relative_step_time
        Sum of the busiest ranks' loads over the sum of the means: 1.3 is 30 % longer than balanced.
    idle_share
        Share of device time spent waiting for the busiest rank.
    worst_layers
        Numbers of the layers with load, worst first, at most ten.
    rank_p95
        95th percentile over steps of each rank's load over the mean of its step and layer: what it
        carries, or more, in one step of twenty. Four decimals, ``L`` rows of ``R``; of 256 steps
        evenly apart if there are more.
    rank_multiples
        The same of the loads summed over all steps, in which hot spots that move cancel.
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
    labels: tuple[LabelSummary, ...]
    rank_p95: tuple[tuple[float, ...], ...]
    rank_multiples: tuple[tuple[float, ...], ...]
    expert_curves: ExpertCurves

    @property
    def headline(self) -> tuple[str, ...]:
        """The result in a few plain sentences."""
        return (*_headline(self), *self.drift.headline)

    def to_json(self) -> bytes:
        """The summary as one JSON object with the keys above."""
        return msgspec.json.encode(self)


def summarise(
    trace: Trace, *, num_ranks: int | None = None, placement: Placement | None = None
) -> TraceSummary:
    """Measure the balance of a trace.

    Parameters
    ----------
    trace
        Steps are taken as they are; sum them with ``Trace.windows`` first to ask about longer ones.
    num_ranks
        ``R`` for a contiguous layout of the experts; the recorded source ranks if ``None``, and a
        view of experts only where there are none.
    placement
        The layout to measure instead, every copy of an expert taking an equal share.

    Raises
    ------
    EquipoiseError
        The trace is empty; a placement of other experts, ranks or layers.
    """
    if not trace.counts.any():
        raise EquipoiseError(
            f"No assignment was recorded in {trace.provenance.source}; record some traffic first."
        )
    trace, dropped = _drop_fine_labels(trace)
    layout = _layout(trace, num_ranks, placement)
    view = None if layout is None else _RankView.of(trace, layout)
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
        drift=_drift(trace),
        labels=_labels(trace, view),
        rank_p95=() if view is None else _rounded(view.p95),
        rank_multiples=() if view is None else _rounded(view.multiples()),
        expert_curves=_expert_curves(trace, total),
    )


@dataclass(frozen=True, eq=False)
class _RankView:
    """Loads of ranks, reduced to what balance needs."""

    peak: NDArray[np.float64]  # (T, L)
    mean: NDArray[np.float64]  # (T, L)
    by_step: NDArray[np.float64]  # (T, L) max/mean
    p95: NDArray[np.float64]  # (L, R) of load over the mean of its step
    rank_load: NDArray[np.float64]  # (G, L, R), of each group of steps with equal labels
    group_of_step: NDArray[np.int64]  # (T,)
    floor: TraceNoiseFloor

    @classmethod
    def of(cls, trace: Trace, layout: Layout) -> _RankView:
        group = _label_groups(trace)
        rank_load = np.zeros((int(group.max()) + 1, layout.num_layers, layout.num_ranks))
        peak = np.empty((trace.num_steps, trace.num_layers))
        mean = trace.counts.sum(axis=2, dtype=np.float64) / layout.num_ranks
        picked = _evenly_apart(trace.num_steps, _MOST_STEPS)
        shares = []
        for start in range(0, trace.num_steps, _STEPS_AT_ONCE):  # bounds the memory for long traces
            chunk = slice(start, start + _STEPS_AT_ONCE)
            loads = rank_loads(trace.counts[chunk], layout)
            peak[chunk] = loads.max(axis=2)
            np.add.at(rank_load, group[chunk], loads)
            here = picked[(picked >= start) & (picked < start + _STEPS_AT_ONCE)]
            shares.append(_over_mean(loads[here - start]).astype(np.float32))
        p95 = _p95(np.concatenate(shares), mean[picked] > 0)
        by_step = np.divide(peak, mean, out=np.ones_like(peak), where=mean > 0)
        floor = trace_noise_floor(trace, layout.num_ranks)
        return cls(peak, mean, by_step, p95, rank_load, group, floor)

    @property
    def relative_step_time(self) -> float:
        return float(self.peak.sum() / self.mean.sum())

    def balance(
        self, *, layer: int | None = None, steps: NDArray[np.bool_] | None = None
    ) -> Balance | None:
        """Balance of some barriers; ``None`` if nothing was routed there."""
        pick = np.ix_(
            np.arange(len(self.mean)) if steps is None else np.flatnonzero(steps),
            np.arange(self.mean.shape[1]) if layer is None else np.array([layer]),
        )
        busy = self.mean[pick] > 0
        if not busy.any():
            return None
        gamma = self.by_step[pick][busy]
        floor = float(self.floor.mean[pick][busy].mean())
        groups = np.unique(self.group_of_step[pick[0].ravel()])
        window = self.rank_load[groups].sum(axis=0)[pick[1].ravel()]
        return Balance(
            imbalance=float(gamma.mean()),
            imbalance_ratio=float(gamma.mean() - 1.0),
            balancedness=float((1.0 / gamma).mean()),
            p95=float(np.percentile(gamma, 95)),
            worst=float(gamma.max()),
            of_window=float(imbalance(window[window.any(axis=1)]).mean()),
            floor=floor,
            floor_std=float(self.floor.std[pick][busy].mean()),
            excess=float(gamma.mean()) - floor,
        )

    def busiest(self, layer: int) -> int:
        return int(self.rank_load[:, layer].sum(axis=0).argmax())

    def multiples(self) -> NDArray[np.float64]:
        return _over_mean(self.rank_load.sum(axis=0))


def _evenly_apart(size: int, at_most: int) -> NDArray[np.int64]:
    """Some of ``size`` indices, from the first to the last."""
    return np.linspace(0, size - 1, min(size, at_most)).astype(np.int64)


def _p95(share_TLR: NDArray[np.float32], busy_TL: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Over the steps in which a layer has load; 0 where it has none."""
    p95 = np.zeros(share_TLR.shape[1:])
    for layer, busy in enumerate(busy_TL.T):
        if busy.any():
            p95[layer] = np.percentile(share_TLR[busy, layer], 95, axis=0)
    return p95


def _rounded(matrix: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.round(4).tolist())


def _drop_fine_labels(trace: Trace) -> tuple[Trace, list[str]]:
    """The trace without labels of too many values, and a note about each."""
    notes = [
        f"The label {name} has {len(set(values.tolist()))} values and is not broken down."
        for name, values in trace.labels.items()
        if len(set(values.tolist())) > _MOST_VALUES
    ]
    kept = {n: v for n, v in trace.labels.items() if len(set(v.tolist())) <= _MOST_VALUES}
    return replace(trace, labels=kept), notes


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
        held = f"{least}" if not more else f"{least + 1}, from rank {more} on {least},"
        notes.append(
            f"Ranks are measured as if each held {held} experts in ascending order, one copy each."
        )
    elif layout.num_redundant:
        notes.append("Every copy of an expert is taken to serve an equal share of its load.")
    if layout is not None and trace.top_k is None:
        notes.append(
            "The trace does not say how many experts a token takes; the noise floor treats "
            "assignments as independent, which puts it slightly too high."
        )
    return notes


def _tokens_per_step(trace: Trace) -> NDArray[np.float64] | None:
    """Tokens in the fullest layer of each step, ``(T,)``."""
    if trace.top_k is None:
        return None
    fullest: NDArray[np.float64] = trace.counts.sum(axis=2, dtype=np.float64).max(axis=1)
    return fullest / trace.top_k


def _layers(
    trace: Trace, total: NDArray[np.int64], view: _RankView | None
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
    multiple = _over_mean(total)
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


def _labels(trace: Trace, view: _RankView | None) -> tuple[LabelSummary, ...]:
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
    multiple = -np.sort(-_over_mean(total[total.any(axis=1)]), axis=1)
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


def _drift(trace: Trace) -> Drift:
    """Compare windows of equal labels one after another, and all windows by label."""
    per_expert = trace.counts.sum(dtype=np.float64) / trace.counts.size
    calm = max(_CALM_WINDOW / per_expert, trace.num_steps / _MOST_WINDOWS)
    size = int(np.clip(np.ceil(calm), 1, max(1, trace.num_steps // 2)))
    windows = replace(trace, source_counts=None, tokens=None).windows(size)
    group = _label_groups(windows)
    unit = _unit_vectors(windows.counts)
    correlation: list[NDArray[np.float64]] = []
    moved: list[NDArray[np.float64]] = []
    chance: list[NDArray[np.float64]] = []
    for a, b in pairwise(range(windows.num_steps)):
        if group[a] != group[b]:
            continue
        known = unit[a].any(axis=1) & unit[b].any(axis=1)
        correlation.append(np.einsum("le,le->l", unit[a], unit[b])[known])
        variation, by_chance = _variation(windows.counts[a], windows.counts[b])
        moved.append(variation)
        chance.append(by_chance)
    return Drift(
        window_steps=size,
        num_windows=windows.num_steps,
        correlation=_mean(correlation),
        total_variation=_mean(moved),
        chance_variation=_mean(chance),
        labels=_label_drift(windows, unit),
    )


def _unit_vectors(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Centred load vectors of length 1, whose products are correlations; 0 where all are equal."""
    centred = counts - counts.mean(axis=-1, keepdims=True)
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    unit: NDArray[np.float64] = np.zeros_like(centred)
    np.divide(centred, length, out=unit, where=length > 0)
    return unit


def _variation(
    a_LE: NDArray[np.integer], b_LE: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Total variation of two windows in each layer with load in both, and its chance level.

    The chance level is that of two Poisson samples of the pooled loads: the mean distance of two
    normals of variance ``v`` in all is ``sqrt(2 v / pi)``.
    """
    size_a, size_b = a_LE.sum(axis=1, dtype=np.float64), b_LE.sum(axis=1, dtype=np.float64)
    known = (size_a > 0) & (size_b > 0)
    a, b = a_LE[known].astype(np.float64), b_LE[known].astype(np.float64)
    n_a, n_b = size_a[known, None], size_b[known, None]
    pooled = (a + b) / (n_a + n_b)
    by_chance = np.sqrt(2 / np.pi * pooled * (1 / n_a + 1 / n_b))
    return np.abs(a / n_a - b / n_b).sum(axis=1) / 2, by_chance.sum(axis=1) / 2


def _label_drift(windows: Trace, unit: NDArray[np.float64]) -> dict[str, LabelDrift]:
    drift = {}
    for name, values in windows.labels.items():
        kinds = dict.fromkeys(values.tolist())
        if len(kinds) < 2:
            continue
        all_sum, all_pairs = _pair_products(unit)
        sums, pairs = zip(*(_pair_products(unit[values == kind]) for kind in kinds), strict=True)
        if all_pairs > sum(pairs):
            drift[name] = LabelDrift(
                within=sum(sums) / sum(pairs) if sum(pairs) else None,
                between=(all_sum - sum(sums)) / (all_pairs - sum(pairs)),
            )
    return drift


def _pair_products(unit: NDArray[np.float64]) -> tuple[float, int]:
    """Sum of the correlations of all pairs of windows over all layers, and how many there are.

    The square of a sum of unit vectors is their number plus twice the products of their pairs.
    """
    known = np.count_nonzero(unit.any(axis=2), axis=0)  # (L,)
    square = (unit.sum(axis=0) ** 2).sum(axis=1)
    return float((square - known).sum() / 2), int((known * (known - 1)).sum() // 2)


def _label_groups(trace: Trace) -> NDArray[np.int64]:
    """A number for each step, equal where all labels are, ``(T,)``."""
    if not trace.labels:
        return np.zeros(trace.num_steps, dtype=np.int64)
    table = np.stack([np.unique(v, return_inverse=True)[1] for v in trace.labels.values()], axis=1)
    return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _over_mean(loads: NDArray[np.number]) -> NDArray[np.float64]:
    """Loads as multiples of their row's mean; 0 where the row is empty."""
    x = loads.astype(np.float64)
    mean = x.mean(axis=-1, keepdims=True)
    multiple: NDArray[np.float64] = np.zeros_like(x)
    np.divide(x, mean, out=multiple, where=mean > 0)
    return multiple


def _mean(parts: list[NDArray[np.float64]]) -> float | None:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(values.mean()) if len(values) else None

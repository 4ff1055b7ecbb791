"""The advisor: measures loads, compares placements, and plans if the imbalance is certain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number
from equipoise.control.findings import Balance, Finding, Question
from equipoise.control.settings import Settings
from equipoise.cost import RankCost
from equipoise.dispatch import Dispatcher, Even, Shares
from equipoise.dispatch.base import takes
from equipoise.errors import EquipoiseError
from equipoise.migration import diff
from equipoise.noise import ALARM_STDS, TraceNoiseFloor, trace_noise_floor
from equipoise.placement import Placement
from equipoise.plan.evaluate import evaluate
from equipoise.plan.planners.repair import Repair
from equipoise.plan.problem import Problem
from equipoise.plan.weigh.gate import Decision, Gate
from equipoise.topology import Topology
from equipoise.trace import Trace

_PLAN_SHARE = 0.8  # share of the window to plan on; the gate judges by the rest
_PLAN_WINDOWS = 16  # windows for the planner, because single steps are mostly noise
_LEAST_STEPS = 8  # least steps on either side of a shift, and in a window
_COPY_SHARE = 0.2  # above it loads do not give times: measured in docs/results/adaptation.md
_PROPOSALS_PER_SLOT = 4096  # more make plans of small layers slower but hardly better


@dataclass(frozen=True, kw_only=True)
class GatedRepair:
    """The standard advisor: plans with ``Repair`` on the earlier steps, and lets ``Gate`` decide.

    The gate judges the plan on the later steps. If the balance shifts within a window, the traffic
    has changed; then only the steps after the shift are used.

    Parameters
    ----------
    topology
        Ranks to plan for.
    gate
        Rule that decides on moves. It knows their costs, how long a gain lasts, and the dispatcher.
    repair
        Limits on a plan: fields of ``Repair`` by name, such as ``max_moves``.
    least_assignments
        Mean assignments per expert, in the layer with the fewest, below which no plan is made.
    top_k
        Number of choices per token, ``K``, for the noise floor; ``None`` if unknown, which makes
        the floor slightly too high.
    """

    topology: Topology
    gate: Gate
    repair: Mapping[str, Any] = field(default_factory=dict)
    least_assignments: float = 16.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_number("least_assignments", self.least_assignments, low=0, high=math.inf)
        taken = {"current", "dispatch", "cost", "step_assignments"} & set(self.repair)
        unknown = set(self.repair) - set(Repair.__dataclass_fields__)
        if taken or unknown:
            raise EquipoiseError(
                f"repair has {', '.join(sorted(taken | unknown))}; expected fields of Repair other "
                "than current, dispatch and cost, which are known."
            )

    def __call__(self, question: Question, window: Trace) -> Finding:
        """Measure the balance, compare with the previous placement if asked, and plan if needed."""
        window = replace(window, top_k=self.top_k or window.top_k)
        imbalance, above, margin = self._measure(window, question.current)
        since = _last_shift(above)
        load_LR = self._rank_load(window, question.current)
        finding = Finding(
            number=question.number,
            balance=_by_phase(window, imbalance, above),
            sure_excess=_sure_excess(above[since:], margin[since:]),
            assignments=int(window.counts.sum(dtype=np.int64)),
            achieved=self._achieved(question, window),
            rank_load=_over_mean(load_LR.sum(axis=0)),
            layer_rank_load=dict(zip(window.layer_ids, map(_over_mean, load_LR), strict=True)),
            layer_imbalance=_by_layer(window, imbalance),
        )
        recent = window.select(steps=np.arange(since, window.num_steps))
        least = recent.total.sum(axis=1).min() / recent.num_experts
        if finding.sure_excess <= question.plan_above or least < self.least_assignments:
            return finding
        return self._plan(finding, question.current, recent)

    def _measure(
        self, window: Trace, placement: Placement
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Compute imbalance, excess above the floor, and the floor's deviation, ``(T, L)`` each.

        They are NaN where a layer had no load.
        """
        known = self.gate.runs(self.topology)
        if known.shares is Shares.FOLLOWING:
            floor = _floor_of_split(window, placement, known)
        else:
            floor = trace_noise_floor(window, placement.num_ranks)
        loaded = window.counts.any(axis=2)
        imbalance = np.where(loaded, evaluate(placement, window, dispatch=known).imbalance, np.nan)
        return imbalance, imbalance - floor.mean, np.where(loaded, floor.std, np.nan)

    def _rank_load(self, window: Trace, placement: Placement) -> NDArray[np.float64]:
        """Compute the load of each rank in each layer, all steps together, ``(L, R)``."""
        return self.gate.runs(self.topology).split(window.total, placement).rank_loads

    def _achieved(self, question: Question, window: Trace) -> Decision | None:
        if question.previous is None:
            return None
        return self.gate.decide(diff(question.previous, question.current, self.topology), window)

    def _plan(self, finding: Finding, current: Placement, window: Trace) -> Finding:
        fit, held = replace(window, labels={}).split(_PLAN_SHARE)
        size = float(fit.total.sum(axis=1).mean() / fit.num_steps)
        fit = fit.windows(-(-fit.num_steps // _PLAN_WINDOWS))
        placement = self._placement(current, fit, size)
        predicted = self.gate.decide(diff(current, placement, self.topology), held)
        return replace(finding, proposal=placement, predicted=predicted)

    def _placement(self, current: Placement, fit: Trace, size: float) -> Placement:
        """Repair the current placement for steps of ``size`` assignments a layer.

        Plans by the gate's cost if times differ from loads. If the split follows the load, a search
        by its times takes ten times as long as one by loads, and its plan would come too late. So
        small steps, where a copy costs nearly the same whatever its load, are planned by the times
        of an even split, and large steps by loads.
        """
        runs, cost = self.gate.runs(self.topology), self.gate.cost
        timed = (cost.expert_seconds > 0 or cost.token_block > 1) and takes(runs, "cost")
        if runs.shares is Shares.FOLLOWING and timed:
            timed = self._copy_share(size, current.num_slots) > _COPY_SHARE
            runs = Even(topology=self.topology) if timed else runs
        repair = Repair(
            current=current,
            dispatch=runs,
            cost=cost if timed else None,
            step_assignments=size if timed else None,
            **self.repair,
        )
        return repair.plan(Problem(fit, self.topology, current.num_slots)).placement

    def _copy_share(self, size: float, num_slots: int) -> float:
        """Compute the share of the experts' time that every copy costs whatever its load."""
        cost = self.gate.cost
        padding = cost.token_seconds * (cost.token_block - 1) / 2
        copies = (cost.expert_seconds + padding) * num_slots
        return copies / (copies + cost.token_seconds * size)


def plain_advisor(
    dispatch: Dispatcher, settings: Settings, topology: Topology, num_slots: int
) -> GatedRepair:
    """Make an advisor that moves experts whenever the gain is certain, whatever moving costs.

    Small layers are searched for a shorter time than large ones.

    It counts an assignment as one microsecond, so its gains are comparable only with each other.
    Use an advisor with your own ``Gate`` to include the costs of your machine.
    """
    gate = Gate(
        cost=RankCost(token_seconds=1e-6, source="one microsecond an assignment"),
        expert_bytes=0,
        dwell_steps=settings.update_interval,
        stall_seconds=0.0,
        interference=0.0,
        delay_steps=0,
        dispatch=dispatch,
    )
    proposals = min(_PROPOSALS_PER_SLOT * num_slots, Repair.proposals)
    return GatedRepair(
        topology=topology, gate=gate, repair={"num_threads": 1, "proposals": proposals}
    )


def _floor_of_split(window: Trace, placement: Placement, split: Dispatcher) -> TraceNoiseFloor:
    """Estimate the noise floor for a dispatcher that splits each batch by itself.

    Such a dispatcher evens out much of the noise. The floor is the imbalance of batches that are
    drawn from the window's mean load, with the sizes in the window, minus that of the mean load.
    The seed is fixed.
    """
    total_LE = window.total
    share_LE = total_LE / np.maximum(total_LE.sum(axis=1, keepdims=True), 1)
    drawn = np.random.default_rng(0).multinomial(
        window.counts.sum(axis=2, dtype=np.int64), share_LE
    )
    mean = evaluate(placement, total_LE[None], dispatch=split).imbalance
    chance = evaluate(placement, drawn, dispatch=split).imbalance - mean
    # Twice the variance: the drawn batches are noisy, and so are the served ones.
    std = np.broadcast_to(math.sqrt(2) * chance.std(axis=0), chance.shape)
    return TraceNoiseFloor(1 + chance, std)


def _over_mean(load_R: NDArray[np.float64]) -> tuple[float, ...]:
    """Loads over their mean; zeros where there is none."""
    return tuple((load_R / max(load_R.mean(), 1)).tolist())


def _by_phase(
    window: Trace, imbalance: NDArray[np.float64], above: NDArray[np.float64]
) -> dict[str, Balance]:
    phase = window.labels.get("phase", np.full(window.num_steps, ""))
    parts = {"": np.ones(window.num_steps, dtype=bool)} | {
        str(name): phase == name for name in np.unique(phase)
    }
    loaded = ~np.isnan(imbalance)
    return {
        name: Balance(
            imbalance=float(np.nanmean(imbalance[part])),
            excess=float(np.nanmean(above[part])),
            balancedness=float(np.nanmean(1 / imbalance[part])),
        )
        for name, part in parts.items()
        if loaded[part].any()
    }


def _by_layer(window: Trace, imbalance: NDArray[np.float64]) -> dict[int, float]:
    """Average each layer over the steps with load; leave out layers without load."""
    return {
        layer: float(np.nanmean(values))
        for layer, values in zip(window.layer_ids, imbalance.T, strict=True)
        if not np.isnan(values).all()
    }


def _last_shift(above: NDArray[np.float64]) -> int:
    """Find the step of the window at which its balance last shifted; 0 if it did not.

    The step is chosen that separates the means of both sides best. It counts if they differ by more
    than ``ALARM_STDS`` standard errors. Then the steps after it are searched in the same way.
    """
    loaded = np.flatnonzero(np.isfinite(above).any(axis=1))
    means = np.nanmean(above[loaded], axis=1)
    start = 0
    while len(means) - start >= 2 * _LEAST_STEPS:
        part = means[start:] - means[start:].mean()
        n = len(part)
        first = np.arange(_LEAST_STEPS, n - _LEAST_STEPS + 1)  # steps before the split
        before = part.cumsum()[first - 1] / first
        after = -before * first / (n - first)  # because all deviations add up to 0
        between = first * before**2 + (n - first) * after**2
        scatter = np.maximum((part @ part - between) / (n - 2), np.finfo(np.float64).tiny)
        clear = np.abs(after - before) / np.sqrt(scatter * (1 / first + 1 / (n - first)))
        best = int(clear.argmax())
        if not clear[best] > ALARM_STDS:
            break
        start += int(first[best])
    return int(loaded[start]) if start else 0


def _sure_excess(above: NDArray[np.float64], margin: NDArray[np.float64]) -> float:
    """Return the smaller excess of both halves, minus ``ALARM_STDS`` standard errors of its mean.

    It is 0 if a half has no load.
    """
    halves = []
    for part in (slice(None, len(above) // 2), slice(len(above) // 2, None)):
        cells, stds = above[part], margin[part]
        count = np.isfinite(cells).sum()
        if not count:
            return 0.0
        halves.append(np.nanmean(cells) - ALARM_STDS * np.sqrt(np.nansum(stds**2)) / count)
    return float(min(halves))

"""Scores of a plan on the steps it was made from and on others, and whether it is a gain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch import Dispatcher
from equipoise.noise import trace_noise_floor
from equipoise.placement import Placement
from equipoise.plan.evaluate import (
    Comparison,
    Evaluation,
    compare,
    evaluate,
    evaluate_without_balancing,
)
from equipoise.plan.problem import with_mean_step
from equipoise.topology import Topology
from equipoise.trace import Trace

LAYOUTS = {"plain": "no balancing", "current": "map in force", "plan": "this plan"}
"""Names of the layouts that ``Scores`` and ``Verdict`` compare."""

_THAN = {"plain": "without balancing", "current": "on the map in force"}


@dataclass(frozen=True, eq=False, kw_only=True)
class WholeSteps:
    """Whole steps before and after a change, and the experts' part of them.

    Parameters
    ----------
    before, after
        Seconds of each step, and its part that the slowest ranks' experts take, ``(2, T)``.
    counts
        Parts of a step that are included, as the end of a sentence.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    counts: str

    @cached_property
    def compared(self) -> Comparison:
        """Compare the mean steps, and estimate the noise of the difference."""
        return compare(*(_of_one_layer(steps[0]) for steps in (self.before, self.after)))

    def text(self, than: str) -> str:
        """Describe both in a sentence; its first words, which name the steps, are the caller's."""
        x = self.compared
        (before, experts_before), (after, experts_after) = (
            [f"{1e3 * seconds:.3f}" for seconds in steps.mean(axis=1).tolist()]
            for steps in (self.before, self.after)
        )
        return (
            f"a step takes {after} ms instead of {before} {than}, {abs(x.gain):.1%} "
            f"{'longer' if x.gain < 0 else 'shorter'}{_by_chance(x)}, {self.counts}; the slowest "
            f"ranks' experts take {experts_after} ms of it in place of {experts_before}."
        )


def _of_one_layer(seconds: NDArray[np.float64]) -> Evaluation:
    """Shape steps as ``compare`` takes them."""
    peak = seconds[:, None]
    return Evaluation(peak=peak, mean=np.ones_like(peak), dispatch="")


def _by_chance(compared: Comparison) -> str:
    """Describe the noise of a gain in brackets; nothing if it is unknown."""
    if compared.noise is None or compared.before <= 0:
        return ""
    return f" (\N{PLUS-MINUS SIGN} {compared.noise / compared.before:.1%} by chance)"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Imbalance without balancing, on the map in force and with the plan, by one dispatcher.

    It is the imbalance of rank loads, or of rank times if the dispatcher has a cost.

    Parameters
    ----------
    fit, held
        Loads of the steps planned on and of the held-out steps, ``(T, L, E)``, or ``None``.
    seen, unseen
        Evaluations on these steps, by the names of ``LAYOUTS``.
    chance_held
        Noise floor of the unseen steps: the imbalance that a fair router would show. ``None`` for
        times, or for unequal ranks.
    whole
        Whole steps before and after; ``None`` if they were not timed.
    """

    dispatcher: Dispatcher
    fit: NDArray[np.float64]
    held: NDArray[np.float64] | None
    seen: Mapping[str, Evaluation]
    unseen: Mapping[str, Evaluation]
    chance_held: float | None
    whole: WholeSteps | None = None

    def __repr__(self) -> str:
        unseen = 0 if self.held is None else len(self.held)
        return (
            f"Scores({len(self.fit)} steps seen, {unseen} unseen, {', '.join(self.seen)}, "
            f"{self.dispatcher.name})"
        )

    @property
    def of_times(self) -> bool:
        """Whether peaks are in seconds."""
        return self.dispatcher.cost is not None

    def with_plan(self, placement: Placement) -> Scores:
        """Return scores that include this plan."""
        seen = {**self.seen, "plan": evaluate(placement, self.fit, dispatch=self.dispatcher)}
        unseen = dict(self.unseen)
        if self.held is not None:
            unseen["plan"] = evaluate(placement, self.held, dispatch=self.dispatcher)
        return replace(self, seen=seen, unseen=unseen)

    @property
    def verdict(self) -> Verdict:
        """Comparison of the plan with the layout in force (or without balancing)."""
        steps = self.unseen or self.seen
        against = "current" if "current" in steps else "plain"
        return Verdict(
            compared=compare(steps[against], steps["plan"]),
            against=against,
            unseen=bool(self.unseen),
            in_seconds=self.of_times,
            dispatch=self.dispatcher.name,
            whole=self.whole,
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision whether to load a plan, with the figures behind it.

    Parameters
    ----------
    compared
        Comparison of the layout before with the plan.
    against
        Layout before, a name of ``LAYOUTS``.
    unseen
        Flag that the steps were held out of planning.
    in_seconds
        Flag that the figures are seconds, not assignments.
    dispatch
        Name of the dispatcher of both.
    whole
        Whole steps of both, which then decide; ``None`` if the slowest or busiest rank decides.
    """

    compared: Comparison
    against: str
    unseen: bool
    in_seconds: bool
    dispatch: str
    whole: WholeSteps | None = None

    def __repr__(self) -> str:
        answer = "gain" if self.is_gain else "no sure gain"
        steps = f"{self.compared.num_steps} {'unseen' if self.unseen else 'seen'} steps"
        what = "the peak" if self.whole is None else "a step"
        return f"Verdict({answer}: {self.decisive.gain:.1%} of {what} on {steps})"

    @property
    def decisive(self) -> Comparison:
        """Return the comparison that decides: whole steps if they were timed."""
        return self.compared if self.whole is None else self.whole.compared

    @property
    def is_gain(self) -> bool:
        """Whether the plan is better than the layout before.

        With at most one unseen step, chance cannot be estimated; then any lower peak is a gain.
        """
        if self.unseen and self.decisive.noise is not None:
            return self.decisive.is_sure
        return self.decisive.gain > 0

    @property
    def text(self) -> str:
        """Decision and figures, in a few sentences."""
        if not self.unseen:
            return (
                f"{self._answer}Nothing was verified, because no step was held out. {self._figures}"
            )
        if self.compared.noise is None:
            return f"{self._answer}{self._figures} A single step does not tell a gain from chance."
        return f"{self._answer}{self._figures}"

    @property
    def _answer(self) -> str:
        if self.is_gain:
            return ""
        chance = (self.decisive.noise or 0.0) if self.unseen else 0.0
        is_loss = self.decisive.after - self.decisive.before > chance
        return "Leave it as it is. " if is_loss else "Leave it as it is: no measurable gain. "

    @property
    def _figures(self) -> str:
        x, kind = self.compared, "unseen" if self.unseen else "planned"
        steps = f"{x.num_steps} {kind} step{'s' if x.num_steps > 1 else ''}"
        if self.whole is not None:
            return f"On {steps}, {self.dispatch} split, {self.whole.text(_THAN[self.against])}"
        does = "slowest rank takes" if self.in_seconds else "busiest rank carries"
        scale, unit = (1e6, "us") if self.in_seconds else (1.0, "assignments")
        chance = _by_chance(x) if self.unseen else ""
        after, before = (f"{peak * scale:,.1f}" for peak in (x.after, x.before))
        return (
            f"On {steps} the {does} {abs(x.gain):.1%} {'more' if x.gain < 0 else 'less'} than "
            f"{_THAN[self.against]}{chance}: {after} instead of {before} {unit} in a layer, "
            f"{self.dispatch} split."
        )


def score_before(
    fit: Trace,
    held: Trace | None,
    topology: Topology,
    dispatch: Dispatcher,
    *,
    current: Placement | None,
    step_assignments: float | None,
) -> Scores:
    """Score the layouts before any plan: no balancing, and the map in force if there is one.

    Parameters
    ----------
    step_assignments
        Mean number of assignments of a step in a layer, to which the steps are scaled.
    """
    steps = [_steps(part, step_assignments) for part in (fit, held) if part is not None]

    def before(load: NDArray[np.float64]) -> dict[str, Evaluation]:
        rows = {"plain": evaluate_without_balancing(load, topology, dispatch=dispatch)}
        if current is not None:
            rows["current"] = evaluate(current, load, dispatch=dispatch)
        return rows

    equal = topology.speed is None and dispatch.cost is None
    return Scores(
        dispatcher=dispatch,
        fit=steps[0],
        held=None if held is None else steps[1],
        seen=before(steps[0]),
        unseen={} if held is None else before(steps[1]),
        chance_held=_chance(held, topology.num_ranks) if held is not None and equal else None,
    )


def _steps(trace: Trace, step_assignments: float | None) -> NDArray[np.float64]:
    """Scale the steps, ``(T, L, E)``, to this number of assignments in a layer's mean step."""
    load = trace.counts.astype(np.float64)
    return load if step_assignments is None else with_mean_step(load, step_assignments)


def _chance(held: Trace, ranks: int) -> float:
    """Compute the mean imbalance that a fair router would show in steps of these sizes."""
    return float(trace_noise_floor(held, ranks).mean[held.counts.any(axis=2)].mean())

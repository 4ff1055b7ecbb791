"""The number of redundant slots that pay, by layer (method: ``equipoise explain budget``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, check_number
from equipoise.dispatch import Dispatcher, dispatcher
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.evaluate import Evaluation
from equipoise.plan.planners.robust import Robust
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan, Planner
from equipoise.showing import in_short
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_GAIN = 0.01
"""Share of the time that one more slot on every rank must save to be worth its memory."""

LEAST_WINDOWS = 5
"""Least number of held-out windows for a verdict; 4 of 4 gain by chance in 1 of 16 cases."""

_SLOTS_TRIED = 4  # default number of further slots per rank to try
_SURE = 0.05  # probability of chance below which a gain counts
_ROUNDING = 1e-9
_MOST_BLOCKS = 16  # windows are joined to at most this many blocks: 65,536 combinations of signs


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The time that one point saves over another, on the same held-out windows.

    Parameters
    ----------
    share
        Time saved as a share of the other point's time; negative if it takes longer.
    error
        Standard error of the share, from the differences between windows. More than 16 windows are
        joined to 16 blocks of neighbours.
    chance
        Probability of a share this large if there were no gain, or only the least that counts; see
        ``chances``.
    """

    share: float
    error: float
    chance: float

    __repr__ = in_short

    @property
    def is_sure(self) -> bool:
        """Whether chance would give this gain in fewer than 5 % of cases."""
        return self.chance < _SURE

    def __str__(self) -> str:
        return f"{self.share:z.1%} ± {self.error:.1%}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Point:
    """One choice of redundant slots, with its memory and its result on held-out windows.

    Parameters
    ----------
    redundant
        Number of redundant slots ``S - E`` of each layer.
    bytes_per_rank
        Memory of a rank that the slots beyond the fewest take; ``None`` without ``expert_bytes``.
    kv_tokens
        Number of KV-cache tokens that would fit there instead; ``None`` if not asked for.
    mean_imbalance, relative_step_time
        Fields of ``Evaluation``; ``None`` for times in seconds.
    step_seconds
        Time of a window through all layers, mean over windows; ``None`` for loads.
    expert_seconds
        Part of it that the slowest ranks' experts take; ``None`` for loads.
    times
        Sum over layers for each window, ``(T,)``: of the imbalance, or of seconds.
    """

    redundant: tuple[int, ...]
    bytes_per_rank: int | None
    kv_tokens: int | None
    mean_imbalance: float | None
    relative_step_time: float | None
    step_seconds: float | None
    expert_seconds: float | None
    times: Floats

    __repr__ = in_short

    def gain_over(self, other: Point) -> Gain:
        """Compute the time that this point saves over another."""
        return gains([(other, self)])[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Budget:
    """The gain of more redundant slots, and their cost in memory.

    The first axis, of length ``A``, is the number of redundant slots, starting from the fewest
    slots that hold all experts.  The *time* of a layer in a window is its imbalance (peak over mean
    rank load), or seconds if the dispatcher has a cost.

    Parameters
    ----------
    placements
        Placements, one for each of the ``A`` numbers of slots. Layers can be combined freely.
    added
        Number of slots that every rank has more than in the first placement, ascending from 0.
    least_gain
        Share of the time that one more slot on every rank must save to be worth it.
    planned_time
        Time of each layer, mean over the windows planned on, ``(A, L)``.
    peak
        Peak of each held-out window and layer, ``(A, T, L)``: assignments, or seconds of experts.
    whole
        Seconds of the same windows and whole layers; ``None`` if only the experts are included.
    mean
        Mean rank load of each held-out window and layer, ``(T, L)``, in assignments.
    planner, dispatch
        Text of the planner with its parameters, and name of the dispatcher of the scores.
    in_seconds
        Flag that times are seconds.
    expert_bytes, kv_bytes_per_token
        Prices as given to ``budget``.
    """

    placements: tuple[Placement, ...]
    added: tuple[int, ...]
    least_gain: float
    planned_time: Floats
    peak: Floats
    whole: Floats | None
    mean: Floats
    planner: str
    dispatch: str
    in_seconds: bool
    expert_bytes: int | None
    kv_bytes_per_token: int | None

    def __repr__(self) -> str:
        return (
            f"Budget({len(self.added)} points, 0 to {self.added[-1]} slots added on every rank, "
            f"{self.planner.partition('(')[0]}, {self.dispatch})"
        )

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Points with the same redundancy in all layers, the fewest slots first."""
        L = self.planned_time.shape[1]
        return tuple(self._point(np.full(L, a)) for a in range(len(self.placements)))

    @cached_property
    def front(self) -> tuple[Point, ...]:
        """Points that pay: each is surely faster than the one before, by ``least_gain`` per slot.

        This is the Pareto front of memory and time, without points that may be there by chance or
        that gain too little for their memory.
        """
        front = [0]
        while (after := self._next_that_pays(front[-1])) is not None:
            front.append(after)
        return tuple(self.points[a] for a in front)

    def _next_that_pays(self, a: int) -> int | None:
        """Find the first point after ``a`` that pays."""
        found = self._gains_after(a, self.least_gain)
        return next((b for b, gain in enumerate(found, a + 1) if gain.is_sure), None)

    def _gains_after(self, a: int, least_gain: float) -> tuple[Gain, ...]:
        """Compute the gains of later points over ``a``, tested against ``least_gain`` per slot."""
        later = range(a + 1, len(self.points))
        return gains(
            [(self.points[a], self.points[b]) for b in later],
            least=[least_gain * (self.added[b] - self.added[a]) for b in later],
        )

    @property
    def is_decided(self) -> bool:
        """Whether there are enough held-out windows for a verdict."""
        return bool(self.peak.shape[1] >= LEAST_WINDOWS)

    @property
    def layer_gain(self) -> Floats:
        """Time that each further step of redundancy saves in each layer, ``(A - 1, L)``.

        It is the mean over held-out windows, in mean rank loads or in seconds.
        """
        return np.asarray(-np.diff(self._times.mean(axis=1), axis=0))

    def allocation(self, slots_per_rank: int) -> Point:
        """Distribute a number of slots per rank over the layers in the best way.

        The choice is made on the windows planned on, so that its held-out time is unbiased.  It is
        exact (dynamic programming over layers), because times need not be convex.

        Parameters
        ----------
        slots_per_rank
            Number of slots to add on each rank, all layers together.

        Raises
        ------
        EquipoiseError
            A negative number of slots.
        """
        check_number("slots_per_rank", slots_per_rank, low=0, high=np.inf)
        cost = np.full((self.added[-1] + 1, self.planned_time.shape[1]), np.inf)
        cost[list(self.added)] = self.planned_time
        return self._point(np.searchsorted(self.added, least_sum(cost, int(slots_per_rank))))

    @cached_property
    def by_layer(self) -> tuple[Point, ...]:
        """For each point, the best allocation of the same memory."""
        L = self.planned_time.shape[1]
        return tuple(self.allocation(added * L) for added in self.added)

    @cached_property
    def best_by_layer(self) -> tuple[Point, Point, Gain] | None:
        """The point whose allocation by layer gains most, with the allocation and its gain.

        It is ``None`` if that gain is not surely ``least_gain``.
        """
        pairs = list(zip(self.points, self.by_layer, strict=True))
        found = gains(pairs, least=[self.least_gain] * len(pairs))
        best = max(range(len(pairs)), key=lambda a: found[a].share)
        return (*pairs[best], found[best]) if found[best].is_sure else None

    @property
    def advice(self) -> str:
        """Sentences that say where redundancy stops paying."""
        first, last = self.points[0], self.front[-1]
        windows = self.peak.shape[1]
        if not self.is_decided:
            return (
                f"No verdict: {windows} unseen windows cannot tell a gain from chance; it takes "
                f"{LEAST_WINDOWS} or more. Record more steps, or hold out more of them."
            )
        what = "busiest rank's load"
        if self.in_seconds:
            what = "expert time" if self.whole is None else "whole time"
        what = f"the {what} of {windows} unseen windows"
        more = self.points[self.points.index(last) + 1 :]
        best = min(more, key=lambda p: float(p.times.mean()), default=last)
        if last is first:
            return (
                f"More redundant slots do not pay: {best.redundant[0]}, the best of those tried, "
                f"take {best.gain_over(first)} off {what}{_price(best)}; "
                f"{self._shortfall(first, best)}."
            )
        text = (
            f"{last.redundant[0]} redundant slots a layer pay: they take {_worth(first, last)} "
            f"off {what}{_price(last)}{_steps(self.front)}."
        )
        if last is best:
            return f"{text} Larger numbers were not tried."
        return (
            f"{text} Of the larger numbers {best.redundant[0]} is best and takes off another "
            f"{_worth(last, best)}; "
            f"{self._shortfall(last, best)}."
        )

    def _shortfall(self, last: Point, best: Point) -> str:
        """Say why the best further point does not gain enough over the last one that pays."""
        a, b = self.points.index(last), self.points.index(best)
        gain = self._gains_after(a, 0.0)[b - a - 1]
        if not gain.is_sure:
            if gain.share > self.least_gain * (self.added[b] - self.added[a]):
                return "that may be chance; record more windows"
            return "that is not a gain beyond chance"
        return (
            f"it is not certain that they save {self.least_gain:.1%} for each further slot on "
            "every rank"
        )

    @cached_property
    def _times(self) -> Floats:
        if self.whole is not None:
            return self.whole
        return self.peak if self.in_seconds else _over_mean(self.peak, self.mean)

    def _point(self, chosen_L: Ints) -> Point:
        """Make a point with a redundancy for each layer: ``(L,)`` indices along the first axis."""
        layers = np.arange(len(chosen_L))
        times: Floats = self._times[chosen_L, :, layers].sum(axis=0)
        peak = self.peak[chosen_L, :, layers].T
        score = Evaluation(peak=peak, mean=self.mean, dispatch=self.dispatch)
        added = sum(self.added[a] for a in chosen_L)
        size = None if self.expert_bytes is None else added * self.expert_bytes
        kv_bytes = self.kv_bytes_per_token
        return Point(
            redundant=tuple(self.placements[a].num_redundant for a in chosen_L),
            bytes_per_rank=size,
            kv_tokens=None if size is None or kv_bytes is None else size // kv_bytes,
            mean_imbalance=None if self.in_seconds else score.mean_imbalance,
            relative_step_time=None if self.in_seconds else score.relative_step_time,
            step_seconds=float(times.mean()) if self.in_seconds else None,
            expert_seconds=float(peak.sum(axis=1).mean()) if self.in_seconds else None,
            times=times,
        )


def budget(
    planned: Trace | ArrayLike,
    held_out: Trace | ArrayLike,
    topology: Topology,
    *,
    up_to: int | None = None,
    planner: Planner | None = None,
    dispatch: str | Dispatcher = "even",
    whole: Callable[[Floats, Placement], Floats] | None = None,
    expert_bytes: int | None = None,
    kv_bytes_per_token: int | None = None,
    least_gain: float = LEAST_GAIN,
    progress: Callable[[int, int], None] | None = None,
) -> Budget:
    """Plan with more and more redundant slots, and score every layer on windows not planned on.

    Parameters
    ----------
    planned, held_out
        Traces, or assignments ``(T, L, E)``, of the same layers and experts.
    topology
        Ranks to plan for.
    up_to
        Largest number of redundant slots per layer, all ranks together; four per rank if ``None``.
    planner
        Planner; ``Robust(dispatch=dispatch)`` if ``None``.  Numbers of slots that it refuses are
        left out.
    dispatch
        Dispatcher that will run, by name or as an object.  With a cost, all times are seconds and
        each window stands for one step.
    whole
        Function of windows ``(T, L, E)`` and a placement that returns the seconds of whole layers,
        communication and attention included, and their part that experts take, ``(2, T, L)``.
        Whole steps then decide what pays; the dispatcher needs a cost.  ``None``: the dispatcher's
        peaks decide.
    expert_bytes
        Bytes of one expert in one layer, scales included, to compute the memory of slots.
    kv_bytes_per_token
        Bytes of KV cache of a token in all layers on one rank, to express that memory in tokens.
    least_gain
        Share of the time, >= 0, that one more slot on every rank must save to be worth it.
    progress
        Function that is called before each plan with the number of plans made and of all.

    Raises
    ------
    EquipoiseError
        Fewer than two held-out windows with load; parts of different layers or experts; no or too
        many slots to add; fewer than two numbers of slots that the planner takes; a price of KV
        cache without one of experts.
    """
    _check_prices(expert_bytes, kv_bytes_per_token)
    check_number("least_gain", least_gain, low=0, high=1)
    experts = planned.num_experts if isinstance(planned, Trace) else as_loads(planned).shape[-1]
    counts = _slot_counts(experts, topology.num_ranks, up_to)
    fewest = Problem(planned, topology, counts[0])
    held = _held_out_load(Problem(held_out, topology, counts[0]), fewest)
    split = dispatcher(dispatch, topology, top_k=fewest.top_k)
    in_seconds = split.cost is not None
    planner = Robust(dispatch=dispatch) if planner is None else planner
    if whole is not None and not in_seconds:
        raise EquipoiseError("Whole steps are seconds, and so must the dispatcher's peaks be.")
    problems = [fewest.on(topology, num_slots) for num_slots in counts]
    plans = _plans(planner, problems, progress)
    placements = tuple(plan.placement for plan in plans)
    time = split.peaks if whole is None else whole
    past, seen = (np.stack([time(x, p) for p in placements]) for x in (fewest.load, held))
    if whole is not None:
        past = past[:, 0]
    if not in_seconds:
        past = _over_mean(past, _mean_rank(fewest.load, topology))
    return Budget(
        placements=placements,
        added=tuple(p.slots_per_rank - placements[0].slots_per_rank for p in placements),
        least_gain=least_gain,
        planned_time=past.mean(axis=1),
        peak=seen if whole is None else seen[:, 1],
        whole=None if whole is None else seen[:, 0],
        mean=_mean_rank(held, topology),
        planner=plans[0].planner,
        dispatch=split.name,
        in_seconds=in_seconds,
        expert_bytes=expert_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
    )


def gains(
    pairs: Sequence[tuple[Point, Point]], least: Sequence[float] | None = None
) -> tuple[Gain, ...]:
    """Compute the time that the second point of each pair saves over the first.

    The chance of each is that of the best of all of them, so that trying many makes no winner.

    Parameters
    ----------
    least
        Gain of each pair under the null hypothesis, as a share; 0 if ``None``.
    """
    if not pairs:
        return ()
    time = np.array([before.times.mean() for before, _ in pairs])
    saved = np.stack([before.times - after.times for before, after in pairs])
    parts = np.array_split(saved, min(saved.shape[1], _MOST_BLOCKS), axis=1)
    blocks = np.stack([part.mean(axis=1) for part in parts], axis=1)
    error = blocks.std(axis=1, ddof=1) / np.sqrt(blocks.shape[1])
    supposed = np.zeros(len(pairs)) if least is None else least * time
    chance = chances(blocks - supposed[:, None])
    return tuple(
        Gain(share=float(s), error=float(e), chance=float(c))
        for s, e, c in zip(saved.mean(axis=1) / time, error / time, chance, strict=True)
    )


def chances(saved_AT: Floats) -> Floats:
    """Compute the probability that the best of several chance gains is as large as each gain.

    If nothing is gained, each window's difference is equally likely to have the other sign.  The
    function counts the combinations of signs, drawn for all gains together, for which some sum (in
    standard deviations) is at least as large as the one seen.  This is the test of Fisher (1935)
    for pairs, with the maximum statistic of Westfall and Young (1993).

    Parameters
    ----------
    saved_AT
        Time that each gain saves in every window, ``(A, T)``, with at most 16 windows.

    Returns
    -------
    Probabilities ``(A,)``, from ``2^-T`` to 1.
    """
    deviation = np.sqrt((saved_AT**2).sum(axis=1, keepdims=True))
    scaled = np.divide(saved_AT, deviation, out=np.zeros_like(saved_AT), where=deviation > 0)
    T = saved_AT.shape[1]
    signs = 1.0 - 2 * (np.arange(1 << T)[:, None] >> np.arange(T) & 1)
    largest = (signs @ scaled.T).max(axis=1)
    count: Floats = (largest[:, None] >= scaled.sum(axis=1) - _ROUNDING).mean(axis=0)
    return count


def least_sum(cost_AL: Floats, most: int) -> Ints:
    """Choose one row in each column so that the sum is least and row numbers add up to <= ``most``.

    This is dynamic programming over columns, ``O(A L most)``. Of equal sums, the one with smaller
    row numbers in later columns wins.

    Returns
    -------
    ``(L,)`` row numbers.
    """
    A, L = cost_AL.shape
    most = min(most, L * (A - 1))
    least = np.zeros(most + 1)  # indexed by the sum of row numbers allowed so far
    chosen = np.zeros((L, most + 1), dtype=np.int64)
    for column in range(L):
        options = np.full((min(A, most + 1), most + 1), np.inf)
        for a in range(len(options)):
            options[a, a:] = least[: most + 1 - a] + cost_AL[a, column]
        chosen[column], least = options.argmin(axis=0), options.min(axis=0)
    rows = np.zeros(L, dtype=np.int64)
    for column in reversed(range(L)):
        rows[column] = chosen[column, most]
        most -= rows[column]
    return rows


def _slot_counts(num_experts: int, num_ranks: int, up_to: int | None) -> range:
    """List the numbers of slots to try: from the fewest, with one more per rank each time."""
    fewest = -(-num_experts // num_ranks) * num_ranks
    most = num_experts * num_ranks
    if fewest + num_ranks > most:
        raise EquipoiseError(
            f"In {fewest} slots, the fewest, every rank holds every expert already; there is no "
            "copy to add."
        )
    if up_to is None:
        up_to = min(fewest + _SLOTS_TRIED * num_ranks, most) - num_experts
    if not fewest + num_ranks - num_experts <= up_to <= most - num_experts:
        raise EquipoiseError(
            f"Up to {up_to} redundant slots are to be tried; expected from "
            f"{fewest + num_ranks - num_experts}, one more on every rank, to "
            f"{most - num_experts}, every expert on every rank."
        )
    return range(fewest, num_experts + int(up_to) + 1, num_ranks)


def _plans(
    planner: Planner, problems: Sequence[Problem], progress: Callable[[int, int], None] | None
) -> list[Plan]:
    """Plan for each number of slots, and skip those that the planner refuses."""
    plans: list[Plan] = []
    refusal = None
    for number, problem in enumerate(problems):
        if progress is not None:
            progress(number, len(problems))
        try:
            plans.append(planner.plan(problem))
        except EquipoiseError as error:
            refusal = error
    if len(plans) < 2 and refusal is not None:
        tried = f"{problems[0].num_slots} to {problems[-1].num_slots}"
        raise EquipoiseError(
            f"The planner takes {len(plans)} of the numbers of slots tried, {tried}, and there is "
            f"nothing to compare: {refusal}"
        ) from refusal
    return plans


def _held_out_load(held: Problem, planned: Problem) -> Floats:
    """Return the held-out windows that have load, ``(T, L, E)``."""
    if (held.layer_ids, held.num_experts) != (planned.layer_ids, planned.num_experts):
        raise EquipoiseError(
            f"The held-out windows have {held.num_layers} layers of {held.num_experts} experts, "
            f"those planned on {planned.num_layers} of {planned.num_experts}, or other layer "
            "numbers; split one recording."
        )
    load = held.load[held.load.any(axis=(1, 2))]
    if len(load) < 2:
        raise EquipoiseError(
            "One held-out window cannot tell a gain from chance; hold out at least two."
        )
    return load


def _check_prices(expert_bytes: int | None, kv_bytes_per_token: int | None) -> None:
    for name, value in (("expert_bytes", expert_bytes), ("kv_bytes_per_token", kv_bytes_per_token)):
        if value is not None:
            check_number(name, value, low=1, high=np.inf)
    if kv_bytes_per_token is not None and expert_bytes is None:
        raise EquipoiseError(
            "The KV-cache bytes of a token have no effect alone; give the bytes of an expert too."
        )


def _mean_rank(load: Floats, topology: Topology) -> Floats:
    mean: Floats = load.sum(axis=-1) / topology.num_ranks
    return mean


def _over_mean(peak: Floats, mean: Floats) -> Floats:
    """Compute the imbalance ``(A, T, L)``; 0 where there is no load, which takes no time."""
    return np.divide(peak, mean, out=np.zeros_like(peak), where=mean > 0)


def _price(point: Point) -> str:
    if point.bytes_per_rank is None:
        return ""
    tokens = "" if point.kv_tokens is None else f" ({point.kv_tokens:,} KV tokens)"
    return f" for {point.bytes_per_rank / 1e9:.3f} GB a rank{tokens}"


def _steps(front: tuple[Point, ...]) -> str:
    """Compare the first with the last step of the front, to show diminishing returns."""
    steps = [(b.redundant[0] - a.redundant[0], _worth(a, b)) for a, b in pairwise(front)]
    if len(steps) == 1:
        return ""
    return f"; the first {steps[0][0]} take {steps[0][1]}, the last {steps[-1][0]} {steps[-1][1]}"


def _worth(before: Point, after: Point) -> str:
    """Write the gain of more slots, also per gigabyte if their memory is known."""
    gain = after.gain_over(before)
    if before.bytes_per_rank is None or after.bytes_per_rank is None:
        return f"{gain}"
    gigabytes = (after.bytes_per_rank - before.bytes_per_rank) / 1e9
    return f"{gain} ({gain.share / gigabytes:z.1%} a GB)"

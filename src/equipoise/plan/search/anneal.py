"""Annealing placements against many windows at once: the search behind ``Robust`` and its kin."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count, check_number, check_whole
from equipoise.cost import RankCost
from equipoise.dispatch import Dispatcher, Shares
from equipoise.placement import Placement
from equipoise.plan.search.scenarios import (
    MIX_SHARE,
    Floats,
    History,
    Scenarios,
    enough_draws,
    with_noise,
)
from equipoise.showing import in_short
from equipoise.topology import Topology

Ints = NDArray[np.int64]

_JUDGED_DRAWS = 3  # of each window, with chance added

FORBIDDEN = 1e6
"""A price no gain pays, in mean rank loads, and still a number that can be added."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a search stands.

    Parameters
    ----------
    done
        Share of the work that is done, 0 to 1, or of the time budget that is spent, whichever is
        larger. A proposal counts for what it takes. Never sinks.
    stage
        What is being searched.
    best
        Best objective so far of the stage: mean over layers with load, in mean rank loads, of the
        peaks on the windows planned on. ``None`` while ways of planning are compared.
    seconds
        Seconds since the start.
    """

    done: float
    stage: str
    best: float | None
    seconds: float

    __repr__ = in_short


class Clock:
    """Time since the start, and whether a time budget, in seconds, is spent."""

    def __init__(self, time_budget: float | None = None) -> None:
        self._start = time.monotonic()
        self._time_budget = time_budget

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def part(self, share: float) -> Clock:
        """A clock that starts now and is over after a share of the time budget."""
        return Clock(None if self._time_budget is None else share * self._time_budget)

    def part_of_rest(self, share: float) -> Clock:
        """A clock that starts now and is over after a share of the time that is left."""
        if self._time_budget is None:
            return Clock()
        return Clock(share * max(0.0, self._time_budget - self.seconds))

    @property
    def spent(self) -> float:
        """Share of the time budget that is spent, up to 1; 0 without one."""
        return 0.0 if not self._time_budget else min(1.0, self.seconds / self._time_budget)

    @property
    def is_over(self) -> bool:
        """Whether the time budget is spent; never without one."""
        return self._time_budget is not None and self.seconds >= self._time_budget


class Meter:
    """Work done and work that remains, reported to a function.

    Parameters
    ----------
    tell
        Function to call whenever some work is done; ``None``: none.
    clock
        Clock of the search.
    """

    def __init__(self, tell: Callable[[Progress], None] | None, clock: Clock) -> None:
        self._tell, self._clock = tell, clock
        self._done, self._share = 0.0, 0.0
        self.remaining = 0.0

    def advance(self, work: float, stage: str, best: float | None) -> None:
        """Count some of the remaining work as done."""
        self._done += work
        self.remaining = max(0.0, self.remaining - work)
        total = self._done + self.remaining
        share = max(self._done / total if total > 0 else 1.0, self._clock.spent)
        self._share = max(self._share, share)
        if self._tell is not None:
            self._tell(
                Progress(done=self._share, stage=stage, best=best, seconds=self._clock.seconds)
            )


_FIRST_SWEEP = 1 << 9


def doubling(proposals: int) -> list[int]:
    """Lengths of sweeps: growing, all whole, so that fewer proposals are a prefix of more."""
    return _growing(proposals, 2)


def quadrupling(proposals: int) -> list[int]:
    """As ``doubling``, with more of the proposals in the longest sweep, which finds most."""
    return _growing(proposals, 4)


def _growing(proposals: int, factor: int) -> list[int]:
    lengths, length = [], _FIRST_SWEEP
    while proposals >= length:
        lengths.append(length)
        proposals -= length
        length *= factor
    return lengths


@dataclass(frozen=True)
class Stage:
    """One way to anneal: on which scenarios, for which split, and how.

    ``bits`` makes the norm over ranks the ``2 ** bits``-norm: the smaller, the more ranks count
    that might become the busiest.  ``hot`` are first temperatures, sweep by sweep, in mean rank
    loads.  A proposal ``counts_as`` this number of those that the search may make.  ``sweeps`` has
    the lengths of the sweeps, given the proposals in all.
    """

    name: str
    scenarios: Callable[[History, np.random.Generator], Scenarios]
    follows_load: bool = False  # anneal for the min-max split
    bits: int = 4
    hot: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    cold: float = 1e-5
    counts_as: int = 1
    restart: bool = True  # every sweep from the same start, else from the best so far
    sweeps: Callable[[int], list[int]] = doubling

    def work_of_proposal(self, history: History) -> float:
        """What a proposal takes, about; 1 is the time that one scenario more takes."""
        one = history.of_layers(np.array([0]))
        num_scenarios = int(self.scenarios(one, np.random.default_rng(0)).weight.shape[1])
        if self.follows_load:
            return self.counts_as * (4.5 + num_scenarios * history.num_ranks / 170)
        return self.counts_as * (9.0 + num_scenarios)


@dataclass(frozen=True, eq=False, kw_only=True)
class Terms:
    """What a placement costs in addition to its peaks, in mean rank loads; by default nothing.

    Parameters
    ----------
    price
        Price of an expert on a rank, ``(L, R, E)``; ``FORBIDDEN`` keeps it away.
    homes
        Number of ranks, with ``by_node`` of nodes, that every expert should live on.
    missing
        Price of each home that an expert lacks.
    """

    price: Floats | None = None
    homes: int = 0
    by_node: bool = False
    missing: float = 0.0

    @property
    def is_nothing(self) -> bool:
        """Whether no placement costs anything."""
        return self.price is None and not self.missing

    def of_layers(self, rows: Ints) -> Terms:
        """The terms of some layers."""
        return self if self.price is None else replace(self, price=self.price[rows])

    def measure(self, slots: Ints, topology: Topology, num_experts: int) -> Floats:
        """The terms of every layer, ``(L,)``, of slots ``(L, S)``; -1 where there is no slot."""
        L, R = len(slots), topology.num_ranks
        held = np.zeros((L, R, num_experts + 1), dtype=np.bool_)
        layer, rank = np.arange(L)[:, None, None], np.arange(R)[:, None]
        held[layer, rank, slots.reshape(L, R, -1)] = True
        held = held[:, :, :num_experts]  # what is no slot has marked the column after the last
        homes: NDArray[np.bool_] = held
        if self.by_node:
            homes = np.asarray(held.reshape(L, topology.num_nodes, -1, num_experts).any(axis=2))
        short = np.maximum(0, self.homes - homes.sum(axis=1)).sum(axis=1)
        total: Floats = self.missing * short
        return total if self.price is None else total + np.where(held, self.price, 0).sum((1, 2))


@dataclass(frozen=True, eq=False, kw_only=True)
class Search:
    """Annealing in sweeps, every layer by itself; the best slots so far stay.

    Slots ``(L, S)`` hold expert ids, -1 where a rank has no room for one.

    Parameters
    ----------
    history
        The windows.
    topology
        The ranks, with their speeds and nodes.
    dispatch
        Dispatcher that will run, by which every sweep is judged.
    cost
        Cost of the ranks, to judge by the time they take, not by their assignments.
    step_assignments
        Assignments of a step in a layer, with a cost; those of the mean window if ``None``.
    tail
        Share of the traffic groups, or of the windows of a single one, that counts.
    meter
        Meter of the work done.
    label
        Name of all stages to the meter; their own if ``None``.
    """

    history: History
    topology: Topology
    dispatch: Dispatcher
    cost: RankCost | None = None
    step_assignments: float | None = None
    tail: float = 1.0
    seed: int = 0
    num_threads: int | None = None
    clock: Clock = field(default_factory=Clock)
    terms: Terms = field(default_factory=Terms)
    meter: Meter = field(default_factory=lambda: Meter(None, Clock()))
    label: str | None = None

    @property
    def is_plain(self) -> bool:
        """Whether ``Greedy`` solves the same problem for the sum: equal ranks and assignments."""
        t = self.topology
        return t.speed is None and t.room is None and self.cost is None and self.terms.is_nothing

    def run(self, stages: tuple[Stage, ...], start: Ints, proposals: int) -> Ints:
        """The best slots of every layer, ``(L, S)``, judged by the windows themselves."""
        best, score = start.copy(), self.measure(start)
        for stage in stages:
            self._improve(stage, best, score, proposals // stage.counts_as)
        return best

    def work(self, stages: tuple[Stage, ...], proposals: int) -> float:
        """What ``run`` takes, in the unit of ``Stage.work_of_proposal``."""
        num_layers = np.count_nonzero(self.history.mix.any(axis=1))
        return float(
            sum(
                sum(stage.sweeps(proposals // stage.counts_as))
                * stage.work_of_proposal(self.history)
                for stage in stages
            )
            * num_layers
        )

    def measure(self, slots: Ints) -> Floats:
        """The objective: mean or tail of the peaks of the windows and their mix, and the terms.

        Steps of their own size are judged without a mix, which no step is. In mean rank loads,
        ``(L,)``.
        """
        history = self._judge
        mix_share = 0.0 if history.sized else MIX_SHARE
        peaks = self.peaks(slots, np.concatenate([history.load, self.history.mix[None]]))
        peak, weight = peaks[:-1], history.window_weight
        if len(history.group_weight) > 1:
            peak, weight = history.group_means(peak), history.group_weight
        tail = _tail_mean(peak, weight, self.tail)
        score: Floats = (1 - mix_share) * tail + mix_share * peaks[-1]
        return score + self.terms.measure(slots, self.topology, history.load.shape[2])

    @cached_property
    def _judge(self) -> History:
        """The windows that judge a sweep.

        With chance added where the dispatcher follows the load: it evens the recorded windows out
        almost perfectly, so that by themselves they no longer tell placements apart.
        """
        if self.dispatch.shares is not Shares.FOLLOWING:
            return self.history
        draws = enough_draws(self.history, _JUDGED_DRAWS)
        return with_noise(self.history, np.random.default_rng(self.seed), draws)

    def peaks(self, slots: Ints, load: Floats) -> Floats:
        """Busiest rank of every window and layer under the dispatcher, ``(T, L)``.

        In mean rank loads; with a cost the slowest rank, in the time a mean rank load would take.
        """
        R = self.history.num_ranks
        placement = Placement(fill_up(slots, R), num_ranks=R, num_experts=load.shape[2])
        if self.dispatch.scale_free:
            return self.dispatch.peaks(load, placement)
        assignments = np.where(self._mean_rank_load > 0, self._mean_rank_load, 1)
        cost = self.dispatch.cost
        unit = assignments if cost is None else assignments * cost.token_seconds
        peaks: Floats = self.dispatch.peaks(load * assignments[:, None], placement) / unit
        return peaks

    @cached_property
    def _mean_rank_load(self) -> Floats:
        """Assignments of a step on the mean rank, ``(L,)``: what a mean rank load stands for."""
        mean = self.history.mean_volume
        if self.step_assignments is None:
            return mean
        return np.where(mean > 0, self.step_assignments / self.history.num_ranks, 0)

    def _improve(self, stage: Stage, best: Ints, score: Floats, proposals: int) -> None:
        """Anneal sweep by sweep.

        ``best``, ``(L, S)``, and its objective ``score``, ``(L,)``, are updated where a sweep is
        better.
        """
        busy = np.flatnonzero(self.history.mix.any(axis=1))
        start = best.copy()
        work, name = stage.work_of_proposal(self.history), self.label or stage.name
        with ThreadPoolExecutor(self.num_threads or os.cpu_count()) as pool:
            for number, length in enumerate(stage.sweeps(proposals)):
                if self.clock.is_over:
                    break
                found = best.copy()
                origin = start if stage.restart else best
                chance = np.random.default_rng([self.seed, number])
                scenarios = stage.scenarios(self.history, chance)
                anneal = partial(self._anneal, stage, scenarios, origin, number, length)
                so_far = None if self.label else float(score[busy].mean())
                for layer, slots in zip(busy, pool.map(anneal, busy), strict=True):
                    found[layer] = slots
                    self.meter.advance(length * work, name, so_far)
                reached = self.measure(found)
                better = reached < score
                best[better], score[better] = found[better], reached[better]
                self.meter.advance(0.0, name, None if self.label else float(score[busy].mean()))

    def _anneal(
        self,
        stage: Stage,
        scenarios: Scenarios,
        start: Ints,
        number: int,
        length: int,
        layer: int,
    ) -> Ints:
        from equipoise.plan.search import _anneal_kernels as kernels  # numba takes long to import

        slots: Ints = start[layer]
        if self.clock.is_over:
            return slots
        load, risk = scenarios.load[layer], scenarios.risk[layer]
        weight = scenarios.weight[layer] / scenarios.weight[layer].sum()
        how = (
            slots,
            self._ranks(layer),
            self._kernel_terms(layer),
            kernels.Objective(
                weight, max(self.tail, weight[weight > 0].min()), stage.bits, weight.size == 1
            ),
            kernels.Schedule(length, stage.hot[number % len(stage.hot)], stage.cold),
            kernel_seed(self.seed, number, int(layer)),
        )
        if stage.follows_load:
            slots, _ = kernels.anneal_minmax(load, *how)
        else:
            slots, _ = kernels.anneal_fixed(load, risk, *how)
        return slots

    def _ranks(self, layer: int) -> Any:
        """What the kernels know of the ranks."""
        from equipoise.plan.search._anneal_kernels import Ranks

        floor, pad = 0.0, 0.0
        volume = self._mean_rank_load[layer]
        if self.cost is not None and volume > 0:
            floor = self.cost.knee / volume
            pad = (self.cost.token_block - 1) / 2 / volume  # what rounding up adds on average
        near = self.dispatch.shares is Shares.NEAREST
        return Ranks(1 / self.topology.relative_speed, self.topology.node_of_rank, near, floor, pad)

    def _kernel_terms(self, layer: int) -> Any:
        from equipoise.plan.search._anneal_kernels import Terms as KernelTerms

        terms = self.terms
        price = self._no_price if terms.price is None else terms.price[layer]
        return KernelTerms(price, terms.homes, terms.by_node, terms.missing)

    @cached_property
    def _no_price(self) -> Floats:
        return np.zeros((self.history.num_ranks, self.history.load.shape[2]))


def fill_up(slots: Ints, num_ranks: int) -> Ints:
    """Slots without an expert, -1, repeat one that the rank has, and if it can be, no other rank.

    Such a repetition changes no rank's share of any expert under a dispatcher that treats all
    copies the same, and takes no memory where an engine stores an expert once a rank.
    """
    if (slots >= 0).all():
        return slots
    filled = slots.copy()
    for row in filled:
        copies = np.bincount(row[row >= 0])
        for rank in row.reshape(num_ranks, -1):
            own = rank[rank >= 0]
            rank[rank < 0] = own[np.argmin(copies[own])]
    return filled


def kernel_seed(*numbers: int) -> int:
    """Return a seed from several numbers, such as the user's and a layer's; others give another."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def check_search_options(
    *,
    proposals: int,
    seed: int,
    num_threads: int | None,
    time_budget_seconds: float | None = None,
) -> None:
    """Raise ``EquipoiseError`` for what no search can be given."""
    check_whole("proposals", proposals)
    check_whole("seed", seed)
    seconds = time_budget_seconds
    if seconds is not None and not (isinstance(seconds, float) and seconds == np.inf):
        check_number("time_budget_seconds", seconds, low=0, high=np.inf)
    if num_threads is not None:
        check_count("num_threads", num_threads)


def _tail_mean(peak: Floats, weight: Floats, tail: float) -> Floats:
    """Mean of the worst ``tail`` share of the weight, at least of the worst row, ``(L,)``."""
    order = np.argsort(-peak, axis=0, kind="stable")
    peak, weight = np.take_along_axis(peak, order, axis=0), weight[order]
    weight = weight / weight.sum(axis=0)
    before = np.cumsum(weight, axis=0) - weight
    counted = np.clip(np.maximum(tail, weight[0]) - before, 0, weight)
    mean: Floats = (peak * counted).sum(axis=0) / counted.sum(axis=0)
    return mean

"""Annealing of placements for many windows at once: the search of ``Robust`` and its relatives."""

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

_JUDGED_DRAWS = 3  # noisy versions of each window by which results are judged

FORBIDDEN = 1e6
"""A price, in mean rank loads, that no gain can pay; finite, so that sums stay finite."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a search.

    Parameters
    ----------
    done
        Share of the work done or of the time budget spent, whichever is larger, 0 to 1. Proposals
        are weighted by their cost. It never falls.
    stage
        Name of the current stage.
    best
        Best objective of the stage so far: the peak on the windows planned on, in mean rank loads,
        as a mean over layers with load. ``None`` while ways of planning are compared.
    seconds
        Seconds since the start.
    """

    done: float
    stage: str
    best: float | None
    seconds: float

    __repr__ = in_short


class Clock:
    """A clock that knows a time budget in seconds."""

    def __init__(self, time_budget: float | None = None) -> None:
        self._start = time.monotonic()
        self._time_budget = time_budget

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def part(self, share: float) -> Clock:
        """Make a clock that starts now and ends after a share of the time budget."""
        return Clock(None if self._time_budget is None else share * self._time_budget)

    def part_of_rest(self, share: float) -> Clock:
        """Make a clock that starts now and ends after a share of the remaining time."""
        if self._time_budget is None:
            return Clock()
        return Clock(share * max(0.0, self._time_budget - self.seconds))

    @property
    def spent(self) -> float:
        """Return the spent share of the time budget, at most 1; 0 without one."""
        return 0.0 if not self._time_budget else min(1.0, self.seconds / self._time_budget)

    @property
    def is_over(self) -> bool:
        """Tell whether the time budget is spent; without one it never is."""
        return self._time_budget is not None and self.seconds >= self._time_budget


class Meter:
    """Work done and work that remains, reported to a function.

    Parameters
    ----------
    tell
        Function to call whenever some work is done; ``None`` for none.
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
    """Return doubling lengths of whole sweeps, so that fewer proposals are a prefix of more."""
    return _growing(proposals, 2)


def quadrupling_then_leaping(proposals: int) -> list[int]:
    """Return lengths that quadruple up to 32768 and then grow sixteenfold.

    A long sweep finds most. Those before it give a first result soon, but hardly change the last.
    """
    return _growing(proposals, 4, leap=16, beyond=1 << 15)


def _growing(proposals: int, factor: int, *, leap: int = 1, beyond: float = np.inf) -> list[int]:
    lengths, length = [], _FIRST_SWEEP
    while proposals >= length:
        lengths.append(length)
        proposals -= length
        length *= leap if length >= beyond else factor
    return lengths


@dataclass(frozen=True)
class Stage:
    """One way to anneal: the scenarios, the split that is modelled, and the schedule.

    The peak is approximated by the ``2 ** bits``-norm over ranks; with fewer bits, ranks that might
    become the busiest count more.  ``hot`` is the first temperature of each sweep, in mean rank
    loads.  One proposal of this stage ``counts_as`` several of the search's proposals.  ``sweeps``
    computes the lengths of the sweeps from the number of proposals.
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
        """Estimate the work of a proposal, in the time that one more scenario takes."""
        one = history.of_layers(np.array([0]))
        num_scenarios = int(self.scenarios(one, np.random.default_rng(0)).weight.shape[1])
        if self.follows_load:
            return self.counts_as * (4.5 + num_scenarios * history.num_ranks / 170)
        return self.counts_as * (9.0 + num_scenarios)


@dataclass(frozen=True, eq=False, kw_only=True)
class Terms:
    """Costs of a placement in addition to its peaks, in mean rank loads; by default none.

    Parameters
    ----------
    price
        Price of each expert on each rank, ``(L, R, E)``; ``FORBIDDEN`` excludes it.
    homes
        Number of ranks (or nodes, with ``by_node``) that should hold each expert.
    missing
        Price of each rank (or node) that an expert is short of.
    """

    price: Floats | None = None
    homes: int = 0
    by_node: bool = False
    missing: float = 0.0

    @property
    def is_nothing(self) -> bool:
        """Whether all placements cost nothing."""
        return self.price is None and not self.missing

    def of_layers(self, rows: Ints) -> Terms:
        """Return the terms of some layers, chosen by row."""
        return self if self.price is None else replace(self, price=self.price[rows])

    def measure(self, slots: Ints, topology: Topology, num_experts: int) -> Floats:
        """Compute the cost of each layer, ``(L,)``, for slots ``(L, S)``; -1 marks no slot."""
        L, R = len(slots), topology.num_ranks
        held = np.zeros((L, R, num_experts + 1), dtype=np.bool_)
        layer, rank = np.arange(L)[:, None, None], np.arange(R)[:, None]
        held[layer, rank, slots.reshape(L, R, -1)] = True
        held = held[:, :, :num_experts]  # missing slots were marked in the column after the last
        total: Floats = np.zeros(L)
        if self.missing:
            total += self.missing * self._homes_short(held, topology)
        if self.price is not None:
            total += np.einsum("lre,lre->l", held, self.price)
        return total

    def _homes_short(self, held_LRE: NDArray[np.bool_], topology: Topology) -> Ints:
        """Count the homes that all experts of a layer are short of together, ``(L,)``."""
        homes = held_LRE
        if self.by_node:
            L, _, E = held_LRE.shape
            homes = np.asarray(held_LRE.reshape(L, topology.num_nodes, -1, E).any(axis=2))
        short: Ints = np.maximum(0, self.homes - homes.sum(axis=1)).sum(axis=1)
        return short


@dataclass(frozen=True, eq=False, kw_only=True)
class Search:
    """A search by annealing in sweeps, each layer by itself; the best slots so far are kept.

    Slots ``(L, S)`` hold expert ids; -1 where a rank has no room for an expert.

    Parameters
    ----------
    history
        Windows to plan for.
    topology
        Ranks, with their speeds and nodes.
    dispatch
        Dispatcher that will run; it judges the result of every sweep.
    cost
        Cost of the ranks, to judge by their times instead of their assignments.
    step_assignments
        Number of assignments of a step in a layer, used with a cost; the mean window's if ``None``.
    tail
        Share of the traffic groups (or of the windows of a single one) that counts, the worst ones.
    meter
        Meter of the work done.
    label
        Name that the meter gets for all stages; their own names if ``None``.
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
        """Run the stages; return the best slots, ``(L, S)``, as judged on the windows."""
        best, score = start.copy(), self.measure(start)
        for stage in stages:
            self._improve(stage, best, score, proposals // stage.counts_as)
        return best

    def work(self, stages: tuple[Stage, ...], proposals: int) -> float:
        """Estimate the work of ``run``, in the unit of ``Stage.work_of_proposal``."""
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
        """Compute the objective of each layer, ``(L,)``, in mean rank loads.

        It is the mean or tail of the peaks of the windows and of their mix, plus the terms. Windows
        that are single steps are judged without the mix, because no step looks like it.
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
        """Make the windows that judge a sweep.

        If the dispatcher follows the load, noise is added: such a dispatcher balances the recorded
        windows almost perfectly, so they alone do not distinguish placements.
        """
        if self.dispatch.shares is not Shares.FOLLOWING:
            return self.history
        draws = enough_draws(self.history, _JUDGED_DRAWS)
        return with_noise(self.history, np.random.default_rng(self.seed), draws)

    def peaks(self, slots: Ints, load: Floats) -> Floats:
        """Compute the peak of every window and layer under the dispatcher, ``(T, L)``.

        The unit is mean rank loads; with a cost, it is the time that a mean rank load would take.
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
        """Compute the assignments of a step on the mean rank, ``(L,)``."""
        mean = self.history.mean_volume
        if self.step_assignments is None:
            return mean
        return np.where(mean > 0, self.step_assignments / self.history.num_ranks, 0)

    def _improve(self, stage: Stage, best: Ints, score: Floats, proposals: int) -> None:
        """Anneal sweep by sweep.

        ``best``, ``(L, S)``, and its objective ``score``, ``(L,)``, are changed in place where a
        sweep is better.
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
        """Describe the ranks for the kernels."""
        from equipoise.plan.search._anneal_kernels import Ranks

        floor, pad = 0.0, 0.0
        volume = self._mean_rank_load[layer]
        if self.cost is not None and volume > 0:
            floor = self.cost.knee / volume
            pad = (self.cost.token_block - 1) / 2 / volume  # rounding up adds this on average
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
    """Fill slots marked -1 with an expert that the rank already holds.

    If possible, it is one that no other rank holds: then a dispatcher that treats all copies the
    same gives every rank the same share as before. The repetition takes no memory if the engine
    stores each expert once per rank.
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
    """Mix several numbers, such as the user's seed and a layer, into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def check_search_options(
    *,
    proposals: int,
    seed: int,
    num_threads: int | None,
    time_budget_seconds: float | None = None,
) -> None:
    """Raise ``EquipoiseError`` for options that are not valid for any search."""
    check_whole("proposals", proposals)
    check_whole("seed", seed)
    seconds = time_budget_seconds
    if seconds is not None and not (isinstance(seconds, float) and seconds == np.inf):
        check_number("time_budget_seconds", seconds, low=0, high=np.inf)
    if num_threads is not None:
        check_count("num_threads", num_threads)


def _tail_mean(peak: Floats, weight: Floats, tail: float) -> Floats:
    """Compute the mean of the worst ``tail`` share of the weight, at least one row, ``(L,)``."""
    order = np.argsort(-peak, axis=0, kind="stable")
    peak, weight = np.take_along_axis(peak, order, axis=0), weight[order]
    weight = weight / weight.sum(axis=0)
    before = np.cumsum(weight, axis=0) - weight
    counted = np.clip(np.maximum(tail, weight[0]) - before, 0, weight)
    mean: Floats = (peak * counted).sum(axis=0) / counted.sum(axis=0)
    return mean

"""A plan from many windows at once, for the dispatcher that will run. How: ``docs/robust.md``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from equipoise.balance import check_count
from equipoise.dispatch import dispatcher
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.bounds import certify
from equipoise.plan.eplb import Greedy, check_distinct
from equipoise.plan.problem import Plan, Problem
from equipoise.plan.robust_scenarios import (
    MIX_SHARE,
    Floats,
    History,
    Scenarios,
    group_scenarios,
    noisy_scenarios,
    read_history,
    single_scenario,
    window_scenarios,
)

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a search stands.

    ``imbalance`` is the objective on the windows planned on, averaged over layers with load.
    """

    stage: str
    rounds_done: int
    num_rounds: int
    seconds: float
    imbalance: float


@dataclass(frozen=True, kw_only=True)
class Robust:
    """The placement that keeps the busiest rank low in every kind of traffic seen, not in its sum.

    Copies and places are searched together by annealing, layer by layer, on scenarios made from the
    windows of the load: the mean of each group (``Problem.groups``), or the windows themselves,
    with a price on variance.  Which of them, or neither, is decided on windows held out inside:
    where the past does not help, the answer is the plan of ``Greedy``.

    Deterministic by seed for any number of threads, unless ``budget_seconds`` ends the search.

    Parameters
    ----------
    dispatch
        The dispatcher that will run: ``"even"`` or ``"minmax"``.
    tail
        Share of the groups, of the windows where there is one group only, that counts: the worst
        ones.  1 is the mean over all, 0 the worst one alone, between them a CVaR.
    group_weights
        What a group counts, by name; 1 for those not named.
    moves
        Proposals per layer, rounded down to whole rounds; more never end in a worse objective.  For
        ``"minmax"`` as many are followed by one for each 32, which cost about that much more.
    budget_seconds
        Stop then and answer the best so far, which depends on the machine; ``None``: all moves.
    seed
        Of the random numbers.
    num_threads
        Layers searched at a time; the machine's processors if ``None``.  Changes no answer.
    progress
        Called after every round.
    """

    dispatch: str = "even"
    tail: float = 1.0
    group_weights: Mapping[str, float] | None = None
    moves: int = 1 << 20
    budget_seconds: float | None = None
    seed: int = 0
    num_threads: int | None = field(default=None, repr=False)
    progress: Callable[[Progress], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        dispatcher(self.dispatch)
        if not 0 <= self.tail <= 1:
            raise EquipoiseError(f"tail is {self.tail}; expected a share between 0 and 1.")
        for name, value in (("moves", self.moves), ("seed", self.seed)):
            if not 0 <= value < 2**63 or value != int(value):
                raise EquipoiseError(f"{name} is {value}; expected a whole number >= 0.")
        if self.budget_seconds is not None and not self.budget_seconds >= 0:
            raise EquipoiseError(f"budget_seconds is {self.budget_seconds}; expected at least 0.")
        if self.num_threads is not None:
            check_count("num_threads", self.num_threads)

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places.

        Raises
        ------
        EquipoiseError
            More slots than every expert on every rank would fill, or weights of unknown groups.
        """
        clock = _Clock(self.budget_seconds)
        check_distinct(problem)
        history = read_history(problem, self.group_weights)
        stages, finding = _choose(self, history, problem.num_slots, clock)
        if stages:
            start = _plain(history, problem.num_slots)
            slots = _Search(self, history, clock).run(stages, start, self.moves)
        else:
            slots = Greedy().plan(problem).placement.slots
        plan = certify(problem, slots, planner=repr(self), dispatch=self.dispatch)
        return replace(plan, status=f"{finding} {plan.status}")


class _Clock:
    def __init__(self, budget: float | None) -> None:
        self._start = time.monotonic()
        self._budget = budget

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def is_over(self) -> bool:
        return self._budget is not None and self.seconds >= self._budget


@dataclass(frozen=True)
class _Stage:
    """One way to anneal: on which scenarios, for which split, and how.

    ``bits`` makes the norm over ranks the ``2 ** bits``-norm: the smaller, the more ranks count
    that might become the busiest.  ``hot`` are first temperatures, round by round, in mean rank
    loads.
    """

    name: str
    scenarios: Callable[[History, np.random.Generator], Scenarios]
    dispatch: str = "even"
    bits: int = 4
    hot: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    cold: float = 1e-5
    moves_per_move: int = 1
    restart: bool = True  # every round from the same start, else from the best so far


_SINGLE = _Stage("one window", single_scenario, bits=6)
_GROUPS = _Stage("groups", group_scenarios)
_WINDOWS = _Stage("windows", window_scenarios)
_SPLITS = _Stage(
    "splits of windows", noisy_scenarios, dispatch="minmax", bits=5, hot=(1e-4,), cold=1e-5,
    moves_per_move=32, restart=False,
)  # fmt: skip
_SINGLE_SPLIT = replace(_SPLITS, name="split of one window", scenarios=single_scenario, hot=(1e-2,))

_FIRST_ROUND = 1 << 9
_TRIAL_MOVES = (1 << 18) - (1 << 9)
_TRIAL_LAYERS = 12
_SURE = 2.0  # standard errors by which a plan must beat the plain one on held-out windows


def _choose(
    options: Robust, history: History, num_slots: int, clock: _Clock
) -> tuple[tuple[_Stage, ...], str]:
    """The stages whose plan is best on the latest windows when made from the earlier ones.

    None unless it beats the plain plan of the earlier windows beyond doubt.
    """
    split = options.dispatch == "minmax"
    if len(history.load) == 1:
        return (_SINGLE, _SINGLE_SPLIT) if split else (_SINGLE,), "Made from a single window."
    parts = history.held_out()
    if parts is None:
        return (), "No group has two windows to learn from, so this is the plain plan."
    rows = np.unique(np.linspace(0, history.load.shape[1] - 1, _TRIAL_LAYERS).astype(np.int64))
    past, late = (part.of_layers(rows) for part in parts)
    start = _plain(past, num_slots)
    search = _Search(replace(options, progress=None), past, clock)
    plain = search.peaks(start, late.load)
    ways: list[tuple[_Stage, ...]] = [(_GROUPS,), (_WINDOWS,)]
    if split:
        ways.append((_WINDOWS, _SPLITS))
    gains = [plain - search.peaks(search.run(way, start, _TRIAL_MOVES), late.load) for way in ways]
    best = int(np.argmax([gain.mean() for gain in gains]))
    if not plain.any():
        return (), "The held-out windows have no load, so this is the plain plan."
    gain = gains[best][plain > 0]
    share = gain.sum() / plain.sum()
    if gain.mean() <= _SURE * gain.std() / np.sqrt(gain.size):
        return (), f"On held-out windows a robust plan took {share:.1%} off, which proves nothing."
    return ways[best], f"On held-out windows a plan made this way took {share:.1%} off the peak."


def _plain(history: History, num_slots: int) -> Ints:
    """What ``Greedy`` makes of these windows, ``(L, S)``."""
    from equipoise.plan import _kernels  # numba takes long to import

    return _kernels.distinct_slots(history.mix, num_slots, history.num_ranks)


@dataclass(frozen=True)
class _Search:
    """Annealing in rounds, every layer by itself; the best slots so far stay."""

    options: Robust
    history: History
    clock: _Clock

    def run(self, stages: tuple[_Stage, ...], start: Ints, moves: int) -> Ints:
        """The best slots of every layer, ``(L, S)``, judged by the windows themselves."""
        best = start.copy()
        for stage in stages:
            self._improve(stage, best, moves // stage.moves_per_move)
        return best

    def measure(self, slots: Ints) -> Floats:
        """Mean or tail of the peaks of the windows and their mix, ``(L,)``."""
        history = self.history
        peaks = self.peaks(slots, np.concatenate([history.load, history.mix[None]]))
        peak, weight = peaks[:-1], history.window_weight
        if len(history.group_weight) > 1:
            peak, weight = history.group_means(peak), history.group_weight
        tail = _tail_mean(peak, weight, self.options.tail)
        score: Floats = (1 - MIX_SHARE) * tail + MIX_SHARE * peaks[-1]
        return score

    def peaks(self, slots: Ints, load: Floats) -> Floats:
        """Busiest rank of every window and layer under the dispatcher, ``(T, L)``."""
        placement = Placement(slots, num_ranks=self.history.num_ranks, num_experts=load.shape[2])
        return dispatcher(self.options.dispatch).peaks(load, placement)

    def _improve(self, stage: _Stage, best: Ints, moves: int) -> None:
        """Anneal round by round; ``best``, ``(L, S)``, is updated where a round is better."""
        busy = np.flatnonzero(self.history.mix.any(axis=1))
        start, score = best.copy(), self.measure(best)
        lengths = _rounds(moves)
        with ThreadPoolExecutor(self.options.num_threads or os.cpu_count()) as pool:
            for number, length in enumerate(lengths):
                if self.clock.is_over:
                    break
                found = best.copy()
                origin = start if stage.restart else best
                chance = np.random.default_rng([self.options.seed, number])
                scenarios = stage.scenarios(self.history, chance)
                anneal = partial(self._anneal, stage, scenarios, origin, number, length)
                for layer, slots in zip(busy, pool.map(anneal, busy), strict=True):
                    found[layer] = slots
                reached = self.measure(found)
                better = reached < score
                best[better], score[better] = found[better], reached[better]
                self._report(stage, number + 1, len(lengths), score[busy])

    def _anneal(
        self,
        stage: _Stage,
        scenarios: Scenarios,
        start: Ints,
        number: int,
        length: int,
        layer: int,
    ) -> Ints:
        from equipoise.plan import _robust_kernels as kernels  # numba takes long to import

        slots: Ints = start[layer]
        if self.clock.is_over:
            return slots
        load, risk = scenarios.load[layer], scenarios.risk[layer]
        weight = scenarios.weight[layer] / scenarios.weight[layer].sum()
        how = (
            weight,
            slots,
            self.history.num_ranks,
            length,
            stage.hot[number % len(stage.hot)],
            stage.cold,
            max(self.options.tail, weight[weight > 0].min()),
            stage.bits,
            weight.size == 1,
            _seed(self.options.seed, number, int(layer)),
        )
        if stage.dispatch == "minmax":
            slots, _ = kernels.anneal_minmax(load, *how)
        else:
            slots, _ = kernels.anneal_even(load, risk, *how)
        return slots

    def _report(self, stage: _Stage, done: int, num_rounds: int, score: Floats) -> None:
        if self.options.progress is not None:
            self.options.progress(
                Progress(
                    stage=stage.name,
                    rounds_done=done,
                    num_rounds=num_rounds,
                    seconds=self.clock.seconds,
                    imbalance=float(score.mean()),
                )
            )


def _rounds(moves: int) -> list[int]:
    """Lengths of the rounds: doubling, and whole ones only, so that every budget is a prefix."""
    lengths, length = [], _FIRST_ROUND
    while moves >= length:
        lengths.append(length)
        moves -= length
        length *= 2
    return lengths


def _seed(seed: int, number: int, layer: int) -> int:
    """A seed for one round of one layer, unlike any other's."""
    return int(np.random.SeedSequence([seed, number, layer]).generate_state(1, np.uint64)[0] >> 1)


def _tail_mean(peak: Floats, weight: Floats, tail: float) -> Floats:
    """Mean of the worst ``tail`` share of the weight, at least of the worst row, ``(L,)``."""
    order = np.argsort(-peak, axis=0, kind="stable")
    peak, weight = np.take_along_axis(peak, order, axis=0), weight[order]
    weight = weight / weight.sum(axis=0)
    before = np.cumsum(weight, axis=0) - weight
    counted = np.clip(np.maximum(tail, weight[0]) - before, 0, weight)
    mean: Floats = (peak * counted).sum(axis=0) / counted.sum(axis=0)
    return mean

"""A planner that looks at many windows at once, for the dispatcher that will run.

How: ``equipoise explain robust``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number, check_type
from equipoise.cost import RankCost
from equipoise.dispatch import Dispatcher, Shares, dispatcher
from equipoise.errors import EquipoiseError, argument
from equipoise.plan.planners.eplb import Greedy, check_distinct
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan, certify
from equipoise.plan.search.anneal import (
    Clock,
    Meter,
    Progress,
    Search,
    Stage,
    Terms,
    check_search_options,
    fill_up,
    quadrupling_then_leaping,
)
from equipoise.plan.search.layout import first_layout, unbalanced_layout
from equipoise.plan.search.scenarios import (
    DEVIATION,
    MOST_DEVIATION,
    group_scenarios,
    noisy_scenarios,
    read_history,
    single_scenario,
    window_scenarios,
)
from equipoise.showing import differing

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Robust:
    """A planner that keeps the busiest rank low in every kind of traffic, not only in the sum.

    Annealing searches copies and places together, layer by layer. It minimises the peak over
    scenarios made from the windows of the load: either the mean of each traffic group
    (``Problem.traffic_groups``) or the single windows, with a price on variance. The latest windows
    are held out to decide between the two. If neither is better on them, beyond chance, than a plan
    for the sum of all windows, that plan is the result.

    Equal seeds give equal results for any number of threads, unless ``time_budget_seconds`` ends
    the search.

    Parameters
    ----------
    dispatch
        Dispatcher that will run, by name or as an object; engines' own rules are dispatchers too.
        The search knows three ways of sharing (even, nearest copy, and min-max for all dispatchers
        that follow the load) and judges its results by the dispatcher itself.
    cost
        Cost of the ranks, to balance their times instead of their assignments.
    step_assignments
        Number of assignments of one step in a layer, all ranks together.  It is used with a cost;
        ``None`` takes the mean window's.
    tail
        Share of the traffic groups that counts, the worst ones: 1 is the mean over all, 0 the worst
        alone, and values between are a CVaR.  With a single traffic group, its windows count so.
    traffic_weights
        Weight of each traffic group, by name; 1 for those not named.
    deviation
        Variance of an expert's load between windows over its load, both in mean loads of an expert.
        It is used if no traffic group has two windows to estimate it from.  With 0, a single window
        is taken to be exactly what will come.
    proposals
        Number of candidate changes that the search tries per layer.  It is rounded down to whole
        sweeps; a larger number never gives a worse objective.  For dispatchers that follow the
        load, a second stage of ``proposals // 32`` follows, which takes about as long as the first.
    time_budget_seconds
        Seconds after which the search ends with the best result so far, which then depends on the
        machine.  ``None`` for all proposals.
    seed
        Random seed of the search.
    num_threads
        Number of layers searched at a time; the number of processors if ``None``.  It does not
        change the result.
    progress
        Function that receives a ``Progress`` after every sweep of every layer.
    """

    dispatch: str | Dispatcher = "even"
    cost: RankCost | None = None
    step_assignments: float | None = None
    tail: float = 1.0
    traffic_weights: Mapping[str, float] | None = None
    deviation: float = DEVIATION
    proposals: int = 1 << 20
    time_budget_seconds: float | None = None
    seed: int = 0
    num_threads: int | None = field(default=None, repr=False)
    progress: Callable[[Progress], None] | None = field(default=None, repr=False)

    __repr__ = differing

    def __post_init__(self) -> None:
        check_cost(self.dispatch, self.cost, self.step_assignments)
        check_number("tail", self.tail, low=0, high=1)
        check_number("deviation", self.deviation, low=0, high=MOST_DEVIATION)
        check_search_options(
            proposals=self.proposals,
            seed=self.seed,
            num_threads=self.num_threads,
            time_budget_seconds=self.time_budget_seconds,
        )

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places.

        Raises
        ------
        EquipoiseError
            More than ``E * R`` slots, or weights of unknown traffic groups.
        """
        check_distinct(problem)
        search = self._search(problem, Terms())
        stages, finding = choose_stages(search, problem.num_slots, self.proposals)
        if stages:
            start = starting_layout(search, problem.num_slots)
            slots = fill_up(search.run(stages, start, self.proposals), problem.topology.num_ranks)
        else:
            slots = Greedy().plan(problem).placement.slots
        return certify(problem, slots, planner=repr(self), dispatch=search.dispatch, note=finding)

    def _search(self, problem: Problem, terms: Terms) -> Search:
        clock = Clock(self.time_budget_seconds)
        return Search(
            history=read_history(
                problem,
                self.traffic_weights,
                sized=self.cost is not None,
                deviation=self.deviation,
            ),
            topology=problem.topology,
            dispatch=dispatcher(
                self.dispatch, problem.topology, cost=self.cost, top_k=problem.top_k
            ),
            cost=self.cost,
            step_assignments=self.step_assignments,
            tail=self.tail,
            seed=self.seed,
            num_threads=self.num_threads,
            clock=clock,
            terms=terms,
            meter=Meter(self.progress, clock),
        )


def check_cost(
    dispatch: str | Dispatcher, cost: RankCost | None, step_assignments: float | None
) -> None:
    """Refuse a cost or a step size that is not valid or does not fit the dispatcher."""
    if step_assignments is not None:
        if cost is None:
            raise EquipoiseError(
                f"{argument('step_assignments')} matters with a {argument('cost')} only; give both."
            )
        check_number("step_assignments", step_assignments, low=1e-100, high=1e100)
    if cost is not None:
        check_type("cost", cost, RankCost)
    dispatcher(dispatch, cost=cost)


_SINGLE = Stage("one window", single_scenario, bits=6)
_HOT = (1e-2, 1e-1, 1e-3, 1e-2, 1e-3)  # few experts need hot sweeps; the longest is cool for many
_TRAFFIC_GROUPS = Stage(
    "traffic groups", group_scenarios, hot=_HOT, sweeps=quadrupling_then_leaping
)
_WINDOWS = Stage("windows", window_scenarios, hot=_HOT, sweeps=quadrupling_then_leaping)
_SPLITS = Stage(
    "splits of windows", noisy_scenarios, follows_load=True, bits=5, hot=(1e-4,), cold=1e-5,
    counts_as=32, restart=False,
)  # fmt: skip
_SINGLE_SPLIT = replace(_SPLITS, name="split of one window", scenarios=single_scenario, hot=(1e-2,))

_PLAIN = "a plan for the sum of all windows"
_TRIAL_PROPOSALS = (1 << 18) - (1 << 9)
_TRIAL_LAYERS = 24
_TRIAL_SHARE = 0.25  # of the time budget
_SURE = 2.0  # standard errors by which a plan must beat the plain plan on held-out windows


def starting_layout(search: Search, num_slots: int) -> Ints:
    """Make the layout that a search starts from, ``(L, S)``: ``Greedy`` on the sum of all windows.

    With a cost, a layer may be better without balancing, with copies of experts that are seldom
    active; then it starts from that. So no plan is worse than no balancing, as far as the slots
    allow.
    """
    history, topology = search.history, search.topology
    start = first_layout(history.mix, num_slots, topology)
    if search.cost is None or topology.room is not None:
        return start
    active_LE = (history.load > 0).sum(axis=0) + history.mix / (topology.num_ranks + 1)
    calm = unbalanced_layout(active_LE, num_slots, topology.num_ranks)
    better = search.measure(calm) < search.measure(start)
    start[better] = calm[better]
    return start


def choose_stages(search: Search, num_slots: int, proposals: int) -> tuple[tuple[Stage, ...], str]:
    """Choose the stages whose plan, made from the earlier windows, is best on the latest ones.

    The stages for the sum of all windows are chosen unless others beat their plan beyond doubt.

    Returns
    -------
    The stages, and a sentence on why. The sentence does not say by how much one plan beats the
    other, because readers would take that for the gain over what they have.
    """
    stages, finding = _choose(search, num_slots, proposals)
    search.meter.remaining = search.work(stages, proposals)
    return stages, finding


def _choose(search: Search, num_slots: int, proposals: int) -> tuple[tuple[Stage, ...], str]:
    history, follows_load = search.history, search.dispatch.shares is Shares.FOLLOWING
    plain = () if search.is_plain else (_SINGLE,)
    if history.is_exact:
        exact = (_SINGLE, _SINGLE_SPLIT) if follows_load else (_SINGLE,)
        return exact, "Made for exactly the window given."
    if len(history.load) == 1:
        if search.is_plain and not follows_load:
            return (), "Made from a single window, which tells no more than Greedy makes of it."
        first = replace(_TRAFFIC_GROUPS, name="one window")
        return (first, _SPLITS) if follows_load else (first,), "Made from a single window."
    parts = history.held_out()
    if parts is None:
        return plain, f"No traffic group has two windows to learn from, so it is {_PLAIN}."
    rows = np.unique(np.linspace(0, history.load.shape[1] - 1, _TRIAL_LAYERS).astype(np.int64))
    past, late = (part.of_layers(rows) for part in parts)
    trial = replace(
        search,
        history=past,
        terms=search.terms.of_layers(rows),
        clock=search.clock.part(_TRIAL_SHARE),
        label="comparing ways to plan",
    )
    start = starting_layout(trial, num_slots)
    ways = [(_WINDOWS, _SPLITS)] if follows_load else [(_TRAFFIC_GROUPS,), (_WINDOWS,)]
    tried = sum(trial.work(way, _TRIAL_PROPOSALS) for way in (plain, *ways))
    search.meter.remaining = tried + max(search.work(way, proposals) for way in (plain, *ways))
    before, *after = (
        trial.peaks(trial.run(way, start, _TRIAL_PROPOSALS), late.load) for way in (plain, *ways)
    )
    gains = [before - peaks for peaks in after]
    best = int(np.argmax([gain.mean() for gain in gains]))
    if not before.any():
        return plain, f"The windows held out inside have no load, so it is {_PLAIN}."
    gain = gains[best][before > 0]
    if gain.mean() <= _SURE * gain.std() / np.sqrt(gain.size):
        return plain, (
            f"It is {_PLAIN}: on windows held out inside, no other was better beyond chance."
        )
    each = "traffic group" if ways[best] == (_TRAFFIC_GROUPS,) else "window"
    return ways[best], (
        f"Its search balances each {each}, not only their sum: on windows held out inside, that "
        f"was better than {_PLAIN}."
    )

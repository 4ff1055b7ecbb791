"""A planner that changes the placement in force with few moves; ``equipoise explain repair``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number
from equipoise.cost import RankCost
from equipoise.dispatch import Dispatcher, Shares, dispatcher
from equipoise.errors import EquipoiseError
from equipoise.migration import Migration, diff, keep_slots, ordinal_on_rank, with_slots
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import check_distinct
from equipoise.plan.planners.robust import check_cost
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan, certify
from equipoise.plan.search.anneal import (
    Clock,
    Search,
    Stage,
    Terms,
    check_search_options,
    fill_up,
)
from equipoise.plan.search.scenarios import (
    DEVIATION,
    MOST_DEVIATION,
    Floats,
    group_scenarios,
    noisy_scenarios,
    read_history,
    single_scenario,
    window_scenarios,
)
from equipoise.showing import differing
from equipoise.topology import Topology

Ints = NDArray[np.int64]

_DEAREST = 0.3  # first price of a move, in mean rank loads; later prices are lower
_HALVED = np.array([2, 2, 2, 2, 1, 1, 0, 0, 0])  # times the proposals are halved, per price
_NEAR = 0.9  # price of a transfer within a node; between nodes it is 1
_CLOSE = 1e-12  # a gain below this is rounding


def _quick_and_long(proposals: int) -> list[int]:
    """Return two sweep lengths: a quick one that reaches all layers, and the search itself."""
    quick = proposals // 16
    return [length for length in (quick, proposals - quick) if length]


def _at_once(proposals: int) -> list[int]:
    """Return a single sweep, for use after another that reached all layers."""
    return [proposals] if proposals else []


_HOT = (1e-2, 3e-4)  # the second sweep is cool, so that most of the current placement stays
_EXACT = Stage("one window", single_scenario, bits=6)
_WINDOW = Stage("one window", group_scenarios, hot=_HOT, sweeps=_quick_and_long)
_WINDOWS = Stage("windows", window_scenarios, hot=_HOT, sweeps=_quick_and_long)
_SPLITS = Stage(
    "splits of windows", noisy_scenarios, follows_load=True, bits=5, hot=(1e-4,), counts_as=32,
    restart=False, sweeps=_at_once,
)  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """The trade-off between moves and balance: the best placement found for each number of moves.

    Parameters
    ----------
    current
        Placement in force.
    topology
        Ranks of the placement.
    layouts
        Alternative slots for each layer, ``(K, L, S)``; the current slots are the first.
    choice
        Alternative that each layer takes at each of ``P`` points, ``(P, L)``.
    moves
        Number of slots whose content changes at each point, ascending from 0, ``(P,)``.
    objective
        Peak at each point in mean rank loads, mean over layers with load, descending, ``(P,)``.
    """

    current: Placement
    topology: Topology
    layouts: Ints
    choice: Ints
    moves: Ints
    objective: Floats

    def __repr__(self) -> str:
        return (
            f"Curve({len(self.moves)} points, 0 to {self.moves[-1]} moves, peak "
            f"{self.objective[0]:.3f} to {self.objective[-1]:.3f} mean rank loads)"
        )

    def placement(self, point: int) -> Placement:
        """Return the placement of a point, counted from 0."""
        layers = np.arange(self.current.num_layers)
        return with_slots(self.current, self.layouts[self.choice[point], layers])

    def bytes(self, expert_bytes: int) -> Ints:
        """Compute the bytes that ranks send to each other at each point, ``(P,)``."""
        check_number("expert_bytes", expert_bytes, low=0, high=np.inf)
        transfers = [m.transfers.sum(axis=1) for m in self._migrations]
        return self._of_points(transfers).astype(np.int64) * expert_bytes

    def seconds(self, expert_bytes: int) -> Floats:
        """Compute the seconds of each point's transfers, ``(P,)``; see ``Migration.seconds``."""
        return self._of_points([m.layer_seconds(expert_bytes) for m in self._migrations])

    @cached_property
    def _migrations(self) -> list[Migration]:
        """Migrations from the current placement to each alternative, in all layers."""
        return [
            diff(self.current, with_slots(self.current, slots), self.topology)
            for slots in self.layouts
        ]

    def _of_points(self, of_layers: list[NDArray[Any]]) -> NDArray[Any]:
        """Sum the chosen alternatives' values over layers, at each point, ``(P,)``."""
        table_KL = np.stack(of_layers)
        total: NDArray[Any] = table_KL[self.choice, np.arange(table_KL.shape[1])].sum(axis=1)
        return total


@dataclass(frozen=True, kw_only=True)
class Repair:
    """A planner that finds the best placement within a few moves of the placement in force.

    A move is a slot whose content changes. An expert that stays on its rank keeps its slot.
    The search is that of ``Robust``. It starts from the current placement and puts a price on every
    expert that is new to its rank (slightly less if its node holds a copy). It is repeated with
    falling prices: high prices find the most valuable moves, low prices all that are worthwhile.
    Then the layouts found are combined over layers in the best way that the move budget allows.

    On the windows planned on, the result is never worse than the current placement, and a larger
    move budget never gives a worse one. Equal seeds give equal results for any number of threads,
    unless ``time_budget_seconds`` ends the search.

    Parameters
    ----------
    current
        Placement in force.
    dispatch
        Dispatcher that will run, as for ``Robust``.
    cost, step_assignments
        Parameters of ``Robust``, to balance the time of the slowest rank instead of its load.
    max_moves
        Largest number of slots that may change, all layers together.  ``None`` for no limit.
    max_bytes
        Largest number of bytes that ranks may send to each other.
    max_seconds
        Longest time that the transfers may take, as ``Migration.seconds`` counts it.
    expert_bytes
        Bytes of one expert in one layer, scales included, for ``max_bytes`` and ``max_seconds``.
    least_gain
        Least drop of a layer's peak per move, on average, in mean rank loads.
    tail, traffic_weights
        Parameters of ``Robust``.
    deviation
        Variance of an expert's load between windows over its load, both in mean loads of an expert.
        See ``Robust``.
    proposals
        Number of proposals per layer at the lowest price.  Higher prices get fewer, down to a
        quarter.
    time_budget_seconds
        Seconds after which the search ends with the best result so far, which then depends on the
        machine.  They are shared among the prices.  ``None`` for all proposals.
    seed
        Random seed of the search.
    num_threads
        Number of layers searched at a time; the number of processors if ``None``.  It does not
        change the result.
    """

    current: Placement
    dispatch: str | Dispatcher = "even"
    cost: RankCost | None = None
    step_assignments: float | None = None
    max_moves: int | None = None
    max_bytes: int | None = None
    max_seconds: float | None = None
    expert_bytes: int | None = None
    least_gain: float = 5e-4
    tail: float = 1.0
    traffic_weights: Mapping[str, float] | None = None
    deviation: float = DEVIATION
    proposals: int = 1 << 20
    time_budget_seconds: float | None = None
    seed: int = 0
    num_threads: int | None = field(default=None, repr=False)

    __repr__ = differing

    def __post_init__(self) -> None:
        check_cost(self.dispatch, self.cost, self.step_assignments)
        for name in ("max_moves", "max_bytes", "expert_bytes"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, low=0, high=np.inf)
                if value != int(value):
                    raise EquipoiseError(f"{name} is {value}; expected a whole number.")
        if self.max_seconds is not None:
            check_number("max_seconds", self.max_seconds, low=0, high=np.inf)
        measured = self.max_bytes is not None or self.max_seconds is not None
        if measured != (self.expert_bytes is not None):
            raise EquipoiseError(
                "expert_bytes goes with max_bytes or max_seconds; give it where one of them is "
                "given, and only there."
            )
        check_number("least_gain", self.least_gain, low=1e-6, high=_DEAREST)
        check_number("tail", self.tail, low=0, high=1)
        check_number("deviation", self.deviation, low=0, high=MOST_DEVIATION)
        check_search_options(
            proposals=self.proposals,
            seed=self.seed,
            num_threads=self.num_threads,
            time_budget_seconds=self.time_budget_seconds,
        )

    def plan(self, problem: Problem) -> Plan:
        """Choose the point of the curve after which no further move gains ``least_gain``.

        Raises
        ------
        EquipoiseError
            Whatever ``curve`` refuses.
        """
        curve = self.curve(problem)
        worth = curve.objective * _loaded(problem) + self.least_gain * curve.moves
        point = int(worth.argmin())
        slots = curve.placement(point).slots
        return certify(
            problem,
            slots,
            planner=repr(self),
            dispatch=self.dispatch if self.cost is None else self._runs(problem),
            note=(
                f"{curve.moves[point]} of {slots.size} slots change. On the windows planned on, "
                f"the mean peak goes from {curve.objective[0]:.3f} to {curve.objective[point]:.3f} "
                "mean rank loads."
            ),
        )

    def curve(self, problem: Problem) -> Curve:
        """Find the best placement for each number of moves within the move budget.

        Raises
        ------
        EquipoiseError
            A problem with other layers, experts, slots or ranks than the placement in force, more
            than ``E * R`` slots, ranks with less room than they hold, or weights of unknown traffic
            groups.
        """
        self._check(problem)
        search = Search(
            history=read_history(
                problem,
                self.traffic_weights,
                sized=self.cost is not None,
                deviation=self.deviation,
            ),
            topology=problem.topology,
            dispatch=self._runs(problem),
            cost=self.cost,
            step_assignments=self.step_assignments,
            tail=self.tail,
            seed=self.seed,
            num_threads=self.num_threads,
            clock=Clock(self.time_budget_seconds),
        )
        layouts = np.stack(self._layouts(search))
        moves = (layouts != self.current.slots).sum(axis=2)
        objective = np.stack([search.measure(slots) for slots in layouts])
        limit = int(moves.max(axis=0).sum())
        if self.max_moves is not None:
            limit = min(limit, int(self.max_moves))
        choice = _best_choices(moves, objective, limit)
        layers = np.arange(len(choice[0]))
        curve = Curve(
            current=self.current,
            topology=problem.topology,
            layouts=layouts,
            choice=choice,
            moves=moves[choice, layers].sum(axis=1),
            objective=objective[choice, layers].sum(axis=1) / _loaded(problem),
        )
        return self._within_budget(curve)

    def _runs(self, problem: Problem) -> Dispatcher:
        return dispatcher(self.dispatch, problem.topology, cost=self.cost, top_k=problem.top_k)

    def _layouts(self, search: Search) -> list[Ints]:
        """Return the current slots and the layout that each price finds, ``(L, S)`` each.

        Each price starts from the layout of a higher price, so that the most valuable moves are
        found well.  Once a price exceeds the move budget in all layers together, the next prices
        lie between it and the last one that did not.  If no price does, the lowest price starts
        again from the current slots, which finds other layouts.
        """
        stages = _stages(search)
        start = origin = _without_repeats(self.current, search)
        price = _prices(self.current, search.topology)
        found = [self.current.slots]
        levels = np.geomspace(_DEAREST, self.least_gain, len(_HALVED) - 1).tolist()
        level = levels.pop(0)
        kept, spent = 2 * _DEAREST, 0.0  # last price within the move budget, last price beyond it
        for k, halved in enumerate(_HALVED):
            share = 0.5**halved / (0.5 ** _HALVED[k:]).sum()  # of the proposals that are left
            clock = search.clock.part_of_rest(share)
            priced = replace(search, terms=Terms(price=level * price), clock=clock)
            slots = priced.run(stages, origin, int(self.proposals) >> int(halved))
            full = _refill(slots, self.current)
            new = keep_slots(self.current, with_slots(self.current, full))
            found.append(new.slots)
            if self._affords(new, search.topology):
                origin, kept = slots, level
            else:
                spent = level
            if spent:
                level = math.sqrt(spent * kept)
            elif levels:
                level = levels.pop(0)
            else:
                origin = start
        return found

    def _affords(self, new: Placement, topology: Topology) -> bool:
        moves = np.count_nonzero(new.slots != self.current.slots)
        if self.max_moves is not None and moves > self.max_moves:
            return False
        size = self.expert_bytes
        if size is None:
            return True
        migration = diff(self.current, new, topology)
        return (self.max_bytes is None or migration.bytes(size) <= self.max_bytes) and (
            self.max_seconds is None or migration.seconds(size) <= self.max_seconds
        )

    def _within_budget(self, curve: Curve) -> Curve:
        """Keep the points within the move budget."""
        size = self.expert_bytes
        if size is None:
            return curve
        keep = np.ones(len(curve.moves), dtype=np.bool_)
        if self.max_bytes is not None:
            keep &= curve.bytes(size) <= self.max_bytes
        if self.max_seconds is not None:
            keep &= curve.seconds(size) <= self.max_seconds
        return replace(
            curve,
            choice=curve.choice[keep],
            moves=curve.moves[keep],
            objective=curve.objective[keep],
        )

    def _check(self, problem: Problem) -> None:
        check_distinct(problem)
        other = problem.difference(self.current)
        if other is not None:
            raise EquipoiseError(
                f"The placement in force has other {other} than the problem; repair one with "
                "loads of the same model and devices, or plan from scratch with Robust."
            )


def _stages(search: Search) -> tuple[Stage, ...]:
    first, splits = _WINDOWS, _SPLITS
    if search.history.is_exact:
        first, splits = _EXACT, replace(_SPLITS, scenarios=single_scenario)
    elif len(search.history.load) == 1:
        first = _WINDOW
    return (first, splits) if search.dispatch.shares is Shares.FOLLOWING else (first,)


def _loaded(problem: Problem) -> int:
    return int(problem.load.any(axis=(0, 2)).sum())


def _prices(current: Placement, topology: Topology) -> Floats:
    """Price each expert on each rank, ``(L, R, E)``: 0 if present, 1 from another node."""
    held_LRE = current.copies_on_rank > 0
    by_node = held_LRE.reshape(len(held_LRE), topology.num_nodes, -1, current.num_experts)
    near = by_node.any(axis=2).take(topology.node_of_rank, axis=1)
    return np.where(held_LRE, 0.0, np.where(near, _NEAR, 1.0))


def _best_choices(moves_KL: Ints, objective_KL: Floats, limit: int) -> Ints:
    """Choose a layout for each layer so that the summed objective is least, for each move count.

    This is a multiple-choice knapsack, solved exactly by dynamic programming over layers.

    Returns
    -------
    Layout of each layer, ``(P, L)``: one row for each number of moves, up to the limit, that is
    better than all smaller numbers.
    """
    K, L = moves_KL.shape
    best = np.zeros(limit + 1)  # indexed by the number of moves allowed
    picked = np.empty((L, limit + 1), dtype=np.int64)
    for layer in range(L):
        sums = np.full((K, limit + 1), np.inf)
        for k, moves in enumerate(moves_KL[:, layer]):
            if moves <= limit:
                sums[k, moves:] = best[: limit + 1 - moves] + objective_KL[k, layer]
        picked[layer] = sums.argmin(axis=0)  # of equal sums the first, which moves least
        best = sums.min(axis=0)
    left = np.concatenate([[0], 1 + np.flatnonzero(best[:-1] - best[1:] > _CLOSE)])
    choice = np.empty((len(left), L), dtype=np.int64)
    for layer in reversed(range(L)):
        choice[:, layer] = picked[layer, left]
        left = left - moves_KL[choice[:, layer], layer]
    return choice


def _without_repeats(current: Placement, search: Search) -> Ints:
    """Replace experts that are twice on a rank, ``(L, S)``.

    A repeated slot gets a copy of the expert with the largest load per copy, or -1 without room.
    """
    topology = search.topology
    by_rank = current.by_rank.copy()
    repeats = ordinal_on_rank(by_rank) > 0
    if not repeats.any() and topology.room is None:
        return current.slots
    room = topology.distinct_experts(current.slots_per_rank)
    for layer, load in enumerate(search.history.mix):
        held = current.copies_on_rank[layer] > 0
        _check_room(held.sum(axis=1), room, current.layer_ids[layer])
        for rank, slot in np.argwhere(repeats[layer]):
            if held[rank].sum() >= room[rank]:
                by_rank[layer, rank, slot] = -1
                continue
            expert = int(np.where(held[rank], -1, load / held.sum(axis=0)).argmax())
            by_rank[layer, rank, slot] = expert
            held[rank, expert] = True
    return by_rank.reshape(current.slots.shape)


def _check_room(held: Ints, room: Ints, layer_id: int) -> None:
    if (held > room).any():
        rank = int((held > room).argmax())
        raise EquipoiseError(
            f"Layer {layer_id}: rank {rank} holds {held[rank]} experts and has room for "
            f"{room[rank]}; give the topology the placement in force was made for."
        )


def _refill(slots: Ints, current: Placement) -> Ints:
    """Restore slots marked -1 to the current expert if the rank still holds it in another slot."""
    if (slots >= 0).all():
        return slots
    by_rank = slots.reshape(current.by_rank.shape)
    still = (current.by_rank[..., :, None] == by_rank[..., None, :]).any(axis=-1)
    kept = np.where((by_rank < 0) & still, current.by_rank, by_rank)
    return fill_up(kept.reshape(slots.shape), current.num_ranks)

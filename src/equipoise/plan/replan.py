"""New slots in one call, from what an engine's balancing hook is given.

A caller inside an engine catches ``EquipoiseError`` and keeps the old slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_array, as_ids, as_loads, check_count, check_number, check_whole
from equipoise.dispatch import Dispatcher
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.planners.baselines import Contiguous
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.planners.repair import Repair
from equipoise.plan.planners.robust import Robust
from equipoise.plan.problem import Problem
from equipoise.plan.result import Planner
from equipoise.plan.search.anneal import Clock
from equipoise.plan.weigh.failover import refit
from equipoise.showing import in_short
from equipoise.topology import Topology

Ints = NDArray[np.int64]

_PROPOSALS = 1 << 15
_NONE = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class Situation:
    """The state of an engine that asks for new slots.

    Parameters
    ----------
    load
        Assignments per expert, as a sum ``(L, E)`` or windows ``(T, L, E)``; all zero before there
        is traffic.
    num_slots
        Number of slots per layer ``S``, all ranks together.
    num_ranks
        Number of ranks ``R``; each has an equal contiguous block of slots.
    num_nodes
        Number of nodes.  If it does not divide the ranks, they count as one node.
    slots
        Expert ids in force, ``(L, S)``; -1 marks a slot without a known expert.  Another number of
        columns means that ranks were added or removed at the end; the slots per rank stay the same.
        ``None`` if nothing is in force.
    alive
        Mask of the ranks that serve, ``(R,)``; ``None`` for all.
    max_moves
        Largest number of slots whose content may change, all layers together; ``None`` for no
        limit.  Missing experts are always placed, beyond the limit if necessary.
    time_budget_seconds
        Longest time that the search may take; ``None`` for all proposals.
    """

    load: ArrayLike
    num_slots: int
    num_ranks: int
    num_nodes: int = 1
    slots: ArrayLike | None = None
    alive: ArrayLike | None = None
    max_moves: int | None = None
    time_budget_seconds: float | None = None

    __repr__ = in_short


class Outcome(Enum):
    """The outcome for the slots in force."""

    KEPT = "kept"
    REPAIRED = "repaired"
    REFITTED = "refitted"
    PLANNED = "planned"


@dataclass(frozen=True, eq=False, kw_only=True)
class Answer:
    """New slots, and the reason for them.

    Parameters
    ----------
    slots
        Expert ids ``(L, S)``; -1 on ranks that are not alive.  Every expert has a slot on a rank
        that is alive.
    moves
        Number of slots whose content changes, on ranks that are alive, all layers together.
    outcome
        Fate of the slots in force.
    reason
        Sentences for a person that explain the outcome.
    """

    slots: Ints
    moves: int
    outcome: Outcome
    reason: str

    __repr__ = in_short


def replan(
    situation: Situation,
    *,
    dispatch: str | Dispatcher = "even",
    proposals: int = _PROPOSALS,
    seed: int = 0,
    num_threads: int | None = None,
) -> Answer:
    """Find the best slots within few moves, whatever state the engine is in.

    Parameters
    ----------
    dispatch
        Dispatcher that will run, as for ``Repair``.
    proposals
        Number of proposals per layer, as for ``Repair``.
    seed
        Random seed of the search.
    num_threads
        Layers searched at a time; the machine's processors if ``None``.

    Raises
    ------
    EquipoiseError
        Loads, slots or ranks that do not fit together, or ranks that cannot hold all experts.
    """
    clock = Clock(situation.time_budget_seconds)
    case = _Case(situation)
    if case.held is None:
        plan = _planner(case, dispatch, proposals, seed, num_threads).plan(case.problem)
        return case.answer(plan.placement, f"No slots were in force. {plan.note}".rstrip())
    start = case.complete()
    if case.idle:
        return case.answer(start, "There was no traffic to balance.")
    repair = Repair(
        current=start,
        dispatch=dispatch,
        max_moves=case.moves_left(),
        proposals=proposals,
        time_budget_seconds=case.seconds_left(clock),
        seed=seed,
        num_threads=num_threads,
    )
    plan = repair.plan(case.problem)
    return case.answer(plan.placement, plan.note)


def _planner(
    case: _Case, dispatch: str | Dispatcher, proposals: int, seed: int, num_threads: int | None
) -> Planner:
    """Choose the planner for an empty start: ``Robust`` for windows, ``Greedy`` for a sum."""
    if case.idle:
        return Contiguous()
    if len(case.problem.load) == 1:
        return Greedy()
    return Robust(
        dispatch=dispatch,
        proposals=proposals,
        time_budget_seconds=case.situation.time_budget_seconds,
        seed=seed,
        num_threads=num_threads,
    )


class _Case:
    """A checked situation, reduced to the ranks that are alive.

    ``held`` is the content of their slots, ``(L, R, C)``, or ``None`` if nothing is in force.
    ``refitted`` is the number of slots that had to change because experts or ranks were missing.
    """

    refitted = 0

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.num_ranks = check_count("num_ranks", situation.num_ranks)
        if situation.max_moves is not None:
            check_whole("max_moves", situation.max_moves)
        if situation.time_budget_seconds is not None:
            check_number("time_budget_seconds", situation.time_budget_seconds, low=0, high=np.inf)
        self.alive = self._alive()
        load = as_loads(situation.load)
        self.idle = not load.any()
        self.problem = self._problem(np.ones(load.shape) if self.idle else load)
        self.held = self._held()

    @property
    def slots_per_rank(self) -> int:
        """Number of slots on each rank, ``C``."""
        return self.situation.num_slots // self.num_ranks

    def complete(self) -> Placement:
        """Return the placement in force, with missing experts placed and empty slots filled."""
        assert self.held is not None
        if (self.held >= 0).all() and self._has_all_experts():
            return self.problem.placement(self.held.reshape(len(self.held), -1))
        placement, _ = refit(self.held, self.problem)
        if placement.num_slots != self.problem.num_slots:
            raise EquipoiseError(
                f"{len(self.alive)} ranks of {self.slots_per_rank} slots do not hold all "
                f"{self.problem.num_experts} experts; keep more ranks, or give them more slots."
            )
        self.refitted = self._moves(placement)
        return placement

    def moves_left(self) -> int | None:
        """Return the number of moves that are left after missing experts were placed."""
        if self.situation.max_moves is None:
            return None
        return max(0, self.situation.max_moves - self.refitted)

    def seconds_left(self, clock: Clock) -> float | None:
        """Return the seconds that are left of the time budget."""
        budget = self.situation.time_budget_seconds
        return None if budget is None else max(0.0, budget - clock.seconds)

    def answer(self, placement: Placement, reason: str) -> Answer:
        """Expand a placement on the ranks that are alive to the slots of all ranks."""
        slots = np.full(
            (placement.num_layers, self.num_ranks, self.slots_per_rank), _NONE, dtype=np.int64
        )
        slots[:, self.alive] = placement.by_rank
        outcome = self._outcome(placement)
        if outcome is Outcome.REFITTED:
            reason = f"Experts or ranks were missing: {self.refitted} slots had to change. {reason}"
        return Answer(
            slots=slots.reshape(len(slots), -1),
            moves=self._moves(placement),
            outcome=outcome,
            reason=reason,
        )

    def _alive(self) -> Ints:
        """Return the ranks that serve, ascending."""
        given = self.situation.alive
        if given is None:
            return np.arange(self.num_ranks)
        alive = as_array(given, "alive")
        if alive.shape != (self.num_ranks,) or alive.dtype.kind not in "biu":
            raise EquipoiseError(
                f"alive has shape {alive.shape} of {alive.dtype}; expected true or false for each "
                f"of {self.num_ranks} ranks."
            )
        if not alive.any():
            raise EquipoiseError("No rank is alive; there is nobody to serve.")
        return np.flatnonzero(alive)

    def _problem(self, load: NDArray[np.float64]) -> Problem:
        num_slots = check_count("num_slots", self.situation.num_slots)
        if num_slots % self.num_ranks:
            raise EquipoiseError(
                f"{num_slots} slots do not divide over {self.num_ranks} ranks; give each rank the "
                "same number."
            )
        return Problem(load, self._topology(), self.slots_per_rank * len(self.alive))

    def _topology(self) -> Topology:
        """Describe the ranks that are alive; they are one node if nodes differ in size."""
        num_nodes = check_count("num_nodes", self.situation.num_nodes)
        survivors = len(self.alive)
        node = self.alive * num_nodes // self.num_ranks
        _, sizes = np.unique(node, return_counts=True)
        equal = self.num_ranks % num_nodes == 0 and len(set(sizes.tolist())) == 1
        return Topology(survivors, int(sizes[0]) if equal else None)

    def _held(self) -> Ints | None:
        """Return the content of the slots of ranks that are alive; -1 where it is not known."""
        if self.situation.slots is None:
            return None
        slots = as_ids(self.situation.slots, "The slots in force")
        L, E, size = self.problem.num_layers, self.problem.num_experts, self.slots_per_rank
        if slots.ndim != 2 or len(slots) != L or slots.shape[1] % size:
            raise EquipoiseError(
                f"The slots in force have shape {slots.shape}; expected {L} layers and {size} "
                "slots for each rank."
            )
        if ((slots < _NONE) | (slots >= E)).any():
            raise EquipoiseError(
                f"The slots in force hold experts {slots.min()} to {slots.max()}; expected ids "
                f"from 0 to {E - 1}, or -1 for none."
            )
        by_rank = slots.reshape(L, -1, size)
        held = np.full((L, self.num_ranks, size), _NONE, dtype=np.int64)
        common = min(self.num_ranks, by_rank.shape[1])
        held[:, :common] = by_rank[:, :common]
        return held[:, self.alive]

    def _has_all_experts(self) -> bool:
        assert self.held is not None
        rows = self.held.reshape(len(self.held), -1)
        has = np.zeros((len(rows), self.problem.num_experts), dtype=np.bool_)
        has[np.arange(len(rows))[:, None], rows] = True
        return bool(has.all())

    def _moves(self, placement: Placement) -> int:
        if self.held is None:
            return placement.slots.size
        return int((placement.by_rank != self.held).sum())

    def _outcome(self, placement: Placement) -> Outcome:
        if self.held is None:
            return Outcome.PLANNED
        if self.refitted:
            return Outcome.REFITTED
        return Outcome.REPAIRED if self._moves(placement) else Outcome.KEPT

"""A plan: the output of a planner, with the bound that it is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch import Dispatcher, MinMax, Shares, dispatcher
from equipoise.placement import Placement
from equipoise.plan.bounds import Binding, Limits, Sums, advice, bindings, limits
from equipoise.plan.problem import Problem
from equipoise.showing import heat_html
from equipoise.topology import Topology


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """A placement, with a bound that says how much better any other placement could be.

    Peaks, bounds and advice are computed on first use. They describe the load summed over windows,
    unless the dispatcher's result depends on the size of a step, as it does with a cost. Then they
    are means over the windows, each taken as one step.

    The unit is assignments. If ranks have different speeds, it is the assignments that a rank of
    mean speed would serve in the same time. If the dispatcher has a cost, the unit is seconds.
    Arrays are read-only.

    Parameters
    ----------
    placement
        Placement to load.
    planner
        Text of the planner with its parameters, e.g. ``Greedy(allow_same_rank_copies=False)``.
    problem
        Problem that the plan was made for.
    dispatcher
        Dispatcher that the plan was made for.
    note
        Sentences of the planner about this plan, which precede the advice.
    """

    placement: Placement
    planner: str
    problem: Problem
    dispatcher: Dispatcher
    note: str = ""

    @property
    def dispatch(self) -> str:
        """Name of the dispatcher."""
        return self.dispatcher.name

    @cached_property
    def load(self) -> NDArray[np.float64]:
        """Load summed over windows, ``(L, E)``."""
        return _read_only(self.problem.total)

    @cached_property
    def peak(self) -> NDArray[np.float64]:
        """Load of the busiest rank, or time of the slowest, in each layer, ``(L,)``."""
        return _read_only(self._peaks(self._rows).mean(axis=0))

    @property
    def mean(self) -> NDArray[np.float64]:
        """Load or time of the mean rank in each layer, ``(L,)``."""
        return self._sums.mean

    @property
    def bound(self) -> NDArray[np.float64]:
        """Proven lower bound on the peak of any placement on these slots, ``(L,)``."""
        return self._sums.bound

    @cached_property
    def dispatch_bound(self) -> NDArray[np.float64]:
        """Proven lower bound on the peak of any dispatcher on this placement, ``(L,)``."""
        best = MinMax(topology=self.dispatcher.topology, cost=self.dispatcher.cost)
        splits = [best.split(np.ldexp(row, -self._exponent), self.placement) for row in self._rows]
        bounds = np.stack([split.bound for split in splits])
        return _read_only(np.ldexp(bounds, self._exponent).mean(axis=0))

    @cached_property
    def binding(self) -> tuple[Binding, ...]:
        """Constraint behind the bound of each layer, for the summed or mean load of windows."""
        typical = self._rows.mean(axis=0)
        where = "" if self._is_sum else ", in a step of mean loads"
        return bindings(self._limits_of(typical), self.problem.layer_ids, where)

    @property
    def gap(self) -> float:
        """Distance of the summed peaks from the summed bounds: 0.02 is at most 2 % to gain."""
        return float(self.peak.sum() / self.bound.sum() - 1.0)

    @cached_property
    def window_gap(self) -> float:
        """Distance as in ``gap``, for the single windows of the problem instead of their sum.

        Each bound is for one window, but one placement has to serve all windows. So the bound
        holds, but it may be that no placement comes close to it.
        """
        loads = self.problem.load
        least = self._limits_of(loads.reshape(-1, loads.shape[2]))
        return float(self._peaks(loads).sum() / least.bound.sum() - 1.0)

    @cached_property
    def status(self) -> str:
        """The planner's note, followed by advice that claims only what the bound proves."""
        said = advice(
            self.peak,
            self._sums,
            dispatch=self.dispatch,
            together=self._is_sum,
            in_seconds=self.dispatcher.cost is not None,
        )
        return f"{self.note} {said}" if self.note else said

    def __repr__(self) -> str:
        placed = self.placement
        return (
            f"Plan({placed.num_layers} layers, {placed.num_experts} experts in {placed.num_slots} "
            f"slots on {placed.num_ranks} ranks, by {self.planner.partition('(')[0]} for "
            f"{self.dispatch})"
        )

    def _repr_html_(self) -> str:
        placed = self.placement
        load_LR = np.einsum("le,lre->lr", self.load / placed.copies, placed.copies_on_rank)
        return heat_html(
            repr(self),
            load_LR / np.maximum(load_LR.mean(axis=1, keepdims=True), np.finfo(np.float64).tiny),
            "Load of every rank over the mean, all steps together, each copy taking an equal "
            "share: a row for each layer, a column for each rank.",
        )

    @property
    def _is_sum(self) -> bool:
        """Whether all windows are summed, as they are if the unit of loads does not matter."""
        return self.dispatcher.scale_free

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        """Steps that the numbers describe, ``(T, L, E)``."""
        return self.load[None] if self._is_sum else self.problem.load

    @cached_property
    def _sums(self) -> Sums:
        rows = self._rows
        sums = self._limits_of(rows.reshape(-1, rows.shape[2])).by_layer(rows.shape[1])
        for array in (sums.bound, sums.mean):
            _read_only(array)
        return sums

    def _limits_of(self, load_NE: NDArray[np.float64]) -> Limits:
        runs = self.dispatcher
        return limits(
            load_NE,
            self.placement.num_slots,
            runs.topology or Topology(self.placement.num_ranks),
            cost=runs.cost,
            even=runs.shares is Shares.EVEN,
        )

    @property
    def _exponent(self) -> int:
        """Power of two that brings loads into a dispatcher's range; 0 if scaling would matter."""
        return int(np.frexp(self.load.max())[1]) if self._is_sum else 0

    def _peaks(self, load_TLE: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = np.ldexp(load_TLE, -self._exponent)
        return np.ldexp(self.dispatcher.peaks(scaled, self.placement), self._exponent)


class Planner(Protocol):
    """The protocol of planners: frozen, keyword-only dataclasses that make a plan for a problem."""

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places. Equal problems give equal plans; none is changed."""
        ...


def certify(
    problem: Problem,
    slots_LS: NDArray[np.int64],
    *,
    planner: str,
    dispatch: str | Dispatcher = "even",
    note: str = "",
) -> Plan:
    """Make a plan from slots, so that a planner need not compute bounds.

    Parameters
    ----------
    problem
        Problem that the slots are for.
    slots_LS
        Expert ids of the slots, ``(L, S)``; not changed.
    planner
        Text of the planner with its parameters.
    dispatch
        Dispatcher that the plan was made for; by name, it is given the problem's topology.
    note
        Sentences of the planner, which precede the advice.

    Raises
    ------
    EquipoiseError
        An unknown dispatcher.
    """
    return Plan(
        placement=problem.placement(slots_LS),
        planner=planner,
        problem=problem,
        dispatcher=dispatcher(dispatch, problem.topology, top_k=problem.top_k),
        note=note,
    )


def _read_only(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array.flags.writeable = False
    return array

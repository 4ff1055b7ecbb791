"""What a planner is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, as_names, check_count, check_type
from equipoise.cost import RankCost
from equipoise.dispatch import Dispatcher, MinMax, is_scale_free
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import check_layer_ids
from equipoise.placement import Placement, check_slot_count
from equipoise.plan.bounds import Binding, Limits, Sums, advice, bindings, limits
from equipoise.topology import Topology
from equipoise.trace import Trace

__all__ = ["Binding", "Plan", "Planner", "Problem"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Loads to place, the devices, and how many slots a layer has.

    Parameters
    ----------
    load
        A ``Trace``, or assignments ``(L, E)`` or ``(T, L, E)``: non-negative finite numbers with a
        finite sum. Copied, and read-only afterwards.
    topology
        The devices.
    num_slots
        ``S``, all ranks together, redundant ones included; ``R`` divides it.
    layer_ids
        The model's numbers of the layers; those of the trace if ``None``.
    groups
        The kind of traffic of each step, ``(T,)`` strings; a trace's label ``domain`` if ``None``.
        ``Robust`` balances each group; the other planners look at the sum.

    Raises
    ------
    EquipoiseError
        Loads that are NaN, negative or all zero, or whose sums leave the range of float64; slots or
        groups that do not fit.
    """

    load: NDArray[np.float64]
    topology: Topology
    num_slots: int
    layer_ids: tuple[int, ...]
    groups: NDArray[np.str_] | None

    def __init__(
        self,
        load: Trace | ArrayLike,
        topology: Topology,
        num_slots: int,
        *,
        layer_ids: tuple[int, ...] | None = None,
        groups: ArrayLike | None = None,
    ) -> None:
        if isinstance(load, Trace):
            layer_ids = load.layer_ids if layer_ids is None else layer_ids
            groups = load.labels.get("domain") if groups is None else groups
            load = load.counts
        check_type("topology", topology, Topology)
        object.__setattr__(self, "num_slots", check_count("num_slots", num_slots))
        array = _as_load(load)
        ids = range(array.shape[1]) if layer_ids is None else layer_ids
        object.__setattr__(self, "layer_ids", check_layer_ids(ids, array.shape[1]))
        _check_range(array, self.layer_ids, topology)
        object.__setattr__(self, "load", array)
        object.__setattr__(self, "topology", topology)
        object.__setattr__(self, "groups", _as_groups(groups, len(array)))
        check_slot_count(self.num_slots, num_ranks=topology.num_ranks, num_experts=self.num_experts)

    @property
    def num_layers(self) -> int:
        """``L``."""
        return int(self.load.shape[1])

    @property
    def num_experts(self) -> int:
        """``E``."""
        return int(self.load.shape[2])

    @property
    def total(self) -> NDArray[np.float64]:
        """Load summed over steps, ``(L, E)``."""
        total: NDArray[np.float64] = self.load.sum(axis=0)
        return total

    def of_steps(self, assignments: float | None) -> Problem:
        """The same with so many assignments in the mean step of a layer; itself if ``None``."""
        if assignments is None:
            return self
        mean = self.load.sum(axis=2).mean(axis=0)
        scale = np.divide(assignments, mean, out=np.zeros_like(mean), where=mean > 0)
        return Problem(
            self.load * scale[:, None],
            self.topology,
            self.num_slots,
            layer_ids=self.layer_ids,
            groups=self.groups,
        )

    def placement(self, slots: ArrayLike) -> Placement:
        """A placement of this problem's shape from ``(L, S)`` expert ids."""
        return Placement(
            slots,
            num_ranks=self.topology.num_ranks,
            num_experts=self.num_experts,
            layer_ids=self.layer_ids,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """A placement, and the bound that says how much better any other could be.

    Numbers and advice follow from the fields and are worked out when first asked for. They are of
    the load summed over windows where the dispatcher's answer does not depend on the unit of loads.
    Where it does, as with a cost, a sum of steps says nothing of a step: then they are means over
    the windows, each taken as one step. Peaks and bounds are in assignments; where ranks have
    speeds, in those that a rank of mean speed serves meanwhile; where the dispatcher has a cost, in
    seconds. Arrays are read-only.

    Parameters
    ----------
    placement
        What to load.
    planner
        The planner as configured, e.g. ``Greedy(allow_same_rank_copies=False)``.
    problem
        What it was made for.
    dispatcher
        The dispatcher it was made for.
    note
        What the planner has to say of this plan, before the advice.
    """

    placement: Placement
    planner: str
    problem: Problem
    dispatcher: Dispatcher
    note: str = ""

    @property
    def dispatch(self) -> str:
        """The dispatcher's name."""
        return self.dispatcher.name

    @cached_property
    def load(self) -> NDArray[np.float64]:
        """The load summed over windows, ``(L, E)``."""
        return _read_only(self.problem.total)

    @cached_property
    def peak(self) -> NDArray[np.float64]:
        """What the busiest rank carries, or the slowest takes, in each layer, ``(L,)``."""
        return _read_only(self._peaks(self._rows).mean(axis=0))

    @property
    def mean(self) -> NDArray[np.float64]:
        """The same of the mean rank, ``(L,)``."""
        return self._sums.mean

    @property
    def bound(self) -> NDArray[np.float64]:
        """What no placement on these slots can be below, ``(L,)``."""
        return self._sums.bound

    @cached_property
    def dispatch_bound(self) -> NDArray[np.float64]:
        """What no dispatcher can be below on this placement, ``(L,)``."""
        best = MinMax(topology=getattr(self.dispatcher, "topology", None), cost=self._cost)
        splits = [best.split(np.ldexp(row, -self._exponent), self.placement) for row in self._rows]
        bounds = np.stack([split.bound for split in splits])
        return _read_only(np.ldexp(bounds, self._exponent).mean(axis=0))

    @cached_property
    def binding(self) -> tuple[Binding, ...]:
        """Per layer, the constraint behind the bound; where windows count, of their mean load."""
        typical = self._rows.mean(axis=0)
        where = "" if self._is_sum else ", in a step of mean loads"
        return bindings(self._limits_of(typical), self.problem.layer_ids, where)

    @property
    def gap(self) -> float:
        """How far the summed peaks are above the summed bounds: 0.02 means at most 2 % to gain."""
        return float(self.peak.sum() / self.bound.sum() - 1.0)

    @cached_property
    def window_gap(self) -> float:
        """As ``gap``, over the windows of the problem one by one instead of their sum.

        A placement has to serve all windows, each bound looks at one: no placement makes the mean
        peak less, but perhaps none comes as close.
        """
        loads = self.problem.load
        least = self._limits_of(loads.reshape(-1, loads.shape[2]))
        return float(self._peaks(loads).sum() / least.bound.sum() - 1.0)

    @cached_property
    def status(self) -> str:
        """The planner's note, and some sentences of advice that claim what the bound proves."""
        said = advice(
            self.peak,
            self._sums,
            dispatch=self.dispatch,
            together=self._is_sum,
            in_seconds=self._cost is not None,
        )
        return f"{self.note} {said}" if self.note else said

    @property
    def _is_sum(self) -> bool:
        """Whether all windows count as one, which is so where the unit of loads does not matter."""
        return is_scale_free(self.dispatcher)

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        """The steps that count, ``(T, L, E)``."""
        return self.load[None] if self._is_sum else self.problem.load

    @cached_property
    def _sums(self) -> Sums:
        rows = self._rows
        sums = self._limits_of(rows.reshape(-1, rows.shape[2])).by_layer(rows.shape[1])
        for array in (sums.bound, sums.mean):
            _read_only(array)
        return sums

    def _limits_of(self, load_NE: NDArray[np.float64]) -> Limits:
        p = self.placement
        return limits(load_NE, p.num_slots, p.num_ranks, self.dispatcher)

    @property
    def _cost(self) -> RankCost | None:
        return getattr(self.dispatcher, "cost", None)

    @property
    def _exponent(self) -> int:
        """A power of two that brings loads into a dispatcher's range; 0 where it would matter."""
        return int(np.frexp(self.load.max())[1]) if self._is_sum else 0

    def _peaks(self, load_TLE: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = np.ldexp(load_TLE, -self._exponent)
        return np.ldexp(self.dispatcher.peaks(scaled, self.placement), self._exponent)


class Planner(Protocol):
    """What every planner is: a frozen, keyword-only dataclass that answers problems."""

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places. Deterministic; changes nothing of the problem."""
        ...


def _read_only(array: NDArray[np.float64]) -> NDArray[np.float64]:
    array.flags.writeable = False
    return array


def _as_groups(groups: ArrayLike | None, num_steps: int) -> NDArray[np.str_] | None:
    if groups is None:
        return None
    array = as_names(groups, "Groups")
    if array.shape != (num_steps,):
        raise EquipoiseError(
            f"Groups have shape {array.shape}; expected one name for each of {num_steps} steps."
        )
    return array


def _as_load(load: ArrayLike) -> NDArray[np.float64]:
    array = np.abs(as_loads(load))  # a copy, whose zeros have no sign
    array.flags.writeable = False
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise EquipoiseError(
            f"Loads have shape {array.shape}; expected (layers, experts) or "
            "(steps, layers, experts), none of them 0."
        )
    if not array.any():
        raise EquipoiseError("The load is zero everywhere; record some traffic before planning.")
    return array


def _check_range(
    load_TLE: NDArray[np.float64], layer_ids: tuple[int, ...], topology: Topology
) -> None:
    """Raise ``EquipoiseError`` where sums of loads, or their shares, would not be numbers any more.

    Planners scale a layer to its largest load, so this is all they ask for.
    """
    total = load_TLE.sum(axis=(0, 2))
    for layer, sum_of_loads in zip(layer_ids, total, strict=True):
        if 0 < sum_of_loads < _LEAST_SUM:
            raise EquipoiseError(
                f"The loads of layer {layer} add up to {sum_of_loads}; expected 0, or "
                f"{_LEAST_SUM:.0e} or more. Scale them up."
            )
    slowest = topology.relative_speed.min()
    if total.sum() > _MOST_SUM * slowest:
        layer = layer_ids[int(total.argmax())]
        raise EquipoiseError(
            f"The loads of layer {layer} add up to {total.max():.3g}, which leaves the range of "
            "numbers where they are shared over the ranks; scale them down."
        )


# Powers of two: a share of the least sum is still exact, and times of the most are still finite.
_LEAST_SUM, _MOST_SUM = 2.0**-1000, 2.0**1020

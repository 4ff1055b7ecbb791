"""What a planner is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import check_count
from equipoise.errors import EquipoiseError
from equipoise.layers import check_layer_ids
from equipoise.placement import Placement, check_slot_count
from equipoise.topology import Topology
from equipoise.trace import Trace


@dataclass(frozen=True, eq=False)
class Problem:
    """Loads to place, the devices, and how many slots a layer has.

    Parameters
    ----------
    load
        A ``Trace``, or assignments ``(L, E)`` or ``(T, L, E)``: non-negative finite numbers.
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
        Loads that are NaN, negative or all zero; slots or groups that do not fit.
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
        check_count("num_slots", num_slots)
        array = _as_load(load)
        object.__setattr__(self, "load", array)
        object.__setattr__(self, "topology", topology)
        object.__setattr__(self, "num_slots", int(num_slots))
        ids = tuple(range(array.shape[1])) if layer_ids is None else tuple(layer_ids)
        object.__setattr__(self, "layer_ids", ids)
        check_layer_ids(ids, array.shape[1])
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

    def placement(self, slots: ArrayLike) -> Placement:
        """A placement of this problem's shape from ``(L, S)`` expert ids."""
        return Placement(
            slots,
            num_ranks=self.topology.num_ranks,
            num_experts=self.num_experts,
            layer_ids=self.layer_ids,
        )


@dataclass(frozen=True)
class Binding:
    """The constraint that keeps a layer's peak from being lower.

    ``kind`` is ``mean`` (nothing binds: perfect balance is not excluded), ``experts`` (the heaviest
    experts have too few copies) or ``copies`` (an even split over the copies); ``text`` says it to
    a person: "layer 17: expert 203 alone is 4.1x the mean; only copies help".
    """

    layer: int
    kind: str
    text: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """A placement, beside the bound that says how much better any other could be.

    Parameters
    ----------
    placement
        What to load.
    planner
        The planner as configured, e.g. ``Greedy(allow_same_rank_copies=False)``.
    dispatch
        The dispatcher the plan was made for.
    load
        The load it was made for, ``(L, E)``.
    peak
        Load of the busiest rank in each layer under that load and dispatcher, ``(L,)``.
    bound
        What no placement can be below, ``(L,)``.
    binding
        Per layer, the constraint behind the bound.
    status
        One or two sentences of advice.
    """

    placement: Placement
    planner: str
    dispatch: str
    load: NDArray[np.float64]
    peak: NDArray[np.float64]
    bound: NDArray[np.float64]
    binding: tuple[Binding, ...]
    status: str

    @property
    def gap(self) -> float:
        """How far the summed peaks are above the summed bounds: 0.02 means at most 2 % to gain."""
        return float(self.peak.sum() / self.bound.sum() - 1.0)


class Planner(Protocol):
    """What every planner is: a frozen, keyword-only dataclass that answers problems."""

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places. Deterministic; changes nothing of the problem."""
        ...


def _as_groups(groups: ArrayLike | None, num_steps: int) -> NDArray[np.str_] | None:
    if groups is None:
        return None
    array = np.asarray(groups, dtype=np.str_)
    if array.shape != (num_steps,):
        raise EquipoiseError(
            f"Groups have shape {array.shape}; expected one name for each of {num_steps} steps."
        )
    return array


def _as_load(load: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(load, dtype=np.float64)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or 0 in array.shape:
        raise EquipoiseError(
            f"Loads have shape {array.shape}; expected (layers, experts) or "
            "(steps, layers, experts), none of them 0."
        )
    bad = ~np.isfinite(array) | (array < 0)
    if bad.any():
        step, layer, expert = np.argwhere(bad)[0]
        raise EquipoiseError(
            f"The load of layer row {layer}, expert {expert} (step {step}) is "
            f"{array[step, layer, expert]}; expected finite numbers >= 0."
        )
    if not array.any():
        raise EquipoiseError("The load is zero everywhere; record some traffic before planning.")
    return array

"""A problem: the input of a planner."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, as_names, check_count, check_type
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import check_layer_ids
from equipoise.placement import Placement, check_slot_count
from equipoise.topology import Topology
from equipoise.trace import Trace


@dataclass(frozen=True, eq=False)
class Problem:
    """Loads to place, the devices, and how many slots a layer has.

    Parameters
    ----------
    load
        Trace, or assignments ``(L, E)`` or ``(T, L, E)``: finite numbers >= 0 with a finite sum.
        They are copied; the copy is read-only.
    topology
        Ranks to place experts on.
    num_slots
        Number of slots per layer ``S``, all ranks together, redundant ones included; a multiple of
        ``R``.
    layer_ids
        Layer numbers of the model; those of the trace if ``None``.
    traffic_groups
        Kind of traffic of each step, ``(T,)`` strings; the trace's label ``domain`` if ``None``.
        ``Robust`` balances each traffic group; the other planners use the sum.
    top_k
        Number of choices per token, which some dispatchers by name need; the trace's if ``None``.

    Raises
    ------
    EquipoiseError
        Loads that are negative, not finite or all zero, sums beyond the range of float64, or slots
        or traffic groups that do not fit.
    """

    load: NDArray[np.float64]
    topology: Topology
    num_slots: int
    layer_ids: tuple[int, ...]
    traffic_groups: NDArray[np.str_] | None
    top_k: int | None

    def __init__(
        self,
        load: Trace | ArrayLike,
        topology: Topology,
        num_slots: int,
        *,
        layer_ids: tuple[int, ...] | None = None,
        traffic_groups: ArrayLike | None = None,
        top_k: int | None = None,
    ) -> None:
        if isinstance(load, Trace):
            top_k = load.top_k if top_k is None else top_k
            layer_ids = load.layer_ids if layer_ids is None else layer_ids
            traffic_groups = load.labels.get("domain") if traffic_groups is None else traffic_groups
            load = load.counts
        check_type("topology", topology, Topology)
        object.__setattr__(self, "num_slots", check_count("num_slots", num_slots))
        array = _as_load(load)
        ids = range(array.shape[1]) if layer_ids is None else layer_ids
        object.__setattr__(self, "layer_ids", check_layer_ids(ids, array.shape[1]))
        _check_range(array, self.layer_ids, topology)
        object.__setattr__(self, "load", array)
        object.__setattr__(self, "topology", topology)
        object.__setattr__(self, "top_k", None if top_k is None else check_count("top_k", top_k))
        object.__setattr__(self, "traffic_groups", _as_traffic_groups(traffic_groups, len(array)))
        check_slot_count(self.num_slots, num_ranks=topology.num_ranks, num_experts=self.num_experts)

    @property
    def num_layers(self) -> int:
        """Number of MoE layers, ``L``."""
        return int(self.load.shape[1])

    @property
    def num_experts(self) -> int:
        """Number of logical experts, ``E``."""
        return int(self.load.shape[2])

    @property
    def total(self) -> NDArray[np.float64]:
        """Load summed over steps, ``(L, E)``."""
        total: NDArray[np.float64] = self.load.sum(axis=0)
        return total

    def of_steps(self, assignments: float | None) -> Problem:
        """Scale the loads to this number of assignments in a layer's mean step, unless ``None``."""
        if assignments is None:
            return self
        return Problem(
            with_mean_step(self.load, assignments),
            self.topology,
            self.num_slots,
            layer_ids=self.layer_ids,
            traffic_groups=self.traffic_groups,
            top_k=self.top_k,
        )

    def on(self, topology: Topology, num_slots: int) -> Problem:
        """Return a problem with the same loads (not copied) for other ranks or numbers of slots.

        Raises
        ------
        EquipoiseError
            Slots that do not fit, or loads that leave the range of float64 at these ranks' speeds.
        """
        check_slot_count(num_slots, num_ranks=topology.num_ranks, num_experts=self.num_experts)
        _check_range(self.load, self.layer_ids, topology)
        other = copy(self)
        object.__setattr__(other, "topology", topology)
        object.__setattr__(other, "num_slots", num_slots)
        return other

    def difference(self, placement: Placement) -> str | None:
        """Name the first of layers, experts, slots and ranks that differs, or return ``None``."""
        for what, there, here in (
            ("layers", placement.layer_ids, self.layer_ids),
            ("experts", placement.num_experts, self.num_experts),
            ("slots", placement.num_slots, self.num_slots),
            ("ranks", placement.num_ranks, self.topology.num_ranks),
        ):
            if there != here:
                return what
        return None

    def __repr__(self) -> str:
        groups = ""
        if self.traffic_groups is not None:
            groups = f", {len(set(self.traffic_groups.tolist()))} traffic groups"
        return (
            f"Problem({len(self.load)} steps, {self.num_layers} layers, {self.num_experts} experts "
            f"in {self.num_slots} slots on {self.topology.num_ranks} ranks{groups})"
        )

    def placement(self, slots: ArrayLike) -> Placement:
        """Make a placement for this problem from expert ids ``(L, S)``."""
        return Placement(
            slots,
            num_ranks=self.topology.num_ranks,
            num_experts=self.num_experts,
            layer_ids=self.layer_ids,
        )


def with_mean_step(load_TLE: NDArray[np.float64], assignments: float) -> NDArray[np.float64]:
    """Scale loads so that the mean step of every layer with load has this many assignments."""
    mean = load_TLE.sum(axis=2).mean(axis=0)
    scale = np.divide(assignments, mean, out=np.zeros_like(mean), where=mean > 0)
    return np.asarray(load_TLE * scale[:, None])


def _as_traffic_groups(traffic_groups: ArrayLike | None, num_steps: int) -> NDArray[np.str_] | None:
    if traffic_groups is None:
        return None
    array = as_names(traffic_groups, "Traffic groups")
    if array.shape != (num_steps,):
        raise EquipoiseError(
            f"Traffic groups have shape {array.shape}; expected one name for each "
            f"of {num_steps} steps."
        )
    return array


def _as_load(load: ArrayLike) -> NDArray[np.float64]:
    array = np.abs(as_loads(load))  # makes a copy, and -0.0 becomes 0.0
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
    """Raise ``EquipoiseError`` if sums or shares of the loads would overflow or vanish.

    Planners scale each layer by its largest load, so they need no other check.
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
            f"The loads of layer {layer} add up to {total.max():.3g}, too large to be shared over "
            "ranks of these speeds; scale them down."
        )


# Powers of two: a share of the least sum is still exact, and times of the most are still finite.
_LEAST_SUM, _MOST_SUM = 2.0**-1000, 2.0**1020

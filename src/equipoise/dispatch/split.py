"""A split: how one batch is shared over the copies, with a proof of how good that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from equipoise.cost import RankCost
from equipoise.dispatch.times import confined_experts, least_times, nodes_of_ranks, rank_times
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.topology import Topology

PROVEN = 1e-9
"""Relative gap up to which a split counts as optimal: the size of rounding errors."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """A division of one batch's load over the copies, with a proof of its quality.

    The proof is a set of ranks in each layer, the bottleneck. Some experts have all their copies on
    these ranks. However their load is shared, some bottleneck rank takes at least as long as if the
    load were spread perfectly over all of them. So no split over these copies has a lower peak. All
    numbers follow from the fields by plain arithmetic.

    Peaks, bounds and ``rank_times`` are *times*. Without a cost, a time is a rank's load over its
    relative speed; if all ranks are equal, that is assignments. With a cost, times are seconds.

    Parameters
    ----------
    placement
        Placement that says where the copies are.
    load
        Assignments of the batch, ``(L, E)``. The arrays become read-only.
    shares
        Assignments of each slot, possibly fractional, ``(L, S)``.
    bottleneck_ranks
        Mask of the ranks that prove the bound, ``(L, R)``, at least one in each layer.
    dispatch
        Name of the dispatcher.
    rounding
        Function by which this dispatcher makes its shares whole.
    topology
        Speeds and nodes of the ranks; ``None`` for equal ranks on one node.
    cost
        Cost of a rank's share at speed 1; ``None`` if time is proportional to load.
    source_load
        Assignments by the rank that each token is on, ``(L, R, E)``; ``None`` if unknown.
    exact
        Flag that the dispatcher finds the least peak, so that any gap is a rounding error.
    """

    placement: Placement
    load: NDArray[np.float64]
    shares: NDArray[np.float64]
    bottleneck_ranks: NDArray[np.bool_]
    dispatch: str
    rounding: Callable[[Split], NDArray[np.int64]] = field(repr=False)
    topology: Topology | None = None
    cost: RankCost | None = None
    source_load: NDArray[np.float64] | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        for array in (self.load, self.shares, self.bottleneck_ranks, self.source_load):
            if array is not None:
                array.flags.writeable = False

    def __repr__(self) -> str:
        return (
            f"Split({len(self.load)} layers, {self.load.sum():,.0f} assignments over "
            f"{self.placement.num_slots} slots on {self.placement.num_ranks} ranks, "
            f"{self.dispatch})"
        )

    @cached_property
    def quotas(self) -> NDArray[np.int64]:
        """Whole assignments of each slot, ``(L, S)`` int64; those of an expert sum to its load.

        Raises
        ------
        EquipoiseError
            Loads that are not whole numbers.
        """
        from equipoise.dispatch import _near_kernels  # numba takes long to import

        load, axes = self.load[:, None], ["expert"]
        if self.source_load is not None:
            load, axes = self.source_load, ["source rank", "expert"]
        if not _near_kernels.are_whole(load):
            load = load.squeeze(axis=1) if len(axes) == 1 else load
            row, *where = (int(i) for i in np.argwhere(load != np.floor(load))[0])
            place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, where, strict=True))
            raise EquipoiseError(
                f"Layer {self.placement.layer_ids[row]}, {place} has a load of "
                f"{load[row, *where]}; quotas need whole numbers of assignments, "
                "use the fractional shares."
            )
        return self.rounding(self)

    @cached_property
    def source_quotas(self) -> NDArray[np.int64]:
        """Whole assignments from each source rank to each slot, ``(L, R, S)`` int64.

        Over sources they sum to ``quotas``; over the slots of an expert they sum to the source's
        load. The quotas are filled so that the most assignments stay on the source's rank and node.
        The rest goes from low ranks to low slots.

        Raises
        ------
        EquipoiseError
            Loads that are not whole numbers, or that were not given by source rank.
        """
        from equipoise.dispatch import _near_kernels  # numba takes long to import

        if self.source_load is None:
            raise EquipoiseError(
                "The batch was split without its source ranks; give loads per layer, source rank "
                f"and expert, ({self.placement.num_layers}, {self.placement.num_ranks}, "
                f"{self.placement.num_experts}), for quotas of each source."
            )
        nodes = nodes_of_ranks(self.topology, self.placement.num_ranks)
        return _near_kernels.fill_from_sources(
            self.quotas, self.source_load, self.placement.slots, nodes
        )

    @cached_property
    def rank_loads(self) -> NDArray[np.float64]:
        """Assignments on each rank, ``(L, R)``."""
        p = self.placement
        on_rank: NDArray[np.float64] = self.shares.reshape(
            p.num_layers, p.num_ranks, p.slots_per_rank
        ).sum(axis=2)
        return on_rank

    @cached_property
    def rank_times(self) -> NDArray[np.float64]:
        """Time of each rank, ``(L, R)``, in the unit of ``peak``."""
        return rank_times(self.shares, self.placement.num_ranks, self.topology, self.cost)

    @property
    def peak(self) -> NDArray[np.float64]:
        """Time of the slowest rank, ``(L,)``: the busiest rank's load if all are equal."""
        return np.asarray(self.rank_times.max(axis=1))

    @cached_property
    def bottleneck_experts(self) -> NDArray[np.bool_]:
        """Experts with load whose copies are all on bottleneck ranks, ``(L, E)``."""
        return confined_experts(self.load, self.placement, self.bottleneck_ranks)

    @cached_property
    def bound(self) -> NDArray[np.float64]:
        """Proven lower bound of the peak of any split over these copies, ``(L,)``.

        It is the load of the bottleneck experts over the summed speed of the bottleneck ranks. With
        a cost it is their unsplit time, or the time to read each one's weights once if that is
        more.
        """
        return least_times(
            self.load, self.placement, self.bottleneck_ranks, self.topology, self.cost
        )

    @property
    def gap(self) -> float:
        """Distance of the summed peaks from the summed bounds: 0.02 is at most 2 % to gain."""
        bound = float(self.bound.sum())
        return max(0.0, float(self.peak.sum()) / bound - 1.0) if bound > 0 else 0.0

    @property
    def status(self) -> str:
        """Advice in one or two sentences."""
        if not self.load.any():
            return "No layer has load; there is nothing to share."
        if self.gap > PROVEN and self.cost is not None:
            return f"Peaks are at most {self.gap:.1%} above those of the best split."
        if self.gap > PROVEN and self.exact:
            return (
                f"Peaks are at most {self.gap:.0e} times themselves above those of the best split, "
                "which is rounding."
            )
        if self.gap > PROVEN:
            return (
                f"Peaks are {self.gap:.1%} above those of the best split over these copies; "
                "a min-max split reaches them."
            )
        level = least_times(
            self.load,
            self.placement,
            np.ones_like(self.bottleneck_ranks),
            self.topology,
            self.cost,
        )
        least = np.divide(self.bound, level, out=np.ones_like(level), where=level > 0)
        row = int(least.argmax())
        if least[row] <= 1 + PROVEN:
            return f"Optimal: in every layer all ranks {self._level_in}."
        return (
            f"Optimal: no split over these copies has lower peaks. {self._advice(row, least[row])}"
        )

    @property
    def _level_in(self) -> str:
        equal = self.cost is None and (self.topology is None or self.topology.speed is None)
        return "carry the same load" if equal else "are as fast as if all could take any load"

    def _advice(self, row: int, imbalance: float) -> str:
        experts = np.flatnonzero(self.bottleneck_experts[row])
        hottest = np.where(self.bottleneck_experts[row], self.load[row], -1).argmax()
        ranks = np.flatnonzero(self.bottleneck_ranks[row])
        return (
            f"In layer {self.placement.layer_ids[row]} it is {imbalance:.2f}x the mean, set by "
            f"experts whose copies are all on ranks {format_ids(ranks.tolist())} "
            f"({len(experts)} of them, the hottest {hottest}); only copies elsewhere help."
        )

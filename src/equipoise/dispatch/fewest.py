"""A dispatcher for decode: ranks read the weights of as few experts as possible."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.cost import RankCost
from equipoise.dispatch.base import Batch, Shares, checked_batch, checked_load
from equipoise.dispatch.minmax import MinMax, bottleneck_ranks
from equipoise.dispatch.quotas import whole_shares
from equipoise.dispatch.split import Split
from equipoise.dispatch.times import rank_speeds
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.showing import differing
from equipoise.topology import Topology


@dataclass(frozen=True, eq=False, kw_only=True)
class FewestExpertsSplit(Split):
    """A split that serves each expert by one copy, with a proof that no rank could serve fewer.

    ``bound`` and ``gap`` are about loads, as in every split.

    Parameters
    ----------
    active
        Split of one assignment for each expert with load. Its ``bottleneck_experts`` and
        ``bottleneck_ranks`` prove ``active_bound``.
    """

    active: Split

    @cached_property
    def active_experts(self) -> NDArray[np.int64]:
        """Number of slots with load on each rank, ``(L, R)``."""
        return active_slots(self.shares, self.placement.num_ranks)

    @property
    def active_bound(self) -> NDArray[np.int64]:
        """Least possible number of active experts on the busiest rank, ``(L,)``."""
        return np.ceil(self.active.bound).astype(np.int64)

    @property
    def status(self) -> str:
        """Advice in one or two sentences."""
        if not self.load.any():
            return super().status
        even = -(-np.count_nonzero(self.load, axis=1) // self.placement.num_ranks)
        row = int((self.active_bound - even).argmax())
        most = f"at most {self.active_experts.max()} active experts on a rank"
        if self.active_bound[row] == even[row]:
            return f"Optimal: {most}, in every layer as few as whole experts allow."
        ranks = np.flatnonzero(self.active.bottleneck_ranks[row]).tolist()
        return (
            f"Optimal: {most}. In layer {self.placement.layer_ids[row]} it is "
            f"{self.active_bound[row]} where {even[row]} would do, set by the "
            f"{self.active.bottleneck_experts[row].sum()} experts whose copies are all on ranks "
            f"{format_ids(ranks)}; only copies elsewhere help."
        )


@dataclass(frozen=True, kw_only=True)
class FewestExperts:
    """A dispatcher that serves each expert by one copy, with the fewest active experts per rank.

    It is for decode, where an expert with few tokens takes as long as reading its weights. The
    number of active experts on the busiest rank is the least possible (a maximum flow of one
    assignment for each expert with load). Among such splits, a local search, which is a heuristic,
    looks for one whose slowest rank has little load.

    Parameters
    ----------
    topology
        Speeds of the ranks, by which loads are compared, and nodes for batches by source rank.
        Speeds do not enter the number of active experts.
    cost
        Cost of a rank's share, which makes peaks seconds. It changes no share.
    """

    name: ClassVar[str] = "fewest"
    shares: ClassVar[Shares] = Shares.OTHER
    scale_free: ClassVar[bool] = False

    topology: Topology | None = None
    cost: RankCost | None = None

    __repr__ = differing

    def split(self, load: ArrayLike | Batch, placement: Placement) -> FewestExpertsSplit:
        """Share a batch over the copies.

        Parameters
        ----------
        load
            Assignments ``(L, E)``, or by source rank ``(L, R, E)``; not changed.
        placement
            Placement that says where the copies are.

        Raises
        ------
        EquipoiseError
            Loads that are negative, not finite or not of the placement's shape, or whose sum in a
            layer reaches ``2**53``; a topology with another number of ranks.
        """
        from equipoise.dispatch import _fewest_kernels  # numba takes long to import

        batch = checked_batch(load, placement)
        load_LE = batch.load
        speed = rank_speeds(self.topology, placement.num_ranks)
        active = MinMax().split(Batch((load_LE > 0).astype(np.float64)), placement)
        shares = _fewest_kernels.lighten(
            load_LE,
            active.quotas,
            active_slots(active.quotas, placement.num_ranks).max(axis=1),
            placement.slots,
            placement.slots_of_experts(),
            speed,
        )
        return FewestExpertsSplit(
            placement=placement,
            load=load_LE,
            shares=shares,
            bottleneck_ranks=bottleneck_ranks(load_LE, placement, self.topology, self.cost),
            dispatch=self.name,
            rounding=whole_shares,
            topology=self.topology,
            cost=self.cost,
            source_load=batch.source_load,
            active=active,
        )

    def peaks(self, load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
        """Compute the peaks of many batches, to score a placement.

        Parameters
        ----------
        load
            Assignments ``(T, L, E)``; not changed.
        placement
            Placement that says where the copies are.

        Returns
        -------
        Time of the slowest rank, ``(T, L)``: the load of the busiest if all ranks are equal.

        Raises
        ------
        EquipoiseError
            Whatever ``split`` refuses.
        """
        steps = checked_load(load, placement, steps=True)
        return np.stack([self.split(Batch(step), placement).peak for step in steps])


def active_slots(slot_load: NDArray[np.number], num_ranks: int) -> NDArray[np.int64]:
    """Count the slots with load on each rank, ``(..., R)``, from slot loads ``(..., S)``."""
    by_rank = slot_load.reshape(*slot_load.shape[:-1], num_ranks, -1)
    return np.asarray(np.count_nonzero(by_rank, axis=-1))

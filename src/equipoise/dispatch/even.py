"""A dispatcher that gives all copies of an expert equal shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import rank_loads
from equipoise.cost import RankCost
from equipoise.dispatch.base import Batch, Shares, checked_batch, checked_load
from equipoise.dispatch.minmax import bottleneck_ranks
from equipoise.dispatch.quotas import even_quotas
from equipoise.dispatch.split import Split
from equipoise.dispatch.times import rank_speeds, rank_times
from equipoise.placement import Placement
from equipoise.showing import differing
from equipoise.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Even:
    """A dispatcher that gives every copy of an expert the same share, as most engines intend.

    It ignores what else the ranks carry. ``bound`` is that of the best split over the same copies,
    so ``gap`` is what ``MinMax`` would gain.

    Parameters
    ----------
    topology
        Speeds and nodes of the ranks. They change peaks and ``source_quotas``, but no share.
    cost
        Cost of a rank's share, which makes peaks seconds.
    """

    name: ClassVar[str] = "even"
    shares: ClassVar[Shares] = Shares.EVEN

    topology: Topology | None = None
    cost: RankCost | None = None

    __repr__ = differing

    @property
    def scale_free(self) -> bool:
        """Whether there is no cost: then shares and rank loads are proportional to the load."""
        return self.cost is None

    def split(self, load: ArrayLike | Batch, placement: Placement) -> Split:
        """Share a batch over the copies.

        If a load does not divide evenly, the lower slots of the expert get one more in ``quotas``.

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
        batch = checked_batch(load, placement)
        load_LE = batch.load
        shares = np.take_along_axis(load_LE / placement.copies, placement.slots, axis=1)
        return Split(
            placement=placement,
            load=load_LE,
            shares=shares,
            bottleneck_ranks=bottleneck_ranks(load_LE, placement, self.topology, self.cost),
            dispatch=self.name,
            rounding=even_quotas,
            topology=self.topology,
            cost=self.cost,
            source_load=batch.source_load,
        )

    def peaks(self, load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
        """Compute the peaks of many batches without their splits, to score a placement.

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
        x = checked_load(load, placement, steps=True)
        if self.cost is None:
            speed = rank_speeds(self.topology, placement.num_ranks)
            return np.asarray((rank_loads(x, placement) / speed).max(axis=2))
        rows = np.arange(placement.num_layers)[:, None]
        per_slot = (x / placement.copies)[:, rows, placement.slots]
        times = rank_times(per_slot, placement.num_ranks, self.topology, self.cost)
        return np.asarray(times.max(axis=2))

"""Equal shares for all copies, whatever else their ranks carry."""

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
    """Give each copy of an expert the same: what most engines aim at, blind to the batch.

    Its bound is that of the best split over the same copies, so ``gap`` is what ``MinMax`` gains.

    Parameters
    ----------
    topology
        Speeds and nodes of the ranks, which tell peaks and places of sources but change no share.
    cost
        What a rank's share takes; peaks are then in seconds.
    """

    name: ClassVar[str] = "even"
    shares: ClassVar[Shares] = Shares.EVEN

    topology: Topology | None = None
    cost: RankCost | None = None

    __repr__ = differing

    @property
    def scale_free(self) -> bool:
        """Without a cost: shares and loads of ranks are proportional to the load."""
        return self.cost is None

    def split(self, load: ArrayLike | Batch, placement: Placement) -> Split:
        """Share a batch over the copies.

        In ``quotas`` the lower slots of an expert get the odd assignments.

        Parameters
        ----------
        load
            Assignments ``(L, E)``, or by source rank ``(L, R, E)``; not changed.

        Raises
        ------
        EquipoiseError
            Loads that are NaN, infinite, negative or not of the placement's shape, or whose sum in
            a layer reaches ``2**53``; a topology of another number of ranks.
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
        """Peaks of many batches, without their splits: to score a placement.

        Parameters
        ----------
        load
            Assignments ``(T, L, E)``; not changed.

        Returns
        -------
        What the slowest rank takes, ``(T, L)``: the load of the busiest where all are equal.

        Raises
        ------
        EquipoiseError
            As ``split``.
        """
        x = checked_load(load, placement, steps=True)
        if self.cost is None:
            speed = rank_speeds(self.topology, placement.num_ranks)
            return np.asarray((rank_loads(x, placement) / speed).max(axis=2))
        rows = np.arange(placement.num_layers)[:, None]
        per_slot = (x / placement.copies)[:, rows, placement.slots]
        times = rank_times(per_slot, placement.num_ranks, self.topology, self.cost)
        return np.asarray(times.max(axis=2))

"""A dispatcher that keeps every assignment as near to its token as the copies allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.cost import RankCost
from equipoise.dispatch.base import Batch, Shares, checked_batch, checked_load
from equipoise.dispatch.minmax import bottleneck_ranks
from equipoise.dispatch.split import Split
from equipoise.dispatch.times import nodes_of_ranks, rank_times
from equipoise.placement import Placement
from equipoise.showing import differing
from equipoise.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """A dispatcher that serves a token by copies on its own rank, else its node, else by all.

    Copies at the same distance share equally. The rule ignores the batch, as engines' static rules
    do; ``gap`` is the balance that it costs.

    Parameters
    ----------
    topology
        Nodes of the ranks, and their speeds, which change peaks but no share; ``None`` for equal
        ranks on one node.
    cost
        Cost of a rank's share, which makes peaks seconds. It changes no share.
    """

    name: ClassVar[str] = "nearest"
    shares: ClassVar[Shares] = Shares.NEAREST

    topology: Topology | None = None
    cost: RankCost | None = None

    __repr__ = differing

    @property
    def scale_free(self) -> bool:
        """Whether there is no cost: then shares and rank loads are proportional to the load."""
        return self.cost is None

    def split(self, load: ArrayLike | Batch, placement: Placement) -> Split:
        """Share a batch over the copies.

        In ``quotas`` every source deals out its own assignments in turn, and each source starts one
        copy later than the one before. Without source ranks, quotas are the rounded shares.

        Parameters
        ----------
        load
            Assignments by source rank, ``(L, R, E)``; or ``(L, E)``, where every rank counts as the
            source of an equal part. Not changed.
        placement
            Placement that says where the copies are.

        Raises
        ------
        EquipoiseError
            Loads that are negative, not finite or not of the placement's shape, or whose sum in a
            layer reaches ``2**53``; a topology with another number of ranks.
        """
        from equipoise.dispatch import _near_kernels  # numba takes long to import

        batch = checked_batch(load, placement)
        load_LE, source_LRE = batch.load, batch.source_load
        if source_LRE is None:
            shares = np.take_along_axis(load_LE, placement.slots, axis=1)
            shares *= _weights(placement, self.topology)
        else:
            nodes = nodes_of_ranks(self.topology, placement.num_ranks)
            shares = _near_kernels.serve_nearest(source_LRE, placement.slots, nodes)
        return Split(
            placement=placement,
            load=load_LE,
            shares=shares,
            bottleneck_ranks=bottleneck_ranks(load_LE, placement, self.topology, self.cost),
            dispatch=self.name,
            rounding=_rounded if source_LRE is None else _dealt,
            topology=self.topology,
            cost=self.cost,
            source_load=source_LRE,
        )

    def peaks(self, load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
        """Compute the peaks of many batches with equal sources, to score a placement.

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
        load_TLE = checked_load(load, placement, steps=True)
        shares = np.take_along_axis(load_TLE, placement.slots[None], axis=2)
        shares *= _weights(placement, self.topology)
        times = rank_times(shares, placement.num_ranks, self.topology, self.cost)
        return np.asarray(times.max(axis=2))


def _weights(placement: Placement, topology: Topology | None) -> NDArray[np.float64]:
    """Compute the share of its expert's load that each slot gets from equal sources, ``(L, S)``."""
    from equipoise.dispatch import _near_kernels  # numba takes long to import

    R, nodes = placement.num_ranks, nodes_of_ranks(topology, placement.num_ranks)
    equal = np.ones((1, R, placement.num_experts))
    rows = [_near_kernels.serve_nearest(equal, row[None], nodes) for row in placement.slots]
    return np.concatenate(rows) / R


def _dealt(split: Split) -> NDArray[np.int64]:
    """Deal each source's assignments in turn to the copies that it uses.

    Each source without a copy of its own starts one copy later than the one before.
    """
    from equipoise.dispatch import _near_kernels  # numba takes long to import

    assert split.source_load is not None
    nodes = nodes_of_ranks(split.topology, split.placement.num_ranks)
    return _near_kernels.deal_nearest(split.source_load, split.placement.slots, nodes)


def _rounded(split: Split) -> NDArray[np.int64]:
    """Round the running sums of the shares, so that every quota is within 1 of its share."""
    slots = split.placement.slots_of_experts()
    rows, held = np.arange(len(slots))[:, None, None], slots >= 0
    load = split.load[:, :, None]
    shares = np.where(held, split.shares[rows, slots], 0.0)
    summed = np.minimum(np.rint(shares.cumsum(axis=2)), load)
    last = np.arange(slots.shape[2]) >= split.placement.copies[:, :, None] - 1
    parts = np.diff(np.where(last, load, summed), prepend=0).astype(np.int64)
    quotas = np.empty(split.shares.shape, np.int64)
    quotas[np.nonzero(held)[0], slots[held]] = parts[held]
    return quotas

"""The split that keeps every assignment as near to its token as the copies allow."""

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
    """Serve a token by copies on its own rank, else on its own node, else by all, evenly.

    Blind to the batch, as engines' static rules are; ``gap`` is the balance it costs.

    Parameters
    ----------
    topology
        Which ranks share a node, and their speeds, which tell peaks but change no share; ``None``:
        one node, all equal.
    cost
        What a rank's share takes, which changes no share; peaks are then in seconds.
    """

    name: ClassVar[str] = "nearest"
    shares: ClassVar[Shares] = Shares.NEAREST

    topology: Topology | None = None
    cost: RankCost | None = None

    __repr__ = differing

    @property
    def scale_free(self) -> bool:
        """Without a cost: shares and loads of ranks are proportional to the load."""
        return self.cost is None

    def split(self, load: ArrayLike | Batch, placement: Placement) -> Split:
        """Share a batch over the copies.

        In ``quotas`` every source deals its own assignments, and the copy that gets the first odd
        one moves on from source to source. Without source ranks they are the shares rounded.

        Parameters
        ----------
        load
            Assignments by source rank, ``(L, R, E)``; or ``(L, E)``, of which every rank is taken
            to be the source of an equal part. Not changed.

        Raises
        ------
        EquipoiseError
            Loads that are NaN, infinite, negative or not of the placement's shape, or whose sum in
            a layer reaches ``2**53``; a topology of another number of ranks.
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
        """Peaks of many batches, whose sources are taken as equal: to score a placement.

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
        load_TLE = checked_load(load, placement, steps=True)
        shares = np.take_along_axis(load_TLE, placement.slots[None], axis=2)
        shares *= _weights(placement, self.topology)
        times = rank_times(shares, placement.num_ranks, self.topology, self.cost)
        return np.asarray(times.max(axis=2))


def _weights(placement: Placement, topology: Topology | None) -> NDArray[np.float64]:
    """The part of its expert's load each slot gets from equal sources, ``(L, S)``."""
    from equipoise.dispatch import _near_kernels  # numba takes long to import

    R, nodes = placement.num_ranks, nodes_of_ranks(topology, placement.num_ranks)
    equal = np.ones((1, R, placement.num_experts))
    rows = [_near_kernels.serve_nearest(equal, row[None], nodes) for row in placement.slots]
    return np.concatenate(rows) / R


def _dealt(split: Split) -> NDArray[np.int64]:
    """Each source's assignments dealt over the copies it uses; sources without a copy take turns.

    A turn later the first odd assignment goes to the next copy.
    """
    from equipoise.dispatch import _near_kernels  # numba takes long to import

    assert split.source_load is not None
    nodes = nodes_of_ranks(split.topology, split.placement.num_ranks)
    return _near_kernels.deal_nearest(split.source_load, split.placement.slots, nodes)


def _rounded(split: Split) -> NDArray[np.int64]:
    """Shares added up copy by copy, each sum rounded: no quota is off by one or more."""
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

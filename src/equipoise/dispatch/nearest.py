"""The split that keeps every assignment as near to its token as the copies allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.cost import RankCost
from equipoise.dispatch.minmax import bottleneck_ranks
from equipoise.dispatch.split import (
    Split,
    checked_batch,
    checked_load,
    nodes_of_ranks,
    rank_times,
)
from equipoise.placement import Placement
from equipoise.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Serve a token by copies on its own rank, else on its own node, else by all, evenly.

    Blind to the batch, as engines' static rules are; ``gap`` is the balance it costs.

    Parameters
    ----------
    topology
        Which ranks share a node, and their speeds, which tell peaks but change no share; ``None``:
        one node, all alike.
    cost
        What a rank's share takes, which changes no share; peaks are then in seconds.
    """

    name: ClassVar[str] = "nearest"

    topology: Topology | None = None
    cost: RankCost | None = None

    def split(self, load: ArrayLike, placement: Placement) -> Split:
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
        load_LE, source_LRE = checked_batch(load, placement)
        if source_LRE is None:
            shares = np.take_along_axis(load_LE, placement.slots, axis=1)
            shares *= _weights(placement, self.topology)
        else:
            shares = _shares(source_LRE, placement, self.topology)
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
        What the slowest rank takes, ``(T, L)``: the load of the busiest where all are alike.

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


def _choices(
    placement: Placement, topology: Topology | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Layer by layer the slots of each expert ``(E, X)``, and which a source uses ``(R, E, X)``."""
    ranks = np.arange(placement.num_ranks)[:, None, None]
    node = nodes_of_ranks(topology, placement.num_ranks)
    for slots in placement.slots_of_experts():
        held = slots >= 0
        rank = placement.rank_of_slot[slots]
        here = held & (rank == ranks)
        close = held & (node[rank] == node[ranks])
        elsewhere = np.where(close.any(axis=2, keepdims=True), close, held)
        yield slots, np.where(here.any(axis=2, keepdims=True), here, elsewhere)


def _weights(placement: Placement, topology: Topology | None) -> NDArray[np.float64]:
    """The part of its expert's load each slot gets from equal sources, ``(L, S)``."""
    weight = np.empty(placement.slots.shape)
    for row, (slots, used) in zip(weight, _choices(placement, topology), strict=True):
        part = (used / used.sum(axis=2, keepdims=True)).mean(axis=0)
        row[slots[slots >= 0]] = part[slots >= 0]
    return weight


def _shares(
    source_load: NDArray[np.float64], placement: Placement, topology: Topology | None
) -> NDArray[np.float64]:
    shares = np.empty(placement.slots.shape)
    layers = zip(shares, source_load, _choices(placement, topology), strict=True)
    for row, load_RE, (slots, used) in layers:
        part = (used * (load_RE / used.sum(axis=2))[:, :, None]).sum(axis=0)
        row[slots[slots >= 0]] = part[slots >= 0]
    return shares


def _dealt(split: Split) -> NDArray[np.int64]:
    """Each source's assignments dealt over the copies it uses; sources without a copy take turns.

    A turn later the first odd assignment goes to the next copy.
    """
    assert split.source_load is not None
    quotas = np.empty(split.shares.shape, np.int64)
    load = split.source_load.astype(np.int64)
    turn = np.cumsum(split.placement.copies_on_rank == 0, axis=1)
    layers = zip(quotas, load, turn, _choices(split.placement, split.topology), strict=True)
    for row, load_RE, turn_RE, (slots, used) in layers:
        copies = used.sum(axis=2, keepdims=True)
        nth = used.cumsum(axis=2) - 1
        odd = (nth - turn_RE[:, :, None]) % copies < load_RE[:, :, None] % copies
        part = np.where(used, load_RE[:, :, None] // copies + odd, 0).sum(axis=0)
        row[slots[slots >= 0]] = part[slots >= 0]
    return quotas


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

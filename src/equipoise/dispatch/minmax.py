"""A dispatcher whose slowest rank is as fast as the copies allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.cost import RankCost
from equipoise.dispatch.base import TOO_MUCH_LOAD, Batch, Shares, checked_batch, checked_load
from equipoise.dispatch.quotas import minmax_quotas, whole_shares
from equipoise.dispatch.split import Split
from equipoise.dispatch.times import least_times, rank_speeds, rank_times
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.showing import differing
from equipoise.topology import Topology

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """A dispatcher that shares every batch so that the slowest rank takes the least time.

    Without a cost the result is optimal. It is a maximum flow between experts and ranks, in which
    discrete Newton steps raise the level of the ranks until the flow is feasible. With a cost,
    spreading an expert over more slots takes time too, and the split is the best of several that
    local moves have improved; ``gap`` bounds its distance from the optimum. The first call compiles
    the kernels or loads them from numba's cache.

    Parameters
    ----------
    topology
        Speeds of the ranks, and nodes for batches by source rank; ``None`` for equal ranks.
    cost
        Cost of a rank's share, which makes peaks seconds; ``None`` for load over speed.
    """

    name: ClassVar[str] = "minmax"
    shares: ClassVar[Shares] = Shares.FOLLOWING

    topology: Topology | None = None
    cost: RankCost | None = None

    __repr__ = differing

    @property
    def scale_free(self) -> bool:
        """Whether there is no cost: then shares and rank loads are proportional to the load."""
        return self.cost is None

    def split(self, load: ArrayLike | Batch, placement: Placement) -> Split:
        """Share a batch over the copies.

        The ``quotas`` of the split have the least peak that whole numbers allow; if all ranks are
        equal, it is ``ceil(bound)``. If the batch is given by source rank, they keep as much as
        possible on the source's rank, then on its node. With a cost, whole loads have whole shares.

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
        if self.cost is None:
            shares, bottleneck = _even_out(load_LE, placement, self.topology)
        else:
            work, ranks = _even_out_work(load_LE, placement, self.topology, self.cost)
            shares = _fastest_shares(load_LE, work, placement, self.topology, self.cost)
            bottleneck = _slowest_ranks(load_LE, ranks, placement, self.topology, self.cost)
        return Split(
            placement=placement,
            load=load_LE,
            shares=shares,
            bottleneck_ranks=bottleneck,
            dispatch=self.name,
            rounding=minmax_quotas if self.cost is None else whole_shares,
            topology=self.topology,
            cost=self.cost,
            source_load=batch.source_load,
            exact=self.cost is None,
        )

    def peaks(self, load: ArrayLike, placement: Placement) -> Floats:
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
        from equipoise.dispatch import _kernels  # numba takes long to import

        x = checked_load(load, placement, steps=True)
        if self.cost is None:
            speed = rank_speeds(self.topology, placement.num_ranks)
            return _kernels.minmax_peaks(x, placement.slots, speed)
        shares = []
        for step in x:
            work, _ = _even_out_work(step, placement, self.topology, self.cost)
            shares.append(_fastest_shares(step, work, placement, self.topology, self.cost))
        times = rank_times(np.stack(shares), placement.num_ranks, self.topology, self.cost)
        return np.asarray(times.max(axis=2))


def bottleneck_ranks(
    load: Floats,
    placement: Placement,
    topology: Topology | None = None,
    cost: RankCost | None = None,
) -> NDArray[np.bool_]:
    """Find the ranks that prove the least peak over these copies, ``(L, R)``, for loads ``(L, E)``.

    With a cost there are two candidates, and the one that proves more is taken: the ranks where
    perfectly spread experts take longest, and the ranks that read the most experts' weights.
    """
    if cost is None:
        return _even_out(load, placement, topology)[1]
    work = _even_out_work(load, placement, topology, cost)[1]
    return _slowest_ranks(load, work, placement, topology, cost)


def _slowest_ranks(
    load: Floats,
    work: NDArray[np.bool_],
    placement: Placement,
    topology: Topology | None,
    cost: RankCost,
) -> NDArray[np.bool_]:
    """Choose the ranks that prove more: by the work, or by reading weights."""
    reading = _even_out((load > 0).astype(np.float64), placement, topology)[1]
    proven = [least_times(load, placement, ranks, topology, cost) for ranks in (work, reading)]
    return np.where((proven[0] >= proven[1])[:, None], work, reading)


def _even_out(
    load: Floats, placement: Placement, topology: Topology | None
) -> tuple[Floats, NDArray[np.bool_]]:
    """Compute the shares ``(L, S)`` with the least peak, and the ranks ``(L, R)`` that prove it."""
    from equipoise.dispatch import _kernels  # numba takes long to import

    return _kernels.minmax(load, placement.slots, rank_speeds(topology, placement.num_ranks))


def _even_out_work(
    load: Floats, placement: Placement, topology: Topology | None, cost: RankCost
) -> tuple[Floats, NDArray[np.bool_]]:
    """Do the same as ``_even_out`` for the experts' unsplit times, plus a fixed time on each rank.

    The fixed time is modelled as one more expert that is only on that rank. Times are counted in
    assignments beyond the knee, so that they are in the range of loads.
    """
    L, R = placement.num_layers, placement.num_ranks
    fixed = np.tile(placement.num_experts + np.arange(R), (L, 1))
    extended = Placement(
        np.concatenate([placement.by_rank, fixed[:, :, None]], axis=2).reshape(L, -1),
        num_ranks=R,
        num_experts=placement.num_experts + R,
    )
    seconds = [cost.slot_seconds(load), np.full((L, R), cost.fixed_seconds)]
    with np.errstate(over="ignore"):
        work = np.concatenate(seconds, axis=1) / cost.token_seconds
        total = work.sum(axis=1)
    if total.max() >= TOO_MUCH_LOAD:
        row = int(total.argmax())
        raise EquipoiseError(
            f"Layer {placement.layer_ids[row]} takes as long as {total[row]:.3g} assignments "
            "beyond the knee; expected fewer than 2**53. Check the constants of the cost."
        )
    shares, ranks = _even_out(work, extended, topology)
    of_slots = np.ascontiguousarray(shares.reshape(L, R, -1)[:, :, :-1])
    return of_slots.reshape(L, -1), ranks


def _fastest_shares(
    load: Floats,
    work: Floats,
    placement: Placement,
    topology: Topology | None,
    cost: RankCost,
) -> Floats:
    """Find shares that take little time, ``(L, S)``: whole if loads are, no slower than min-max.

    Three starts are improved by local moves, and the best result is kept: the split with the least
    peak in assignments; the split of ``work`` (unsplit seconds), which is best if every part of an
    expert is beyond the knee; and a split of chunks just beyond the knee, best if none is.
    """
    from equipoise.dispatch import _time_kernels  # numba takes long to import

    whole = bool((load == np.floor(load)).all())
    minmax = MinMax(topology=topology)
    chunk = max(cost.knee, cost.token_block)
    chunks = np.where(load > 0, np.maximum(1.0, np.floor(load / chunk)), 0.0)
    tokens = minmax.split(Batch(load), placement)
    by_chunk = minmax.split(Batch(chunks), placement).quotas
    starts = [
        tokens.quotas.astype(np.float64) if whole else tokens.shares,
        _time_kernels.spread(load, work, placement.slots, whole),
        _time_kernels.spread(load, by_chunk.astype(np.float64), placement.slots, whole),
    ]
    numbers = _time_kernels.Cost(
        cost.fixed_seconds, cost.expert_seconds, cost.token_seconds, float(cost.token_block), whole
    )
    speed = rank_speeds(topology, placement.num_ranks, cost)
    copies = placement.slots_of_experts()
    shares = np.stack(
        [_time_kernels.hasten(x, placement.slots, copies, speed, numbers) for x in starts]
    )
    peak = rank_times(shares, placement.num_ranks, topology, cost).max(axis=2)
    return np.asarray(shares[peak.argmin(axis=0), np.arange(placement.num_layers)])

"""Times of ranks for their shares, and lower bounds of these times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.cost import RankCost
from equipoise.placement import Placement
from equipoise.topology import Topology, check_ranks


def rank_speeds(
    topology: Topology | None, num_ranks: int, cost: RankCost | None = None
) -> NDArray[np.float64]:
    """Return the speeds that rank loads are divided by to become times, ``(R,)``.

    Without a cost they are relative to the mean speed. A time is then the number of assignments
    that a rank of mean speed serves meanwhile, and perfect balance takes the mean load. With a
    cost, whose seconds are for speed 1, they are the speeds as given.

    Raises
    ------
    EquipoiseError
        A topology with another number of ranks.
    """
    if topology is None:
        return np.ones(num_ranks)
    check_ranks(topology, num_ranks)
    if cost is None or topology.speed is None:
        return topology.relative_speed
    return np.array(topology.speed, dtype=np.float64)


def nodes_of_ranks(topology: Topology | None, num_ranks: int) -> NDArray[np.int64]:
    """Return the node of each rank, ``(R,)``; one node if there is no topology."""
    if topology is None:
        return np.zeros(num_ranks, np.int64)
    check_ranks(topology, num_ranks)
    return topology.node_of_rank


def rank_times(
    slot_load: NDArray[np.float64],
    num_ranks: int,
    topology: Topology | None = None,
    cost: RankCost | None = None,
) -> NDArray[np.float64]:
    """Compute the time of each rank, ``(..., R)``, from the load of each slot, ``(..., S)``.

    It is the load over the relative speed; with a cost, the seconds over the speed.
    """
    if cost is None:
        work = slot_load.reshape(*slot_load.shape[:-1], num_ranks, -1).sum(axis=-1)
    else:
        work = cost.rank_seconds(slot_load, num_ranks)
    return np.asarray(work / rank_speeds(topology, num_ranks, cost))


def confined_experts(
    load: NDArray[np.float64], placement: Placement, ranks: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Find the experts with load whose copies are all on the given ranks ``(L, R)``, ``(L, E)``."""
    outside = ~ranks[:, placement.rank_of_slot]
    confined = load > 0
    confined[np.nonzero(outside)[0], placement.slots[outside]] = False
    return confined


def least_times(
    load: NDArray[np.float64],
    placement: Placement,
    ranks: NDArray[np.bool_],
    topology: Topology | None = None,
    cost: RankCost | None = None,
) -> NDArray[np.float64]:
    """Compute the least time of the slowest of the given ranks ``(L, R)``, ``(L,)``.

    The experts that are only on these ranks are shared perfectly. With a cost, two bounds hold and
    the larger counts: an expert takes at least its unsplit time, and at least one slot is active.
    """
    confined = confined_experts(load, placement, ranks)
    speed = rank_speeds(topology, placement.num_ranks, cost)
    capacity = (ranks * speed).sum(axis=1)
    if cost is None:
        return np.asarray(np.where(confined, load, 0).sum(axis=1) / capacity)
    work = np.where(confined, cost.slot_seconds(load), 0).sum(axis=1)
    shared = (work + cost.fixed_seconds * ranks.sum(axis=1)) / capacity
    active = [
        _least_active(int(number), speed[row], cost)
        for number, row in zip(confined.sum(axis=1), ranks, strict=True)
    ]
    return np.asarray(np.maximum(shared, active))


def _least_active(number: int, speed: NDArray[np.float64], cost: RankCost) -> float:
    """Compute the least time in which ranks of these speeds read a number of experts' weights."""
    if not number or not cost.expert_seconds:
        return 0.0
    if (speed == speed[0]).all():
        most = -(-number // speed.size)
        return float((cost.fixed_seconds + most * cost.expert_seconds) / speed[0])
    # Start from perfect sharing; each rank rounds down, so less than one expert per rank is left.
    level = (number * cost.expert_seconds + speed.size * cost.fixed_seconds) / speed.sum()
    most = (level * speed.max() - cost.fixed_seconds) / cost.expert_seconds + speed.size
    ordinal = np.arange(1, min(number, int(most) + 1) + 1)[:, None]
    finished = (cost.fixed_seconds + ordinal * cost.expert_seconds) / speed
    return float(np.partition(finished, number - 1, axis=None)[number - 1])

"""What a dispatcher answers, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads
from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.placement import Placement
from equipoise.topology import Topology

TOO_MUCH_LOAD = 2**53
"""Assignments a layer must stay below: from here on float64 cannot tell each from the next."""

PROVEN = 1e-9
"""Relative gap up to which a split counts as optimal: what rounding leaves, and no more."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """How one batch's load is shared over the copies, beside a proof of how good that is.

    The proof is a set of ranks in each layer, the bottleneck. Experts all of whose copies are on
    these ranks can go nowhere else; so however they are shared, some rank of the set takes at least
    as long as if their load were spread over the set to perfection, and no split over these copies
    has a lower peak. All numbers here follow from the fields by plain arithmetic.

    Peaks, bounds and ``rank_times`` are in *times*: without a cost, rank loads over the ranks'
    relative speeds, so assignments where all ranks are alike; with a cost, seconds.

    Parameters
    ----------
    placement
        The copies.
    load
        The batch, assignments ``(L, E)``. The arrays become read-only.
    shares
        Assignments of each slot, fractional, ``(L, S)``.
    bottleneck_ranks
        ``(L, R)`` bool, at least one rank a layer.
    dispatch
        Name of the dispatcher.
    rounding
        How this dispatcher makes its shares whole.
    topology
        Speeds and nodes of the ranks; ``None``: all alike, one node.
    cost
        What a rank's share takes, in seconds at speed 1; ``None``: time is proportional to load.
    source_load
        The batch by the rank each token is on, assignments ``(L, R, E)``; ``None`` if unknown.
    exact
        The dispatcher looks for the least peak: what is above the bound is rounding.
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

    @cached_property
    def quotas(self) -> NDArray[np.int64]:
        """Whole assignments of each slot, ``(L, S)``; an expert's sum to its load.

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
        """Whole assignments from each source rank to each slot, ``(L, R, S)``.

        Over sources they sum to ``quotas``, over the slots of an expert to what the source has.
        Of all ways to fill the quotas none keeps more on the source's own rank, and none more on
        its own node; what is left goes from low ranks to low slots.

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
        """What each rank takes, ``(L, R)``, in the unit of ``peak``."""
        return rank_times(self.shares, self.placement.num_ranks, self.topology, self.cost)

    @property
    def peak(self) -> NDArray[np.float64]:
        """What the slowest rank takes, ``(L,)``: the busiest rank's load if all are alike."""
        return np.asarray(self.rank_times.max(axis=1))

    @cached_property
    def bottleneck_experts(self) -> NDArray[np.bool_]:
        """Experts with load whose copies are all on bottleneck ranks, ``(L, E)``."""
        return confined_experts(self.load, self.placement, self.bottleneck_ranks)

    @cached_property
    def bound(self) -> NDArray[np.float64]:
        """What no split over these copies can be below, ``(L,)``, in the unit of ``peak``.

        The bottleneck experts' load over the summed speed of the bottleneck ranks. With a cost,
        what they take unsplit, or, if that is more, reading the weights of each of them once.
        """
        return least_times(
            self.load, self.placement, self.bottleneck_ranks, self.topology, self.cost
        )

    @property
    def gap(self) -> float:
        """How far the summed peaks are above the summed bounds: 0.02 means at most 2 % to gain."""
        bound = float(self.bound.sum())
        return max(0.0, float(self.peak.sum()) / bound - 1.0) if bound > 0 else 0.0

    @property
    def status(self) -> str:
        """One or two sentences of advice."""
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
        alike = self.cost is None and (self.topology is None or self.topology.speed is None)
        return "carry the same load" if alike else "are as fast as if all could take any load"

    def _advice(self, row: int, imbalance: float) -> str:
        experts = np.flatnonzero(self.bottleneck_experts[row])
        hottest = np.where(self.bottleneck_experts[row], self.load[row], -1).argmax()
        ranks = np.flatnonzero(self.bottleneck_ranks[row])
        return (
            f"In layer {self.placement.layer_ids[row]} it is {imbalance:.2f}x the mean, set by "
            f"experts whose copies are all on ranks {format_ids(ranks.tolist())} "
            f"({len(experts)} of them, the hottest {hottest}); only copies elsewhere help."
        )


class Dispatcher(Protocol):
    """What every dispatcher is: a frozen, keyword-only dataclass that splits batches.

    Those to which the ranks' speeds or nodes matter have a field ``topology: Topology | None``,
    those to which time matters a field ``cost: RankCost | None``, both ``None`` by default.
    """

    name: ClassVar[str]

    def split(self, load: ArrayLike, placement: Placement) -> Split:
        """Share a batch, ``(L, E)`` or by source rank ``(L, R, E)``, over the copies.

        Deterministic; changes nothing it is given.
        """
        ...

    def peaks(self, load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
        """Peaks of batches ``(T, L, E)``, as ``split`` would have them, ``(T, L)``."""
        ...


def rank_speeds(
    topology: Topology | None, num_ranks: int, cost: RankCost | None = None
) -> NDArray[np.float64]:
    """What rank loads are divided by to become times, ``(R,)``.

    Without a cost the ranks' speeds over their mean: times are then the assignments that a rank of
    mean speed serves meanwhile, and their least possible maximum on average is the mean load. With
    a cost, whose seconds are those of speed 1, the speeds as they are.

    Raises
    ------
    EquipoiseError
        A topology of another number of ranks.
    """
    if topology is None:
        return np.ones(num_ranks)
    check_ranks(topology, num_ranks)
    if cost is None or topology.speed is None:
        return topology.relative_speed
    return np.array(topology.speed, dtype=np.float64)


def nodes_of_ranks(topology: Topology | None, num_ranks: int) -> NDArray[np.int64]:
    """The node of each rank, ``(R,)``; one node if there is no topology."""
    if topology is None:
        return np.zeros(num_ranks, np.int64)
    check_ranks(topology, num_ranks)
    return topology.node_of_rank


def check_ranks(topology: Topology, num_ranks: int) -> None:
    """Raise ``EquipoiseError`` unless the topology has that many ranks."""
    if topology.num_ranks != num_ranks:
        raise EquipoiseError(
            f"The topology has {topology.num_ranks} ranks, the placement {num_ranks}; "
            "give the topology the placement was made for."
        )


def rank_times(
    slot_load: NDArray[np.float64],
    num_ranks: int,
    topology: Topology | None = None,
    cost: RankCost | None = None,
) -> NDArray[np.float64]:
    """What each rank takes, ``(..., R)``, from the load of each slot, ``(..., S)``.

    Loads over relative speeds; with a cost, seconds over speeds.
    """
    if cost is None:
        work = slot_load.reshape(*slot_load.shape[:-1], num_ranks, -1).sum(axis=-1)
    else:
        work = cost.rank_seconds(slot_load, num_ranks)
    return np.asarray(work / rank_speeds(topology, num_ranks, cost))


def confined_experts(
    load: NDArray[np.float64], placement: Placement, ranks: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Experts with load whose copies are all on the given ranks ``(L, R)``, ``(L, E)``."""
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
    """What the slowest of the given ranks ``(L, R)`` takes at least, ``(L,)``.

    The experts that are on these ranks only, shared to perfection. With a cost the larger of two:
    each expert takes at least what it takes unsplit, and at least one slot is active for it.
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
    """Least time in which ranks of these speeds read the weights of so many experts."""
    if not number or not cost.expert_seconds:
        return 0.0
    if (speed == speed[0]).all():
        most = -(-number // speed.size)
        return float((cost.fixed_seconds + most * cost.expert_seconds) / speed[0])
    # Shared to perfection; ranks that each round down fall short of it by less than one expert.
    level = (number * cost.expert_seconds + speed.size * cost.fixed_seconds) / speed.sum()
    most = (level * speed.max() - cost.fixed_seconds) / cost.expert_seconds + speed.size
    ordinal = np.arange(1, min(number, int(most) + 1) + 1)[:, None]
    finished = (cost.fixed_seconds + ordinal * cost.expert_seconds) / speed
    return float(np.partition(finished, number - 1, axis=None)[number - 1])


def checked_batch(
    load: ArrayLike, placement: Placement
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """A batch ``(L, E)`` or ``(L, R, E)`` as loads ``(L, E)`` and, if so given, by source rank.

    Both are contiguous float64 copies.

    Raises
    ------
    EquipoiseError
        Loads that are NaN, infinite, negative or not of the placement's shape, or whose sum in a
        layer reaches ``2**53``.
    """
    from equipoise.dispatch import _near_kernels  # numba takes long to import

    x = load if _can_be_added(load) else as_loads(load)
    assert isinstance(x, np.ndarray)
    if x.ndim != 3:
        return checked_load(x, placement, steps=False).copy(), None
    p = placement
    if x.shape != (p.num_layers, p.num_ranks, p.num_experts):
        raise EquipoiseError(
            f"Loads have shape {x.shape}; the placement needs (layers, source ranks, experts) = "
            f"{(p.num_layers, p.num_ranks, p.num_experts)}."
        )
    source_LRE, total_LE, good = _near_kernels.add_sources(np.ascontiguousarray(x))
    if not good:
        as_loads(x)  # says which is not, and why
    _check_total(total_LE, placement)
    return total_LE, source_LRE


def _can_be_added(load: ArrayLike) -> bool:
    """Whether it is an array of sources as live layers give it, which is checked while added up."""
    if not isinstance(load, np.ndarray) or type(load) is not np.ndarray:  # subclasses mask entries
        return False
    return load.ndim == 3 and load.dtype in (np.int64, np.float64)


def checked_load(load: ArrayLike, placement: Placement, *, steps: bool) -> NDArray[np.float64]:
    """The load as contiguous float64, ``(L, E)`` or with ``steps`` ``(T, L, E)``.

    Raises
    ------
    EquipoiseError
        Loads that are NaN, infinite, negative or not of the placement's shape, or whose sum in a
        layer reaches ``2**53``.
    """
    x = np.ascontiguousarray(as_loads(load))
    wanted = (placement.num_layers, placement.num_experts)
    if x.ndim != 2 + steps or x.shape[-2:] != wanted:
        shape = ("(steps, layers, experts) ending in " if steps else "(layers, experts) = ") + str(
            wanted
        )
        raise EquipoiseError(f"Loads have shape {x.shape}; the placement needs {shape}.")
    _check_total(x, placement)
    return x


def _check_total(x: NDArray[np.float64], placement: Placement) -> None:
    with np.errstate(over="ignore"):  # infinity is too much as well
        total = x.sum(axis=-1)
    if total.max() >= TOO_MUCH_LOAD:
        row = np.argwhere(total >= TOO_MUCH_LOAD)[0][-1]
        raise EquipoiseError(
            f"Layer {placement.layer_ids[row]} has {total.max():.3g} assignments; expected "
            "fewer than 2**53. Give the counts of one batch, or scale them down."
        )

"""What a dispatcher answers, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import as_loads
from equipoise.errors import EquipoiseError
from equipoise.layers import format_ids
from equipoise.placement import Placement

TOO_MUCH_LOAD = 2**53
"""Assignments a layer must stay below: from here on float64 cannot tell each from the next."""

PROVEN = 1e-9
"""Relative gap up to which a split counts as optimal: what rounding leaves, and no more."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """How one batch's load is shared over the copies, beside a proof of how good that is.

    The proof is a set of ranks in each layer, the bottleneck. Experts all of whose copies are on
    these ranks can go nowhere else; so however they are shared, some rank of the set gets at least
    the mean, and no split over these copies has a lower peak. All numbers here follow from the
    fields by plain arithmetic.

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
    """

    placement: Placement
    load: NDArray[np.float64]
    shares: NDArray[np.float64]
    bottleneck_ranks: NDArray[np.bool_]
    dispatch: str
    rounding: Callable[[Split], NDArray[np.int64]] = field(repr=False)

    def __post_init__(self) -> None:
        for array in (self.load, self.shares, self.bottleneck_ranks):
            array.flags.writeable = False

    @cached_property
    def quotas(self) -> NDArray[np.int64]:
        """Whole assignments of each slot, ``(L, S)``; an expert's sum to its load.

        Raises
        ------
        EquipoiseError
            Loads that are not whole numbers.
        """
        parts = self.load != np.floor(self.load)
        if parts.any():
            row, expert = np.argwhere(parts)[0]
            raise EquipoiseError(
                f"Layer {self.placement.layer_ids[row]}, expert {expert} has a load of "
                f"{self.load[row, expert]}; quotas need whole numbers of assignments, "
                "use the fractional shares."
            )
        return self.rounding(self)

    @cached_property
    def rank_loads(self) -> NDArray[np.float64]:
        """Assignments on each rank, ``(L, R)``."""
        p = self.placement
        on_rank: NDArray[np.float64] = self.shares.reshape(
            p.num_layers, p.num_ranks, p.slots_per_rank
        ).sum(axis=2)
        return on_rank

    @property
    def peak(self) -> NDArray[np.float64]:
        """Assignments on the busiest rank, ``(L,)``."""
        return np.asarray(self.rank_loads.max(axis=1))

    @cached_property
    def bottleneck_experts(self) -> NDArray[np.bool_]:
        """Experts with load whose copies are all on bottleneck ranks, ``(L, E)``."""
        p = self.placement
        outside = ~self.bottleneck_ranks[:, p.rank_of_slot]
        confined = self.load > 0
        confined[np.nonzero(outside)[0], p.slots[outside]] = False
        return confined

    @cached_property
    def bound(self) -> NDArray[np.float64]:
        """What no split over these copies can be below, assignments ``(L,)``.

        The bottleneck experts' load over the number of bottleneck ranks.
        """
        confined = np.where(self.bottleneck_experts, self.load, 0).sum(axis=1)
        return np.asarray(confined / self.bottleneck_ranks.sum(axis=1))

    @property
    def gap(self) -> float:
        """How far the summed peaks are above the summed bounds: 0.02 means at most 2 % to gain."""
        bound = float(self.bound.sum())
        return max(0.0, float(self.peak.sum()) / bound - 1.0) if bound > 0 else 0.0

    @property
    def status(self) -> str:
        """One or two sentences of advice."""
        mean = self.rank_loads.mean(axis=1)
        if not mean.any():
            return "No layer has load; there is nothing to share."
        if self.gap > PROVEN:
            return (
                f"Peaks are {self.gap:.1%} above those of the best split over these copies; "
                "a min-max split reaches them."
            )
        least = np.divide(self.bound, mean, out=np.ones_like(mean), where=mean > 0)
        row = int(least.argmax())
        if least[row] <= 1 + PROVEN:
            return "Optimal: in every layer all ranks carry the same load."
        return (
            f"Optimal: no split over these copies has lower peaks. {self._advice(row, least[row])}"
        )

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
    """What every dispatcher is: a frozen, keyword-only dataclass that splits batches."""

    name: ClassVar[str]

    def split(self, load: ArrayLike, placement: Placement) -> Split:
        """Share a batch ``(L, E)`` over the copies. Deterministic; changes nothing it is given."""
        ...

    def peaks(self, load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
        """Peaks of batches ``(T, L, E)``, as ``split`` would have them, ``(T, L)``."""
        ...


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
    with np.errstate(over="ignore"):  # infinity is too much as well
        total = x.sum(axis=-1)
    if total.max() >= TOO_MUCH_LOAD:
        row = np.argwhere(total >= TOO_MUCH_LOAD)[0][-1]
        raise EquipoiseError(
            f"Layer {placement.layer_ids[row]} has {total.max():.3g} assignments; expected "
            "fewer than 2**53. Give the counts of one batch, or scale them down."
        )
    return x

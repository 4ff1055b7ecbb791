"""A dispatcher that chooses the fastest rule for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.cost import RankCost
from equipoise.dispatch.base import Batch, Shares, checked_batch, checked_load
from equipoise.dispatch.even import Even
from equipoise.dispatch.fewest import FewestExperts
from equipoise.dispatch.minmax import MinMax
from equipoise.dispatch.quotas import whole_shares
from equipoise.dispatch.split import Split
from equipoise.dispatch.times import rank_times
from equipoise.placement import Placement
from equipoise.showing import differing
from equipoise.topology import Topology


@dataclass(frozen=True, eq=False, kw_only=True)
class AutoSplit(Split):
    """A split that also says which rule each layer follows.

    Parameters
    ----------
    rules
        Rule of each layer, ``L`` names of ``Auto.rules``.
    rule_seconds
        Seconds of the slowest rank under each rule, ``(L,)``.
    """

    rules: tuple[str, ...]
    rule_seconds: Mapping[str, NDArray[np.float64]]

    @property
    def status(self) -> str:
        """Advice in one or two sentences."""
        layers = ", ".join(f"{self.rules.count(rule)} {rule}" for rule in self.rule_seconds)
        return f"{super().status} Layers by rule: {layers}."


@dataclass(frozen=True, kw_only=True)
class Auto:
    """A dispatcher that follows, in each layer, the rule whose slowest rank finishes first.

    Where the hottest slots are below the knee of ``cost``, the best rule minimises active experts;
    far above the knee, it balances tokens; in between it depends on the batch. So all rules are
    computed and timed, and by this cost the result is never slower than any of them.

    Parameters
    ----------
    cost
        Cost of a rank's share.
    topology
        Speeds of the ranks, and nodes for batches by source rank; ``None`` for equal ranks.
    """

    name: ClassVar[str] = "auto"
    shares: ClassVar[Shares] = Shares.FOLLOWING
    scale_free: ClassVar[bool] = False

    cost: RankCost
    topology: Topology | None = None

    __repr__ = differing

    @property
    def rules(self) -> Mapping[str, Even | FewestExperts | MinMax]:
        """Rules that are tried, by name; among equals the first is taken.

        ``minmax`` balances tokens, ``time`` balances seconds, and ``fewest`` minimises active
        experts.
        """
        return {
            "minmax": MinMax(topology=self.topology),
            "fewest": FewestExperts(topology=self.topology),
            "even": Even(topology=self.topology),
            "time": MinMax(topology=self.topology, cost=self.cost),
        }

    def split(self, load: ArrayLike | Batch, placement: Placement) -> AutoSplit:
        """Share a batch over the copies.

        If all loads are whole, the shares are whole too, and times are those of whole assignments.
        Otherwise shares are fractional, and times are theirs.

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
        splits = {name: rule.split(batch, placement) for name, rule in self.rules.items()}
        served = np.stack([_served(split) for split in splits.values()])
        times = rank_times(served, placement.num_ranks, self.topology, self.cost).max(axis=2)
        taken = times.argmin(axis=0)
        by_time = splits["time"]
        return AutoSplit(
            placement=placement,
            load=by_time.load,
            shares=served[taken, np.arange(placement.num_layers)],
            bottleneck_ranks=by_time.bottleneck_ranks,
            dispatch=self.name,
            rounding=whole_shares,
            topology=self.topology,
            cost=self.cost,
            source_load=by_time.source_load,
            rules=tuple(list(splits)[index] for index in taken),
            rule_seconds=dict(zip(splits, times, strict=True)),
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
        Seconds of the slowest rank, ``(T, L)``.

        Raises
        ------
        EquipoiseError
            Whatever ``split`` refuses.
        """
        steps = checked_load(load, placement, steps=True)
        return np.stack([self.split(Batch(step), placement).peak for step in steps])


def _served(split: Split) -> NDArray[np.float64]:
    """Return the load of each slot, ``(L, S)``: whole assignments if the batch is whole."""
    came = split.load if split.source_load is None else split.source_load
    whole = bool((came == np.floor(came)).all())
    return split.quotas.astype(np.float64) if whole else split.shares

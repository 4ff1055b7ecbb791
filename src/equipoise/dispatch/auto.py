"""The rule that takes the least time, layer by layer."""

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
    """A split that says which rule each layer follows.

    Parameters
    ----------
    rules
        The rule each layer follows, ``L`` names of ``Auto.rules``.
    rule_seconds
        What the slowest rank would take by each rule, ``(L,)``.
    """

    rules: tuple[str, ...]
    rule_seconds: Mapping[str, NDArray[np.float64]]

    @property
    def status(self) -> str:
        """One or two sentences of advice."""
        layers = ", ".join(f"{self.rules.count(rule)} {rule}" for rule in self.rule_seconds)
        return f"{super().status} Layers by rule: {layers}."


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Follow, in each layer, the rule by which the slowest rank is done first.

    Where the hottest slots are below the knee of ``cost`` that is the one for active experts, far
    above it the one for tokens, and in between it depends on the batch. So all rules are tried and
    timed: never slower than any of them, by that cost.

    Parameters
    ----------
    cost
        What a rank's share takes.
    topology
        Speeds of the ranks, and nodes for batches by source rank; ``None``: all equal.
    """

    name: ClassVar[str] = "auto"
    shares: ClassVar[Shares] = Shares.FOLLOWING
    scale_free: ClassVar[bool] = False

    cost: RankCost
    topology: Topology | None = None

    __repr__ = differing

    @property
    def rules(self) -> Mapping[str, Even | FewestExperts | MinMax]:
        """What is tried, by name: of equals the first is taken.

        ``minmax`` evens out tokens and ``time`` seconds; ``fewest`` is for active experts.
        """
        return {
            "minmax": MinMax(topology=self.topology),
            "fewest": FewestExperts(topology=self.topology),
            "even": Even(topology=self.topology),
            "time": MinMax(topology=self.topology, cost=self.cost),
        }

    def split(self, load: ArrayLike | Batch, placement: Placement) -> AutoSplit:
        """Share a batch over the copies.

        Times are those of whole assignments where all loads are whole, and ``shares`` are then
        whole as well; else they are those of the fractional shares.

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
        """Peaks of many batches.

        Parameters
        ----------
        load
            Assignments ``(T, L, E)``; not changed.

        Returns
        -------
        Seconds of the slowest rank, ``(T, L)``.

        Raises
        ------
        EquipoiseError
            As ``split``.
        """
        steps = checked_load(load, placement, steps=True)
        return np.stack([self.split(Batch(step), placement).peak for step in steps])


def _served(split: Split) -> NDArray[np.float64]:
    """What each slot serves, ``(L, S)``: whole assignments if whole ones came."""
    came = split.load if split.source_load is None else split.source_load
    whole = bool((came == np.floor(came)).all())
    return split.quotas.astype(np.float64) if whole else split.shares

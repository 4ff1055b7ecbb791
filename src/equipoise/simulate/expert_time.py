"""Step times on a placement, by a model of the experts' time or of the whole step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number, check_type
from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch import Dispatcher, Shares
from equipoise.placement import Placement
from equipoise.plan.weigh.reach import placement_without_balancing
from equipoise.simulate.step import StepParts
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]

COST_ERROR = 0.15
"""Relative error of published constants on other machines; see ``equipoise explain costs``."""

EXPERTS_ALONE = "expert computation alone"
"""The part of a step that a cost of ranks counts, in words."""

_BLOCK_CELLS = 1 << 20  # slot loads held at a time


class ComputeModel(Protocol):
    """The protocol of time models, which know their own error."""

    @property
    def name(self) -> str:
        """Name of the model in results."""
        ...

    @property
    def planning_cost(self) -> RankCost:
        """Cost that planners and dispatchers use."""
        ...

    @property
    def counts(self) -> str:
        """Parts of a step that the model includes, as the end of a sentence."""
        ...

    def rank_seconds(self, slot_load: Floats, num_ranks: int) -> Floats:
        """Compute the experts' time of ranks at speed 1, ``(..., R)``, from loads ``(..., S)``."""
        ...

    def step_seconds(self, slot_load: Floats, topology: Topology) -> Floats:
        """Compute the time of steps, ``(T,)``, from the load of each slot, ``(T, L, S)``."""
        ...

    def parts(self, slot_load: Floats, topology: Topology) -> StepParts | None:
        """Divide the time of steps into parts, from the load of each slot, ``(T, L, S)``.

        All waiting is skew; ``split_steps`` divides it further. ``None`` if parts are unknown.
        """
        ...

    def draws(self, number: int, seed: int) -> Sequence[ComputeModel]:
        """Draw models that may be the true one; none if this model is taken to be exact."""
        ...


@dataclass(frozen=True, kw_only=True)
class UncertainCost:
    """A ``RankCost`` whose three times each have a relative error.

    Parameters
    ----------
    name
        Name of the model in results.
    planning_cost
        Constants of the model.
    error
        Standard deviation of each logarithm: 0.15 for about 15 %, 0 for exact constants.
    """

    name: str
    planning_cost: RankCost
    error: float = COST_ERROR

    def __post_init__(self) -> None:
        check_type("planning_cost", self.planning_cost, RankCost)
        check_number("cost_error", self.error, low=0, high=1)

    @classmethod
    def published(cls, name: str, error: float = COST_ERROR) -> UncertainCost:
        """Make a model of published constants; raise ``EquipoiseError`` for an unknown name."""
        return cls(name=name, planning_cost=rank_cost(name), error=error)

    def rank_seconds(self, slot_load: Floats, num_ranks: int) -> Floats:
        """Compute ``RankCost.rank_seconds``."""
        return self.planning_cost.rank_seconds(slot_load, num_ranks)

    @property
    def counts(self) -> str:
        """The experts, and nothing else."""
        return EXPERTS_ALONE

    def step_seconds(self, slot_load: Floats, topology: Topology) -> Floats:
        """Add up the layers, each of which waits for its slowest rank."""
        return slowest_seconds(self.planning_cost, slot_load, topology)

    def parts(self, slot_load: Floats, topology: Topology) -> StepParts:
        """Divide the time into the mean rank's experts and the wait for the slowest, all skew."""
        ranks = self.rank_seconds(slot_load, topology.num_ranks) / speeds(topology)
        slowest, mean = ranks.max(axis=-1), ranks.mean(axis=-1)
        return StepParts.of_experts(slowest.sum(axis=-1), mean.sum(axis=-1))

    def draws(self, number: int, seed: int) -> Sequence[UncertainCost]:
        """Draw constants, each lognormal around the given one."""
        if not self.error:
            return ()
        z = np.random.default_rng(seed).standard_normal((number, 3))
        cost = self.planning_cost
        times = np.exp(self.error * z) * [
            cost.fixed_seconds,
            cost.expert_seconds,
            cost.token_seconds,
        ]
        return tuple(
            replace(
                self,
                planning_cost=replace(
                    cost, fixed_seconds=fixed, expert_seconds=expert, token_seconds=token
                ),
            )
            for fixed, expert, token in times.tolist()
        )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A placement, with the dispatcher that shares batches over it.

    Parameters
    ----------
    placement
        Placement. Empty slots hold experts beyond the model's, which never get load.
    dispatch
        Dispatcher; ``None`` if no expert has copies.
    """

    placement: Placement
    dispatch: Dispatcher | None = None

    @classmethod
    def unbalanced(cls, trace: Trace, num_ranks: int) -> Layout:
        """Make the layout without balancing: every expert once, in order."""
        return cls(placement=placement_without_balancing(trace, num_ranks))

    def slot_loads(self, load_TLE: Floats) -> Floats:
        """Compute the assignments of every slot, ``(T, L, S)``."""
        if self.dispatch is not None and self.dispatch.shares is not Shares.EVEN:
            return np.stack([self.dispatch.split(step, self.placement).shares for step in load_TLE])
        missing = self.placement.num_experts - load_TLE.shape[-1]
        padded = np.pad(load_TLE, ((0, 0), (0, 0), (0, missing))) / self.placement.copies
        slots = np.broadcast_to(self.placement.slots, (len(padded), *self.placement.slots.shape))
        return np.take_along_axis(padded, slots, axis=-1)

    def blocks(self, load_TLE: Floats) -> Iterator[Floats]:
        """Yield the loads of every slot, ``(T', L, S)``, in blocks of steps, to save memory."""
        block = max(1, _BLOCK_CELLS // self.placement.slots.size)
        for start in range(0, len(load_TLE), block):
            yield self.slot_loads(load_TLE[start : start + block])

    def busiest(self, load_TLE: Floats) -> float:
        """Compute the busiest ranks' assignments in a mean step, summed over layers."""
        ranks = self.placement.num_ranks
        peaks = [
            loads.reshape(*loads.shape[:2], ranks, -1).sum(axis=-1).max(axis=-1).sum(axis=-1)
            for loads in self.blocks(load_TLE)
        ]
        return float(np.concatenate(peaks).mean())

    def step_seconds(
        self, load_TLE: Floats, topology: Topology, models: Sequence[ComputeModel]
    ) -> Floats:
        """Compute the time of each step by each model, ``(M, T)``."""
        blocks = (
            np.stack([model.step_seconds(loads, topology) for model in models])
            for loads in self.blocks(load_TLE)
        )
        return np.concatenate(list(blocks), axis=1)

    def idle_share(self, load_TLE: Floats, topology: Topology, model: ComputeModel) -> float:
        """Compute the share of the experts' time that ranks wait for the slowest of a layer."""
        slowest = mean = 0.0
        for loads in self.blocks(load_TLE):
            seconds = model.rank_seconds(loads, topology.num_ranks) / speeds(topology)
            slowest += float(seconds.max(axis=-1).sum())
            mean += float(seconds.mean(axis=-1).sum())
        return 1 - mean / slowest if slowest > 0 else 0.0


def speeds(topology: Topology) -> Floats:
    """Return the relative speed of each rank, ``(R,)``, as given."""
    return np.ones(topology.num_ranks) if topology.speed is None else np.array(topology.speed)


def slowest_seconds(cost: RankCost, slot_load: Floats, topology: Topology) -> Floats:
    """Compute the experts' time of steps, ``(T,)``, from the load of each slot, ``(T, L, S)``."""
    ranks = cost.rank_seconds(slot_load, topology.num_ranks) / speeds(topology)
    return np.asarray(ranks.max(axis=-1).sum(axis=-1))

"""What steps take on given copies, by a model of the ranks: of their experts, or of all they do."""

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

_BLOCK_CELLS = 1 << 20  # slot loads held at a time


class ComputeModel(Protocol):
    """What ranks and steps take, and how far that may be from the truth."""

    @property
    def name(self) -> str:
        """What it is called in an answer."""
        ...

    @property
    def planning_cost(self) -> RankCost:
        """The cost that planners and dispatchers go by."""
        ...

    @property
    def counts(self) -> str:
        """What of a step it counts, at the end of a sentence."""
        ...

    def rank_seconds(self, slot_load: Floats, num_ranks: int) -> Floats:
        """Experts' time of each rank at speed 1, ``(..., R)``, from slots' loads ``(..., S)``."""
        ...

    def step_seconds(self, slot_load: Floats, topology: Topology) -> Floats:
        """What steps take, ``(T,)``, from the load of each slot, ``(T, L, S)``."""
        ...

    def parts(self, slot_load: Floats, fair_load: Floats, topology: Topology) -> StepParts | None:
        """What steps are spent on; ``None`` if it counts only the experts.

        Parameters
        ----------
        slot_load
            Load of each slot, ``(T, L, S)``.
        fair_load
            The same with a fair router.
        """
        ...

    def draws(self, number: int, seed: int) -> Sequence[ComputeModel]:
        """Models that may be the true one; none if this one is taken for it."""
        ...


@dataclass(frozen=True, kw_only=True)
class UncertainCost:
    """A ``RankCost`` whose three times are known to a relative error each.

    Parameters
    ----------
    name
        What it is called in an answer.
    planning_cost
        The constants.
    error
        Standard deviation of the logarithm of each, 0.15 for about 15 %; 0: they are exact.
    """

    name: str
    planning_cost: RankCost
    error: float = COST_ERROR

    def __post_init__(self) -> None:
        check_type("planning_cost", self.planning_cost, RankCost)
        check_number("cost_error", self.error, low=0, high=1)

    @classmethod
    def published(cls, name: str, error: float = COST_ERROR) -> UncertainCost:
        """The published constants of that name; ``EquipoiseError`` if there are none."""
        return cls(name=name, planning_cost=rank_cost(name), error=error)

    def rank_seconds(self, slot_load: Floats, num_ranks: int) -> Floats:
        """As ``RankCost`` has it."""
        return self.planning_cost.rank_seconds(slot_load, num_ranks)

    @property
    def counts(self) -> str:
        """The experts, and nothing else."""
        return "expert computation alone"

    def step_seconds(self, slot_load: Floats, topology: Topology) -> Floats:
        """Every layer waits for its slowest rank, and layers add up."""
        return slowest_seconds(self.planning_cost, slot_load, topology)

    def parts(self, slot_load: Floats, fair_load: Floats, topology: Topology) -> None:
        """Nothing: only the experts are counted."""
        del slot_load, fair_load, topology

    def draws(self, number: int, seed: int) -> Sequence[UncertainCost]:
        """Constants of which each is lognormal around the one given."""
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
    """Copies, and who shares batches over them.

    Parameters
    ----------
    placement
        The copies; empty slots hold experts that the model does not have, which nothing goes to.
    dispatch
        The dispatcher; ``None``: nothing is copied, so there is nothing to share.
    """

    placement: Placement
    dispatch: Dispatcher | None = None

    @classmethod
    def unbalanced(cls, trace: Trace, num_ranks: int) -> Layout:
        """Every expert once, in order, as engines start."""
        return cls(placement=placement_without_balancing(trace, num_ranks))

    def slot_loads(self, load_TLE: Floats) -> Floats:
        """Assignments of every slot, ``(T, L, S)``."""
        if self.dispatch is not None and self.dispatch.shares is not Shares.EVEN:
            return np.stack([self.dispatch.split(step, self.placement).shares for step in load_TLE])
        missing = self.placement.num_experts - load_TLE.shape[-1]
        padded = np.pad(load_TLE, ((0, 0), (0, 0), (0, missing))) / self.placement.copies
        slots = np.broadcast_to(self.placement.slots, (len(padded), *self.placement.slots.shape))
        return np.take_along_axis(padded, slots, axis=-1)

    def blocks(self, load_TLE: Floats) -> Iterator[Floats]:
        """Loads of every slot, ``(T', L, S)``, block by block of steps, to save memory."""
        block = max(1, _BLOCK_CELLS // self.placement.slots.size)
        for start in range(0, len(load_TLE), block):
            yield self.slot_loads(load_TLE[start : start + block])

    def busiest(self, load_TLE: Floats) -> float:
        """Assignments of the busiest ranks of a mean step, summed over layers."""
        ranks = self.placement.num_ranks
        peaks = [
            loads.reshape(*loads.shape[:2], ranks, -1).sum(axis=-1).max(axis=-1).sum(axis=-1)
            for loads in self.blocks(load_TLE)
        ]
        return float(np.concatenate(peaks).mean())

    def step_seconds(
        self, load_TLE: Floats, topology: Topology, models: Sequence[ComputeModel]
    ) -> Floats:
        """What each step takes by each model, ``(M, T)``."""
        blocks = (
            np.stack([model.step_seconds(loads, topology) for model in models])
            for loads in self.blocks(load_TLE)
        )
        return np.concatenate(list(blocks), axis=1)

    def idle_share(self, load_TLE: Floats, topology: Topology, model: ComputeModel) -> float:
        """Share of the experts' time in which ranks wait for the slowest of a layer."""
        slowest = mean = 0.0
        for loads in self.blocks(load_TLE):
            seconds = model.rank_seconds(loads, topology.num_ranks) / speeds(topology)
            slowest += float(seconds.max(axis=-1).sum())
            mean += float(seconds.mean(axis=-1).sum())
        return 1 - mean / slowest if slowest > 0 else 0.0


def speeds(topology: Topology) -> Floats:
    """Relative speed of each rank, ``(R,)``, as given."""
    return np.ones(topology.num_ranks) if topology.speed is None else np.array(topology.speed)


def slowest_seconds(cost: RankCost, slot_load: Floats, topology: Topology) -> Floats:
    """What the experts of steps take, ``(T,)``, from the load of each slot, ``(T, L, S)``."""
    ranks = cost.rank_seconds(slot_load, topology.num_ranks) / speeds(topology)
    return np.asarray(ranks.max(axis=-1).sum(axis=-1))

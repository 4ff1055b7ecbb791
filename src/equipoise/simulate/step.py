"""The time of a step of the whole model, divided into parts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch import Even
from equipoise.simulate.fair import fair_steps
from equipoise.simulate.familiar import familiar_steps
from equipoise.simulate.kinds import kind_names, loaded_steps
from equipoise.simulate.routed import Routed
from equipoise.topology import Topology, check_ranks
from equipoise.trace import Trace

if TYPE_CHECKING:
    from equipoise.simulate.expert_time import ComputeModel, Layout
    from equipoise.simulate.machine import Machine

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class StepParts:
    """The parts of each step's time, all recorded layers, ``(T,)`` seconds each.

    All parts except ``hidden`` add up to the time of the step.

    Parameters
    ----------
    experts
        Time of the mean rank's experts: the useful work.
    rereading
        Further time because each micro-batch and each chunk reads the weights again.
    chance
        Time that ranks wait for the slowest because a step is a draw, even with a fair router.
    skew
        Time that ranks wait beyond that with the loads that the copies were made for.
    drift
        Time that ranks wait beyond both, because loads have moved since.
    own
        Time of the mean rank's work for its own tokens, such as attention.
    own_wait
        Time that ranks wait there for ranks with more own tokens, or for slower ranks.
    exposed
        Time of communication that nothing overlaps.
    hidden
        Time of communication hidden behind the other micro-batch, which takes no time of the step.
    """

    experts: Floats
    rereading: Floats
    chance: Floats
    skew: Floats
    drift: Floats
    own: Floats
    own_wait: Floats
    exposed: Floats
    hidden: Floats

    @classmethod
    def of_experts(cls, slowest: Floats, mean: Floats) -> StepParts:
        """Create steps of which only the experts are included; all waiting is skew."""
        none = np.zeros(len(mean))
        return cls(
            experts=mean,
            skew=slowest - mean,
            **dict.fromkeys(_names(but=("experts", "skew")), none),
        )

    @property
    def total(self) -> Floats:
        """Time of the steps."""
        return np.asarray(sum(getattr(self, name) for name in _names(but=("hidden",))))

    @property
    def wait(self) -> Floats:
        """Time that ranks wait for the slowest in the experts' computation."""
        return np.asarray(self.chance + self.skew + self.drift)

    @property
    def imbalance(self) -> Floats:
        """Expert time of the slowest rank over that of the mean rank."""
        return np.asarray(1 + self.wait / (self.experts + self.rereading))

    def told_apart(self, luck: Floats, familiar: Floats | None = None) -> StepParts:
        """Divide the wait into chance, skew and drift.

        The wait of all steps together is divided, and that of each step in the same shares: a
        single step is a random draw, so a difference between two steps is not drift.

        Parameters
        ----------
        luck
            Time that drawing such steps adds to the wait of a fair router, ``(T,)`` seconds.
        familiar
            Time that ranks wait in such steps with the loads that the copies were made for,
            ``(T,)`` seconds; ``None`` if those are unknown: there is no drift then.
        """
        wait = self.wait
        total = float(wait.sum())
        chance = min(max(float(luck.sum()), 0.0), total)
        known = total if familiar is None else min(max(float(familiar.sum()), chance), total)
        share = wait / total if total > 0 else np.zeros_like(wait)
        return replace(
            self,
            chance=chance * share,
            skew=(known - chance) * share,
            drift=(total - known) * share,
        )

    @property
    def means(self) -> dict[str, float]:
        """Compute the mean step, by part."""
        return {name: float(getattr(self, name).mean()) for name in _names()}


def _names(but: Collection[str] = ()) -> list[str]:
    return [field.name for field in fields(StepParts) if field.name not in but]


def split_steps(
    load: Floats,
    layout: Layout,
    topology: Topology,
    model: ComputeModel,
    *,
    top_k: int,
    familiar: Floats | None = None,
    seed: int = 0,
) -> StepParts | None:
    """Divide the time of steps into parts, drift included; ``None`` if the model cannot.

    Parameters
    ----------
    load
        Assignments, ``(T, L, E)``.
    familiar
        Steps of the same sizes with the loads that the copies were made for; ``None`` if those are
        unknown: there is no drift then.
    seed
        Random seed of the fair router.
    """
    recorded = model.parts(layout.slot_loads(load), topology)
    if recorded is None:
        return None
    return _told_apart(recorded, load, familiar, layout, topology, model, top_k, seed)


def time_steps(
    trace: Trace,
    layout: Layout,
    topology: Topology,
    machine: Machine,
    *,
    made_for: Trace | None = None,
    seed: int = 0,
) -> StepParts:
    """Divide the time of recorded steps into parts.

    If the trace has token ids, every choice is followed to its slot. With counts alone, the number
    of tokens that ranks receive is an expectation.

    Parameters
    ----------
    made_for
        Steps that the layout was made for, such as earlier ones; ``None`` if those are unknown:
        there is no drift then.
    seed
        Random seed of the draws that the wait is divided by.

    Raises
    ------
    EquipoiseError
        A topology with another number of ranks than the layout.
    """
    check_ranks(topology, layout.placement.num_ranks)
    load = trace.counts.astype(np.float64)
    recorded = machine.step(_routed(trace, layout, topology, machine.top_k), topology)
    familiar = None
    if made_for is not None:
        familiar = np.zeros_like(load)
        has = loaded_steps(trace)
        sizes = load[has].sum(axis=-1)
        familiar[has] = familiar_steps(made_for, kind_names(trace), sizes, seed=seed)
    return _told_apart(recorded, load, familiar, layout, topology, machine, machine.top_k, seed)


def _told_apart(
    recorded: StepParts,
    load: Floats,
    familiar: Floats | None,
    layout: Layout,
    topology: Topology,
    model: ComputeModel,
    top_k: int,
    seed: int,
) -> StepParts:
    """Divide the wait of steps by the waits of other steps of the same sizes."""

    def wait(steps: Floats) -> Floats:
        parts = model.parts(layout.slot_loads(steps), topology)
        assert parts is not None  # the model knew those recorded
        return parts.wait

    sizes, num_experts = load.sum(axis=-1), load.shape[-1]
    fair = fair_steps(sizes, num_experts, top_k, seed)
    even = np.broadcast_to(sizes[..., None] / num_experts, load.shape)
    return recorded.told_apart(
        luck=wait(fair) - wait(even), familiar=None if familiar is None else wait(familiar)
    )


def _routed(trace: Trace, layout: Layout, topology: Topology, top_k: int) -> Routed:
    if trace.tokens is None:
        loads = layout.slot_loads(trace.counts.astype(np.float64))
        return Routed.expected(loads, top_k, topology)
    dispatch = layout.dispatch or Even()
    steps = (trace.tokens.of_step(t) for t in range(trace.num_steps))
    return Routed.stacked(
        [Routed.followed(ids, layout.placement, dispatch, topology) for ids in steps]
    )

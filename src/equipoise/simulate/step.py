"""A step of the whole model, split into what it is spent on."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch import Even
from equipoise.simulate.fair import fair_steps
from equipoise.simulate.routed import Routed
from equipoise.topology import Topology
from equipoise.trace import Trace

if TYPE_CHECKING:
    from equipoise.simulate.expert_time import Layout
    from equipoise.simulate.machine import Machine

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class StepParts:
    """Seconds of each step, all recorded layers, ``(T,)`` each; all but ``hidden`` add up.

    Parameters
    ----------
    experts
        Experts' computation of the mean rank: the useful work.
    rereading
        What it takes longer in parts: each micro-batch and each chunk reads the weights again.
    chance
        What ranks wait for the slowest with a fair router as well.
    skew
        What they wait beyond that.
    own
        Attention and what else a rank does for its own tokens, of the mean rank.
    own_wait
        What ranks wait there: for those with more tokens of their own, and for slower ones.
    exposed
        Exchanges that nothing runs next to.
    hidden
        Exchanges behind computation of the other micro-batch: no time of the step.
    """

    experts: Floats
    rereading: Floats
    chance: Floats
    skew: Floats
    own: Floats
    own_wait: Floats
    exposed: Floats
    hidden: Floats

    @property
    def total(self) -> Floats:
        """What the steps take."""
        names = (field.name for field in fields(self) if field.name != "hidden")
        return np.asarray(sum(getattr(self, name) for name in names))

    @property
    def imbalance(self) -> Floats:
        """The slowest rank over the mean one in the experts' computation: the straggler factor."""
        work = self.experts + self.rereading
        return np.asarray(1 + (self.chance + self.skew) / work)

    def beyond(self, fair: StepParts) -> StepParts:
        """The same with the wait that a fair router has as well, told as chance."""
        wait = self.chance + self.skew
        chance = np.minimum(wait, fair.chance + fair.skew)
        return replace(self, chance=chance, skew=wait - chance)

    @property
    def means(self) -> dict[str, float]:
        """The mean step, by part."""
        return {field.name: float(getattr(self, field.name).mean()) for field in fields(self)}


def time_steps(
    trace: Trace, layout: Layout, topology: Topology, machine: Machine, *, seed: int = 0
) -> StepParts:
    """Split the recorded steps into what they are spent on.

    With token ids every choice is followed to its slot; from counts alone, the tokens that ranks
    receive are expected ones.

    Parameters
    ----------
    seed
        Random seed of the fair router that tells chance from skew.
    """
    counts = trace.counts.astype(np.float64)
    sizes = counts.sum(axis=-1)
    fair = fair_steps(sizes, trace.num_experts, machine.top_k, seed)
    recorded = machine.step(_routed(trace, layout, topology, machine.top_k), topology)
    expected = Routed.expected(layout.slot_loads(fair), machine.top_k, topology)
    return recorded.beyond(machine.step(expected, topology))


def _routed(trace: Trace, layout: Layout, topology: Topology, top_k: int) -> Routed:
    if trace.tokens is None:
        loads = layout.slot_loads(trace.counts.astype(np.float64))
        return Routed.expected(loads, top_k, topology)
    dispatch = layout.dispatch or Even()
    steps = (trace.tokens.of_step(t) for t in range(trace.num_steps))
    return Routed.stacked(
        [Routed.followed(ids, layout.placement, dispatch, topology) for ids in steps]
    )

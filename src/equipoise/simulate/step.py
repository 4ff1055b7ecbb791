"""The time of a step of the whole model, divided into parts."""

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
    """The parts of each step's time, all recorded layers, ``(T,)`` seconds each.

    All parts except ``hidden`` add up to the time of the step.

    Parameters
    ----------
    experts
        Time of the mean rank's experts: the useful work.
    rereading
        Further time because each micro-batch and each chunk reads the weights again.
    chance
        Time that ranks would wait for the slowest even with a fair router.
    skew
        Time that ranks wait beyond that.
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
    own: Floats
    own_wait: Floats
    exposed: Floats
    hidden: Floats

    @property
    def total(self) -> Floats:
        """Time of the steps."""
        names = (field.name for field in fields(self) if field.name != "hidden")
        return np.asarray(sum(getattr(self, name) for name in names))

    @property
    def imbalance(self) -> Floats:
        """Expert time of the slowest rank over that of the mean rank."""
        work = self.experts + self.rereading
        return np.asarray(1 + (self.chance + self.skew) / work)

    def beyond(self, fair: StepParts) -> StepParts:
        """Move the wait that a fair router also has from ``skew`` to ``chance``."""
        wait = self.chance + self.skew
        chance = np.minimum(wait, fair.chance + fair.skew)
        return replace(self, chance=chance, skew=wait - chance)

    @property
    def means(self) -> dict[str, float]:
        """Compute the mean step, by part."""
        return {field.name: float(getattr(self, field.name).mean()) for field in fields(self)}


def time_steps(
    trace: Trace, layout: Layout, topology: Topology, machine: Machine, *, seed: int = 0
) -> StepParts:
    """Divide the time of recorded steps into parts.

    If the trace has token ids, every choice is followed to its slot. With counts alone, the number
    of tokens that ranks receive is an expectation.

    Parameters
    ----------
    trace, layout, topology, machine
        Recording, placement and dispatcher, ranks, and time model.
    seed
        Random seed of the fair router that separates chance from skew.
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

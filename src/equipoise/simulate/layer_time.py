"""Time of a MoE layer of one deployment: what ``Machine`` says of experts and exchanges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.errors import EquipoiseError
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.machine import Exchange, Machine, machine
from equipoise.simulate.own_work import Phase
from equipoise.simulate.profiles import HardwareProfile, LinkProfile
from equipoise.simulate.routed import Routed
from equipoise.simulate.step import StepParts
from equipoise.topology import Topology

Floats = NDArray[np.float64]

MODES: tuple[Exchange, ...] = get_args(Exchange)
"""Kernels that answer soon, and those that carry much: of the exchanges and of the experts."""

MOST_TOKENS = 8192
"""Tokens of a rank up to which exchanges are compared."""

_PHASES: Mapping[Exchange, Phase] = {"low-latency": "decode", "high-throughput": "prefill"}


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """A MoE layer of a model on some ranks of some GPU, without attention.

    Parameters
    ----------
    shape
        Its experts.
    hardware
        The GPU.
    num_ranks
        ``R``, expert-parallel ranks; no more than experts.
    ranks_per_node
        Ranks behind one fast link.
    link
        Link between nodes.
    framework
        Whose kernels are taken where several were timed, ``sglang`` or ``trtllm``.
    """

    shape: ExpertShape
    hardware: HardwareProfile
    num_ranks: int
    ranks_per_node: int
    link: LinkProfile
    framework: str = "sglang"

    def __post_init__(self) -> None:
        if self.topology.num_ranks > self.shape.num_experts:
            raise EquipoiseError(
                f"{self.num_ranks} ranks share {self.shape.num_experts} experts; give at most one "
                "rank an expert."
            )

    @cached_property
    def topology(self) -> Topology:
        """The ranks in their nodes; in one if they fit."""
        return Topology(self.num_ranks, min(self.ranks_per_node, self.num_ranks))

    @cached_property
    def machines(self) -> Mapping[Exchange, Machine]:
        """What times a layer, with the kernels of each mode."""
        return {mode: self._machine(mode, phase) for mode, phase in _PHASES.items()}

    @property
    def source(self) -> str:
        """What the times rest on, and their error, in a sentence."""
        machines = self.machines.values()
        error = max(m.errors.products for m in machines)
        experts, exchanges = (
            " and ".join(dict.fromkeys(m.facts[part] for m in machines))
            for part in ("experts", "exchanges")
        )
        return f"Times of experts: {experts}, good to {error:.0%}. Of exchanges: {exchanges}."

    def on(self, num_ranks: int) -> LayerTime:
        """The same on another number of ranks, in nodes as full as now if whole ones do not fit."""
        size = self.ranks_per_node
        if num_ranks > size and num_ranks % size:
            size = min(size, self.num_ranks)
        return replace(self, num_ranks=num_ranks, ranks_per_node=size)

    def knee(self, mode: Exchange) -> float:
        """Assignments of an expert from which on its products take longer than its weights."""
        time = self.machines[mode].time
        return time.expert_seconds / time.product_seconds

    def even_seconds(self, tokens_per_rank: float, mode: Exchange) -> float:
        """Time of a rank's experts if all are equally popular and every rank has these tokens."""
        parts = self._parts(tokens_per_rank, self.machines[mode])
        return float(parts.experts[0] + parts.skew[0])

    def exchange_seconds(self, tokens_per_rank: float, mode: Exchange) -> float:
        """Time of dispatch and combine of such experts."""
        return float(self._parts(tokens_per_rank, self.machines[mode]).exposed[0])

    def layer_seconds(self, tokens_per_rank: float, mode: Exchange) -> float:
        """Time of both, one after the other."""
        return float(self._parts(tokens_per_rank, self.machines[mode]).total[0])

    def overlapped_seconds(self, tokens_per_rank: float) -> float:
        """Time of both in two micro-batches, with the kernels that make it shorter."""
        halved = (replace(m, micro_batches=2) for m in self.machines.values())
        return min(float(self._parts(tokens_per_rank, m).total[0]) for m in halved)

    def faster_mode(self, tokens_per_rank: float) -> Exchange:
        """The kernels with which such a layer takes less time."""
        return min(MODES, key=lambda mode: self.layer_seconds(tokens_per_rank, mode))

    def crossover(self) -> int:
        """Tokens of a rank from which on the high-throughput exchanges are faster, in one node.

        ``MOST_TOKENS + 1`` if they are not up to there.
        """
        here = self.on(min(self.ranks_per_node, self.num_ranks))
        tokens = np.arange(1, MOST_TOKENS + 1)
        low, high = (here._parts(tokens, here.machines[mode]).exposed for mode in MODES)
        faster = high < low
        return int(tokens[faster.argmax()]) if faster.any() else MOST_TOKENS + 1

    def _machine(self, mode: Exchange, phase: Phase) -> Machine:
        made = machine(
            self.hardware,
            self.shape,
            phase=phase,
            num_nodes=self.topology.num_nodes,
            link=self.link,
            exchange=mode,
            framework=self.framework,
        )
        # A server launches while the GPU works; the benchmarks of the constants waited for each.
        return replace(made, time=replace(made.time, host_seconds=0.0))

    def _parts(self, tokens_per_rank: ArrayLike, timed_by: Machine) -> StepParts:
        """What a layer of equally popular experts is spent on, one for each number of tokens."""
        slot_load = self._even(np.atleast_1d(np.asarray(tokens_per_rank, dtype=np.float64)))
        routed = Routed.expected(slot_load[:, None], self.shape.top_k, self.topology)
        return timed_by.step(routed, self.topology)

    def _even(self, tokens_per_rank: Floats) -> Floats:
        """Loads of all slots, ``(T, S)``: of few tokens only some experts have any."""
        E, K, R = self.shape.num_experts, self.shape.top_k, self.num_ranks
        place = np.arange(-(-E // R))
        held = np.clip(E - len(place) * np.arange(R), 0, len(place))  # experts of each rank
        tokens = (tokens_per_rank * R)[:, None]
        active = np.ceil(held * (1 - (1 - K / E) ** tokens))
        load = tokens * K * held / E / np.maximum(active, 1)
        return np.where(place < active[..., None], load[..., None], 0.0).reshape(len(tokens), -1)

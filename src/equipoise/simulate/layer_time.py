"""The time of an MoE layer in one deployment: experts and communication, by ``Machine``."""

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
"""Kernel modes of communication and experts: low latency and high throughput."""

MOST_TOKENS = 8192
"""Largest number of tokens of a rank for which exchanges are compared."""

_PHASES: Mapping[Exchange, Phase] = {"low-latency": "decode", "high-throughput": "prefill"}


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """An MoE layer of a model on ranks with a given GPU, without attention.

    Parameters
    ----------
    shape
        Shape and number of the experts.
    hardware
        Profile of the GPU.
    num_ranks
        Number of expert-parallel ranks ``R``, at most the number of experts.
    ranks_per_node
        Number of ranks that share one fast link.
    link
        Link between nodes.
    framework
        Framework whose kernels are used if several were timed, ``sglang`` or ``trtllm``.
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
        """The ranks in nodes, or in a single node if they fit."""
        return Topology(self.num_ranks, min(self.ranks_per_node, self.num_ranks))

    @cached_property
    def machines(self) -> Mapping[Exchange, Machine]:
        """The machine for each kernel mode."""
        return {mode: self._machine(mode, phase) for mode, phase in _PHASES.items()}

    @property
    def source(self) -> str:
        """Sentences on the source of the times and their error."""
        machines = self.machines.values()
        error = max(m.errors.products for m in machines)
        experts, exchanges = (
            " and ".join(dict.fromkeys(m.facts[part] for m in machines))
            for part in ("experts", "exchanges")
        )
        return f"Times of experts: {experts}, good to {error:.0%}. Of exchanges: {exchanges}."

    def on(self, num_ranks: int) -> LayerTime:
        """Return the same layer on another number of ranks."""
        size = self.ranks_per_node
        if num_ranks > size and num_ranks % size:
            size = min(size, self.num_ranks)
        return replace(self, num_ranks=num_ranks, ranks_per_node=size)

    def knee(self, mode: Exchange) -> float:
        """Compute the assignments above which an expert's products take longer than its weights."""
        time = self.machines[mode].time
        return time.expert_seconds / time.product_seconds

    def even_seconds(self, tokens_per_rank: float, mode: Exchange) -> float:
        """Compute the time of a rank's experts if all experts have equal load."""
        parts = self._parts(tokens_per_rank, self.machines[mode])
        return float(parts.experts[0] + parts.skew[0])

    def exchange_seconds(self, tokens_per_rank: float, mode: Exchange) -> float:
        """Compute the time of dispatch and combine if all experts have equal load."""
        return float(self._parts(tokens_per_rank, self.machines[mode]).exposed[0])

    def layer_seconds(self, tokens_per_rank: float, mode: Exchange) -> float:
        """Compute the time of experts and communication, one after the other."""
        return float(self._parts(tokens_per_rank, self.machines[mode]).total[0])

    def overlapped_seconds(self, tokens_per_rank: float) -> float:
        """Compute the time with two overlapping micro-batches, in the faster kernel mode."""
        halved = (replace(m, micro_batches=2) for m in self.machines.values())
        return min(float(self._parts(tokens_per_rank, m).total[0]) for m in halved)

    def faster_mode(self, tokens_per_rank: float) -> Exchange:
        """Return the kernel mode with which the layer takes less time."""
        return min(MODES, key=lambda mode: self.layer_seconds(tokens_per_rank, mode))

    def phase(self, tokens_per_rank: float) -> Phase:
        """Return the phase whose steps use the faster kernel mode."""
        return _PHASES[self.faster_mode(tokens_per_rank)]

    def crossover(self) -> int:
        """Number of tokens of a rank from which high-throughput exchanges are faster, in one node.

        It is ``MOST_TOKENS + 1`` if they are not faster at ``MOST_TOKENS``.
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
        # A server launches kernels while the GPU works; the fitted benchmarks waited each time.
        return replace(made, time=replace(made.time, host_seconds=0.0))

    def _parts(self, tokens_per_rank: ArrayLike, timed_by: Machine) -> StepParts:
        """Divide a layer's time into parts if all experts have equal load."""
        slot_load = self._even(np.atleast_1d(np.asarray(tokens_per_rank, dtype=np.float64)))
        routed = Routed.expected(slot_load[:, None], self.shape.top_k, self.topology)
        return timed_by.step(routed, self.topology)

    def _even(self, tokens_per_rank: Floats) -> Floats:
        """Make equal loads for all slots, ``(T, S)``; with few tokens, some experts have none."""
        E, K, R = self.shape.num_experts, self.shape.top_k, self.num_ranks
        place = np.arange(-(-E // R))
        held = np.clip(E - len(place) * np.arange(R), 0, len(place))  # experts of each rank
        tokens = (tokens_per_rank * R)[:, None]
        active = np.ceil(held * (1 - (1 - K / E) ** tokens))
        load = tokens * K * held / E / np.maximum(active, 1)
        return np.where(place < active[..., None], load[..., None], 0.0).reshape(len(tokens), -1)

"""A question with all that is computed once for it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch import Dispatcher, dispatcher
from equipoise.errors import EquipoiseError, argument
from equipoise.plan.problem import Problem
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.machine import Machine, machine
from equipoise.simulate.profiles import hardware, link
from equipoise.simulate.routed import Routed
from equipoise.simulate.step import StepParts
from equipoise.simulate.what_if.question import Question, ServedModel
from equipoise.simulate.what_if.traffic import Traffic, batches
from equipoise.topology import Topology

Floats = NDArray[np.float64]

NUM_BATCHES = 12
"""Number of unseen batches that an answer averages."""

CONTEXT_TOKENS = 4096
"""Mean number of tokens before the new one."""

FAR_LINK = "infiniband-400g"
"""Name of the link between nodes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """The result of batches on a layout.

    Parameters
    ----------
    slot_load
        Load of each slot, ``(T, L, S)``.
    rank_load
        Load of each rank, ``(T, L, R)``.
    parts
        Parts of the steps' time, all layers of the model.
    """

    slot_load: Floats
    rank_load: Floats
    parts: StepParts

    @property
    def imbalance(self) -> Floats:
        """Busiest rank over the mean rank, ``(T, L)``; 1 without load."""
        peak, mean = self.rank_load.max(axis=-1), self.rank_load.mean(axis=-1)
        return np.asarray(np.divide(peak, mean, out=np.ones_like(mean), where=mean > 0))

    @property
    def by_batch(self) -> list[float]:
        """Return the imbalance of each batch, mean over layers, ``(T,)``."""
        means: list[float] = self.imbalance.mean(axis=1).tolist()
        return means

    @property
    def mean_imbalance(self) -> float:
        """Mean imbalance of all batches and layers."""
        return float(self.imbalance.mean())

    @property
    def seconds(self) -> float:
        """Time of a mean step."""
        return float(self.parts.total.mean())

    @property
    def waiting(self) -> float:
        """Share of the experts' time in which the mean rank waits for the slowest."""
        return float(1 - (1 / self.parts.imbalance).mean())


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """A question with all that is computed once for it."""

    question: Question
    model: ServedModel
    traffic: Traffic
    topology: Topology
    machine: Machine
    loads: Floats
    notes: tuple[str, ...]

    @classmethod
    def of(cls, question: Question, model: ServedModel, traffic: Traffic) -> Case:
        """Prepare ranks, machine and batches; errors are those of ``WhatIf.answer``."""
        held, gpu, R = traffic.held, hardware(question.gpu), question.num_ranks
        if held.num_experts < R:
            raise EquipoiseError(
                f"{R} ranks share {held.num_experts} experts; give at most one rank an expert "
                f"({argument('num_ranks')})."
            )
        most = round(gpu.ranks_per_node.value)
        size = max(size for size in range(1, min(most, R) + 1) if R % size == 0)
        topology = Topology(R, size)
        shape = replace(
            model.shape,
            num_experts=held.num_experts,
            top_k=held.top_k or model.shape.top_k,
        )
        made = machine(
            gpu,
            shape,
            phase=question.phase,
            num_nodes=topology.num_nodes,
            link=link(FAR_LINK) if topology.num_nodes > 1 else None,
            own_work=model.own_work,
            context_tokens=CONTEXT_TOKENS,
        )
        loads = batches(traffic, (question.step_tokens,), NUM_BATCHES, shape.top_k, question.seed)
        return cls(
            question=question,
            model=model,
            traffic=traffic,
            topology=topology,
            machine=made,
            loads=loads,
            notes=(*_node_notes(R, size, most), *_model_notes(model, traffic, shape)),
        )

    @property
    def num_experts(self) -> int:
        """Number of experts of the traffic, ``E``."""
        return self.traffic.held.num_experts

    @property
    def num_slots(self) -> int:
        """Number of slots: the fewest that hold all experts, plus the redundant ones."""
        R = self.question.num_ranks
        return R * (-(-self.num_experts // R) + self.question.redundant_per_rank)

    @property
    def dispatcher(self) -> Dispatcher:
        """Dispatcher of the question, for these ranks and this router."""
        return dispatcher(self.question.dispatch, self.topology, top_k=self.machine.top_k)

    @property
    def problem(self) -> Problem:
        """Problem for the planners."""
        held = self.traffic.held
        return Problem(self.traffic.fit_LE, self.topology, self.num_slots, layer_ids=held.layer_ids)

    @property
    def layers_factor(self) -> float:
        """Number of layers of the model over the computed number, which stand for all."""
        return self.model.num_layers / self.traffic.held.num_layers

    def run(self, layout: Layout) -> Run:
        """Run the batches on a layout."""
        slots = layout.slot_loads(self.loads)
        ranks = slots.reshape(*slots.shape[:2], self.question.num_ranks, -1).sum(axis=-1)
        return Run(slot_load=slots, rank_load=ranks, parts=self.time(slots))

    def time(self, slot_load: Floats) -> StepParts:
        """Divide the time of steps into parts, all layers of the model."""
        routed = Routed.expected(slot_load, self.machine.top_k, self.topology)
        parts = self.machine.step(routed, self.topology)
        scaled = {f.name: self.layers_factor * getattr(parts, f.name) for f in fields(parts)}
        return StepParts(**scaled)


def _node_notes(num_ranks: int, size: int, most: int) -> list[str]:
    """Note that nodes are not full, if they are not."""
    if size in (num_ranks, most):
        return []
    return [f"{num_ranks} ranks are in nodes of {size}, since {most} do not divide them."]


def _model_notes(model: ServedModel, traffic: Traffic, shape: ExpertShape) -> list[str]:
    """Note where recording and model differ, and which parts of a step are unknown."""
    notes = []
    if (shape.num_experts, shape.top_k) != (model.shape.num_experts, model.shape.top_k):
        notes.append(
            f"The recording has {shape.num_experts} experts, {shape.top_k} a token, where "
            f"{model.name} has {model.shape.num_experts} and {model.shape.top_k}: times are of "
            "that number of the model's experts."
        )
    if traffic.held.top_k is None:
        notes.append(
            f"The recording does not say how many experts a token chooses; {shape.top_k} is taken, "
            f"as in {model.name}."
        )
    if traffic.num_layers != model.num_layers:
        notes.append(
            f"{traffic.num_layers} recorded layers stand for the {model.num_layers} of "
            f"{model.name}."
        )
    if model.own_work is None:
        notes.append(f"Attention of {model.name} is not known: times are without it.")
    return notes

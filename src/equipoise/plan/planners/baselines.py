"""Layouts that ignore the load, as engines use them before they have measured any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_type
from equipoise.plan.planners.eplb import check_distinct
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan, certify


@dataclass(frozen=True, kw_only=True)
class Contiguous:
    """A planner that puts expert ``e`` on rank ``e * R // E``, as engines do without balancing.

    (If ``R`` does not divide ``E``, engines differ; see ``evaluate_without_balancing``.) Redundant
    slots are filled rank by rank: each gets the expert with the fewest copies so far that its rank
    does not have, the lowest id first.
    """

    def plan(self, problem: Problem) -> Plan:
        """Choose the slots, the same in every layer.

        Raises
        ------
        EquipoiseError
            More than ``E * R`` slots, which would put an expert on a rank twice.
        """
        experts = np.arange(check_type("problem", problem, Problem).num_experts)
        rank = experts * problem.topology.num_ranks // problem.num_experts
        return _plan(problem, rank, repr(self))


@dataclass(frozen=True, kw_only=True)
class RoundRobin:
    """A planner that puts expert ``e`` on rank ``e mod R``; the rest is as in ``Contiguous``."""

    def plan(self, problem: Problem) -> Plan:
        """Choose the slots, the same in every layer; errors are those of ``Contiguous``."""
        experts = np.arange(check_type("problem", problem, Problem).num_experts)
        rank = experts % problem.topology.num_ranks
        return _plan(problem, rank, repr(self))


def _plan(problem: Problem, rank_of_expert: NDArray[np.int64], planner: str) -> Plan:
    check_distinct(problem)
    row = _fill(rank_of_expert, problem.topology.num_ranks, problem.num_slots)
    return certify(problem, np.tile(row, (problem.num_layers, 1)), planner=planner)


def _fill(rank_of_expert: NDArray[np.int64], num_ranks: int, num_slots: int) -> NDArray[np.int64]:
    """Fill the slots ``(S,)``: each rank's experts in order, then the rarest it does not have."""
    size = num_slots // num_ranks
    copies = np.ones(len(rank_of_expert), dtype=np.int64)
    slots: list[int] = []
    for rank in range(num_ranks):
        held = rank_of_expert == rank
        slots += np.flatnonzero(held).tolist()
        while len(slots) < (rank + 1) * size:
            expert = int(np.argmin(np.where(held, num_slots + 1, copies)))
            held[expert] = True
            copies[expert] += 1
            slots.append(expert)
    return np.array(slots)

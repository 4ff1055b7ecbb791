"""The engines' own planners: copies for the hottest, the heaviest slot to the lightest rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count, check_flag, check_type
from equipoise.errors import EquipoiseError
from equipoise.plan.bounds import check_expert_groups, on_nodes
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan, certify
from equipoise.showing import differing


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """Copies for the largest load per copy, then the heaviest slot to the lightest rank.

    The global policy of DeepSeek's EPLB, with one rule added: no rank holds an expert twice, since
    a second copy there takes a slot and no load.  An expert has at most ``R`` copies; a slot goes
    to the lightest rank with room that lacks its expert, and where there is none, the exchange of
    two slots that keeps both ranks lowest makes room.  Layers without load are dealt out evenly.

    Parameters
    ----------
    allow_same_rank_copies
        A rank may hold two copies of one expert, as in DeepSeek's EPLB.  The answer is EPLB's, slot
        for slot: float32 loads, ranks summed in double (as in SGLang and vLLM), ties to the lowest
        index.
    """

    allow_same_rank_copies: bool = False

    __repr__ = differing

    def __post_init__(self) -> None:
        check_flag("allow_same_rank_copies", self.allow_same_rank_copies)

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places.

        Raises
        ------
        EquipoiseError
            More slots than every expert on every rank would fill.
        """
        slots = _balanced_slots(problem, 1, 1, self.allow_same_rank_copies)
        return certify(problem, slots, planner=repr(self), note=_note(problem))


@dataclass(frozen=True, kw_only=True)
class Hierarchical:
    """Expert groups to nodes, then ``Greedy`` within each node.

    The hierarchical policy of DeepSeek's EPLB, made for models whose router picks whole expert
    groups: a token's experts then sit on few nodes.  It costs balance; use it where traffic between
    nodes costs more.

    Parameters
    ----------
    num_expert_groups
        Number of expert groups, each of consecutive experts; the nodes of the topology divide it.
    allow_same_rank_copies
        As for ``Greedy``.
    """

    num_expert_groups: int
    allow_same_rank_copies: bool = False

    __repr__ = differing

    def __post_init__(self) -> None:
        check_flag("allow_same_rank_copies", self.allow_same_rank_copies)
        object.__setattr__(
            self, "num_expert_groups", check_count("num_expert_groups", self.num_expert_groups)
        )

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places.

        Raises
        ------
        EquipoiseError
            Expert groups that do not divide the experts, nodes that do not divide the groups, more
            slots on a node than every expert of the node on each of its ranks would fill.
        """
        num_nodes = check_type("problem", problem, Problem).topology.num_nodes
        check_expert_groups(problem.num_experts, self.num_expert_groups, num_nodes)
        slots = _balanced_slots(
            problem, self.num_expert_groups, num_nodes, self.allow_same_rank_copies
        )
        plan = certify(problem, slots, planner=repr(self))
        bound = on_nodes(plan.load, problem.topology.num_ranks, self.num_expert_groups, num_nodes)
        cost = np.maximum(bound, plan.bound).sum() / plan.bound.sum() - 1
        price = f"Keeping each expert group on one node raises the bound by {cost:.1%}."
        return replace(plan, note=f"{_note(problem)} {price}".lstrip())


@dataclass(frozen=True, kw_only=True)
class TrtllmGreedy:
    """TensorRT-LLM's planner, slot for slot, ties included.

    As EPLB's global policy, but in double precision on float32 loads, with copies to the highest
    id among equals, slots of equal load by ascending expert, and even counts in a layer without
    load.  It may put an expert twice on a rank; ``Greedy`` balances as well and does not.
    """

    __repr__ = differing

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places."""
        from equipoise.plan.search import _packing_kernels as _kernels  # numba takes long to import

        load = (
            _scaled(check_type("problem", problem, Problem).total)
            .astype(np.float32)
            .astype(np.float64)
        )
        slots = _kernels.trtllm_slots(load, problem.num_slots, problem.topology.num_ranks)
        return certify(problem, slots, planner=repr(self), note=_note(problem))


def check_distinct(problem: Problem, num_nodes: int = 1) -> None:
    """Raise ``EquipoiseError`` if some rank must hold an expert twice."""
    ranks = check_type("problem", problem, Problem).topology.num_ranks // num_nodes
    experts = problem.num_experts // num_nodes
    slots = problem.num_slots // num_nodes
    if slots > experts * ranks:
        where = "" if num_nodes == 1 else "a node's "
        raise EquipoiseError(
            f"{slots} slots for {where}{experts} experts on {ranks} ranks ask for more copies than "
            f"ranks; use at most {experts * ranks * num_nodes} slots in all, or allow same-rank "
            "copies."
        )


def _balanced_slots(
    problem: Problem, num_expert_groups: int, num_nodes: int, allow_same_rank_copies: bool
) -> NDArray[np.int64]:
    """Expert groups to nodes, then every node by itself: slots ``(L, S)``."""
    from equipoise.plan.search import _packing_kernels as _kernels  # numba takes long to import

    load: NDArray[np.floating[Any]] = _scaled(check_type("problem", problem, Problem).total)
    kernel: Callable[..., NDArray[np.int64]] = _kernels.distinct_slots
    if allow_same_rank_copies:
        load, kernel = load.astype(np.float32), _kernels.eplb_slots
    else:
        check_distinct(problem, num_nodes)
    S, R = problem.num_slots, problem.topology.num_ranks
    if num_expert_groups == 1:
        return kernel(load, S, R)
    L, E = load.shape
    group_load = load.reshape(L, num_expert_groups, E // num_expert_groups).sum(axis=2)
    group_order = np.argsort(_kernels.places(group_load, num_nodes), axis=1)
    members = np.arange(E).reshape(num_expert_groups, -1)[group_order].reshape(L, E)  # node by node
    node_load = np.take_along_axis(load, members, axis=1).reshape(L * num_nodes, E // num_nodes)
    chosen = kernel(node_load, S // num_nodes, R // num_nodes)
    return np.take_along_axis(members.reshape(node_load.shape), chosen, axis=1).reshape(L, S)


def _note(problem: Problem) -> str:
    """What these planners do not look at, if it was given."""
    if problem.topology.speed is None and problem.topology.room is None:
        return ""
    return "Planned as if all ranks had the same speed and room; Robust looks at both."


def _scaled(load: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each layer times the power of two that puts its largest load below 1: same plan, in range."""
    exponent = np.frexp(load.max(axis=1, keepdims=True))[1]
    scaled: NDArray[np.float64] = np.ldexp(load, -exponent)
    return scaled

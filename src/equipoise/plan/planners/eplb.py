"""The engines' greedy planners: copy the hottest experts, then fill the lightest ranks first."""

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
    """A planner that copies the experts with the largest load per copy and fills light ranks first.

    This is the global policy of DeepSeek's EPLB with one more rule: no rank holds an expert twice,
    because the second copy would take a slot and no load.  So an expert has at most ``R`` copies,
    and each slot, heaviest first, goes to the lightest rank with room that does not have its
    expert.  If there is no such rank, two slots are exchanged so that both ranks stay as low as
    possible.  In a layer without load, copies are dealt out evenly.

    Parameters
    ----------
    allow_same_rank_copies
        Permission for two copies of an expert on one rank, as in DeepSeek's EPLB.  The result is
        then EPLB's, slot for slot: float32 loads, ranks summed in double precision (as in SGLang
        and vLLM), and ties to the lowest index.
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
    """A planner that puts each expert group on one node and applies ``Greedy`` within each node.

    This is the hierarchical policy of DeepSeek's EPLB, for models whose router chooses whole expert
    groups: the experts of a token are then on few nodes.  It balances less well, so use it where
    traffic between nodes costs more than that.

    Parameters
    ----------
    num_expert_groups
        Number of expert groups, each of consecutive experts; the nodes of the topology divide it.
    allow_same_rank_copies
        Permission for two copies of an expert on one rank; see ``Greedy``.
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
            Expert groups that do not divide the experts, nodes that do not divide the expert
            groups, or more slots on a node than its experts and ranks can fill without repetition.
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
    """A planner that reproduces TensorRT-LLM's, slot for slot, ties included.

    It differs from EPLB's global policy in four ways: it computes in double precision on float32
    loads; among equal experts the highest id gets the copy; slots of equal load are ordered by
    expert; and a layer without load gets even copies.  It may put an expert on a rank twice.
    ``Greedy`` does not, and balances equally well.
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
    """Raise ``EquipoiseError`` if some rank would have to hold an expert twice."""
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
    """Put expert groups on nodes, then plan each node by itself; return the slots ``(L, S)``."""
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
    """Say which inputs these planners ignore, if they were given."""
    if problem.topology.speed is None and problem.topology.room is None:
        return ""
    return "Planned as if all ranks had the same speed and room; Robust looks at both."


def _scaled(load: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale each layer by a power of two to loads below 1, which changes no plan."""
    exponent = np.frexp(load.max(axis=1, keepdims=True))[1]
    scaled: NDArray[np.float64] = np.ldexp(load, -exponent)
    return scaled

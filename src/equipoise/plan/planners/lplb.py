"""A planner of copies along a fixed graph of ranks, as DeepSeek's LPLB needs them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from equipoise.dispatch import MinMax
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan, certify
from equipoise.showing import differing
from equipoise.topology import Topology

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Graph = Literal["ring", "cube", "hypercube", "torus"]
AcrossNodes = Literal["refuse", "price"]
GRAPHS: tuple[Graph, ...] = get_args(Graph)
"""The published graphs: for any number of ranks, for 8, for 16, and for nodes x ranks per node."""


@dataclass(frozen=True, kw_only=True)
class FixedGraph:
    """A planner that places copies only along a graph of ranks, as DeepSeek's LPLB requires.

    Experts are first balanced over the ranks without copies. Then the heaviest experts of every
    rank get one copy each, on the ranks that the graph connects it to. LPLB's dispatcher needs
    this; ``Robust(dispatch="minmax")`` has no such restriction.

    Parameters
    ----------
    graph
        Graph of ranks, one of those that LPLB published.  A cube connects 8 neighbouring ranks and
        a hypercube 16; more ranks form several of them.  A torus connects neighbouring ranks of a
        node, and the same rank of neighbouring nodes.
    across_nodes
        Treatment of a ring, cube or hypercube whose edges cross nodes, over slower links: refuse
        it, or plan and say how much load these edges carry (price).  A torus always crosses nodes.
    """

    graph: Graph
    across_nodes: AcrossNodes = "refuse"

    __repr__ = differing

    def __post_init__(self) -> None:
        if self.across_nodes not in get_args(AcrossNodes):
            raise EquipoiseError(
                f"{argument('across_nodes')} is {self.across_nodes!r}; expected refuse or price."
            )
        if self.graph not in GRAPHS:
            raise EquipoiseError(
                f"There is no graph {self.graph!r}; use one of {', '.join(GRAPHS)}."
            )

    def plan(self, problem: Problem) -> Plan:
        """Balance the experts over the ranks, then place copies along the edges.

        Raises
        ------
        EquipoiseError
            A number of ranks that does not fit the graph, experts that do not divide over the
            ranks, redundant slots that do not divide over the edges or exceed one per expert, or
            edges that cross nodes.
        """
        owner_RD = owners(self.graph, problem.topology)
        crosses_RD = crossing(owner_RD, problem.topology)
        if crosses_RD.any() and self.graph != "torus" and self.across_nodes == "refuse":
            raise EquipoiseError(self._refusal(crosses_RD, problem.topology))
        R, D = owner_RD.shape
        per_edge = _copies_per_edge(problem, R, D)
        start = Problem(problem.total, problem.topology, problem.num_experts)
        home_LRC = Greedy().plan(start).placement.by_rank
        load = problem.total[np.arange(problem.num_layers)[:, None, None], home_LRC]
        heaviest = np.take_along_axis(home_LRC, np.argsort(-load, axis=2, kind="stable"), axis=2)
        # The heaviest experts of a rank are dealt out over its edges, so that no edge has them all.
        L = problem.num_layers
        edge_LRDK = heaviest[:, :, : D * per_edge].reshape(L, R, per_edge, D).swapaxes(2, 3)
        copies = edge_LRDK[:, owner_RD, np.arange(D)].reshape(L, R, D * per_edge)
        slots = np.concatenate([home_LRC, copies], axis=2).reshape(L, problem.num_slots)
        plan = certify(problem, slots, planner=repr(self), dispatch="minmax")
        if not crosses_RD.any() or not per_edge:
            return plan
        return replace(plan, note=_price(plan.placement, problem, crosses_RD, per_edge))

    def _refusal(self, crosses_RD: Bools, topology: Topology) -> str:
        size = topology.num_ranks // topology.num_nodes
        return (
            f"{crosses_RD.sum()} of {crosses_RD.size} edges of the {self.graph} cross nodes of "
            f"{size} ranks, whose links are slower; choose a graph that fits the nodes (a torus "
            "joins them), plan with another planner, or ask what the edges carry "
            f"({argument('across_nodes')} price)."
        )


def owners(graph: str, topology: Topology) -> Ints:
    """Find the ranks whose experts each rank copies, ``(R, D)``: one for each of its ``D`` edges.

    Every column is a permutation of the ranks in which no rank stays in place.

    Raises
    ------
    EquipoiseError
        Ranks that the graph does not fit.
    """
    R, N = topology.num_ranks, topology.num_nodes
    rank = np.arange(R)
    if graph == "ring" and R > 1:
        return np.stack([(rank + 1) % R], axis=1)
    if graph == "cube" and R % 8 == 0:
        in_cube = rank % 8
        opposite = np.where(in_cube < 4, 4 + (in_cube + 2) % 4, in_cube - 4)
        return np.stack([_around(rank, 4), rank - in_cube + opposite], axis=1)
    if graph == "hypercube" and R % 16 == 0:
        return np.stack([_around(rank, 4), rank - rank % 16 + (rank - 4) % 16], axis=1)
    if graph == "torus" and 1 < N < R:
        size = R // N
        return np.stack([(rank + size) % R, rank - rank % size + (rank + 1) % size], axis=1)
    raise EquipoiseError(
        f"{R} ranks in {N} node{'s' * (N != 1)} do not form a {graph}: a ring needs 2 ranks, a "
        "cube multiples of 8, a hypercube multiples of 16, a torus several nodes of several ranks."
    )


def crossing(owner_RD: Ints, topology: Topology) -> Bools:
    """Tell which edges of ``owners`` connect ranks of different nodes, ``(R, D)``."""
    node = topology.node_of_rank
    return np.asarray(node[owner_RD] != node[:, None])


def _price(placement: Placement, problem: Problem, crosses_RD: Bools, per_edge: int) -> str:
    """Write the share of the planned load that crosses nodes, in a sentence."""
    R, D = crosses_RD.shape
    share = MinMax(topology=problem.topology).split(problem.total, placement).shares
    copies = share.reshape(problem.num_layers, R, -1)[:, :, -D * per_edge :]
    over = copies.reshape(-1, R, D, per_edge).sum(axis=(0, 3))[crosses_RD].sum() / share.sum()
    links = problem.topology
    slower = links.node_link.bytes_per_second / links.network_link.bytes_per_second
    return (
        f"{crosses_RD.sum()} of {crosses_RD.size} edges cross nodes and carry {over:.1%} of the "
        f"load, over links where a byte takes {slower:.0f} times as long as within a node."
    )


def _around(rank: Ints, size: int) -> Ints:
    """Find the previous rank in a circle of ``size`` neighbours."""
    return rank - rank % size + (rank - 1) % size


def _copies_per_edge(problem: Problem, num_ranks: int, num_edges: int) -> int:
    """Compute the number of copies on each edge, the same for all; it may be 0."""
    per_rank, left = divmod(problem.num_experts, num_ranks)
    per_edge, odd = divmod(problem.num_slots - problem.num_experts, num_ranks * num_edges)
    if left or odd or num_edges * per_edge > per_rank:
        raise EquipoiseError(
            f"{problem.num_experts} experts in {problem.num_slots} slots do not fit {num_ranks} "
            f"ranks with {num_edges} edges each; expected experts that divide over the ranks, and "
            f"redundant slots in multiples of {num_ranks * num_edges}, at most one an expert."
        )
    return per_edge

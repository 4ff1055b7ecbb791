"""A planner of placements that survive the loss of ranks or nodes, and are balanced too.

How: ``equipoise explain failure``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count
from equipoise.errors import EquipoiseError, argument
from equipoise.plan.planners.eplb import check_distinct
from equipoise.plan.planners.robust import Robust, choose_stages
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan, certify
from equipoise.plan.search.anneal import Terms, fill_up
from equipoise.plan.search.layout import check_room
from equipoise.plan.weigh.coverage import Coverage, coverage, failure_domain_of_rank
from equipoise.showing import differing
from equipoise.topology import Topology

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MISSING_HOME = 1e3  # price in mean rank loads; no gain in balance is worth it


@dataclass(frozen=True, kw_only=True)
class Survivable(Robust):
    """A planner of placements that lose as few experts as possible with lost ranks or nodes.

    An expert survives the loss of any ``losses`` ranks (or nodes) if it has slots on one more.
    With ``losses * E`` redundant slots every expert does.  With fewer slots, every expert survives
    the most losses that the slots allow.  If they allow none, the most experts possible are on two
    ranks (or nodes).  The plan's status says what is guaranteed.  Balance comes second: the search
    of ``Robust`` starts from such a placement and makes no move that weakens the guarantee.

    All parameters of ``Robust`` are parameters of this planner too.

    Parameters
    ----------
    losses
        Number of ranks, or nodes, that may be lost at a time.
    failure_domain
        Failure domain: what is lost as a whole.
    mirrored
        Mirroring: equal parts of the ranks hold the same experts, rank by rank.  ``Robust`` plans
        one part.  An expert is then lost only if all twins of a rank are lost, so most
        combinations of further losses are survived too.  But a rank shares load only with its
        twins, so a dispatcher that follows the load has little to balance.
    """

    losses: int = 1
    failure_domain: Literal["rank", "node"] = "rank"
    mirrored: bool = False

    __repr__ = differing

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("losses", self.losses)
        failure_domain_of_rank(Topology(num_ranks=1), self.failure_domain)
        if self.mirrored and self.cost is not None:
            raise EquipoiseError(
                f"Mirrored plans balance assignments; leave out {argument('cost')} or "
                f"{argument('mirrored')}."
            )

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places.

        Raises
        ------
        EquipoiseError
            Whatever ``Robust`` refuses, or no more ranks (or nodes) than losses; if mirrored, ranks
            that do not divide into equal parts, or too few slots.
        """
        check_distinct(problem)
        if self.mirrored:
            return self._plan_mirrored(problem)
        topology, num_slots = problem.topology, problem.num_slots
        capacity = _home_capacity(num_slots, topology, self.failure_domain, problem.num_experts)
        if self.losses >= len(capacity):
            raise EquipoiseError(
                f"{argument('losses')} is {self.losses} of {len(capacity)} {self.failure_domain}s; "
                "expected fewer, so that some are left. Nodes are set by the topology's "
                f"{argument('ranks_per_node')}."
            )
        # A second home is worth a slot even if not all experts can get one; a third home is not.
        homes = min(self.losses + 1, max(2, int(capacity.sum()) // problem.num_experts))
        terms = Terms(homes=homes, by_node=self.failure_domain == "node", missing=_MISSING_HOME)
        search = self._search(problem, terms)
        stages, finding = choose_stages(search, num_slots, self.proposals)
        start = covered_layout(search.history.mix, num_slots, topology, self.failure_domain, homes)
        slots = fill_up(search.run(stages, start, self.proposals), topology.num_ranks)
        found = coverage(problem.placement(slots), topology, failure_domain=self.failure_domain)
        note = f"{self._promise(found, num_slots)} {finding}"
        return certify(problem, slots, planner=repr(self), dispatch=search.dispatch, note=note)

    def _plan_mirrored(self, problem: Problem) -> Plan:
        parts, topology = self.losses + 1, problem.topology
        num_slots = problem.num_slots // parts
        if num_slots < problem.num_experts:
            raise EquipoiseError(
                f"{problem.num_slots} slots cannot hold {problem.num_experts} experts {parts} "
                "times; to be mirrored, they must."
            )
        part = problem.on(_part(topology, parts, self.failure_domain), num_slots)
        slots = np.tile(super().plan(part).placement.slots, (1, parts))
        promise = (
            f"{_any(self.losses, self.failure_domain)} leaves every expert alive, and so does any "
            f"loss that leaves one of every {parts} twins."
        )
        return certify(problem, slots, planner=repr(self), dispatch=self.dispatch, note=promise)

    def _promise(self, found: Coverage, num_slots: int) -> str:
        """Say what is guaranteed, and how many slots the requested guarantee would take."""
        safe, name = found.guaranteed_losses, self.failure_domain
        if safe >= self.losses:
            return f"{_any(self.losses, name)} leaves every expert alive."
        num_experts = found.homes.shape[1]
        wanted = f"{self.losses * num_experts} redundant slots, {self.losses} an expert"
        if safe:
            return (
                f"{_any(safe, name)} leaves every expert alive; {wanted}, would do so for "
                f"{self.losses}, and there are {num_slots - num_experts}."
            )
        alone, lost = int(found.endangered(1).max()), float(found.expected_lost(1).mean())
        return (
            f"{alone} of {num_experts} experts of a layer live on a single {name}, as few "
            f"as these slots allow: a lost {name} takes {lost:.1f} of them on average; "
            f"{wanted}, would keep all alive."
        )


def _home_capacity(
    num_slots: int, topology: Topology, failure_domain: str, num_experts: int
) -> Ints:
    """Count the different experts of a layer that each rank or node can hold, ``(X,)``."""
    room = topology.distinct_experts(num_slots // topology.num_ranks)
    of_rank = failure_domain_of_rank(topology, failure_domain)
    capacity = np.bincount(of_rank, weights=room).astype(np.int64)
    return np.minimum(capacity, num_experts)


def covered_layout(
    load_LE: Floats, num_slots: int, topology: Topology, failure_domain: str, homes: int
) -> Ints:
    """Make a layout in which as few homes as possible are missing; a home is a rank or a node.

    Every expert gets the same number of homes, the hottest one more if some are left over. Each
    expert in turn takes the ranks or nodes with the most room, the lightest first. This always
    works out (Gale 1957, Ryser 1957: of all demands with the same sum, the most even one can be met
    if any can). Remaining slots go to the largest load per copy.

    Parameters
    ----------
    load_LE
        Loads that decide the order, ``(L, E)``; not changed.
    num_slots, topology, failure_domain
        Slots per layer, the ranks, and whether homes are ranks or nodes.
    homes
        Number of ranks or nodes that every expert should be on.

    Returns
    -------
    Expert ids ``(L, S)``; -1 in slots that a rank has no room for.

    Raises
    ------
    EquipoiseError
        Ranks that have no room for all experts together.
    """
    num_experts = load_LE.shape[1]
    size = num_slots // topology.num_ranks
    of_rank = failure_domain_of_rank(topology, failure_domain)
    room = topology.distinct_experts(size)
    check_room(room, num_experts)
    capacity = _home_capacity(num_slots, topology, failure_domain, num_experts)
    total = min(homes * num_experts, int(capacity.sum()))
    layout = np.full((len(load_LE), topology.num_ranks, size), -1)
    for row, load in zip(layout, load_LE, strict=True):
        order = np.argsort(-load, kind="stable")
        wanted = np.full(num_experts, total // num_experts)
        wanted[order[: total % num_experts]] += 1
        held = np.zeros((topology.num_ranks, num_experts), dtype=bool)
        _deal_homes(load / wanted, wanted, order, room, capacity, of_rank, held)
        _deal_rest(load, room, held)
        for rank, experts in enumerate(held):
            row[rank, : experts.sum()] = np.flatnonzero(experts)
    return layout.reshape(len(load_LE), num_slots)


def _deal_homes(
    share: Floats, wanted: Ints, order: Ints, room: Ints, capacity: Ints, of_rank: Ints, held: Bools
) -> None:
    """Mark each expert's homes in ``held``, ``(R, E)``."""
    carried, free, left = np.zeros(len(room)), room.copy(), capacity.copy()
    for e in order:
        chosen = np.lexsort((np.bincount(of_rank, weights=carried), -left))[: wanted[e]]
        left[chosen] -= 1
        for home in chosen:
            ranks = np.flatnonzero(of_rank == home)
            r = ranks[np.lexsort((carried[ranks], -free[ranks]))[0]]
            held[r, e] = True
            free[r] -= 1
            carried[r] += share[e]


def _deal_rest(load: Floats, room: Ints, held: Bools) -> None:
    """Give copies of the largest load per copy to the lightest ranks until no rank has room."""
    while (free := room > held.sum(axis=1)).any():
        share = load / held.sum(axis=0)
        possible = (~held[free]).any(axis=0)
        e = int(np.where(possible, share, -1).argmax())
        r = int(np.where(free & ~held[:, e], held @ share, np.inf).argmin())
        held[r, e] = True


def _part(topology: Topology, parts: int, failure_domain: str) -> Topology:
    """Return the first of several equal parts of the ranks or nodes."""
    num_failure_domains = len(np.unique(failure_domain_of_rank(topology, failure_domain)))
    size = topology.num_ranks // parts
    speed, room = topology.speed and topology.speed[:size], topology.room and topology.room[:size]
    unlike = topology.speed != (speed and speed * parts) or topology.room != (room and room * parts)
    if num_failure_domains % parts or unlike:
        raise EquipoiseError(
            f"To be mirrored, {num_failure_domains} {failure_domain}s must divide into {parts} "
            "equal parts, speed and room included; they do not."
        )
    together = topology.ranks_per_node if failure_domain == "node" else None
    return replace(topology, num_ranks=size, ranks_per_node=together, speed=speed, room=room)


def _any(number: int, name: str) -> str:
    return f"The loss of any {name}" if number == 1 else f"The loss of any {number} {name}s"

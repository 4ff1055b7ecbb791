"""A planner for locality: experts that tokens use together go to the same ranks and nodes.

How: ``equipoise explain locality``.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import brief, check_number, check_type
from equipoise.dispatch import Shares
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import check_distinct
from equipoise.plan.planners.robust import Robust
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan, Planner, certify
from equipoise.plan.search.anneal import check_search_options, kernel_seed
from equipoise.plan.search.scenarios import (
    Scenarios,
    read_history,
    single_scenario,
    window_scenarios,
)
from equipoise.plan.weigh.traffic import (
    StepTime,
    checked_ids,
    known_ids,
    measure_traffic,
    receive_seconds,
)
from equipoise.showing import differing
from equipoise.trace import TokenIds

if TYPE_CHECKING:
    from equipoise.plan.search._colocate_kernels import Layer

Ints = NDArray[np.int64]

MAX_TOKENS = 1 << 14
"""Largest number of tokens that a search uses; they are taken at equal distances."""

_HOT, _COLD = 1e-3, 1e-5


@dataclass(frozen=True, kw_only=True)
class Colocate:
    """A planner that changes another's placement so that tokens go to fewer ranks and nodes.

    The search is annealing, layer by layer. It exchanges slots, gives redundant slots to other
    experts and exchanges whole ranks between nodes. It looks at the choices of recorded tokens and
    at the windows of the load (as ``Robust`` does). It finds the experts that tokens use together
    from the tokens themselves and needs no expert groups.

    Parameters
    ----------
    tokens
        Choices to plan on: ``Trace.tokens`` of the trace planned on.  Of more than
        ``MAX_TOKENS`` tokens, an even selection is used.
    start
        Planner of the placement to start from; it must plan for an even split.
    price
        Price of locality.  A number is the share by which the busiest rank's load, averaged over
        windows, may rise while communication time is lowered.  With a ``StepTime`` the sum of both
        times is lowered.
    proposals
        Proposals per layer: candidate changes that the search tries.
    seed
        Random seed of the search.
    num_threads
        Number of layers searched at a time; the number of processors if ``None``.  It does not
        change the result.

    Raises
    ------
    EquipoiseError
        Missing tokens, or a price below 0.
    """

    tokens: TokenIds | None = field(repr=False)
    start: Planner = field(default_factory=Robust)
    price: float | StepTime = 0.005
    proposals: int = 1 << 18
    seed: int = 0
    num_threads: int | None = field(default=None, repr=False)

    __repr__ = differing

    def __post_init__(self) -> None:
        if not isinstance(self.price, StepTime):
            check_number("price", self.price, low=0, high=np.inf)
        if self.tokens is not None:
            check_type("tokens", self.tokens, TokenIds)
        if not callable(getattr(self.start, "plan", None)):
            raise EquipoiseError(f"start is {brief(self.start)}; expected a planner.")
        check_search_options(proposals=self.proposals, seed=self.seed, num_threads=self.num_threads)

    def plan(self, problem: Problem) -> Plan:
        """Choose copies and places.

        Raises
        ------
        EquipoiseError
            Whatever ``start`` refuses; tokens of other layers; a start for another dispatcher, or
            with an expert twice on a rank; ranks with less room than slots.
        """
        check_distinct(problem)
        _check_room(problem)
        tokens = self._sample(problem)
        start = self.start.plan(problem)
        _check_start(start)
        slots = start.placement.slots
        if sum(receive_seconds(problem.topology)) > 0:
            slots = self._search(problem, start.placement, tokens)
        finding = _finding(problem, tokens, start.placement, problem.placement(slots))
        return certify(problem, slots, planner=repr(self), note=finding)

    def _sample(self, problem: Problem) -> TokenIds:
        """Take at most ``MAX_TOKENS`` tokens as one step; ``E`` marks a missing choice."""
        ids = checked_ids(self.tokens, problem.num_layers, problem.num_experts)
        chosen = np.linspace(0, len(ids) - 1, min(len(ids), MAX_TOKENS)).round().astype(np.int64)
        return TokenIds(known_ids(ids[chosen], problem.num_experts), np.array([0, len(chosen)]))

    def _search(self, problem: Problem, start: Placement, tokens: TokenIds) -> Ints:
        history = read_history(problem, None)
        make = single_scenario if len(history.load) == 1 else window_scenarios
        scenarios = make(history, np.random.default_rng(self.seed))
        anneal = partial(self._anneal, problem, start, tokens, scenarios)
        with ThreadPoolExecutor(self.num_threads or os.cpu_count()) as pool:
            return np.stack(list(pool.map(anneal, range(problem.num_layers))))

    def _anneal(
        self, problem: Problem, start: Placement, tokens: TokenIds, scenarios: Scenarios, row: int
    ) -> Ints:
        from equipoise.plan.search import _colocate_kernels as kernels  # numba takes long to import

        ids = tokens.ids[:, row]
        ids = ids[(ids < problem.num_experts).any(axis=1)]
        if not len(ids) or not scenarios.weight[row].any():
            return np.asarray(start.slots[row])
        layer = _layer(problem, ids, scenarios, row, self.price)
        timed = isinstance(self.price, StepTime)
        slots, _ = kernels.colocate(
            layer,
            start.slots[row].copy(),  # a read-only array would compile the kernel a second time
            timed,
            0.0 if isinstance(self.price, StepTime) else float(self.price),
            self.proposals,
            _HOT,
            _COLD,
            kernel_seed(self.seed, row),
        )
        return np.asarray(slots)


def _check_room(problem: Problem) -> None:
    room, num_ranks = problem.topology.room, problem.topology.num_ranks
    size = problem.num_slots // num_ranks
    if room is not None and min(room) < size:
        raise EquipoiseError(
            f"Rank {int(np.argmin(room))} has room for {min(room)} experts of a layer and {size} "
            "slots, which hold different ones; use fewer slots."
        )


def _check_start(start: Plan) -> None:
    if start.dispatcher.shares is not Shares.EVEN:
        raise EquipoiseError(
            f"{start.planner} plans for the dispatcher {start.dispatch!r}; start from a plan for "
            "an even split."
        )
    if start.placement.duplicates.any():
        raise EquipoiseError(
            f"{start.planner} puts an expert twice on a rank; start from a planner that does not."
        )


def _finding(problem: Problem, tokens: TokenIds, before: Placement, after: Placement) -> str:
    """Write how many ranks and nodes the planned tokens reach, before and after."""
    old, new = (measure_traffic(p, tokens, problem.topology) for p in (before, after))
    return (
        f"A token planned on reaches {new.ranks_per_token.mean():.2f} ranks and "
        f"{new.nodes_per_token.mean():.2f} nodes; before, it reached "
        f"{old.ranks_per_token.mean():.2f} and {old.nodes_per_token.mean():.2f}."
    )


def _layer(
    problem: Problem,
    ids_DK: NDArray[np.integer],
    scenarios: Scenarios,
    row: int,
    price: float | StepTime,
) -> Layer:
    """Prepare a layer for the search; times are relative to the mean rank's expert time."""
    from equipoise.plan.search._colocate_kernels import Layer

    topology = problem.topology
    node_seconds, rank_seconds = receive_seconds(topology)
    fixed, expert, token, block, per_rank, wire = 0.0, 0.0, 1.0, 1, 1.0, 1.0
    if isinstance(price, StepTime):
        choices = (ids_DK < problem.num_experts).sum(axis=1).mean()
        per_rank = price.step_tokens * choices / topology.num_ranks
        cost, wire = price.cost, price.step_tokens * price.token_bytes
        fixed, expert = cost.fixed_seconds, cost.expert_seconds
        token, block = cost.token_seconds, cost.token_block
    unit = token * per_rank
    return Layer(
        ids_DK=np.ascontiguousarray(ids_DK, dtype=np.int32),
        load_ET=scenarios.load[row] * per_rank,
        risk_ET=scenarios.risk[row] * per_rank,
        weight_T=scenarios.weight[row] / scenarios.weight[row].sum(),
        speed_R=topology.relative_speed,
        node_R=topology.node_of_rank,
        fixed_seconds=fixed / unit,
        expert_seconds=expert / unit,
        token_seconds=token / unit,
        token_block=float(block),
        node_seconds=wire * node_seconds / unit,
        rank_seconds=wire * rank_seconds / unit,
    )

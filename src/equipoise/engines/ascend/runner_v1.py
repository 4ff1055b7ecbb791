"""Model runner V1 of vllm-ascend: every rank has a planning process of its own.

The processes get the same loads and must come to the same slots, since each takes out of its own
plan what its rank sends and receives. So no plan here is made by the clock.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise import __version__
from equipoise.checks import as_array
from equipoise.engines._shared.hook import Hook, Planner, PlanStatus
from equipoise.engines._shared.plugin_log import log_decision, make_ready
from equipoise.engines._shared.start_map import StartOptions, Then
from equipoise.engines.ascend.planning_process import attend
from equipoise.engines.ascend.rules import copies_by_table
from equipoise.errors import EquipoiseError
from equipoise.migration import keep_slots
from equipoise.placement import Placement
from equipoise.plan import Answer, Situation
from equipoise.plan.ahead import plan_ahead

Ints = NDArray[np.int64]

POLICY_TYPE = 2
"""The ``eplb_policy_type`` that we answer for: SwiftBalancer's, which has one load per slot."""

LIMIT_SECONDS = 60.0
"""A plan that takes longer is left out: the server waits for it without a time-out."""

_MOVE_GAIN = 3.2
"""Gain that a move has to bring, in gates divided by ranks.

A sum of loads without windows tells nothing of drift, so a small gain on it is mostly chance. The
fewer the ranks, the larger is each rank's part of the layer, and with it the gain of a good move.
"""

_log = logging.getLogger("vllm.equipoise")


def install(options: StartOptions, planner: Planner | None = None) -> None:
    """Answer for policy 2 in this process, and in planning processes that it starts.

    Parameters
    ----------
    options
        Options that the user set; the time budget is for runner V2 only.
    planner
        Planner that starts from the slots in force, the same on all ranks; by default ``plan``.
    """
    from vllm_ascend.eplb.core.policy.policy_factory import PolicyFactory

    generate = PolicyFactory.generate_policy

    @wraps(generate)
    def generate_policy(policy_type: int, *config: Any) -> Any:
        if policy_type != POLICY_TYPE:
            _log.warning(
                "equipoise plans where eplb_policy_type is %d, and it is %s: vllm-ascend balances "
                "by its own policy.",
                POLICY_TYPE,
                policy_type,
            )
            return generate(policy_type, *config)
        attend()
        return Policy(options, planner)

    PolicyFactory.generate_policy = staticmethod(generate_policy)


class Policy:
    """The policy object of a planning process; pickled, it takes the plug-in with it.

    Parameters
    ----------
    options
        Options that the user set.
    planner
        Planner, as for ``install``.

    Raises
    ------
    EquipoiseError
        Some options have no effect with this runner.
    """

    def __init__(self, options: StartOptions, planner: Planner | None = None) -> None:
        if options.map is not None or options.then is not Then.BALANCE:
            raise EquipoiseError(
                "The options map and then are for vllm-ascend's model runner V2, and this is V1; "
                "leave them out, and give the map to vllm-ascend as expert_map_path."
            )
        self._options, self._planner = options, planner
        planner = planner or partial(plan, gate=options.gate)
        self._hook = Hook(partial(_without_clock, planner), grace_seconds=0.0)
        self._rank = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Return a recipe that also installs the plug-in: a spawned process loads no plug-ins."""
        return _in_planning_process, (self._options, self._planner)

    def begin(self, rank: int) -> None:
        """Log that this process plans, and compile.

        Parameters
        ----------
        rank
            Rank that this process plans for; only the first rank's logs plans, since all are equal.
        """
        self._rank = rank
        _log.info("equipoise %s plans for rank %d in process %d.", __version__, rank, os.getpid())
        any_sizes = Situation(load=np.ones((1, 8)), num_slots=12, num_ranks=4)  # compile the same
        make_ready(_log, self._hook, any_sizes)

    def rebalance_experts(
        self, current_expert_table: ArrayLike, expert_workload: ArrayLike
    ) -> tuple[int, Ints, Ints]:
        """Return new slots; raises nothing, since an exception would end the planning process.

        Parameters
        ----------
        current_expert_table
            Expert ids in force, ``(L, R, C)``.
        expert_workload
            Loads of the slots, ``(L, R, C)``.

        Returns
        -------
        Whether anything changes, 1 or 0; the layers, those with most moves first; expert ids
        ``(L, R, C)``. Experts that stay on a rank stay in their slots, and none is twice on one.
        """
        table = as_array(current_expert_table, "The table in force").astype(np.int64)
        try:
            load = as_array(expert_workload, "Loads")
            new = self._decide(table, load).reshape(table.shape)
        except Exception:  # an engine that says something unforeseen
            _log.exception("equipoise cannot read the situation. The slots stay as they are.")
            new = table
        moves = (new != table).sum(axis=(1, 2))
        return int(moves.any()), np.argsort(-moves, kind="stable"), new

    def _decide(self, table: Ints, load: NDArray[Any]) -> Ints:
        num_layers, num_ranks, size = table.shape
        slots = table.reshape(num_layers, -1)
        decision = self._hook(
            Situation(
                load=fold(load.reshape(slots.shape), slots),
                num_slots=num_ranks * size,
                num_ranks=num_ranks,
                slots=slots,
                max_moves=self._options.max_moves(slots.size),
                time_budget_seconds=LIMIT_SECONDS,
            )
        )
        if decision.status is not PlanStatus.TAKEN or self._rank == 0:
            log_decision(_log, decision)
        return _servable(decision.slots, slots, num_ranks)


def plan(situation: Situation, *, gate: float) -> Answer:
    """Plan for vllm-ascend's tables, which give each rank one copy of an expert.

    Parameters
    ----------
    situation
        Loads, slots and limits.
    gate
        Least drop of the mean peak for which anything moves, in mean rank loads; the gain that a
        move has to bring follows it.
    """
    return plan_ahead(
        situation,
        least_gain=gate,
        move_gain=_MOVE_GAIN * gate / situation.num_ranks,
        copies=copies_by_table,
        num_threads=1,
    )


def fold(load: NDArray[Any], slots: Ints) -> NDArray[np.float64]:
    """Return the loads of experts ``(L, E)`` from those of slots ``(L, S)`` and their experts."""
    folded = np.zeros((len(slots), int(slots.max()) + 1))
    layers, _ = np.indices(slots.shape)
    np.add.at(folded, (layers, slots), load)
    return folded


def _without_clock(planner: Planner, situation: Situation) -> Answer:
    """Plan without a time budget; the situation's only says when the hook stops waiting."""
    return planner(replace(situation, time_budget_seconds=None))


def _servable(new: Ints, old: Ints, num_ranks: int) -> Ints:
    """Return slots that vllm-ascend can serve: experts that stay keep theirs, none is doubled.

    A layer in which an expert would be twice on a rank keeps its old slots.
    """
    before, after = (
        Placement(slots, num_ranks=num_ranks, num_experts=int(old.max()) + 1)
        for slots in (old, new)
    )
    doubled = after.duplicates > 0
    if doubled.any():
        _log.warning(
            "equipoise keeps the slots of layers %s, where an expert would be twice on a rank.",
            np.flatnonzero(doubled).tolist(),
        )
    return np.where(doubled[:, None], old, keep_slots(before, after).slots)


def _in_planning_process(options: StartOptions, planner: Planner | None) -> Policy:
    """Unpickle a policy in a spawned process, into which the plug-in is not loaded yet."""
    attend()
    return Policy(options, planner)

"""Model runner V2 of vllm-ascend: vLLM's balancing, with a policy that vllm-ascend makes.

The first rank plans and tells the others, since a search with a time budget ends differently on
each. A policy that sums the recorded steps itself is given the loads as windows of time.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import numpy as np
import torch

from equipoise.engines._shared.hook import Decision, Hook, Planner
from equipoise.engines._shared.plugin_log import log_decision, make_ready
from equipoise.engines._shared.plugin_options import PluginOptions
from equipoise.plan import Situation, replan

WINDOWS = 8
"""Windows that the recorded steps are summed to, at most: each makes planning slower."""

_FACTORY = "create_eplb_policy"
_CONTROLLER = "vllm_ascend.worker.v2.eplb"
_log = logging.getLogger("vllm.equipoise")


def install(options: PluginOptions) -> None:
    """Answer for every policy that model runner V2 can be given."""
    from vllm.distributed.eplb import eplb_state
    from vllm_ascend.distributed.eplb.policy import factory

    def create_eplb_policy(policy: str, stair_config: Any) -> Policy:  # noqa: ARG001  theirs
        return Policy(options)

    factory.create_eplb_policy = create_eplb_policy
    if _CONTROLLER in sys.modules:  # it has taken the factory by name
        setattr(sys.modules[_CONTROLLER], _FACTORY, create_eplb_policy)
    _leave_out_loads_from_before_moves(eplb_state)


class Policy:
    """The policy object; vllm-ascend's background thread calls it on every rank.

    Parameters
    ----------
    options
        What the user set.
    planner
        What plans from the slots in force; by default ``replan`` for an even split over the copies,
        on one thread, since the engine has use for the others.
    """

    def __init__(self, options: PluginOptions, planner: Planner | None = None) -> None:
        self._options = options
        self._hook = Hook(planner or partial(replan, dispatch="even", num_threads=1))
        self._is_ready = False

    def prepare_local_load_stats(self, load_samples: torch.Tensor) -> Any:
        """Sum the steps of one rank to windows.

        Parameters
        ----------
        load_samples
            Loads of the slots in every step, ``(T, L, S)``.

        Returns
        -------
        vllm-ascend's ``PreparedLoadStats``: ``(W, L, S)``, and the steps of each window, ``(W,)``.
        """
        from vllm_ascend.distributed.eplb.policy import PreparedLoadStats

        windows = load_samples.tensor_split(min(WINDOWS, len(load_samples)))
        return PreparedLoadStats(
            torch.stack([window.sum(dim=0) for window in windows]),
            np.array([len(window) for window in windows]),
        )

    def rebalance_experts(
        self,
        weight: Any,
        num_replicas: int,
        num_groups: int,  # noqa: ARG002  plans are not bound to groups of experts
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: torch.Tensor | None = None,
        **about_ranks: Any,  # noqa: ARG002  STAIR's rule when to plan, and the node of each rank
    ) -> torch.Tensor:
        """The slots to bring into force.

        Parameters
        ----------
        weight
            Loads ``(L, E)``, or ``PreparedLoadStats`` of windows ``(W, L, E)``; all zero when only
            memory is measured.
        num_replicas
            Slots of a layer, ``S``.
        old_global_expert_indices
            Expert ids in force, ``(L, S)``.

        Returns
        -------
        Expert ids ``(L, S)``, int64 on the CPU.
        """
        situation = Situation(
            load=weight if isinstance(weight, torch.Tensor) else weight.values,
            num_slots=num_replicas,
            num_ranks=num_ranks,
            num_nodes=num_nodes,
            slots=old_global_expert_indices,
            time_budget_seconds=self._options.time_budget_seconds,
        )
        from vllm.distributed import get_eplb_group

        group = get_eplb_group().cpu_group
        num_layers = np.shape(situation.load)[-2]
        slots = torch.zeros((num_layers, num_replicas), dtype=torch.int64)
        if group.rank() == 0:
            slots += torch.from_numpy(self.decide(situation).slots)
        torch.distributed.all_reduce(slots, group=group)  # the others add zeros
        return slots

    def decide(self, situation: Situation) -> Decision:
        """Slots for a situation, logged."""
        if not self._is_ready:
            self._is_ready = True
            make_ready(_log, self._hook, situation)
        all_slots = np.shape(situation.load)[-2] * situation.num_slots
        max_moves = int(self._options.max_moves_share * all_slots)
        decision = self._hook(replace(situation, max_moves=max_moves))
        log_decision(_log, decision)
        return decision


def _leave_out_loads_from_before_moves(eplb_state: Any) -> None:
    """Have vllm-ascend start its windows again once a layer has moved.

    It reads all steps by the slots in force at the end. It would leave out those from before a move
    if it knew of the move, but nothing raises the counter that it compares.
    """
    move = eplb_state._move_to_workspace

    @wraps(move)
    def move_and_count(model_state: Any, ep_rank: int) -> Any:
        found = move(model_state=model_state, ep_rank=ep_rank)
        if hasattr(model_state, "_load_mapping_generation"):
            model_state._load_mapping_generation += 1
        return found

    eplb_state._move_to_workspace = move_and_count

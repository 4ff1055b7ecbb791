"""Model runner V2 of vllm-ascend: vLLM's balancing, with a policy that vllm-ascend makes.

The policy is the one for vLLM. A policy that sums the recorded steps itself is given the loads as
windows of time.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

import numpy as np
import torch

from equipoise.engines._shared.start_map import StartOptions
from equipoise.engines.vllm import policy as vllm
from equipoise.engines.vllm.windows import NUM_WINDOWS

_FACTORY = "create_eplb_policy"
_CONTROLLER = "vllm_ascend.worker.v2.eplb"
_COUNTS = "equipoise_counts_moves"


def install(options: StartOptions) -> None:
    """Take the place of every policy that model runner V2 can be given."""
    from vllm.distributed.eplb import eplb_state
    from vllm.distributed.eplb.policy import EPLB_POLICIES
    from vllm_ascend.distributed.eplb.policy import factory

    ours = Policy(options)

    def create_eplb_policy(policy: str, stair_config: Any) -> Policy:  # noqa: ARG001  theirs
        _leave_out_loads_from_before_moves(eplb_state)
        return ours

    EPLB_POLICIES["default"] = ours  # the state looks for this name there, whatever was created

    factory.create_eplb_policy = create_eplb_policy
    if _CONTROLLER in sys.modules:  # it has taken the factory by name
        setattr(sys.modules[_CONTROLLER], _FACTORY, create_eplb_policy)


class Policy(vllm.Policy):
    """The policy object; vllm-ascend's background thread calls it on every rank."""

    def prepare_local_load_stats(self, load_samples: torch.Tensor) -> Any:
        """Sum the steps of one rank into windows.

        Parameters
        ----------
        load_samples
            Loads of the slots in every step, ``(T, L, S)``.

        Returns
        -------
        vllm-ascend's ``PreparedLoadStats``: ``(W, L, S)``, and the steps of each window, ``(W,)``.
        """
        from vllm_ascend.distributed.eplb.policy import PreparedLoadStats

        windows = load_samples.tensor_split(min(NUM_WINDOWS, len(load_samples)))
        return PreparedLoadStats(
            torch.stack([window.sum(dim=0) for window in windows]),
            np.array([len(window) for window in windows]),
        )

    def rebalance_experts(
        self,
        weight: Any,
        *sizes_and_slots: Any,
        last_committed_mean_ratios: Any = None,  # noqa: ARG002  of STAIR's rule when to plan
        rank_node_ids: Any = None,  # noqa: ARG002  the number of nodes is among the sizes
        **named: Any,
    ) -> torch.Tensor:
        """Return the slots to bring into force.

        Parameters
        ----------
        weight
            Loads ``(L, E)``, or ``PreparedLoadStats`` of windows ``(W, L, E)``; all zero when only
            memory is measured.
        sizes_and_slots, named
            Arguments, as for vLLM.

        Returns
        -------
        Expert ids ``(L, S)``, int64 on the CPU.
        """
        load = weight if isinstance(weight, torch.Tensor) else torch.as_tensor(weight.values)
        return super().rebalance_experts(load, *sizes_and_slots, **named)


def _leave_out_loads_from_before_moves(eplb_state: Any) -> None:
    """Make vllm-ascend start its windows again once a layer has moved.

    It reads all steps by the slots in force at the end. It would leave out the steps before a move
    if it knew of the move, but nothing increments the counter that it compares.

    This is done when the policy is created, since vllm-ascend replaces the same function when its
    controller is imported, and does not call the one that it finds there.
    """
    move = eplb_state._move_to_workspace
    if getattr(move, _COUNTS, None) is move:
        return

    @wraps(move)
    def move_and_count(model_state: Any, ep_rank: int) -> Any:
        layer = model_state.pending_result.layer_idx  # ``None`` if no layer has changed
        found = move(model_state=model_state, ep_rank=ep_rank)
        if layer is not None and hasattr(model_state, "_load_mapping_generation"):
            model_state._load_mapping_generation += 1
        return found

    setattr(move_and_count, _COUNTS, move_and_count)  # a wrapper around it would have it as well
    eplb_state._move_to_workspace = move_and_count

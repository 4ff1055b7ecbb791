"""Model runner V2 of vllm-ascend: vLLM's balancing with a policy of its own choice.

One rank plans and tells the others, as in vLLM. A policy that sums the recorded steps itself is given
the loads as windows.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.engines._shared.plugin_options import PluginOptions
from equipoise.engines.vllm import plugin_options as vllm_options
from equipoise.engines.vllm import policy as vllm

if TYPE_CHECKING:
    import torch

WINDOWS = 8
"""Windows that the recorded steps are summed to, at most: each makes planning slower."""

_FACTORY = "create_eplb_policy"
_CONTROLLER = "vllm_ascend.worker.v2.eplb"


def install(options: PluginOptions) -> None:
    """Answer for every policy that model runner V2 can be given."""
    from vllm.distributed.eplb import eplb_state
    from vllm_ascend.distributed.eplb.policy import factory

    def create_eplb_policy(policy: str, stair_config: Any) -> Policy:  # noqa: ARG001  theirs
        return Policy(options)

    factory.create_eplb_policy = create_eplb_policy
    if _CONTROLLER in sys.modules:  # it has taken the factory by name
        setattr(sys.modules[_CONTROLLER], _FACTORY, create_eplb_policy)
    _begin_windows_after_moves(eplb_state)


class Policy(vllm.Policy):
    """vLLM's policy object with vllm-ascend's two additions: windows, and what it knows of ranks.

    Parameters
    ----------
    options
        What the user set.
    """

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(
            vllm_options.PluginOptions(
                max_moves_share=options.max_moves_share,
                time_budget_seconds=options.time_budget_seconds,
            )
        )

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
        sums = load_samples.new_empty((len(windows), *load_samples.shape[1:]))
        for total, window in zip(sums, windows, strict=True):
            total.copy_(window.sum(dim=0))
        return PreparedLoadStats(sums, np.array([len(window) for window in windows]))

    def rebalance_experts(
        self,
        weight: Any,
        *args: Any,
        last_committed_mean_ratios: Any = None,  # noqa: ARG002  of STAIR's rule when to plan
        rank_node_ids: Any = None,  # noqa: ARG002  nodes of equal numbers of ranks, in order
        **kwargs: Any,
    ) -> torch.Tensor:
        """The slots to bring into force: vLLM's contract, with windows as a second kind of load."""
        return super().rebalance_experts(getattr(weight, "values", weight), *args, **kwargs)


def _begin_windows_after_moves(eplb_state: Any) -> None:
    """Have vllm-ascend leave out loads that were recorded before a layer moved.

    It reads all steps by the slots in force at the end, and would leave out those from before if
    it were told of the move; the counter it compares for this is never raised.
    """
    move = eplb_state._move_to_workspace

    @wraps(move)
    def move_and_tell(model_state: Any, ep_rank: int) -> Any:
        found = move(model_state=model_state, ep_rank=ep_rank)
        if hasattr(model_state, "_load_mapping_generation"):
            model_state._load_mapping_generation += 1
        return found

    eplb_state._move_to_workspace = move_and_tell

"""Loads by windows of time, which vLLM sums up before it asks its policy.

vLLM keeps the loads of its last steps slot by slot, in a ring. When it rearranges, it folds them to
experts and adds up steps and ranks. Here the same is done without adding up all steps.
"""

from __future__ import annotations

from typing import Any

import torch

NUM_WINDOWS = 16
"""Windows that the steps are summed to: enough to see a drift, few enough to send at once."""


class RecordedWindows:
    """The loads of every model since vLLM last summed them up."""

    def __init__(self) -> None:
        self._windows: list[torch.Tensor] = []

    def watch(self, eplb_state: Any) -> None:
        """Make vLLM's state, a class of the module, leave its windows here before it rearranges."""
        rearrange = eplb_state.EplbState.rearrange

        def record_and_rearrange(
            state: Any,
            is_profile: bool = False,
            rank_mapping: dict[int, int] | None = None,
            use_last_expert_load: bool = False,
        ) -> Any:
            if not is_profile and not use_last_expert_load:
                self._windows = [_windows(state, model) for model in state.model_states.values()]
            return rearrange(state, is_profile, rank_mapping, use_last_expert_load)

        eplb_state.EplbState.rearrange = record_and_rearrange

    def of(self, load: torch.Tensor) -> torch.Tensor:
        """Return the windows ``(T, L, E)`` that sum to a load ``(L, E)``; without any, the load.

        vLLM does not state which model it asks for, but the sums of the windows identify it.
        """
        for windows in self._windows:
            if windows.shape[1:] == load.shape and bool((windows.sum(dim=0).cpu() == load).all()):
                return windows.cpu()
        return load


def forget_loads_of_moved_layers(eplb_state: Any) -> None:
    """Make vLLM forget the loads of a layer's slots once they hold other experts.

    In asynchronous mode layers move one step after another, and vLLM reads all steps of its window
    by the slots in force at the end, those before the move included.
    """
    move = eplb_state._move_to_workspace

    def move_and_forget(model_state: Any, ep_rank: int) -> None:
        layer = model_state.pending_result.layer_idx
        move(model_state=model_state, ep_rank=ep_rank)
        model_state.expert_load_window[:, layer].zero_()
        model_state.expert_load_pass[layer].zero_()

    eplb_state._move_to_workspace = move_and_forget


def _windows(state: Any, model: Any) -> torch.Tensor:
    """Return a model's loads on all ranks, ``(T, L, E)``, earliest first; the same on every rank.

    Ranks step together, apart from steps in which one has nothing to do and records nothing.
    """
    from vllm.distributed.parallel_state import get_ep_group

    recorded = model.expert_load_window  # (steps, L, S)
    num_steps = len(recorded)
    order = torch.arange(num_steps, device=recorded.device)
    order = (order + state.expert_load_window_step) % num_steps
    parts = order.tensor_split(min(NUM_WINDOWS, num_steps))
    by_slot = torch.stack([recorded[part].sum(dim=0) for part in parts])
    num_experts = model.model.num_logical_experts
    expert = model.physical_to_logical_map.long()
    expert = torch.where(expert < 0, num_experts, expert).expand_as(by_slot)
    windows = by_slot.new_zeros((*by_slot.shape[:2], num_experts + 1))
    windows.scatter_add_(2, expert, by_slot)
    windows = windows[..., :-1].contiguous()
    torch.distributed.all_reduce(windows, group=get_ep_group().device_group)
    return windows

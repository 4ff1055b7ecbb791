"""What a GPU provides to a served model and a CPU does not, as a plug-in of vLLM's processes.

In addition to what ``stand_ins.install`` replaces:

=====================================  ==========================================================
stands in                              for
=====================================  ==========================================================
``_Platform``                          a platform that may balance; the rest is as the CPU says
``map_and_record``                     the kernel that turns expert ids into slots and counts
``apply_own_slots``                    an expert kernel that knows which slots its rank has
``load_and_register``                  the loading of a model by a GPU's runner: it tells the
                                       balancer of the model, and in asynchronous mode starts the
                                       background thread
``update_and_fork``                    nothing of a GPU: processes start in seconds when they are
                                       forked, and a CPU's would import everything again
=====================================  ==========================================================
"""

from __future__ import annotations

import os
from typing import Any

import torch


def register() -> None:
    """The entry point: every process of the server calls it."""
    from tests.integration.vllm import stand_ins

    stand_ins.install()
    _let_a_cpu_balance()
    _map_and_record_on_the_cpu()
    _leave_out_slots_of_other_ranks()
    _register_models()
    _fork()


class _Platform:
    def __init__(self, platform: Any) -> None:
        self._platform = platform

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)

    def is_cuda_alike(self) -> bool:
        return True


def _let_a_cpu_balance() -> None:
    from vllm.config import parallel

    parallel.current_platform = _Platform(parallel.current_platform)


def _map_and_record_on_the_cpu() -> None:
    from vllm.model_executor.layers.fused_moe.router import base_router

    def map_and_record(
        topk_ids: torch.Tensor,
        expert_load_view: torch.Tensor,
        logical_to_physical_map: torch.Tensor,
        logical_replica_count: torch.Tensor,
        record_enabled: torch.Tensor,
        num_unpadded_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The copies of an expert take the tokens of a batch in turn."""
        expert = topk_ids.long()
        token = torch.arange(len(expert))[:, None].expand_as(expert)
        slot = logical_to_physical_map[expert, token % logical_replica_count[expert]]
        if record_enabled:
            counted = slot if num_unpadded_tokens is None else slot[: int(num_unpadded_tokens)]
            counts = torch.bincount(counted.flatten(), minlength=len(expert_load_view))
            expert_load_view += counts[: len(expert_load_view)].to(expert_load_view.dtype)
        return slot.to(topk_ids.dtype)

    base_router.eplb_map_to_physical_and_record = map_and_record


def _leave_out_slots_of_other_ranks() -> None:
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    apply = cpu_moe.CPUUnquantizedExperts.apply

    def apply_own_slots(self: Any, *given: Any, **named: Any) -> None:
        own = named["expert_map"]
        if own is not None:
            local = own[named["topk_ids"].long()]
            here = local >= 0
            named["topk_ids"] = torch.where(here, local, 0).to(named["topk_ids"].dtype)
            named["topk_weights"] = torch.where(here, named["topk_weights"], 0)
        apply(self, *given, **named)

    cpu_moe.CPUUnquantizedExperts.apply = apply_own_slots


def _register_models() -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load = CPUModelRunner.load_model

    def load_and_register(self: Any, load_dummy_weights: bool = False) -> None:
        from vllm.distributed.eplb.eplb_state import EplbState
        from vllm.model_executor.models.interfaces import get_mixture_of_experts_model

        from tests.integration.vllm import stand_ins

        load(self, load_dummy_weights)
        stand_ins.install()  # the runner has put its own events, which measure no time
        if not self.parallel_config.enable_eplb:
            return
        self.parallel_config.eplb_config.communicator = "torch_nccl"
        self.eplb_state = EplbState(self.parallel_config, self.device)
        self._moe_model = get_mixture_of_experts_model(self.model)
        self.eplb_state.add_model(self._moe_model, self.model_config)
        self.eplb_state.device_index = 0
        self.eplb_state.start_async_loop()

    CPUModelRunner.load_model = load_and_register


def _fork() -> None:
    from vllm.platforms.cpu import CpuPlatform

    update = CpuPlatform.check_and_update_config

    def update_and_fork(config: Any) -> None:
        update(config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = staticmethod(update_and_fork)

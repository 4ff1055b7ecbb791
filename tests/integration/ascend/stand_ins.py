"""What an NPU provides and a CPU does not; everything else that balances is vllm-ascend's own code.

=============================  ==================================================================
stands in                      for
=============================  ==================================================================
``torch_npu``                  the package of that name, which is imported and not used here
``torch.npu``                  the number of devices of a host, which Swift asks for
``Tensor.npu``                 moving a tensor to the device
``all_gather_into_tensor``     the NPU's, which takes parts that are stacked as well as end to end
``VLLM_PLUGINS``               names our plug-in alone, so that vLLM does not choose the NPU
packages without ``__init__``  ``vllm_ascend``'s folders of kernels and patches, whose modules are
                               then imported one by one
``determine_expert_map``       vLLM's function, at the place where older releases import it
``group``                      the process group of balancing: vLLM's own of expert parallelism
``Ascend``                     the configuration that is read on the device
``Layer``, ``Model``           a served model: its experts' tensors are moved, nothing is computed
``device_of_state``            0, which a CPU has not; vLLM 0.32 has another name for it than the
                               vLLM that 0.30.0rc2 is made for
=============================  ==================================================================
"""

from __future__ import annotations

import importlib.machinery
import sys
from inspect import signature
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

BARE = (
    "vllm_ascend.ops",
    "vllm_ascend.ops.fused_moe",
    "vllm_ascend.quantization",
    "vllm_ascend.quantization.methods",
    "vllm_ascend.patch",
    "vllm_ascend.patch.platform",
)


def install() -> None:
    """Before anything of vllm-ascend is imported; its release is the one on the path."""
    npu = ModuleType("torch_npu")
    npu.__spec__ = importlib.machinery.ModuleSpec("torch_npu", None)
    sys.modules["torch_npu"] = npu
    torch.npu = SimpleNamespace(device_count=lambda: 8, is_available=lambda: False)
    torch.Tensor.npu = lambda self: self
    gather = torch.distributed.all_gather_into_tensor

    def gather_parts(parts: torch.Tensor, own: torch.Tensor, **how: Any) -> Any:
        return gather(parts.flatten(0, 1) if parts.dim() > own.dim() else parts, own, **how)

    torch.distributed.all_gather_into_tensor = gather_parts
    import vllm_ascend
    from vllm.model_executor.layers.fused_moe import expert_map_manager, layer

    root = Path(vllm_ascend.__file__).parent
    for name in BARE:
        folder = root.joinpath(*name.split(".")[1:])
        if folder.is_dir():
            bare = ModuleType(name)
            bare.__path__ = [str(folder)]
            sys.modules[name] = bare
    layer.determine_expert_map = expert_map_manager.determine_expert_map


class Ascend(SimpleNamespace):
    """The keys of all releases, as a user sets them, and what is read on the device."""

    def __init__(self, heat: int, wait: int, redundant: int, policy: int, path: str | None = None):
        super().__init__(
            dynamic_eplb=path is None,
            eplb_policy_type=policy,
            expert_heat_collection_interval=heat,
            num_iterations_eplb_update=heat,
            algorithm_execution_interval=wait,
            num_wait_worker_iterations=wait,
            num_redundant_experts=redundant,
            init_redundancy_expert=redundant,
            expert_map_path=path,
            expert_map_record_path=None,
            gate_eplb=False,
            enable_fused_mc2=0,
        )


def group(config: Ascend) -> None:
    """Balance in vLLM's group of expert parallelism, by that configuration."""
    from vllm.distributed import get_ep_group
    from vllm_ascend import ascend_config

    ascend_config._ASCEND_CONFIG = config
    ascend_config._is_ascend_config_initialized = lambda config: True
    if (groups := sys.modules.get("vllm_ascend.distributed.parallel_state")) is not None:
        groups._DYNAMIC_EPLB = get_ep_group()


def device_of_state() -> None:
    """Let model runner V2's state be made, which asks for the number of its device."""
    from vllm.distributed.eplb import eplb_state

    eplb_state.EplbState.cuda_device_index = 0


NAMES = (
    "w13_weight_list",
    "w2_weight_list",
    "w13_weight_scale_fp32_list",
    "w2_weight_scale_list",
)
"""Tensors of an expert that was quantised to 8 bits, by slot; all releases move them."""

ONE_MORE = "w2_weight_scale_fp32_list"
"""A tensor that 0.13 has as well."""


class Layer:
    """The experts of a layer on one rank; every number says whose it is."""

    def __init__(self, number: int, rank: int, maps: torch.Tensor, log2phy: torch.Tensor) -> None:
        from vllm_ascend.eplb.adaptor import vllm_adaptor

        self.number, self.ep_rank = number, rank
        self.global_expert_map, self.log2phy = maps, log2phy
        self.local_num_experts = int(maps.max()) + 1
        self.moe_load = torch.zeros(self.local_num_experts, dtype=torch.int64)
        if hasattr(vllm_adaptor, "QuantType"):
            self.quant_type = vllm_adaptor.QuantType.W8A8
        for part, name in enumerate((*NAMES, ONE_MORE)):
            numbers = [self.content(part, expert) for expert in self.held(maps[rank])]
            setattr(self, name, numbers)

    def held(self, own: torch.Tensor) -> list[int]:
        """The experts of the slots by a map ``(E,)``."""
        slots = torch.argsort(torch.where(own < 0, len(own), own))
        return slots[: self.local_num_experts].tolist()

    def content(self, part: int, expert: int) -> torch.Tensor:
        return torch.full((3,), 10_000.0 * part + 1000 * self.number + expert)

    def wrong_slots(self, own: torch.Tensor) -> int:
        """Slots whose numbers are not those of the expert that the map says, ``(E,)``."""
        return sum(
            any(
                not torch.equal(getattr(self, name)[slot], self.content(part, expert))
                for part, name in enumerate(NAMES)
            )
            for slot, expert in enumerate(self.held(own))
        )

    def get_log2phy_map(self) -> torch.Tensor:
        return self.log2phy

    def clear_moe_load(self) -> None:
        self.moe_load.zero_()


class Model:
    """Layers of experts and nothing else; offsets of symmetric quantisation are zero."""

    quant_config = "8 bits"

    def __init__(self, layers: list[Layer]) -> None:
        self.config = SimpleNamespace(num_hidden_layers=len(layers), first_k_dense_replace=0)
        self.model = SimpleNamespace(
            layers=[SimpleNamespace(mlp=SimpleNamespace(experts=layer)) for layer in layers],
            config=self.config,
        )

    def named_parameters(self) -> list[tuple[str, torch.Tensor]]:
        slots = self.model.layers[0].mlp.experts.local_num_experts
        return [
            (f"model.layers.{layer}.mlp.experts.{name}_weight_offset", torch.zeros(slots, slots))
            for layer in range(len(self.model.layers))
            for name in ("w13", "w2")
        ]


def register(model: Model, layers: list[Layer], adaptor: Any) -> None:
    """Make the model known as the release does."""
    if hasattr(adaptor, "register_layer"):
        for layer in layers:
            adaptor.register_layer(layer)
    else:
        from vllm_ascend.eplb.utils import model_register

        known = SimpleNamespace(model_type="qwen3_moe", num_hidden_layers=len(layers))
        asked = list(signature(model_register).parameters)[1:]  # in 0.13, the model's configuration
        model_register(model, *(SimpleNamespace(hf_text_config=known) for _ in asked))

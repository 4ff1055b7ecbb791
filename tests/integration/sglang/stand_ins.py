"""What a GPU and a served model provide; everything else that balances here is SGLang's own code.

==============================  =================================================================
stands in                       for
==============================  =================================================================
``torchvision``                 a package that models with images use, and SGLang's modules name
``torch.cpu.empty_cache``,      what ``torch.cuda`` has and ``torch.cpu`` has not
``is_current_stream_capturing``
``get_device``                  the name of an accelerator, for the recorder
``from_model_config``           the numbers of layers and experts, from a model's class
``configuration``               the arguments of a server, by SGLang's own means for its tests
``Model``                       a served model: its experts' tensors are moved, nothing is computed
``Disk``                        a checkpoint from which an expert is read that died with a rank
==============================  =================================================================
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from typing import Any

import torch


class _AnyNames(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Empty(types.ModuleType):
    """A module in which every name is a class that has every attribute."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _AnyNames(name, (), {})


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> _Empty:
        return _Empty(spec.name)

    def exec_module(self, module: Any) -> None:
        module.__path__ = []


def install() -> None:
    """Import SGLang's modules, which need some help without a GPU."""
    import transformers.utils.import_utils

    transformers.utils.import_utils.is_torchvision_available()  # remembers that it is not
    sys.meta_path.insert(0, _Torchvision())
    torch.cpu.empty_cache = lambda: None
    torch.cpu.is_current_stream_capturing = lambda: False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that a CPU has not
        import sglang.srt.eplb.eplb_manager  # noqa: F401


def configuration(rank: int, num_ranks: int, *, num_layers: int, num_experts: int, **given: Any):
    """The arguments of a server in force in this process, which is a rank of it."""
    from sglang.srt.eplb import expert_distribution, expert_location
    from sglang.srt.runtime_context import get_context, get_parallel

    get_context().override_server_args(
        device="cpu",
        tp_size=num_ranks,
        ep_size=num_ranks,
        attn_dp_size=num_ranks,
        enable_eplb=True,
        expert_distribution_recorder_mode="stat",
        **{"moe_a2a_backend": "mooncake", "ep_dispatch_algorithm": "dynamic", **given},
    ).install()
    get_parallel().override_permanently(tp_rank=rank, moe_ep_rank=rank)
    expert_distribution.get_device = lambda: "cpu"
    layers = expert_location.ModelConfigForExpertLocation(
        num_layers=num_layers, num_logical_experts=num_experts
    )
    expert_location.ModelConfigForExpertLocation.from_model_config = staticmethod(
        lambda model_config: layers
    )


class Model:
    """Two tensors of each MoE layer's experts on this rank; every number says whose it is."""

    def __init__(self, rank: int, moe_layers: range, slots: torch.Tensor, num_ranks: int) -> None:
        self._own = slice(
            rank * slots.shape[1] // num_ranks, (rank + 1) * slots.shape[1] // num_ranks
        )
        self.routed_experts_weights_of_layer = {
            layer: self.numbers(layer, slots) for layer in moe_layers
        }

    def numbers(self, layer: int, slots: torch.Tensor) -> list[torch.Tensor]:
        """What this rank's tensors of a layer hold if the slots hold these experts, ``(L, S)``."""
        own = slots[layer, self._own].double()
        return [
            1000 * part + 100 * layer + own[:, None].repeat(1, width)
            for part, width in ((1, 8), (2, 3))
        ]

    def wrong_slots(self, slots: torch.Tensor) -> int:
        """Slots of this rank whose numbers are not those of their expert, ``(L, S)``."""
        wrong = 0
        for layer, held in self.routed_experts_weights_of_layer.items():
            pairs = zip(held, self.numbers(layer, slots), strict=True)
            wrong += int(torch.stack([(a != b).any(dim=1) for a, b in pairs]).any(dim=0).sum())
        return wrong


class Disk:
    """Reads the experts that no rank alive could send."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.num_read = 0

    def update_weights_from_disk(self, path: str, load_format: str, **filters: Any) -> None:
        from sglang.srt.eplb.expert_location import get_global_expert_location_metadata

        slots = get_global_expert_location_metadata().physical_to_logical_map_cpu
        self.num_read += 1
        for layer, held in self._model.routed_experts_weights_of_layer.items():
            for tensor, numbers in zip(held, self._model.numbers(layer, slots), strict=True):
                tensor.copy_(numbers)

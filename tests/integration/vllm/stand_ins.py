"""What a GPU provides and a CPU does not; everything else that balances here is vLLM's own code.

==========================  =====================================================================
stands in                   for
==========================  =====================================================================
``Event``                   ``torch.Event``: vLLM times and orders device work with it
``Stream``                  the accelerator's stream that the background thread copies on
``enable_eplb``             is set after the configuration is made, which refuses it on a CPU
``communicator``            ``torch_nccl`` over gloo, so that CPU tensors are sent as they are; in
                            asynchronous mode it is set after the configuration is made
``device_index``            0, which a CPU has not, and the background thread asks for
``elastic_group``           a group of ranks made without a world: one of torch.distributed; it has
                            the store, too, by which ranks find each other
``Model``                   a served model: its experts' tensors are moved, nothing is computed
``record``                  what the router counts in a forward pass
==========================  =====================================================================
"""

from __future__ import annotations

import time
from typing import Any

import torch


class Event:
    """A moment on the host's clock; what it would wait for is done already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.at = 0.0

    def record(self, stream: object = None) -> None:
        self.at = time.perf_counter()

    def wait(self, stream: object = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 1000 * (other.at - self.at)


class Stream:
    """Work on a CPU is done when the call returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


def install() -> None:
    torch.Event = Event
    torch.Stream = Stream
    torch.accelerator.set_device_index = lambda index: None
    torch.accelerator.current_accelerator = lambda: torch.device("cpu")
    torch.accelerator.current_stream = Stream
    torch.accelerator.set_stream = lambda stream: None


def configuration(num_ranks: int, num_redundant: int, *, steps: int, use_async: bool) -> Any:
    """vLLM's configuration of ranks that rebalance every few steps, by the loads of those."""
    from vllm.config import ParallelConfig, VllmConfig
    from vllm.config.parallel import EPLBConfig

    parallel = ParallelConfig(tensor_parallel_size=num_ranks, enable_expert_parallel=True)
    parallel.enable_eplb = True
    parallel.eplb_config = EPLBConfig(
        window_size=steps,
        step_interval=steps,
        use_async=use_async,
        communicator="torch_gloo",
    )
    parallel.eplb_config.num_redundant_experts = num_redundant
    parallel.eplb_config.communicator = "torch_nccl"
    config = VllmConfig()
    config.parallel_config = parallel
    return config


def elastic_group(ranks: list[list[int]], rank: int, name: str) -> Any:
    """A group of vLLM that some ranks are in, as its elastic code has it; all ranks call this."""
    from vllm.distributed import parallel_state
    from vllm.distributed.eplb import eplb_state

    group = parallel_state.init_model_parallel_group(ranks, rank, "gloo", group_name=name)
    group.tcp_store_group = group.cpu_group
    eplb_state.StatelessGroupCoordinator = parallel_state.GroupCoordinator
    return group


class ModelConfig:
    """The name of a model."""

    model = "stand-in"

    def compute_hash(self) -> str:
        return self.model


class Model:
    """Two tensors of each layer's experts on this rank; every number says whose it is."""

    num_expert_groups = 1
    num_shared_experts = 0

    def __init__(
        self, rank: int, num_ranks: int, num_layers: int, num_experts: int, num_slots: int
    ):
        self.rank = rank
        self.num_moe_layers = num_layers
        self.num_logical_experts = self.num_routed_experts = num_experts
        self.num_physical_experts = num_slots
        self.num_local_physical_experts = num_slots // num_ranks
        self.num_redundant_experts = num_slots - num_experts
        self.moe_layers: list[Any] = []
        first = torch.arange(num_slots) % num_experts
        self.expert_weights = [self.numbers(layer, first) for layer in range(num_layers)]

    def resize(self, num_ranks: int) -> None:
        """Be one of another number of ranks."""
        self.num_physical_experts = num_ranks * self.num_local_physical_experts
        self.num_redundant_experts = self.num_physical_experts - self.num_logical_experts

    def hold(self, slots: torch.Tensor) -> None:
        """Have the numbers of the experts of these slots, ``(L, S)``, as a loader of weights."""
        for layer, held in enumerate(self.expert_weights):
            for tensor, numbers in zip(held, self.numbers(layer, slots[layer]), strict=True):
                tensor.copy_(numbers)

    def forget(self) -> None:
        """Have the numbers of nobody, as a rank that has just been started."""
        for held in self.expert_weights:
            for tensor in held:
                tensor.fill_(-1)

    def set_eplb_state(self, load: Any, slots: Any, counts: Any) -> None:
        """A served model would read its maps from these."""

    def numbers(self, layer: int, experts: torch.Tensor) -> list[torch.Tensor]:
        """What this rank's tensors of a layer hold if the slots hold these experts, ``(S,)``."""
        own = experts.reshape(-1, self.num_local_physical_experts)[self.rank].double()
        return [
            1000 * part + 100 * layer + own[:, None].repeat(1, width)
            for part, width in ((1, 8), (2, 3))
        ]

    def wrong_slots(self, slots: torch.Tensor) -> int:
        """Slots of this rank whose numbers are not those of their expert, ``(L, S)``."""
        wrong = 0
        for layer, held in enumerate(self.expert_weights):
            pairs = zip(held, self.numbers(layer, slots[layer]), strict=True)
            wrong += int(torch.stack([(a != b).any(dim=1) for a, b in pairs]).any(dim=0).sum())
        return wrong


def record(load_pass: torch.Tensor, slots: torch.Tensor, tokens: torch.Tensor) -> None:
    """Count a step's assignments: the copies of an expert take its tokens in turn.

    ``load_pass`` and ``slots`` are ``(L, S)``, ``tokens`` are those of every expert, ``(L, E)``.
    """
    for layer, row in enumerate(slots):
        for expert, count in enumerate(tokens[layer].tolist()):
            copies = torch.nonzero(row == expert)[:, 0]
            share = count // len(copies) + (torch.arange(len(copies)) < count % len(copies))
            load_pass[layer, copies] += share.to(load_pass.dtype)

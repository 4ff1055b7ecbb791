"""The time of a rank's share of an MoE layer, from the GPU's peak rates and a kernel's efficiency.

``RankCost`` has three constants that hold for one expert shape on one machine. Here they are
derived from the expert's bytes and operations, so that a fit carries over to other shapes, numbers
of ranks and GPUs. The model also has terms that planners leave out: the knee is smooth, tokens
cause memory traffic in addition to matrix products, and a slot costs a little even without load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, brief, check_count, check_number, check_type
from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError

_HOST_SHARPNESS = 8  # host and device run at the same time: about the longer of the two counts


@dataclass(frozen=True)
class Precision:
    """A weight format: bytes per weight with its share of the scales, and the compute units."""

    weight_bytes: float
    units: str


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "bfloat16": Precision(2.0, "bfloat16"),
        "fp8_block": Precision(1 + 4 / 128**2, "fp8"),
        "nvfp4": Precision(1 / 2 + 1 / 16, "fp4"),
        "w4a16_mxfp4": Precision(1 / 2 + 1 / 32, "bfloat16"),
    }
)
"""Weight formats by name."""


@dataclass(frozen=True, kw_only=True)
class ExpertShape:
    """The shape of an expert with three matrices (gate, up, down), and the router's numbers."""

    hidden_size: int
    inter_size: int
    num_experts: int
    top_k: int
    dtype: str

    def __post_init__(self) -> None:
        for name in ("hidden_size", "inter_size", "num_experts", "top_k"):
            object.__setattr__(self, name, check_count(name, getattr(self, name)))
        if self.dtype not in PRECISIONS:
            raise EquipoiseError(
                f"There is no weight format {brief(self.dtype)}; use one of "
                f"{', '.join(PRECISIONS)}."
            )

    @property
    def expert_bytes(self) -> float:
        """Bytes of the weights of one expert in one layer, scales included."""
        return 3 * self.hidden_size * self.inter_size * PRECISIONS[self.dtype].weight_bytes

    @property
    def assignment_flops(self) -> float:
        """Floating-point operations of one token in one expert."""
        return 6.0 * self.hidden_size * self.inter_size


@dataclass(frozen=True, kw_only=True)
class Device:
    """The peak rates of a GPU.

    Parameters
    ----------
    memory_bytes_per_second
        Bandwidth of its memory.
    flops_per_second
        Dense operations per second by format: ``bfloat16``, ``fp8``, ``fp4``.
    """

    memory_bytes_per_second: float
    flops_per_second: Mapping[str, float]

    def __post_init__(self) -> None:
        check_number("memory_bytes_per_second", self.memory_bytes_per_second, low=1e6, high=1e18)
        for units, flops in self.flops_per_second.items():
            check_number(f"flops_per_second of {units}", flops, low=1e6, high=1e24)

    def flops(self, dtype: str) -> float:
        """Return the operations per second for a weight format; ``EquipoiseError`` if unknown."""
        units = PRECISIONS[dtype].units
        if units not in self.flops_per_second:
            raise EquipoiseError(
                f"The device has no {units} rate, which {dtype} weights need; it has "
                f"{', '.join(self.flops_per_second) or 'none'}."
            )
        return self.flops_per_second[units]


@dataclass(frozen=True, kw_only=True)
class KernelCost:
    """The efficiency of a kernel. With a device and an expert shape it gives seconds.

    Parameters
    ----------
    fixed_seconds
        Time per layer that depends on neither load nor shape, such as launches.
    host_seconds
        Time of the host to launch a layer while the device works; 0 in a CUDA graph.
    depth_seconds
        Time per layer for each element of ``hidden_size + inter_size``. The products of one tile
        follow each other along the model width, however small the batch is.
    slot_seconds
        Time for each slot of the rank, with or without load: its entry in the kernel's lists.
    memory_share
        Share of the memory bandwidth at which weights are read.
    flops_share
        Share of the peak rate that the matrix products reach.
    small_flops_share
        Share of the peak rate while the mean load of an expert is below ``small_load``. Kernels
        choose narrow tiles by the mean load, which makes hot experts slow.
    small_load
        Mean load, in assignments, below which tiles are narrow; 0 if the kernel has one tile size.
    assignment_passes
        Number of reads and writes of activations per assignment, of ``hidden_size + 2 inter_size``
        elements of 2 bytes: permuting, quantising, activation, summing up.
    token_passes
        Number of reads and writes per token handled, of ``hidden_size`` elements of 2 bytes.
    sharpness
        Exponent of the knee between reading weights and computing; a large one gives ``max``.
    token_block
        Multiple to which the assignments of an expert are padded.
    """

    fixed_seconds: float
    host_seconds: float = 0.0
    depth_seconds: float = 0.0
    slot_seconds: float = 0.0
    memory_share: float
    flops_share: float
    small_flops_share: float | None = None
    small_load: float = 0.0
    assignment_passes: float = 0.0
    token_passes: float = 0.0
    sharpness: float
    token_block: int = 1

    def __post_init__(self) -> None:
        for name in ("fixed_seconds", "host_seconds", "depth_seconds", "slot_seconds"):
            check_number(name, getattr(self, name), low=0, high=1)
        for name in ("memory_share", "flops_share"):
            check_number(name, getattr(self, name), low=1e-6, high=1)
        if self.small_flops_share is not None:
            check_number("small_flops_share", self.small_flops_share, low=1e-6, high=1)
        for name in ("small_load", "assignment_passes", "token_passes"):
            check_number(name, getattr(self, name), low=0, high=1e6)
        check_number("sharpness", self.sharpness, low=1, high=100)
        object.__setattr__(self, "token_block", check_count("token_block", self.token_block))

    def on(self, device: Device, shape: ExpertShape) -> RankTime:
        """Compute the kernel's constants in seconds, for a device and an expert shape."""
        check_type("device", device, Device)
        memory = device.memory_bytes_per_second
        flops = device.flops(shape.dtype)
        small = self.flops_share if self.small_flops_share is None else self.small_flops_share
        return RankTime(
            fixed_seconds=self.fixed_seconds
            + self.depth_seconds * (shape.hidden_size + shape.inter_size),
            host_seconds=self.host_seconds,
            slot_seconds=self.slot_seconds,
            expert_seconds=shape.expert_bytes / (self.memory_share * memory),
            product_seconds=shape.assignment_flops / (self.flops_share * flops),
            small_product_seconds=shape.assignment_flops / (small * flops),
            small_tokens=self.small_load * shape.num_experts / shape.top_k,
            assignment_seconds=self.assignment_passes
            * 2
            * (shape.hidden_size + 2 * shape.inter_size)
            / memory,
            token_seconds=self.token_passes * 2 * shape.hidden_size / memory,
            sharpness=self.sharpness,
            token_block=self.token_block,
        )


@dataclass(frozen=True, kw_only=True)
class RankTime:
    """Time of a rank's share of one layer, in seconds; ``KernelCost`` explains the terms.

    ``host (+) (fixed + slots + sum over slots with load of expert (+) product * padded load
    + assignment * load + token * tokens)``, where ``a (+) b`` is the smooth maximum
    ``(a**k + b**k) ** (1/k)``.
    """

    fixed_seconds: float
    host_seconds: float
    slot_seconds: float
    expert_seconds: float
    product_seconds: float
    small_product_seconds: float
    small_tokens: float
    assignment_seconds: float
    token_seconds: float
    sharpness: float
    token_block: int

    def seconds(self, load: ArrayLike, tokens: ArrayLike) -> NDArray[np.float64]:
        """Compute the time of ranks, ``(...)`` seconds.

        Parameters
        ----------
        load
            Assignments of each slot of a rank, ``(..., S / R)``.
        tokens
            Number of tokens with a choice on the rank, ``(...)``, each counted once.
        """
        x, handled = as_loads(load), as_loads(np.asarray(tokens)[None])[0]  # maybe a single number
        padded = np.ceil(x / self.token_block) * self.token_block if self.token_block > 1 else x
        is_small = np.asarray(handled < self.small_tokens)
        product = np.where(is_small, self.small_product_seconds, self.product_seconds)
        ratio = padded * (product / self.expert_seconds)[..., None]
        knee = (1 + ratio**self.sharpness) ** (1 / self.sharpness)
        experts = self.expert_seconds * np.where(x > 0, knee, 0).sum(axis=-1)
        device = (
            self.fixed_seconds
            + self.slot_seconds * x.shape[-1]
            + experts
            + self.assignment_seconds * x.sum(axis=-1)
            + self.token_seconds * handled
        )
        if not self.host_seconds:
            return np.asarray(device)
        host = self.host_seconds / device
        return np.asarray(device * (1 + host**_HOST_SHARPNESS) ** (1 / _HOST_SHARPNESS))

    def rank_cost(self, source: str = "") -> RankCost:
        """Reduce to the three constants of planners: a sharp knee, and one time per assignment."""
        return RankCost(
            fixed_seconds=self.fixed_seconds,
            expert_seconds=self.expert_seconds + self.slot_seconds,
            token_seconds=self.product_seconds + self.assignment_seconds,
            token_block=self.token_block,
            source=source,
        )

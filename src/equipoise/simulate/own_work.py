"""Work of a rank for its own tokens: attention, shared experts, dense layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import check_count, check_number
from equipoise.simulate.compute import Device

Phase = Literal["decode", "prefill"]

_MEMORY_SHARE = 0.8  # of the bandwidth, what attention kernels reach; assumed, see OWN_LOG_ERROR
_FLOPS_SHARE = 0.5
OWN_LOG_ERROR = 0.3
"""Deviation of the logarithm of these times: their shares of the peak rates are assumed."""


@dataclass(frozen=True, kw_only=True)
class OwnWork:
    """A model without its routed experts, whole on every rank (attention data-parallel).

    Parameters
    ----------
    num_moe_layers
        Layers that the time is shared over.
    weight_bytes
        Bytes of these weights, all layers; read once a batch.
    token_flops
        Operations of one token with these weights.
    kv_bytes_per_token
        KV cache that a token of the context leaves to be read.
    decode_pair_flops, prefill_pair_flops
        Operations of attention for each pair of a token and one before it, all layers.
    most_context_tokens
        Tokens that one attends to at most, in sparse attention; ``None``: to all.
    """

    num_moe_layers: int
    weight_bytes: float
    token_flops: float
    kv_bytes_per_token: float
    decode_pair_flops: float
    prefill_pair_flops: float
    most_context_tokens: int | None = None

    def __post_init__(self) -> None:
        check_count("num_moe_layers", self.num_moe_layers)
        names = ("weight_bytes", "token_flops", "kv_bytes_per_token")
        for name in (*names, "decode_pair_flops", "prefill_pair_flops"):
            check_number(name, getattr(self, name), low=0, high=1e18)

    def layer_seconds(
        self, tokens: ArrayLike, device: Device, phase: Phase, context_tokens: float
    ) -> NDArray[np.float64]:
        """Time of one MoE layer's part for a rank's own tokens, ``(...)``.

        Parameters
        ----------
        tokens
            Tokens of the rank.
        phase
            A decoded token reads the cache of its context; the tokens of a prompt share it.
        context_tokens
            Tokens before the new one, on average.
        """
        number = np.asarray(tokens, dtype=np.float64)
        memory = _MEMORY_SHARE * device.memory_bytes_per_second
        flops = _FLOPS_SHARE * device.flops_per_second["bfloat16"]
        most = np.inf if self.most_context_tokens is None else self.most_context_tokens
        pairs = number * min(context_tokens, most)
        dense = np.maximum(self.weight_bytes / memory, number * self.token_flops / flops)
        if phase == "decode":
            cache, products = pairs * self.kv_bytes_per_token, pairs * self.decode_pair_flops
        else:
            cache, products = number * self.kv_bytes_per_token, pairs * self.prefill_pair_flops
        attention = np.maximum(cache / memory, products / flops)
        return np.asarray((dense + attention) / self.num_moe_layers)

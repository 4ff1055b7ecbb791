"""What is measured, and inputs that need no file: the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.placement import Placement

TOP_K = 8


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a model's MoE layer, of a batch, and how often each thing is measured.

    Parameters
    ----------
    ranks, experts, redundant
        Letters ``R`` and ``E``; slots in addition to one for each expert.
    tokens
        Tokens of a batch, with ``TOP_K`` choices each.
    layers
        Layers that one graph dispatches.
    width, inner
        Width of the model, and of an expert.
    samples
        Measurements of each kind.
    """

    ranks: int = 32
    experts: int = 256
    redundant: int = 32
    tokens: int = 4096
    layers: int = 58
    width: int = 2048
    inner: int = 768
    samples: int = 200

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert in bfloat16."""
        return 3 * self.width * self.inner * 2


SMALL = Sizes(ranks=4, experts=16, redundant=4, tokens=32, layers=2, width=32, inner=16, samples=3)


def popularity(sizes: Sizes, seed: int) -> NDArray[np.float64]:
    """How often each expert is chosen, skewed as real routing is, ``(layers, E)``."""
    rng = np.random.default_rng(seed)
    return rng.lognormal(0, 1, (sizes.layers, sizes.experts))


def draw_ids(popularity_LE: NDArray[np.float64], num_tokens: int, seed: int) -> Tensor:
    """Expert ids ``(layers, D, K)``, those of a token different."""
    rng = np.random.default_rng(seed)
    score = np.log(popularity_LE)[:, None]
    noisy = score + rng.gumbel(size=(len(score), num_tokens, score.shape[2]))
    return torch.from_numpy(np.argpartition(-noisy, TOP_K, axis=2)[:, :, :TOP_K].copy())


def hot_copies(popularity_LE: NDArray[np.float64], sizes: Sizes, num_ranks: int) -> Placement:
    """Experts dealt out to the ranks, hottest first, and then copies of the hottest.

    Copies are dealt out the other way round, so that they land where little else does.
    """
    order = np.argsort(-popularity_LE, axis=1, kind="stable")
    dealt = np.concatenate([order, order[:, : sizes.redundant][:, ::-1]], axis=1)
    by_rank = dealt.reshape(len(dealt), -1, num_ranks).swapaxes(1, 2)
    return Placement(
        by_rank.reshape(len(dealt), -1), num_ranks=num_ranks, num_experts=sizes.experts
    )


def expert_weights(sizes: Sizes, device: torch.device) -> dict[str, Tensor]:
    """Weights of every expert of a layer, ``(E, ...)``, in bfloat16."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = {
        "gate_up_proj": (sizes.experts, 2 * sizes.inner, sizes.width),
        "down_proj": (sizes.experts, sizes.width, sizes.inner),
    }
    return {
        name: torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
        / sizes.width**0.5
        for name, shape in shapes.items()
    }


def batch(sizes: Sizes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states ``(D, H)``, expert ids and factors ``(D, K)`` of one layer."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(sizes.tokens, sizes.width, generator=generator, dtype=torch.bfloat16)
    ids = draw_ids(popularity(sizes, 0)[:1], sizes.tokens, 1)[0]
    return hidden.to(device), ids.to(device), torch.full(ids.shape, 1 / TOP_K, device=device)


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two results are the same but for rounding: other copies get other numbers of rows."""
    scale = float(other.float().abs().max())
    return torch.allclose(one.float(), other.float(), rtol=0, atol=0.02 * scale)

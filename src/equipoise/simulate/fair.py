"""Steps of a fair router with recorded sizes, which show the effect of chance alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.simulate.routers import sample_topk

_MOST_KEYS = 1 << 17  # tokens x experts up to which a layer is drawn token by token


def fair_steps(
    assignments_TL: NDArray[np.float64], num_experts: int, top_k: int, seed: int
) -> NDArray[np.float64]:
    """Draw the assignments of each expert if tokens choose ``K`` of ``E`` uniformly, ``(T, L, E)``.

    Small steps are drawn token by token. Large steps are drawn with the right mean and variance
    only. A token's choices are different experts, so the variance is ``(E - K) / (E - 1)`` times
    that of independent choices.

    Parameters
    ----------
    assignments_TL
        Number of assignments of each step and layer, ``(T, L)``; rounded to whole tokens.
    num_experts, top_k
        Numbers of experts ``E`` and choices per token ``K``.
    seed
        Random seed.
    """
    rng = np.random.default_rng(seed)
    narrower = np.sqrt((num_experts - top_k) / max(num_experts - 1, 1))
    counts = np.empty((*assignments_TL.shape, num_experts))
    for cell in np.ndindex(assignments_TL.shape):
        tokens = round(float(assignments_TL[cell]) / top_k)
        if tokens * num_experts <= _MOST_KEYS:
            counts[cell] = _drawn(rng, tokens, num_experts, top_k)
            continue
        mean = tokens * top_k / num_experts
        even = np.full(num_experts, 1 / num_experts)
        counts[cell] = mean + narrower * (rng.multinomial(tokens * top_k, even) - mean)
    return counts


def _drawn(
    rng: np.random.Generator, tokens: int, num_experts: int, top_k: int
) -> NDArray[np.int64]:
    if not tokens:
        return np.zeros(num_experts, np.int64)
    seed = int(rng.integers(1 << 62))
    chosen = sample_topk(np.ones(num_experts), num_tokens=tokens, top_k=top_k, seed=seed)
    return np.bincount(chosen.ravel(), minlength=num_experts)

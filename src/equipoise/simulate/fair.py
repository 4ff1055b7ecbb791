"""Steps of a fair router, of the sizes that were recorded: what chance alone does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.simulate.routers import sample_topk

_MOST_KEYS = 1 << 17  # tokens x experts of a layer that are drawn one by one


def fair_steps(
    assignments_TL: NDArray[np.float64], num_experts: int, top_k: int, seed: int
) -> NDArray[np.float64]:
    """Assignments of each expert if every token chose ``K`` of ``E`` evenly, ``(T, L, E)``.

    Small steps are drawn token by token. Of large ones only mean and variance of the choices are
    kept: a token's choices fall on different experts, which takes ``(E - K) / (E - 1)`` off the
    variance of independent ones.

    Parameters
    ----------
    assignments_TL
        Size of each step and layer, ``(T, L)``; rounded to whole tokens.
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

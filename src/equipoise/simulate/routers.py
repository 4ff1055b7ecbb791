"""Synthetic routers: the popularity of each expert, and tokens drawn accordingly.

A router is described by its popularity: probabilities that sum to 1 over the experts of each layer.
Some functions make a popularity, ``(L, E)``; others let it change over steps, ``(T, L, E)``;
``sample_topk`` and ``sample_trace`` draw tokens from it. Equal arguments give equal results.

    hot = hot_expert(64, share=0.6, num_layers=4)
    trace = sample_trace(drift(hot, num_steps=100, std_per_step=0.02, seed=1),
                         num_tokens=512, top_k=8, seed=2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import expert_loads
from equipoise.checks import as_loads, check_count, check_number
from equipoise.errors import EquipoiseError
from equipoise.trace import Provenance, Trace

_MAX_CELLS = 2**30  # numbers in one popularity or counts array, 8 GiB
_MAX_SPREAD = 100
_MOST_NEWTON_STEPS = 100
_ARRIVALS_ERROR = 1e-6
_BLOCK_TOKENS = 4096  # tokens drawn at a time, to bound the memory of random numbers


def uniform(num_experts: int, *, num_layers: int = 1) -> NDArray[np.float64]:
    """Make the popularity of a fair router, ``(L, E)``: all experts are equal."""
    _check_sizes(num_layers=num_layers, num_experts=num_experts)
    return np.full((num_layers, num_experts), 1 / num_experts)


def hot_expert(
    num_experts: int, *, share: float = 0.6, expert: int = 0, num_layers: int = 1
) -> NDArray[np.float64]:
    """Make a popularity with one hot expert, ``(L, E)``: it gets a share, and the rest is fair.

    The hot expert also gets its part of the fair rest: 0.6 + 0.4 / 8 = 0.65 with 8 experts.
    """
    check_number("share", share, low=0, high=1)
    popularity = uniform(num_experts, num_layers=num_layers) * (1 - share)
    if expert not in range(num_experts):
        raise EquipoiseError(f"expert is {expert}; expected one from 0 to {num_experts - 1}.")
    popularity[:, expert] += share
    return popularity


def zipf(
    num_experts: int, *, exponent: float = 1.0, num_layers: int = 1, seed: int = 0
) -> NDArray[np.float64]:
    """Make a Zipf popularity, ``(L, E)``: the ``n``-th expert weighs ``n ** -exponent``.

    Experts are in random order in every layer. Exponent 0 is the fair router.
    """
    _check_sizes(num_layers=num_layers, num_experts=num_experts)
    check_number("exponent", exponent, low=0, high=_MAX_SPREAD)
    weight = np.arange(1, num_experts + 1, dtype=np.float64) ** -exponent
    rows = np.tile(weight / weight.sum(), (num_layers, 1))
    return np.random.default_rng(seed).permuted(rows, axis=1)


def lognormal(
    num_experts: int, *, sigma: float = 1.0, num_layers: int = 1, seed: int = 0
) -> NDArray[np.float64]:
    """Make a lognormal popularity, ``(L, E)``: weights ``exp(sigma * z)``, ``z`` standard normal.

    A ``sigma`` of 0.5 is a mild skew, 1 a medium and 1.5 a heavy one.
    """
    _check_sizes(num_layers=num_layers, num_experts=num_experts)
    check_number("sigma", sigma, low=0, high=_MAX_SPREAD)
    z = np.random.default_rng(seed).standard_normal((num_layers, num_experts))
    return _softmax(sigma * z)


def steady(popularity_LE: ArrayLike, *, num_steps: int) -> NDArray[np.float64]:
    """Repeat the popularity in every step, ``(T, L, E)``; a read-only view."""
    popularity = _as_popularity(popularity_LE, ndim=2)
    _check_sizes(num_steps=num_steps, popularities=popularity.size)
    return np.broadcast_to(popularity, (num_steps, *popularity.shape))


def drift(
    popularity_LE: ArrayLike, *, num_steps: int, std_per_step: float, seed: int = 0
) -> NDArray[np.float64]:
    """Let the logarithms of popularity take a random walk, ``(T, L, E)``; step 0 is the start.

    After ``n`` steps every weight has been multiplied by ``exp(z)``, ``z`` normal with standard
    deviation ``std_per_step * sqrt(n)``. Experts without popularity keep none.
    """
    start = _as_popularity(popularity_LE, ndim=2)
    _check_sizes(num_steps=num_steps, popularities=start.size)
    check_number("std_per_step", std_per_step, low=0, high=_MAX_SPREAD)
    walk = np.random.default_rng(seed).normal(0, std_per_step, (num_steps, *start.shape))
    walk[0] = 0
    with np.errstate(divide="ignore"):
        return _softmax(np.log(start) + walk.cumsum(axis=0))


def shift_domains(
    domains: Sequence[ArrayLike], *, num_steps: int, steps_per_domain: int
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Make traffic that changes from one domain to the next, and starts again after the last.

    Parameters
    ----------
    domains
        Popularity of each domain, ``(L, E)``.

    Returns
    -------
    The popularity ``(T, L, E)``, and the domain of each step, ``(T,)`` strings ``domain 0``,
    ``domain 1``, ...: a label for ``sample_trace``.
    """
    if not len(domains):
        raise EquipoiseError("No domain to shift between; give the popularity of at least one.")
    known = [_as_popularity(domain, ndim=2) for domain in domains]
    if len({domain.shape for domain in known}) > 1:
        raise EquipoiseError(
            f"The domains have shapes {[domain.shape for domain in known]}; "
            "expected the same layers and experts in all."
        )
    check_count("steps_per_domain", steps_per_domain)
    _check_sizes(num_steps=num_steps, popularities=known[0].size)
    domain = np.arange(num_steps) // steps_per_domain % len(known)
    return np.stack(known)[domain], np.array([f"domain {i}" for i in domain])


def choice_shares(popularity: ArrayLike, *, top_k: int) -> NDArray[np.float64]:
    """Compute each expert's long-run share of the choices in a layer, ``(..., E)``.

    A token chooses an expert at most once, so no share exceeds ``1 / K``. The function solves for
    the time at which ``K`` experts have arrived on average in the race of ``sample_topk``, and uses
    this time for every token. The frequency with which a token chooses an expert is then accurate
    within 0.06 for 2 of 8 experts, and within 0.015 for 8 of 64 or more.

    Parameters
    ----------
    popularity
        Probabilities over the last axis, as the routers above make them.
    """
    p = as_loads(popularity)
    _check_choosable(p, top_k)
    p = p / p.sum(axis=-1, keepdims=True)
    if top_k == p.shape[-1]:
        return np.full_like(p, 1 / top_k)
    time = np.full((*p.shape[:-1], 1), float(top_k))
    for _ in range(_MOST_NEWTON_STEPS):  # no overshoot, because arrivals are concave in time
        waiting = np.exp(-time * p)
        missing = top_k - (1 - waiting).sum(axis=-1, keepdims=True)
        if missing.max() < _ARRIVALS_ERROR:
            break
        time += missing / (p * waiting).sum(axis=-1, keepdims=True)
    arrived = 1 - np.exp(-time * p)
    shares: NDArray[np.float64] = arrived / arrived.sum(axis=-1, keepdims=True)
    return shares


def sample_topk(
    popularity_E: ArrayLike, *, num_tokens: int, top_k: int, seed: int = 0
) -> NDArray[np.int64]:
    """Draw the choices of independent tokens, ``(D, K)``: ``K`` different experts each.

    A token chooses its first expert by popularity, its second by popularity among the others, and
    so on; columns have no particular order. With ``top_k`` above 1 a very popular expert gets less
    than ``K`` times its popularity, because a token can choose it only once.
    """
    popularity = _as_popularity(popularity_E, ndim=1)
    _check_choosable(popularity, top_k)
    _check_sizes(num_tokens=num_tokens, top_k=top_k)
    return np.concatenate(_choices(np.random.default_rng(seed), popularity, num_tokens, top_k))


def sample_trace(
    popularity_TLE: ArrayLike,
    *,
    num_tokens: int,
    top_k: int,
    seed: int = 0,
    labels: Mapping[str, NDArray[np.str_]] | None = None,
) -> Trace:
    """Draw ``num_tokens`` independent tokens in every step and layer (see ``sample_topk``).

    This takes about ten nanoseconds for each token, step, layer and expert.

    Parameters
    ----------
    popularity_TLE
        Popularity by step, ``(T, L, E)``, or ``(L, E)`` for a single step; not changed.
    num_tokens, top_k
        Number of tokens in a step, and of choices per token.
    seed
        Random seed.
    labels
        Labels of the trace.

    Raises
    ------
    EquipoiseError
        Popularity that is negative or not finite, or fewer than ``K`` experts with popularity in a
        layer.
    """
    given = as_loads(popularity_TLE)
    popularity = _as_popularity(given[None] if given.ndim == 2 else given, ndim=3)
    _check_choosable(popularity, top_k)
    _check_sizes(num_tokens=num_tokens)
    rng = np.random.default_rng(seed)
    counts = np.zeros(popularity.shape, dtype=np.int64)
    for cell in np.ndindex(popularity.shape[:2]):
        for ids in _choices(rng, popularity[cell], num_tokens, top_k):
            counts[cell] += expert_loads(ids, popularity.shape[2])
    return Trace(
        counts=counts,
        top_k=top_k,
        labels=labels or {},
        provenance=Provenance("synthetic", f"sample_trace(seed={seed})"),
    )


def _choices(
    rng: np.random.Generator, popularity: NDArray[np.float64], num_tokens: int, top_k: int
) -> list[NDArray[np.int64]]:
    """Draw choices in blocks of tokens, by an exponential race (Efraimidis and Spirakis, 2006).

    Every expert runs for a time exponentially distributed with its popularity as the rate; the
    first ``K`` to arrive are chosen.
    """
    with np.errstate(divide="ignore"):
        mean_time = 1 / popularity  # experts without popularity never arrive
    blocks = []
    for start in range(0, num_tokens, _BLOCK_TOKENS):
        size = min(_BLOCK_TOKENS, num_tokens - start)
        arrival = rng.standard_exponential((size, len(popularity))) * mean_time
        blocks.append(np.argpartition(arrival, top_k - 1, axis=1)[:, :top_k])
    return blocks


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weight = np.exp(logits - logits.max(axis=-1, keepdims=True))
    normalised: NDArray[np.float64] = weight / weight.sum(axis=-1, keepdims=True)
    return normalised


def _as_popularity(popularity: ArrayLike, *, ndim: int) -> NDArray[np.float64]:
    """Normalise over experts; refuse other shapes, and layers without any popularity."""
    x = as_loads(popularity)
    if x.ndim != ndim:
        expected = {1: "(experts)", 2: "(layers, experts)", 3: "(steps, layers, experts)"}[ndim]
        raise EquipoiseError(f"The popularity has shape {x.shape}; expected {expected}.")
    total = x.sum(axis=-1, keepdims=True)
    if not total.all():
        raise EquipoiseError("In some layer no expert has any popularity; expected at least one.")
    normalised: NDArray[np.float64] = x / total
    return normalised


def _check_choosable(popularity: NDArray[np.float64], top_k: int) -> None:
    check_count("top_k", top_k)
    choosable = int((popularity > 0).sum(axis=-1).min())
    if top_k > choosable:
        raise EquipoiseError(
            f"A token cannot choose {top_k} different experts where only {choosable} "
            "have any popularity; lower top_k."
        )


def _check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1, and arrays that are too large, before they are allocated."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise EquipoiseError(f"{name} is {size!r}; expected a whole number of at least 1.")
    if math.prod(int(size) for size in sizes.values()) > _MAX_CELLS:
        asked = " x ".join(f"{size} {name.removeprefix('num_')}" for name, size in sizes.items())
        raise EquipoiseError(f"{asked} need more than {8 * _MAX_CELLS >> 30} GiB; use fewer.")

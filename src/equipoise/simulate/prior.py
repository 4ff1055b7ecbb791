"""Assumed routing, drawn from a few numbers that were fitted to recordings of a model family.

    trace = assumed_trace(prior("glm-5.2"), step_tokens=4096, num_steps=500, seed=0)

All results from it are marked as assumed. The model is lognormal: within a layer, the logarithm of
an expert's popularity is normal, with a standard deviation for each layer, and every window adds a
normal number to it. The fit separates the two by moments of the loads: what two windows have in
common belongs to the expert; the rest, minus the noise of counting, belongs to the window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count, check_type
from equipoise.errors import EquipoiseError
from equipoise.simulate.profiles import RoutingPrior, Spread
from equipoise.trace import Provenance, Trace

Floats = NDArray[np.float64]

ASSUMED = "assumed, not recorded"
"""Text that marks results that depend on a prior."""

_FORMAT = "prior"
_MOST_CELLS = 1 << 28
_MOST_DEVIATION = 3.0


def fit_prior(windows: Trace, *, name: str, phase: str, source: str) -> RoutingPrior:
    """Fit a prior to windows of loads, each domain by itself.

    Parameters
    ----------
    windows
        Trace of windows: two or more of each domain, if labelled, with two layers or more.
    name, phase, source
        Fields of the prior; the source includes its licence.

    Raises
    ------
    EquipoiseError
        Too few windows or layers, a layer without load, or an unknown ``top_k``.
    """
    _check_windows(windows)
    assert windows.top_k is not None
    domain = windows.labels.get("domain", np.full(windows.num_steps, ""))
    found = [_moments(windows.counts[domain == d]) for d in dict.fromkeys(domain.tolist())]
    skew, drift, correlation = (np.concatenate(values) for values in zip(*found, strict=True))
    tokens = windows.counts[:, 0].sum(axis=-1).mean() / windows.top_k
    return RoutingPrior(
        name=name,
        phase=phase,
        num_layers=windows.num_layers,
        num_experts=windows.num_experts,
        top_k=windows.top_k,
        window_tokens=max(1, round(float(tokens))),
        skew=_spread(skew),
        drift=_spread(drift),
        layer_correlation=_spread(correlation),
        source=source,
    )


def is_assumed(trace: Trace) -> bool:
    """Tell whether the routing of a trace is assumed, not recorded."""
    return trace.provenance.format == _FORMAT


def assumed_trace(
    prior: RoutingPrior,
    *,
    step_tokens: int,
    num_steps: int,
    num_layers: int | None = None,
    seed: int = 0,
) -> Trace:
    """Draw steps as a model of this family might route them; the trace is marked as assumed.

    The assignments of a step are drawn independently from the popularity in its window.

    Parameters
    ----------
    prior
        Prior of the model family.
    step_tokens
        Number of tokens of a step, all ranks together.
    num_steps
        Number of steps.
    num_layers
        Number of layers; the prior's if ``None``.
    seed
        Random seed.

    Raises
    ------
    EquipoiseError
        Sizes below 1, or too large for memory.
    """
    check_type("prior", prior, RoutingPrior)
    check_count("step_tokens", step_tokens)
    L, E = num_layers or prior.num_layers, prior.num_experts
    check_count("num_layers", L)
    if check_count("num_steps", num_steps) * L * E > _MOST_CELLS:
        raise EquipoiseError(
            f"{num_steps} steps of {L} layers with {E} experts are more than {_MOST_CELLS:,} "
            "numbers; draw fewer steps or layers."
        )
    rng = np.random.default_rng(seed)
    steps_per_window = max(1, round(prior.window_tokens / step_tokens))
    base = _base(prior, L, rng)
    drift = np.maximum(rng.normal(prior.drift.mean, prior.drift.spread, (L, 1)), 0)
    counts = np.empty((num_steps, L, E), np.int64)
    for start in range(0, num_steps, steps_per_window):
        part = counts[start : start + steps_per_window]
        weight = np.exp(base + drift * rng.standard_normal((L, E)))
        share = weight / weight.sum(axis=-1, keepdims=True)
        part[:] = rng.multinomial(step_tokens * prior.top_k, share, (len(part), L))
    return Trace(
        counts=counts,
        top_k=prior.top_k,
        labels={"phase": np.full(num_steps, prior.phase)},
        provenance=Provenance(
            _FORMAT, prior.name, (f"{ASSUMED}: drawn from the prior {prior.name}, {prior.source}",)
        ),
    )


def _base(prior: RoutingPrior, num_layers: int, rng: np.random.Generator) -> Floats:
    """Draw logarithms of popularity, ``(L, E)``, correlated between neighbouring layers."""
    like = prior.layer_correlation.mean
    z = rng.standard_normal((num_layers, prior.num_experts))
    for layer in range(1, num_layers):
        z[layer] = like * z[layer - 1] + np.sqrt(1 - like**2) * z[layer]
    skew = np.maximum(rng.normal(prior.skew.mean, prior.skew.spread, (num_layers, 1)), 0)
    return np.asarray(skew * z)


def _moments(counts_WLE: NDArray[np.integer]) -> tuple[Floats, Floats, Floats]:
    """Estimate skew and drift of each layer, ``(L,)``, and correlation with the next, ``(L - 1,)``.

    A lognormal weight over its mean has variance ``exp(s ** 2) - 1``, and two of them covariance
    ``exp(c) - 1``, with ``s`` and ``c`` of the logarithms.
    """
    counts = counts_WLE.astype(np.float64)
    W, _, E = counts.shape
    size = counts.sum(axis=-1, keepdims=True)
    x = counts / size * E - 1
    chance = (x + 1) * E / size  # the variance of a count is the count
    variance = (x**2 - chance).mean(axis=(0, 2))
    total, own = x.sum(axis=0), (x**2).sum(axis=0)
    common = ((total**2 - own) / (W * (W - 1))).mean(axis=-1)
    log_common, log_all = (np.log1p(np.maximum(m, 0)) for m in (common, variance))
    across = _common_of_layers(x)
    scale = np.sqrt(log_common[:-1] * log_common[1:])
    correlation = np.divide(
        np.log1p(np.maximum(across, -0.99)), scale, out=np.zeros_like(scale), where=scale > 0
    )
    skew, spread = (_of_all_experts(np.sqrt(v), E) for v in (log_common, log_all))
    drift = np.sqrt(np.maximum(spread**2 - skew**2, 0))
    return skew, drift, np.clip(correlation, -1, 1)


def _of_all_experts(deviation: Floats, num_experts: int) -> Floats:
    """Correct deviations for the number of experts.

    A few experts seldom include the most popular of the distribution, and their mean is their own,
    so a layer with few experts shows a smaller deviation.
    """
    known = np.linspace(0, _MOST_DEVIATION, 61)
    z = np.random.default_rng(0).standard_normal((400, num_experts))
    weight = np.exp(known[:, None, None] * z)
    x = weight / weight.mean(axis=-1, keepdims=True) - 1
    shown = np.sqrt(np.log1p((x**2).mean(axis=-1))).mean(axis=-1)
    return np.interp(deviation, np.maximum.accumulate(shown), known)


def _common_of_layers(x_WLE: Floats) -> Floats:
    """Compute the covariance of neighbouring layers over pairs of windows, ``(L - 1,)``."""
    W = len(x_WLE)
    total = x_WLE.sum(axis=0)
    own = (x_WLE[:, :-1] * x_WLE[:, 1:]).sum(axis=0)
    return np.asarray(((total[:-1] * total[1:] - own) / (W * (W - 1))).mean(axis=-1))


def _spread(values: Floats) -> Spread:
    return Spread(round(float(values.mean()), 3), round(float(values.std()), 3))


def _check_windows(windows: Trace) -> None:
    check_type("windows", windows, Trace)
    if windows.top_k is None:
        raise EquipoiseError("The windows do not say how many experts a token chooses; give top_k.")
    domain = windows.labels.get("domain", np.full(windows.num_steps, ""))
    _, sizes = np.unique(domain, return_counts=True)
    if sizes.min() < 2 or windows.num_layers < 2:
        raise EquipoiseError(
            f"{windows.num_steps} windows of {windows.num_layers} layers; expected two windows or "
            "more of each domain, and two layers, to tell what lasts from what passes."
        )
    if not windows.counts.any(axis=-1).all():
        raise EquipoiseError("A window has a layer without load; leave such windows out.")

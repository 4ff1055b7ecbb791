"""Traffic to plan on, and later batches to test the plan on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_type
from equipoise.errors import EquipoiseError
from equipoise.plan.study import hold_out_steps
from equipoise.simulate.routers import choice_shares, drift, lognormal
from equipoise.simulate.step_table import drawn_steps
from equipoise.trace import Provenance, Trace

Floats = NDArray[np.float64]

NUM_WINDOWS = 6
"""Number of windows of generated traffic after the one that is planned on."""

_HOLD_OUT = 0.2  # share of a recording's steps, the latest, that batches are drawn from
_WINDOW_ASSIGNMENTS = 1 << 26  # size of a generated window; large, so that it has no noise
_MOST_STEPS = 128  # largest number of recorded steps that batches are drawn from
_MOST_CELLS = 24_576  # largest number of layers x experts that are computed


@dataclass(frozen=True, eq=False, kw_only=True)
class Traffic:
    """The planned loads, ``(L, E)``, and later steps to draw batches from."""

    fit_LE: NDArray[np.integer]
    held: Trace
    num_layers: int
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=16)
def generated(
    skew: float, change: float, num_experts: int, top_k: int, num_layers: int, seed: int
) -> Traffic:
    """Generate a window to plan on and later ones, without noise; batches add the noise."""
    rows = max(1, min(num_layers, _MOST_CELLS // num_experts))
    start = lognormal(num_experts, sigma=skew, num_layers=rows, seed=seed)
    popularity = drift(start, num_steps=1 + NUM_WINDOWS, std_per_step=change, seed=seed + 1)
    shares = choice_shares(popularity, top_k=top_k)
    counts = np.rint(shares * _WINDOW_ASSIGNMENTS).astype(np.int64)
    held = Trace(
        counts=counts[1:], top_k=top_k, provenance=Provenance("synthetic", "generated routing")
    )
    return Traffic(
        fit_LE=counts[0],
        held=held,
        num_layers=num_layers,
        notes=_some_layers(rows, num_layers),
    )


def recorded(recording: Trace) -> Traffic:
    """Sum the earlier steps of a recording, and keep some of the later ones, for speed."""
    check_type("recording", recording, Trace)
    notes: list[str] = []
    if recording.num_steps == 1:
        fit = held = recording
        notes.append("The recording has one step, which is planned on and drawn from as well.")
    else:
        fit, unseen = hold_out_steps(recording, _HOLD_OUT)
        assert unseen is not None  # a share is held out
        held = unseen
    loaded = fit.total.any(axis=1) & held.total.any(axis=1)
    rows = np.flatnonzero(loaded)
    if not len(rows):
        raise EquipoiseError("No layer of the recording has load in all parts; record more.")
    if len(rows) < recording.num_layers:
        notes.append(f"{recording.num_layers - len(rows)} layers without load are left out.")
    most = max(1, _MOST_CELLS // recording.num_experts)
    notes += _some_layers(min(most, len(rows)), len(rows))
    rows = rows[_evenly(len(rows), most)]
    steps = _evenly(held.num_steps, _MOST_STEPS)
    if len(steps) < held.num_steps:
        notes.append(f"Batches are drawn from {len(steps)} of {held.num_steps} unseen steps.")
    layers = [recording.layer_ids[row] for row in rows.tolist()]
    return Traffic(
        fit_LE=fit.total[rows],
        held=replace(held, tokens=None, source_counts=None).select(layers=layers, steps=steps),
        num_layers=recording.num_layers,
        notes=tuple(notes),
    )


@lru_cache(maxsize=16)
def batches(traffic: Traffic, sizes: tuple[int, ...], number: int, top_k: int, seed: int) -> Floats:
    """Draw batches of each size from the later steps, ``(sizes x number, L, E)``; read-only."""
    draws = [
        drawn_steps(traffic.held, size, top_k=top_k, number=number, seed=seed) for size in sizes
    ]
    loads = np.concatenate(draws)
    loads.flags.writeable = False
    return loads


def _some_layers(rows: int, num_layers: int) -> tuple[str, ...]:
    if rows == num_layers:
        return ()
    return (
        f"{rows} of {num_layers} layers are computed, at equal distances, and stand for all: so "
        "that the answer comes at once.",
    )


def _evenly(number: int, most: int) -> NDArray[np.int64]:
    """Choose positions at equal distances, or all if there are no more than ``most``."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).astype(np.int64))

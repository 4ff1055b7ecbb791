"""The time for which loads stay similar and a plan stays good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.plan.evaluate import evaluate, evaluate_without_balancing
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.problem import Problem
from equipoise.report.drift import unit_vectors
from equipoise.report.labels import traffic_labels
from equipoise.report.page.figures import Figure, Rows, Spec, tips
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]

_MOST_WINDOWS = 64  # largest number of windows that are compared
_MOST_PLANS = 8
_MOST_LAYERS = 16  # largest number of layers that are planned for every window


@dataclass(frozen=True, kw_only=True)
class Age:
    """The gain of plans by their age in windows.

    Parameters
    ----------
    gains
        Mean share of the busiest rank's load that a plan saves, by age in windows. Age 0 is the
        window that the plan was made from. ``None`` if no two windows are this far apart.
    half
        Age at which half of the gain at age 1 is lost; ``None`` if it never is.
    """

    gains: tuple[float | None, ...]
    half: int | None


def windows_of(trace: Trace, window_steps: int) -> Trace:
    """Make at most about 64 windows with equal labels and at least this number of steps."""
    size = max(window_steps, -(-trace.num_steps // _MOST_WINDOWS))
    return replace(trace, source_counts=None, tokens=None).windows(size)


def correlations(windows: Trace) -> Floats:
    """Compute the correlation of loads in each two windows, mean over layers, ``(W, W)``."""
    unit = unit_vectors(windows.counts)
    known = unit.any(axis=2).astype(np.float64)
    total: Floats = np.einsum("ale,ble->ab", unit, unit, optimize=True)
    pairs = np.einsum("al,bl->ab", known, known)
    mean: Floats = np.divide(total, pairs, out=np.zeros_like(total), where=pairs > 0)
    return mean


def by_lag(matrix_WW: NDArray[np.floating], picked_WW: NDArray[np.bool_]) -> list[float | None]:
    """Average the picked pairs of windows by their distance 0, 1, 2, ..."""
    found: list[float | None] = []
    for lag in range(len(matrix_WW)):
        values = np.diagonal(matrix_WW, lag)[np.diagonal(picked_WW, lag)]
        found.append(round(float(values.mean()), 4) if len(values) else None)
    return found


def plan_age(windows: Trace, num_ranks: int, num_slots: int) -> Age | None:
    """Plan on some windows with the planner ``greedy``, and score the plans on all later windows.

    The result is ``None`` for fewer than two windows, or if ranks do not divide the slots.
    """
    W, L = windows.num_steps, windows.num_layers
    if W < 2 or num_slots % num_ranks:
        return None
    rows = np.linspace(0, L - 1, min(L, _MOST_LAYERS)).astype(int)
    some = windows.select(layers=[windows.layer_ids[row] for row in rows])
    topology = Topology(num_ranks)
    plain = evaluate_without_balancing(some, topology).peak.sum(axis=1)
    gains, made = np.zeros((W, W)), np.zeros((W, W), dtype=bool)
    for w in np.linspace(0, W - 2, min(W - 1, _MOST_PLANS)).astype(int):
        if not some.counts[w].any():
            continue
        plan = Greedy().plan(Problem(some.select(steps=np.array([w])), topology, num_slots))
        peak = evaluate(plan.placement, some).peak.sum(axis=1)
        made[w] = plain > 0
        gains[w] = 1 - np.divide(peak, plain, out=np.ones(W), where=plain > 0)
    by_age = by_lag(gains, made)
    return Age(gains=tuple(by_age), half=_half(by_age))


def _half(gains: Sequence[float | None]) -> int | None:
    first = gains[1]
    if first is None or first <= 0:
        return None
    later = enumerate(gains[1:], 1)
    return next((age for age, gain in later if gain is not None and gain <= first / 2), None)


def figures(trace: Trace, window_steps: int, num_ranks: int | None, num_slots: int) -> list[Figure]:
    """Make the figures of drift: correlation by lag and between domains, and the age of a plan."""
    windows = windows_of(trace, window_steps)
    if windows.num_steps < 2:
        return []
    matrix = correlations(windows)
    size = "step" if window_steps == 1 else f"window of {window_steps} steps"
    drawn = [_lag_figure(windows, matrix, size)]
    drawn += [
        _matrix_figure(name, values, matrix)
        for name, values in traffic_labels(windows).items()
        if len(set(values.tolist())) > 1
    ]
    age = None if num_ranks is None else plan_age(windows, num_ranks, num_slots)
    return drawn if age is None else [*drawn, _age_figure(age, size)]


def _lag_figure(windows: Trace, matrix: Floats, size: str) -> Figure:
    every = np.ones(matrix.shape, dtype=bool)
    series = {"all": every}
    for name, values in traffic_labels(windows).items():
        same = values[:, None] == values
        if not same.all():
            series |= {f"same {name}": same, f"another {name}": ~same}
    rows: Rows = [
        {"lag": lag, "windows": name, "correlation": value}
        for name, picked in series.items()
        for lag, value in enumerate(by_lag(matrix, picked))
        if lag and value is not None
    ]
    return Figure(
        name="lag",
        title="Drift",
        says=f"Correlation of the loads of a layer's experts, from 1 (the same) to 0 (unrelated), "
        f"by lag in units of a {size}: a plan lasts for as long as the line stays high.",
        spec=_line(rows, "lag", "lag", "correlation", "correlation", series="windows"),
    )


def _matrix_figure(name: str, values: NDArray[np.str_], matrix: Floats) -> Figure:
    kinds = list(dict.fromkeys(values.tolist()))
    apart = ~np.eye(len(matrix), dtype=bool)
    rows: Rows = []
    for a in kinds:
        for b in kinds:
            picked = (values == a)[:, None] & (values == b) & apart
            if picked.any():
                correlation = round(float(matrix[picked].mean()), 4)
                rows.append({"of": a, "and": b, "correlation": correlation})
    axis: Spec = {"type": "nominal", "sort": None, "axis": {"title": None, "labelLimit": 110}}
    cell = {"x": {"field": "of", **axis}, "y": {"field": "and", **axis}}
    colour = {
        "field": "correlation",
        "type": "quantitative",
        "scale": {"domain": [0, 1], "range": ["$even", "$after"], "clamp": True},
        "legend": None,
    }
    text = {"field": "correlation", "type": "quantitative", "format": ".2f"}
    return Figure(
        name=f"between-{name}",
        title=f"Between one {name} and another",
        says=f"Correlation of the experts' loads: where it is near 0, a plan made for one {name} "
        "does not serve the other.",
        spec={
            "data": {"values": rows},
            "width": "container",
            "height": 240,
            "encoding": cell,
            "layer": [
                {"mark": "rect", "encoding": {"color": colour, "tooltip": tips("of", "and")}},
                {"mark": {"type": "text", "color": "$ink"}, "encoding": {"text": text}},
            ],
        },
    )


def _age_figure(age: Age, size: str) -> Figure:
    rows: Rows = [{"age": i, "gain": gain} for i, gain in enumerate(age.gains) if gain is not None]
    lost = "half of the gain at age 1 is not lost within this recording"
    if age.half is not None:
        lost = f"half of the gain at age 1 is lost at age {age.half}"
    return Figure(
        name="age",
        title="The age of a plan",
        says=f"Share of the busiest rank's load that plans of the planner greedy remove, by age in "
        f"units of a {size}. Age 0 is the loads they were made from, age 1 the first unseen ones; "
        f"{lost}.",
        spec=_line(rows, "age", "age", "gain", "taken off the busiest rank", form=".0%"),
    )


def _line(
    rows: Rows, x: str, x_title: str, y: str, y_title: str, series: str = "", form: str = ".2f"
) -> Spec:
    encoding: Spec = {
        "x": {"field": x, "type": "quantitative", "title": x_title, "axis": {"tickMinStep": 1}},
        "y": {"field": y, "type": "quantitative", "title": y_title, "axis": {"format": form}},
        "tooltip": tips(x, *([series] if series else []), y),
    }
    mark: Spec = {"type": "line", "point": {"size": 16}}
    if series:
        colours = {"range": ["$soft", "$after", "$before"]}
        legend = {"title": None, "orient": "top"}
        encoding["color"] = {
            "field": series, "type": "nominal", "sort": None, "scale": colours, "legend": legend,
        }  # fmt: skip
    else:
        mark["color"] = "$after"
    return {
        "data": {"values": rows},
        "width": "container",
        "height": 240,
        "mark": mark,
        "encoding": encoding,
    }

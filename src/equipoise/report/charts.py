"""The charts of a page: what a summary says of layers and experts, in the pixels of an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log2, log10

from equipoise.report.summary import ExpertCurves, TraceSummary

_WIDTH, _HEIGHT = 720, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 30, 46

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line: an SVG path, its points with what their tooltips say, and a CSS class."""

    name: str
    style: str
    path: str
    marks: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True)
class Chart:
    """An SVG chart, in its own pixels: ticks as (position, text), areas below lines."""

    label: str
    x_title: str
    y_title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Series, ...]
    areas: tuple[Series, ...] = ()
    width: int = field(default=_WIDTH, init=False)
    height: int = field(default=_HEIGHT, init=False)
    left: int = field(default=_LEFT, init=False)
    right: int = field(default=_WIDTH - _RIGHT, init=False)
    bottom: int = field(default=_HEIGHT - _BOTTOM, init=False)


@dataclass(frozen=True)
class _Scale:
    """Data to pixels, linearly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)


def layer_chart(summary: TraceSummary, after: TraceSummary | None) -> Chart:
    """Imbalance of every layer over the band that chance explains; of experts without ranks."""
    layers = summary.layers
    ids = [x.layer for x in layers]
    if summary.balance is None:
        values: list[float | None] = [x.expert_imbalance for x in layers]
        return _chart_of_layers(ids, [("hottest expert", "before", values)], None, "load over mean")
    name = "mean over steps" if after is None else "before"
    tail = "95th percentile" if after is None else "95th percentile before"
    lines = [
        (tail, "p95", [None if x.balance is None else x.balance.p95 for x in layers]),
        (name, "before", _imbalances(summary)),
    ]
    if after is not None:
        lines.append(("after", "after", _imbalances(after)))
    balances = [x.balance for x in layers]
    band = [(b.floor, b.floor + 2 * b.floor_std) if b else (1.0, 1.0) for b in balances]
    return _chart_of_layers(ids, lines, band, "imbalance (max/mean)")


def _imbalances(summary: TraceSummary) -> list[float | None]:
    return [None if x.balance is None else x.balance.imbalance for x in summary.layers]


def _chart_of_layers(
    ids: Sequence[int],
    lines: Sequence[tuple[str, str, Sequence[float | None]]],
    band: Sequence[tuple[float, float]] | None,
    y_title: str,
) -> Chart:
    known = [v for _, _, values in lines for v in values if v is not None]
    y_values = _ticks(1.0, max([1.1, *known, *(high for _, high in band or [])]))
    x = _Scale(0, max(1, len(ids) - 1), _LEFT, _WIDTH - _RIGHT)
    y = _Scale(1.0, y_values[-1], _HEIGHT - _BOTTOM, _TOP)
    drawn = []
    for name, style, values in lines:
        points = [None if v is None else (x(i), y(v)) for i, v in enumerate(values)]
        marks = [
            (*point, f"layer {layer}: {value:.2f} {name}")
            for point, layer, value in zip(points, ids, values, strict=True)
            if point is not None and value is not None and style != "p95"
        ]
        drawn.append(Series(name, style, _path(points), tuple(marks)))
    areas = []
    if band is not None:
        lower = [(x(i), y(1.0)) for i in range(len(ids))]
        upper = [(x(i), y(high)) for i, (_, high) in enumerate(band)]
        areas.append(
            Series("within chance (noise floor + 2 sd of a step)", "floor", _area(lower, upper))
        )
    every = max(1, ceil(len(ids) / 16))
    return Chart(
        label=f"{y_title} of {len(ids)} layers",
        x_title="layer",
        y_title=y_title,
        x_ticks=tuple((x(i), str(ids[i])) for i in range(0, len(ids), every)),
        y_ticks=tuple((y(v), f"{v:g}") for v in y_values),
        lines=tuple(drawn),
        areas=tuple(areas),
    )


def expert_chart(curves: ExpertCurves) -> Chart:
    """Sorted expert loads, the position on a logarithmic axis because the head is what matters."""
    size = len(curves.median)
    x = _Scale(0, max(1.0, log2(size)), _LEFT, _WIDTH - _RIGHT)
    y_values = _ticks(0.0, max(1.0, curves.steepest[0]))
    y = _Scale(0.0, y_values[-1], _HEIGHT - _BOTTOM, _TOP)

    def points(values: Sequence[float]) -> list[Point]:
        return [(x(log2(i + 1)), y(v)) for i, v in enumerate(values)]

    steepest = points(curves.steepest)
    tips = tuple(
        (*steepest[i], f"layer {curves.steepest_layer}, expert {i + 1} of {size} by load: {v:.2f}×")
        for i, v in enumerate(curves.steepest[:16])
    )
    even = [(x(0), y(1.0)), (x(log2(size)), y(1.0))]
    return Chart(
        label=f"load of {size} experts from hottest to coldest",
        x_title="experts, hottest first",
        y_title="load over mean",
        x_ticks=tuple((x(k), str(2**k)) for k in range(floor(log2(size)) + 1)),
        y_ticks=tuple((y(v), f"{v:g}") for v in y_values),
        lines=(
            Series("even", "even", _path(even)),
            Series("median layer", "median", _path(points(curves.median))),
            Series(f"layer {curves.steepest_layer}", "before", _path(steepest), tips),
        ),
        areas=(Series("8 of 10 layers", "spread", _area(points(curves.low), points(curves.high))),),
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from ``low`` to one not below ``high``."""
    raw = (high - low) / 5
    unit = 10.0 ** floor(log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    return [round(low + i * step, 10) for i in range(ceil((high - low) / step - 1e-9) + 1)]


def _path(points: Sequence[Point | None]) -> str:
    """An SVG path through the points, broken where one is missing."""
    parts = []
    pen = "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            parts.append(f"{pen}{point[0]:g} {point[1]:g}")
            pen = "L"
    return "".join(parts)


def _area(lower: Sequence[Point], upper: Sequence[Point]) -> str:
    return _path([*upper, *reversed(lower)]) + "Z"

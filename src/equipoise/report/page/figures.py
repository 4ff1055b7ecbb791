"""The figures of a page, as specifications of Vega-Lite.

Colours are names that start with ``$``; the page or the export replaces them by its theme's.
If the page computes a figure's rows from the reader's selection, the data source is called
``rows``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.report.heat import starts
from equipoise.report.page.laid import Laid
from equipoise.report.page.part import Part
from equipoise.trace import MAP_LABEL

Spec = dict[str, Any]
Rows = list[dict[str, Any]]

SERIES = ("$before", "$after", "$third", "$fourth", "$fifth", "$sixth")
_EDGES = (0.3, 0.8, 1.0, 1.2, 2.0, 4.0)  # edges of the colour classes of load over mean
_MULTIPLE_COLOURS = ("$cold", "$cool", "$even", "$warm", "$hot", "$fire")
_IMBALANCE_EDGES = (1.0, 1.1, 1.3, 2.0, 4.0)
_IMBALANCE_COLOURS = ("$even", "$warm", "$hot", "$glow", "$fire")
_EXCESS_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 4, 8, 16)
_LAST = "busiest"  # the column of a heat map after those of the ranks; page.js says the same
_MOST_STEPS = 256  # largest number of steps side by side that can be distinguished
_MOST_MARKS = 24
_NUMBER_WIDTH = 17  # pixels of a cell in which the number of an expert can be read


@dataclass(frozen=True, kw_only=True)
class Figure(Part):
    """One figure.

    Parameters
    ----------
    spec
        Specification in Vega-Lite.
    heavy
        Flag that it has thousands of marks, which are drawn on a canvas.
    reads
        Fields by which the arrow keys go through its points, that of the line and that along it;
        the points are the data source ``rows``, each with a sentence ``_said``. ``None``: only its
        table can be read with the keyboard.
    """

    spec: Spec
    heavy: bool = False
    reads: tuple[str, str] | None = None


def heat(laid: Laid, number: int, layers: Sequence[int], rows: Rows | None = None) -> Figure:
    """Make the heat map of layers by ranks, which the page fills."""
    ranks = _axis("rank", "rank")
    ranks["axis"]["labelExpr"] = f"datum.label === '{_LAST}' ? '' : datum.label"
    cell: Spec = {"x": {**ranks, "sort": None}, "y": _layer_axis(layers)}
    above: Spec = {  # this word is too long to stand among the numbers of the ranks
        "type": "text",
        "text": _LAST,
        "align": "right",
        "y": -6,
        "color": "$soft",
        "fontSize": 11,
    }
    filled = {
        "field": "value",
        "type": "quantitative",
        "scale": {"domain": list(_EDGES), "range": list(_MULTIPLE_COLOURS), "clamp": True},
        "legend": _legend("times the mean"),
    }
    return Figure(
        name=f"heat-{number}",
        title=laid.name,
        says="A cell is the load of a rank in a layer over the mean of its step; the column "
        "“busiest” is what every layer waits for, and its mean is the imbalance above.",
        heavy=True,
        spec={
            "data": {"name": "rows", "values": rows or []},
            "width": "container",
            "height": _height(len(layers)),
            "layer": [
                {"mark": "rect", "encoding": {**cell, "color": filled}},
                {
                    "data": {"name": "at", "values": []},
                    "mark": {"type": "rect", "filled": False, "stroke": "$ink", "strokeWidth": 2},
                    "encoding": cell,
                },
                {"data": {"values": [{}]}, "mark": above, "encoding": {"x": {"value": "width"}}},
            ],
        },
    )


def experts(layers: Sequence[int], copies: str, rows: Rows | None = None) -> Figure:
    """Make the heat map of layers by experts, which the page fills, by id or by load.

    Parameters
    ----------
    copies
        Name of the layout whose copies are shown as dots; empty if no expert has copies.
    rows
        Cells, for a picture.
    """
    cell: Spec = {
        "x": {**_axis("expert", "expert"), "sort": None},
        "y": _layer_axis(layers),
    }
    colour = {
        "field": "value",
        "type": "quantitative",
        "scale": {"domain": list(_EDGES), "range": list(_MULTIPLE_COLOURS), "clamp": True},
        "legend": _legend("times the mean"),
    }
    size = {
        "field": "copies",
        "type": "quantitative",
        "legend": None,
        "scale": {"type": "linear", "domain": [2, 8], "range": [4, 40], "clamp": True},
    }
    dots = f"; dots are experts with more than one copy, {copies}" if copies else ""
    return Figure(
        name="experts",
        title="Layers by experts",
        says=f"A cell is the load of an expert over the mean expert of its layer, over all "
        f"steps{dots}.",
        heavy=True,
        spec={
            "data": {"name": "rows", "values": rows or []},
            "width": "container",
            "height": _height(len(layers)),
            "layer": [
                {
                    "mark": "rect",
                    "encoding": {
                        **cell,
                        "color": colour,
                        "tooltip": tips("layer", "id", "value", "copies"),
                    },
                },
                {
                    "transform": [{"filter": "datum.copies > 1"}],
                    "mark": {"type": "circle", "color": "$ink", "opacity": 0.9},
                    "encoding": {**cell, "size": size},
                },
            ],
        },
    )


def placement_map(
    laid: Laid, before: str, rows: Rows | None = None, links: Rows | None = None
) -> Figure:
    """Make the map of one layer's slots on every rank, which the page fills.

    Parameters
    ----------
    laid
        Layout that is a placement.
    before
        Name of the layout that moves are counted from; empty if there is none with equal slots.
    rows, links
        Slots, and lines between the copies of an expert, for a picture.
    """
    cell: Spec = {"x": {**_axis("rank", "rank"), "sort": None}, "y": _axis("slot", "slot of rank")}
    colour = {
        "field": "value",
        "type": "quantitative",
        "scale": {"domain": list(_EDGES), "range": list(_MULTIPLE_COLOURS), "clamp": True},
        "legend": _legend("times the mean slot"),
    }
    middle = {"bandPosition": 0.5}
    link = {
        "x": {**cell["x"], **middle},
        "y": {**cell["y"], **middle},
        "x2": {"field": "rank2", **middle},
        "y2": {"field": "slot2", **middle},
    }
    moved = f" Outlined slots hold another expert than in “{before}”." if before else ""
    has_room = f"width >= {_NUMBER_WIDTH * laid.layout.num_ranks}"
    number = {"field": "expert", "type": "nominal"}
    return Figure(
        name="placement",
        title=f"Where the experts live, {laid.name}",
        says=f"A cell is a slot with its expert and the load of that copy; lines link the "
        f"copies of one expert.{moved}",
        heavy=True,
        spec={
            "data": {"name": "rows", "values": rows or []},
            "width": "container",
            "height": int(np.clip(22 * laid.layout.num_slots / laid.layout.num_ranks, 90, 460)),
            "layer": [
                {
                    "mark": "rect",
                    "encoding": {
                        **cell,
                        "color": colour,
                        "tooltip": tips("rank", "slot", "expert", "copies", "value"),
                    },
                },
                {
                    "transform": [{"filter": "datum.moved"}],
                    "mark": {"type": "rect", "filled": False, "stroke": "$ink"},
                    "encoding": cell,
                },
                {
                    "data": {"name": "links", "values": links or []},
                    "mark": {"type": "rule", "color": "$after", "opacity": 0.6},
                    "encoding": link,
                },
                {
                    "mark": {
                        "type": "text",
                        "color": "$ink",
                        "fontSize": {"expr": f"{has_room} ? 9 : 0"},
                    },
                    "encoding": {**cell, "text": number},
                },
            ],
        },
    )


def heat_rows(matrix_LC: NDArray[np.float64], layers: Sequence[int], ranks: Sequence[str]) -> Rows:
    """Make the cells of a heat map whose last column is the busiest rank."""
    names = [*ranks, _LAST]
    return [
        {"layer": layer, "rank": name, "value": round(float(value), 4)}
        for layer, row in zip(layers, matrix_LC, strict=True)
        for name, value in zip(names, row, strict=True)
    ]


def expert_rows(
    multiples_LE: NDArray[np.float64], copies_LE: NDArray[np.int64], layers: Sequence[int]
) -> Rows:
    """Make the cells of experts by their number, as the page is opened.

    Parameters
    ----------
    multiples_LE
        Load of each expert over the mean expert of its layer.
    copies_LE
        Number of its copies.
    """
    return [
        {"layer": layer, "expert": e, "id": e, "value": round(value, 4), "copies": copies}
        for layer, *row in zip(layers, multiples_LE.tolist(), copies_LE.tolist(), strict=True)
        for e, (value, copies) in enumerate(zip(*row, strict=True))
    ]


def slot_rows(
    slots: Sequence[int], before: Sequence[int] | None, multiples: Sequence[float], per_rank: int
) -> tuple[Rows, Rows]:
    """Make the slots of one layer, and the lines between neighbouring copies of an expert.

    Parameters
    ----------
    slots, before
        Expert of each slot, and that of before, if moves are to be shown.
    multiples
        Load of each expert over the mean expert.
    per_rank
        Slots of a rank.
    """
    homes: dict[int, list[int]] = {}
    for slot, expert in enumerate(slots):
        homes.setdefault(expert, []).append(slot)
    rows: Rows = [
        {
            "rank": slot // per_rank,
            "slot": slot % per_rank,
            "expert": expert,
            "copies": (copies := len(homes[expert])),
            "value": multiples[expert] / copies * len(slots) / len(multiples),
            "moved": before is not None and before[slot] != expert,
        }
        for slot, expert in enumerate(slots)
    ]
    links: Rows = [
        {"rank": b // per_rank, "slot": b % per_rank, "rank2": a // per_rank, "slot2": a % per_rank}
        for all_copies in homes.values()
        for a, b in pairwise(all_copies)
    ]
    return rows, links


def over_time(laid: Sequence[Laid], floor: Sequence[float | None], marks: Rows) -> Figure:
    """Draw the imbalance of every step, over the band that chance explains."""
    size = len(laid[0].by_step)
    rows = [
        {"step": start, "imbalance": value, "layout": x.name}
        for x in laid
        for start, value in _bucketed(x.by_step)
    ]
    band = [{"step": start, "floor": value} for start, value in _bucketed(floor)]
    step = {
        "field": "step",
        "type": "quantitative",
        "title": "step, in order of recording",
        "scale": {"domain": [0, max(1, size - 1)], "nice": False},
        "axis": {"tickMinStep": 1},
    }
    top = {"type": "quantitative", "scale": {"domainMin": 1, "zero": False}, "title": "imbalance"}
    return Figure(
        name="time",
        title="Over time",
        says="The busiest rank over the mean in every step, averaged over layers. The grey band is "
        "the imbalance that chance alone gives steps of this size; at vertical lines the kind of "
        "traffic or the map changes.",
        spec={
            "width": "container",
            "height": 220,
            "encoding": {"x": step},
            "layer": [
                {
                    "data": {"values": band},
                    "mark": {"type": "area", "color": "$band", "interpolate": "step-after"},
                    "encoding": {
                        "y": {"field": "floor", **top},
                        "y2": {"datum": 1},
                    },
                },
                {
                    "data": {"values": marks},
                    "mark": {"type": "rule", "color": "$soft", "strokeDash": [2, 3]},
                    "encoding": {"tooltip": [{"field": "change", "title": "from here on"}]},
                },
                {
                    "data": {"values": marks},
                    "mark": {
                        "type": "text",
                        "angle": 90,  # along the line, so that near marks do not run together
                        "align": "left",
                        "baseline": "bottom",
                        "y": 4,
                        "dy": -2,
                        "limit": 100,
                        "color": "$soft",
                        "fontSize": 10,
                    },
                    "encoding": {"text": {"field": "change"}},
                },
                {
                    "data": {"values": rows},
                    "mark": {"type": "line", "point": {"size": 14}, "strokeWidth": 1.6},
                    "encoding": {
                        "y": {"field": "imbalance", **top},
                        "color": _colour_of_layouts(laid),
                        "tooltip": tips("step", "layout", "imbalance"),
                    },
                },
            ],
        },
    )


def strip(laid: Laid, layers: Sequence[int]) -> Figure:
    """Draw layers by steps: the imbalance of every barrier."""
    imbalance = laid.evaluation.imbalance
    first = starts(len(imbalance), _MOST_STEPS)
    joined = np.maximum.reduceat(imbalance, first, axis=0)
    loaded = np.maximum.reduceat(laid.loaded, first, axis=0)
    rows = [
        {"step": step, "layer": layer, "imbalance": round(float(joined[t, row]), 3)}
        for t, step in enumerate(first)
        for row, layer in enumerate(layers)
        if loaded[t, row]
    ]
    share = (
        ""
        if len(first) == len(imbalance)
        else "; neighbouring steps share a cell, which shows the worst"
    )
    return Figure(
        name="strip",
        title=f"Layers by steps, {laid.name}",
        says=f"A cell is the busiest rank over the mean in one layer of one step{share}: rows in "
        "strong colours are layers that always wait, columns are steps in which all do.",
        heavy=True,
        spec={
            "data": {"values": rows},
            "mark": "rect",
            "width": "container",
            "height": _height(len(layers)),
            "encoding": {
                "x": _axis("step", "step, in order of recording"),
                "y": _layer_axis(layers),
                "color": {
                    "field": "imbalance",
                    "type": "quantitative",
                    "scale": {
                        "domain": list(_IMBALANCE_EDGES),
                        "clamp": True,
                        "range": list(_IMBALANCE_COLOURS),
                    },
                    "legend": _legend("imbalance"),
                },
                "tooltip": tips("layer", "step", "imbalance"),
            },
        },
    )


def by_layer(laid: Sequence[Laid], layers: Sequence[int], floor: Sequence[float | None]) -> Figure:
    """Draw the imbalance of every layer before and after, on an axis that is stretched near 1."""
    rows: Rows = [
        {"layer": layer, "excess": value - 1, "imbalance": value, "layout": x.name}
        for x in laid
        for layer, value in zip(layers, x.by_layer, strict=True)
        if value is not None
    ]
    band = [
        {"layer": layer, "excess": value - 1}
        for layer, value in zip(layers, floor, strict=True)
        if value is not None
    ]
    top = max([0.1, *(row["excess"] for row in rows)])
    ticks = [t for t in _EXCESS_TICKS if t <= top * 1.1]
    layer_x = {
        "field": "layer",
        "type": "ordinal",
        "title": "layer",
        "axis": {"labelOverlap": "greedy", "labelSeparation": 8, "labelAngle": 0},
    }
    excess = {
        "field": "excess",
        "type": "quantitative",
        "title": "imbalance",
        "scale": {"type": "pow", "exponent": 0.5, "domain": [0, top * 1.05], "nice": False},
        "axis": {"values": ticks, "labelExpr": "format(datum.value + 1, '.2f')"},
    }
    return Figure(
        name="layers",
        title="Layer by layer",
        says="The busiest rank over the mean, averaged over steps; the axis is stretched near 1 "
        "so that 1.0 to 1.3 can be read, and grey is what chance alone explains.",
        spec={
            "width": "container",
            "height": _height(len(layers)),
            "encoding": {"x": layer_x},
            "layer": [
                {
                    "data": {"values": band},
                    "mark": {"type": "bar", "color": "$band", "width": {"band": 1}},
                    "encoding": {"y": excess},
                },
                {
                    "data": {"values": rows},
                    "mark": {"type": "rule", "color": "$rule"},
                    "encoding": {
                        "y": {**excess, "aggregate": "min"},
                        "y2": {"field": "excess", "aggregate": "max"},
                    },
                },
                {
                    "data": {"values": rows},
                    "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
                    "encoding": {
                        "y": excess,
                        "color": _colour_of_layouts(laid),
                        "tooltip": tips("layer", "layout", "imbalance"),
                    },
                },
            ],
        },
    )


def sorted_ranks(laid: Sequence[Laid]) -> Figure:
    """Draw the ranks from busiest to idlest, sorted in each step."""
    rows: Rows = []
    for x in laid:
        curves = zip(*(curve.round(4).tolist() for curve in x.sorted_ranks), strict=True)
        rows += [
            {"place": place, "mean": mean, "low": low, "high": high, "layout": x.name}
            for place, (mean, low, high) in enumerate(curves, 1)
        ]
    place = {
        "field": "place",
        "type": "quantitative",
        "axis": {"tickMinStep": 1},
        "title": "ranks of a step and layer, busiest first",
        "scale": {"zero": False, "nice": False},
    }
    load = {"type": "quantitative", "title": "times the mean"}
    return Figure(
        name="ranks",
        title="Sorted ranks",
        says="The load of the busiest, the second busiest and so on, averaged over steps and "
        "layers with 8 of 10 in the shade: a flat line at 1 is perfect balance, and where it "
        "starts is the imbalance.",
        spec={
            "data": {"values": rows},
            "width": "container",
            "height": 220,
            "encoding": {"x": place, "color": _colour_of_layouts(laid)},
            "layer": [
                {
                    "mark": {"type": "area", "opacity": 0.18},
                    "encoding": {"y": {"field": "low", **load}, "y2": {"field": "high"}},
                },
                {
                    "mark": {"type": "line", "point": {"size": 16}},
                    "encoding": {
                        "y": {"field": "mean", **load},
                        "tooltip": tips("place", "layout", "mean", "low", "high"),
                    },
                },
            ],
        },
    )


def label_changes(labels: Iterable[tuple[str, Sequence[str]]]) -> Rows:
    """Mark the steps where labels change; a label that changes at every step is left out."""
    found: dict[int, list[str]] = {}
    for name, values in labels:
        changed = [t for t, v in enumerate(values) if t == 0 or values[t - 1] != v]
        if 1 < len(changed) <= _MOST_MARKS:
            for t in changed:
                text = f"map {values[t]}" if name == MAP_LABEL else str(values[t])
                found.setdefault(t, []).append(text)
    return [{"step": t, "change": ", ".join(texts)} for t, texts in sorted(found.items())]


def _bucketed(values: Sequence[float | None]) -> list[tuple[int, float]]:
    """Reduce values to at most 256 means of neighbours, each with the position of its first."""
    first = starts(len(values), _MOST_STEPS)
    means = []
    for start, end in pairwise([*first, len(values)]):
        known = [v for v in values[start:end] if v is not None]
        if known:
            means.append((start, round(sum(known) / len(known), 4)))
    return means


def _axis(field: str, title: str) -> Spec:
    axis: Spec = {
        "labelOverlap": "greedy",
        "labelSeparation": 6,
        "labelAngle": 0,
        "ticks": False,
        "domain": False,
    }
    return {"field": field, "type": "ordinal", "title": title, "axis": axis}


def _layer_axis(layers: Sequence[int]) -> Spec:
    return {**_axis("layer", "layer"), "scale": {"domain": list(layers)}}


def _height(rows: int) -> int:
    return int(np.clip(8 * rows, 90, 460))


def _legend(title: str) -> Spec:
    return {
        "title": title,
        "orient": "top",
        "direction": "horizontal",
        "values": [1, 2, 3, 4],
        "gradientLength": 180,
        "gradientThickness": 8,
    }


def _colour_of_layouts(laid: Sequence[Laid]) -> Spec:
    names = [x.name for x in laid]
    return {
        "field": "layout",
        "type": "nominal",
        "sort": None,
        "scale": {"domain": names, "range": list(SERIES[: len(names)])},
        "legend": {"title": None, "orient": "top", "labelLimit": 220},
    }


def tips(*fields: str) -> Rows:
    """Make the tooltip of a mark; words and whole numbers are shown unchanged."""
    fractions = ("imbalance", "mean", "low", "high", "correlation", "gain", "value")
    return [
        {"field": f, "type": "quantitative", "format": ".3f"}
        if f in fractions
        else {"field": f, "type": "nominal"}
        for f in fields
    ]

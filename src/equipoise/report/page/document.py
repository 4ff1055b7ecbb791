"""Rendering of a story as one HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.report.heat import spans, starts
from equipoise.report.measured import Layout
from equipoise.report.page import figures
from equipoise.report.page.figures import Figure
from equipoise.report.page.laid import MOST_COLUMNS, Laid
from equipoise.report.page.story import Story, quality
from equipoise.report.page.tables import (
    Table,
    expert_table,
    label_table,
    layer_table,
    loss_table,
    shown,
)
from equipoise.report.page.vega import CONFIG, PALETTES, picture, scripts
from equipoise.report.ranks import over_mean
from equipoise.trace import Trace

_LARGEST = 65535  # largest number of 16 bits
_STATISTICS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda values: np.asarray(values.mean(axis=0)),
    "worst": lambda values: np.asarray(values.max(axis=0)),
    "p95": lambda values: np.asarray(np.percentile(values, 95, axis=0)),
}
_FINEST = 1e-3  # precision of numbers, which are shown with two decimals


def render_page(story: Story) -> str:
    """Render the page of a story as one UTF-8 document; equal stories give equal pages.

    Raises
    ------
    EquipoiseError
        A missing plotting library.
    """
    library, behaviour = scripts(), _source("page.js")
    drawn = page_figures(story)
    return (
        _environment()
        .get_template("page.html")
        .render(
            story=story,
            quality=quality(story.trace),
            drawn={figure.name: figure for figure in drawn},
            tables=page_tables(story),
            stages=_stages(story.trace) if story.laid else {},
            shown=shown,
            data=Markup(_json_for_html(_data(story, drawn))),
            library=Markup(library),
            behaviour=Markup(behaviour),
            style=Markup(_source("palette.css") + _source("page.css")),
            script_hashes=" ".join(map(_csp_hash, (library, behaviour))),
        )
    )


def save_picture(story: Story, name: str, kind: str) -> bytes:
    """Draw one figure of a story, as when the page is opened, as a PNG, PDF or SVG file.

    Raises
    ------
    EquipoiseError
        An unknown name.
    """
    drawn = {x.name: x for x in (*page_figures(story), *_still(story))}
    if name not in drawn:
        raise EquipoiseError(f"There is no figure {name}; the page has {', '.join(drawn)}.")
    return picture(drawn[name], kind)


def _still(story: Story) -> list[Figure]:
    """Make the figures that the page fills, as it fills them when it is opened."""
    laid, layers = story.laid, list(story.trace.layer_ids)
    if not laid:
        return []
    multiples = over_mean(story.trace.total)
    rows = figures.expert_rows(multiples, _copies(laid[-1].layout), layers)
    experts = figures.experts(layers, _copied(laid[-1]), rows)
    return [*_still_heat(story, layers), experts, *_placed(laid, multiples)]


def _copies(layout: Layout) -> NDArray[np.int64]:
    """Count the copies of each expert, ``(L, E)``."""
    return layout.copies if isinstance(layout, Placement) else layout.copies_on_rank.sum(axis=1)


def _still_heat(story: Story, layers: Sequence[int]) -> list[Figure]:
    """Make the heat maps, filled with the mean of the steps."""
    maps = []
    for number, x in enumerate(story.laid):
        matrix = heat_matrix(x.multiples, x.evaluation.mean[x.steps], "mean")
        ranks = [str(rank) for rank in range(x.layout.num_ranks)]
        maps.append(figures.heat(x, number, layers, figures.heat_rows(matrix, layers, ranks)))
    return maps


def page_figures(story: Story) -> list[Figure]:
    """List the figures of a story; those that every page has come first."""
    trace, laid = story.trace, story.laid
    if not laid:
        return [*story.drift, *story.figures]
    layers, summary = list(trace.layer_ids), story.summary
    floor = [None if x.balance is None else x.balance.floor for x in summary.layers]
    labels = [(name, values.tolist()) for name, values in trace.labels.items()]
    return [
        *(figures.heat(x, i, layers) for i, x in enumerate(laid)),
        figures.over_time(laid, story.floor_by_step, figures.label_changes(labels)),
        figures.strip(laid[-1], layers),
        figures.by_layer(laid, layers, floor),
        figures.sorted_ranks(laid),
        figures.experts(layers, _copied(laid[-1])),
        *_placed(laid),
        *story.drift,
        *story.figures,
    ]


def _placed(laid: Sequence[Laid], multiples_LE: NDArray[np.float64] | None = None) -> list[Figure]:
    """Make the map of the last layout, if it is a placement; with loads, of its first layer."""
    last, number = laid[-1], _before(laid)
    if not isinstance(last.layout, Placement):
        return []
    name = "" if number is None else laid[number].name
    if multiples_LE is None:
        return [figures.placement_map(last, name)]
    rows, links = figures.slot_rows(
        last.layout.slots[0].tolist(),
        None if number is None else _experts_of_slots(laid[number].layout)[0].tolist(),
        multiples_LE[0].tolist(),
        last.layout.slots_per_rank,
    )
    return [figures.placement_map(last, name, rows, links)]


def _before(laid: Sequence[Laid]) -> int | None:
    """Find the layout that moves are counted from: the one before the last, if slots agree."""
    last = len(laid) - 1
    is_same = last > 0 and laid[last - 1].layout.num_slots == laid[last].layout.num_slots
    return last - 1 if is_same else None


def _copied(laid: Laid) -> str:
    """Return the layout's name if experts have copies there, else an empty text."""
    return laid.name if laid.layout.num_redundant else ""


def page_tables(story: Story) -> list[Table]:
    """List the tables of a story; its own come first."""
    found = [
        *story.tables,
        layer_table(story.summary, story.laid),
        expert_table(story.summary),
        label_table(story.summary),
        loss_table(story.trace, story.laid),
    ]
    return [table for table in found if table is not None]


def heat_matrix(
    multiples_FLR: NDArray[np.float64], mean_FL: NDArray[np.float64], statistic: str
) -> NDArray[np.float64]:
    """Compute the cells of a heat map, ``(L, R + 1)``: each rank, and last the busiest.

    Parameters
    ----------
    multiples_FLR
        Loads of ranks over the mean of their step and layer, ``(F, L, R)``.
    mean_FL
        Means of steps and layers, ``(F, L)``; those with mean 0 are left out.
    statistic
        Statistic over steps: ``mean``, ``p95`` or ``worst``; or ``sum`` of the loads.
    """
    loaded = mean_FL > 0
    if statistic == "sum":
        total = (multiples_FLR * mean_FL[..., None]).sum(axis=0)
        whole = mean_FL.sum(axis=0)[:, None]
        summed = np.divide(total, whole, out=np.zeros_like(total), where=whole > 0)
        return np.concatenate([summed, summed.max(axis=1, keepdims=True)], axis=1)
    busiest = multiples_FLR.max(axis=2, keepdims=True)
    values = np.concatenate([multiples_FLR, busiest], axis=2)
    reduce = _STATISTICS[statistic]
    found = np.zeros(values.shape[1:])
    for layer, here in enumerate(loaded.T):
        if here.any():
            found[layer] = reduce(values[here, layer])
    return found


def _stages(trace: Trace) -> dict[str, list[str]]:
    """List the values of each label, by which the reader can choose steps."""
    return {name: list(dict.fromkeys(values.tolist())) for name, values in trace.labels.items()}


def _data(story: Story, drawn: Sequence[Figure]) -> dict[str, Any]:
    """Make the data that the page's script reads."""
    trace, laid = story.trace, story.laid
    document: dict[str, Any] = {
        "title": story.title,
        "themes": PALETTES,
        "config": CONFIG,
        "figures": [
            {
                "name": x.name,
                "spec": x.spec,
                "renderer": "canvas" if x.heavy else "svg",
                "reads": x.reads,
            }
            for x in drawn
        ],
        "layers": list(trace.layer_ids),
        "layouts": [],
    }
    if not laid:
        return document
    steps, num_ranks = laid[0].steps, laid[0].layout.num_ranks
    columns = starts(num_ranks, MOST_COLUMNS)
    assert trace.step_ids is not None
    return document | {
        "ranks": [f"{a}" if a == b else f"{a}-{b}" for a, b in spans(columns, range(num_ranks))],
        "firstRanks": [*columns, num_ranks],
        "steps": trace.step_ids[steps].tolist(),
        "labels": {name: values[steps].tolist() for name, values in trace.labels.items()},
        "means": _packed(laid[0].evaluation.mean[steps], "<f4"),
        "movesFrom": _before(laid),
        "experts": _quantised(over_mean(trace.total)),
        "layouts": [
            {
                "name": x.name,
                "multiples": _quantised(np.maximum.reduceat(x.multiples, columns, axis=2)),
                **_slots(x.layout),
            }
            for x in laid
        ],
    }


def _slots(layout: Layout) -> dict[str, Any]:
    """Return the expert of each slot, and the first slot of each rank."""
    if isinstance(layout, Placement):
        first = np.arange(layout.num_ranks + 1) * layout.slots_per_rank
    else:
        first = np.append(0, np.cumsum(layout.copies_on_rank[0].sum(axis=1)))
    return {"slots": _packed(_experts_of_slots(layout), "<u2"), "firstSlots": first.tolist()}


def _experts_of_slots(layout: Layout) -> NDArray[np.integer]:
    """Return the expert of each slot, ``(L, S)``; without a placement every expert once."""
    if isinstance(layout, Placement):
        return layout.slots
    return np.broadcast_to(np.arange(layout.num_experts), (layout.num_layers, layout.num_experts))


def _quantised(values: NDArray[np.float64]) -> dict[str, Any]:
    """Encode numbers >= 0 in 16 bits each; also return their unit."""
    unit = max(_FINEST, float(values.max(initial=0.0)) / _LARGEST)
    return {"unit": unit, "packed": _packed(np.rint(values / unit), "<u2")}


def _packed(values: ArrayLike, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()


def _json_for_html(document: dict[str, Any]) -> str:
    """Write JSON in which no text can end the surrounding HTML element."""
    text = msgspec.json.encode(document).decode()
    return text.replace("<", r"\u003c").replace("\u2028", r"\u2028").replace("\u2029", r"\u2029")


def _csp_hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _harmless(value: object) -> object:
    """Remove terminal control characters, in case the page's text is copied to a terminal."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in value
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("equipoise.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_harmless,
    )


@cache
def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]

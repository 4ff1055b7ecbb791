"""The tables of a page: layers, experts and labels of a summary, in sortable rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.placement import Placement
from equipoise.plan.weigh.coverage import coverage
from equipoise.report.page.laid import Laid
from equipoise.report.page.part import Part
from equipoise.report.ranks import Balance, over_mean
from equipoise.report.summary import TraceSummary
from equipoise.topology import Topology
from equipoise.trace import Trace

Cell = str | int | float | None

_SMALL = 0.01  # fraction below which three decimals say too little


@dataclass(frozen=True, kw_only=True)
class Table(Part):
    """A table that can be sorted and saved.

    Parameters
    ----------
    head
        Names of the columns.
    rows
        Rows of cells; ``shown`` formats the numbers.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def shown(cell: Cell) -> str:
    """Format a cell: fractions with three decimals, small ones with three digits.

    Some are times in seconds of steps that take less than a millisecond. Nothing is a dash.
    """
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3g}" if 0 < abs(cell) < _SMALL else f"{cell:,.3f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def layer_table(summary: TraceSummary, laid: Sequence[Laid]) -> Table:
    """Make the table of layers: imbalance under each layout, chance, and the hottest."""
    columns = [x.by_layer for x in laid]
    rows = tuple(
        (
            layer.layer,
            *(column[row] for column in columns),
            None if layer.balance is None else layer.balance.floor,
            None if layer.balance is None else layer.balance.p95,
            layer.busiest_rank,
            layer.expert_imbalance,
            layer.active_experts,
        )
        for row, layer in enumerate(summary.layers)
    )
    return Table(
        name="layer-table",
        title="Layers",
        says="Imbalance is the busiest rank over the mean, averaged over steps; the 95th "
        "percentile and the busiest rank are those without balancing.",
        head=(
            "layer",
            *(x.name for x in laid),
            "chance",
            "95th percentile",
            "busiest rank",
            "hottest expert, times the mean",
            "active experts",
        ),
        rows=rows,
    )


def expert_table(summary: TraceSummary) -> Table:
    """Make the table of the hottest experts."""
    return Table(
        name="expert-table",
        title="Hottest experts",
        says="Experts that get far more than the mean expert of their layer, over all steps.",
        head=("layer", "expert", "times the mean", "share of the layer", "on ranks"),
        rows=tuple(
            (x.layer, x.expert, x.multiple, x.share, ", ".join(map(str, x.ranks)))
            for x in summary.hottest_experts
        ),
    )


def label_table(summary: TraceSummary) -> Table | None:
    """Make the table of each value of each label; ``None`` without labels."""
    if not summary.labels:
        return None
    return Table(
        name="label-table",
        title="Kinds of traffic",
        says="Without balancing, by label: a kind far above the others needs copies of its own "
        "experts.",
        head=(
            "label",
            "value",
            "steps",
            "assignments",
            "imbalance",
            "chance",
            "hottest expert, times the mean",
        ),
        rows=tuple(
            (x.label, x.value, x.num_steps, x.assignments, *_two(x.balance), x.expert_imbalance)
            for x in summary.labels
        ),
    )


def loss_table(trace: Trace, laid: Sequence[Laid]) -> Table | None:
    """Make the table of losses by rank in the last layout; ``None`` if it is not a placement."""
    if not laid or not isinstance(placement := laid[-1].layout, Placement):
        return None
    held = coverage(placement, Topology(placement.num_ranks))
    only_LRE = held.hosts & (held.homes == 1)[:, None, :]
    lost_LR = only_LRE.sum(axis=2)
    load_LE = over_mean(trace.total) / trace.num_experts
    share_R = np.einsum("lre,le->r", only_LRE, load_LE) / trace.num_layers
    return Table(
        name="loss-table",
        title=f"If a rank is lost, {laid[-1].name}",
        says=f"Experts that live on that rank only, and the share of the load that goes to them. "
        f"{held.text}",
        head=("rank", "experts lost in a layer, mean", "most", "share of the load"),
        rows=tuple(
            (rank, float(lost.mean()), int(lost.max()), float(share))
            for rank, (lost, share) in enumerate(zip(lost_LR.T, share_R, strict=True))
        ),
    )


def _two(balance: Balance | None) -> tuple[float | None, float | None]:
    return (None, None) if balance is None else (balance.imbalance, balance.floor)

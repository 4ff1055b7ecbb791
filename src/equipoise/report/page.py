"""A summary as one HTML file that needs nothing else: no network, fonts or foreign scripts."""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from equipoise.errors import EquipoiseError
from equipoise.report.charts import expert_chart, layer_chart
from equipoise.report.heat import HeatMap, heat_map, span_text
from equipoise.report.summary import LayerSummary, TraceSummary

if TYPE_CHECKING:  # importing it would load the planners and their compiler
    from equipoise.plan.result import Plan

_MAX_CELLS = 6400  # of one heat map: 100 layers of 64 ranks
_MAX_ROWS = 128
_TABLE_ROWS = 32
_BINDINGS = 3

# Upper edges of the colour classes of load over mean; the sixth is "even".
_EDGES = (0.25, 0.5, 0.7, 0.85, 0.95, 1.05, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)


def render_page(
    summary: TraceSummary,
    *,
    after: TraceSummary | None = None,
    plan: Plan | None = None,
    title: str | None = None,
) -> str:
    """The page of a summary, or of a layout before and after a plan.

    Parameters
    ----------
    summary
        Summary that is shown, or that of the layout before.
    after
        Summary of the same trace under another placement on the same number of ranks; drawn next to
        the first on the same colour scale.
    plan
        Plan behind ``after``: its advice, its bound and the constraints that bind.
    title
        The page's title; the trace's source if ``None``.

    Returns
    -------
    One UTF-8 document. Heat maps of more than 6,400 cells join neighbouring ranks, so that the page
    stays near 1 MB.

    Raises
    ------
    EquipoiseError
        ``after`` is of another trace or other ranks, or a plan comes without it.
    """
    _check(summary, after, plan)
    views = [summary] if after is None else [summary, after]
    return _template().render(
        title=title or summary.source,
        before=summary,
        after=after,
        plan=plan,
        maps=[_heat(view) for view in views if view.rank_p95],
        names=["Before", "After"] if after is not None else ["Layers by ranks"],
        classes=range(len(_EDGES) + 1),
        edges=_EDGES,
        by_layer=layer_chart(summary, after),
        by_expert=expert_chart(summary.expert_curves),
        lead=summary.headline if after is None else _lead(summary, after),
        worst=_worst(summary, after),
        bindings=[] if plan is None else _bindings(plan),
        notes=dict.fromkeys(note for view in views for note in view.notes),
        labels=summary.labels[:_TABLE_ROWS],
        span=span_text,
        level=lambda value: bisect_right(_EDGES, value),
    )


def _check(summary: TraceSummary, after: TraceSummary | None, plan: Plan | None) -> None:
    if after is None:
        if plan is not None:
            raise EquipoiseError(
                "The page of a plan needs the summary under its placement; give it as after."
            )
        return

    def trace(view: TraceSummary) -> tuple[object, ...]:
        return (view.assignments, view.num_steps, view.num_experts, [x.layer for x in view.layers])

    if trace(summary) != trace(after):
        raise EquipoiseError(
            "The two summaries are of different traces; summarise one trace twice."
        )
    if summary.num_ranks != after.num_ranks or summary.num_ranks is None:
        raise EquipoiseError(
            f"The layouts have {summary.num_ranks} and {after.num_ranks} ranks; "
            "they can be compared on equal ranks only."
        )


def _lead(summary: TraceSummary, after: TraceSummary) -> list[str]:
    """What the other placement changes, in a few sentences."""
    before, now = summary.balance, after.balance
    assert before is not None  # _check saw ranks
    assert now is not None
    return [
        f"The busiest of {summary.num_ranks} ranks carries {before.imbalance:.2f}× its share on "
        f"average before and {now.imbalance:.2f}× after; chance alone would make it "
        f"{now.floor:.2f}×.",
        f"Where time follows load, ranks wait {summary.idle_share:.0%} of their expert time before "
        f"and {after.idle_share:.0%} after.",
        *summary.drift.headline,
    ]


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("equipoise.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html")


def _heat(summary: TraceSummary) -> HeatMap:
    rows = min(len(summary.layers), _MAX_ROWS)
    return heat_map(summary, max_rows=_MAX_ROWS, max_columns=max(8, _MAX_CELLS // rows))


def _worst(
    summary: TraceSummary, after: TraceSummary | None
) -> list[tuple[LayerSummary, LayerSummary | None]]:
    """The worst layers, each with itself after."""
    before_of = {x.layer: x for x in summary.layers}
    after_of = {x.layer: x for x in after.layers} if after is not None else {}
    return [(before_of[n], after_of.get(n)) for n in summary.worst_layers]


def _bindings(plan: Plan) -> list[str]:
    """What keeps the layers with the highest bounds from balance, in the planner's words."""
    over_mean = plan.bound - plan.load.sum(axis=1) / plan.placement.num_ranks
    worst = (-over_mean).argsort(kind="stable")
    texts = [plan.binding[row].text for row in worst if plan.binding[row].kind != "mean"]
    return texts[:_BINDINGS]

"""The page of several maps side by side, on the same steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.report.drift import measure_drift
from equipoise.report.measured import Layout, aligned, unbalanced
from equipoise.report.page import ageing
from equipoise.report.page.figures import SERIES
from equipoise.report.page.laid import Laid, lay
from equipoise.report.page.story import Band, Number, Origin, Story, in_order
from equipoise.report.page.tables import Table
from equipoise.report.summary import summarise
from equipoise.trace import Trace

PLAIN = "no balancing"


_MOST_MAPS = len(SERIES) - 1  # one of the colours is that of no balancing


def check_names(names: Sequence[str]) -> None:
    """Refuse names of maps that cannot be shown side by side.

    Raises
    ------
    EquipoiseError
        More maps than there are colours, or a map that is named twice.
    """
    if len(names) > _MOST_MAPS:
        raise EquipoiseError(f"{len(names)} maps were given; compare at most {_MOST_MAPS}.")
    for name in names:
        if names.count(name) > 1:
            raise EquipoiseError(f"{name} is given {names.count(name)} times; give each map once.")


def lay_maps(trace: Trace, maps: Mapping[str, Placement], dispatch: str) -> tuple[Laid, ...]:
    """Evaluate the steps of a trace without balancing, and on each of several maps.

    Raises
    ------
    EquipoiseError
        More maps than there are colours, or maps with different numbers of ranks.
    """
    check_names(list(maps))
    ranks = {name: placement.num_ranks for name, placement in maps.items()}
    num_ranks = next(iter(ranks.values()))
    for name, other in ranks.items():
        if other != num_ranks:
            raise EquipoiseError(
                f"{name} is for {other} ranks and the first map for {num_ranks}; compare maps for "
                "equal ranks."
            )
    layouts: dict[str, Layout] = {PLAIN: unbalanced(trace, num_ranks)}
    layouts |= {name: aligned(placement, trace) for name, placement in maps.items()}
    return lay(trace.counts, layouts, dispatch)


def best_of(laid: Sequence[Laid]) -> Laid:
    """Choose the layout whose busiest ranks have the least load on average."""
    return min(laid, key=lambda x: x.evaluation.mean_peak)


def compare_story(
    trace: Trace, laid: tuple[Laid, ...], origin: Origin, notes: Sequence[str] = ()
) -> Story:
    """Make the story of ``equipoise compare``.

    Parameters
    ----------
    laid
        Result of ``lay_maps``.
    notes
        Notes on the maps, such as the steps that they were made from.
    """
    layout = laid[-1].layout
    summary = summarise(trace, num_ranks=layout.num_ranks)
    floor = 1.0 if summary.balance is None else summary.balance.floor
    window_steps = measure_drift(trace).window_steps
    return Story(
        title=f"Maps compared on {trace.provenance.source}",
        trace=trace,
        summary=summary,
        laid=laid,
        band=_band(laid, floor),
        notes=in_order([*notes, *summary.notes]),
        origin=origin,
        drift=tuple(ageing.figures(trace, window_steps, layout.num_ranks, layout.num_slots)),
        tables=(score_table(laid),),
    )


def score_table(laid: Sequence[Laid]) -> Table:
    """Make the table of scores of each layout."""
    plain = laid[0].evaluation.mean_peak
    return Table(
        name="score-table",
        title="Scores",
        says="The busiest rank over the mean, in single steps and layers; won is the share of its "
        "load that is taken off, against no balancing.",
        head=("layout", "slots", "mean", "95th percentile", "worst", "relative step time", "won"),
        rows=tuple(
            (
                x.name,
                x.layout.num_slots,
                x.evaluation.mean_imbalance,
                x.evaluation.p95_imbalance,
                x.evaluation.worst_imbalance,
                x.evaluation.relative_step_time,
                1 - x.evaluation.mean_peak / plain,
            )
            for x in laid
        ),
    )


def _band(laid: Sequence[Laid], floor: float) -> Band:
    best, plain = best_of(laid), laid[0].evaluation
    is_none = best is laid[0]
    won = 1 - best.evaluation.mean_peak / plain.mean_peak
    answer = f"Best on these steps: {best.name}."
    why = f"Its busiest rank carries {won:.1%} less than without balancing."
    if is_none:
        answer, why = "Every map is worse than none.", "No map lightens the busiest rank."
    worse = [x.name for x in laid[1:] if x.evaluation.mean_peak > plain.mean_peak]
    more = (f"Worse than no balancing: {', '.join(worse)}.",) if worse and not is_none else ()
    numbers = [
        Number(
            name=x.name,
            value=f"{x.evaluation.mean_imbalance:.3f}",
            means=f"imbalance, {x.layout.num_slots} slots",
        )
        for x in laid
    ]
    numbers.append(Number(name="Floor", value=f"{floor:.3f}", means="by chance alone"))
    return Band(
        tone="bad" if is_none else "good",
        answer=answer,
        why=(why, *more, f"Copies share their load by the dispatcher {plain.dispatch}."),
        numbers=tuple(numbers),
    )

"""The page of a budget: what redundant slots buy, for one planner or several side by side."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from equipoise.dispatch import Dispatcher
from equipoise.placement import Placement
from equipoise.plan.weigh.budget import Budget, Point, gains
from equipoise.report.drift import measure_drift
from equipoise.report.measured import Layout, unbalanced
from equipoise.report.page import ageing
from equipoise.report.page.copies import CopyPoint, copies_curve
from equipoise.report.page.figures import Figure
from equipoise.report.page.laid import lay
from equipoise.report.page.story import Band, Number, Origin, Story, in_order
from equipoise.report.page.tables import Cell, Table
from equipoise.report.summary import summarise
from equipoise.trace import Trace

PLAIN = "no balancing"


def budget_story(
    recording: Trace,
    held: Trace,
    results: Mapping[str, Budget],
    judge: Dispatcher,
    origin: Origin,
    *,
    counts: str = "",
) -> Story:
    """Make the story of ``equipoise budget``, on the steps that nothing was planned on.

    Parameters
    ----------
    held
        Steps that were held out.
    results
        Results by planner, all on the same steps.
    judge
        Dispatcher of the scores.
    counts
        Parts of a step that times include; empty if loads are compared.
    """
    placements = planned(results)
    some = next(iter(placements.values()))
    layouts: dict[str, Layout] = {PLAIN: unbalanced(held, some.num_ranks), **placements}
    summary = summarise(held, num_ranks=some.num_ranks)
    dispatch = next(iter(results.values())).dispatch
    shown = (
        f"All figures are of {held.num_steps} steps that nothing was planned on, the latest of "
        f"each domain; copies share their load by the dispatcher {dispatch}."
    )
    timed = f"Times count {counts}." if counts else "Loads are compared; no time is counted."
    return Story(
        title=f"Gain from copies on {recording.provenance.source}",
        trace=held,
        summary=summary,
        laid=lay(held.counts, layouts, judge),
        band=_band(results, None if summary.balance is None else summary.balance.floor),
        notes=in_order([shown, timed, *summary.notes]),
        origin=origin,
        drift=tuple(
            ageing.figures(
                recording, measure_drift(recording).window_steps, some.num_ranks, some.num_slots
            )
        ),
        figures=(_curve(results),),
        tables=(_points(results),),
    )


def planned(results: Mapping[str, Budget]) -> dict[str, Placement]:
    """Return each planner's placement with the most slots that pay, the best one last."""
    falling = sorted(results.items(), key=lambda item: -item[1].front[-1].times.mean())
    return {
        f"{name}, {point.redundant[0]} redundant": result.placements[result.points.index(point)]
        for name, result in falling
        for point in result.front[-1:]
    }


def _band(results: Mapping[str, Budget], floor: float | None) -> Band:
    name, best = min(results.items(), key=lambda item: item[1].front[-1].times.mean())
    last = best.front[-1]
    tone, answer = "open", "More redundant slots do not pay."
    if not best.is_decided:
        answer = "No verdict: too few unseen windows."
    elif last is not best.points[0]:
        by = f" with the planner {name}" if len(results) > 1 else ""
        tone, answer = "good", f"{last.redundant[0]} redundant slots a layer pay{by}."
    several = len(results) > 1
    numbers = [_number(name, result) for name, result in results.items()]
    if floor is not None and not best.in_seconds:
        numbers.append(Number(name="Floor", value=f"{floor:.3f}", means="imbalance by chance"))
    return Band(
        tone=tone,
        answer=answer,
        why=tuple(f"{n}: {x.advice}" if several else x.advice for n, x in results.items()),
        numbers=tuple(numbers),
    )


def _number(name: str, result: Budget) -> Number:
    first, last = result.points[0], result.front[-1]
    if last is first:
        return Number(name=name, value="none", means="no further slot pays")
    size = last.bytes_per_rank
    price = "" if size is None else f", for {size / 1e9:.2f} GB a rank"
    return Number(
        name=name,
        value=f"{last.redundant[0]} slots",
        means=f"pay: they take {last.gain_over(first)} off{price}",
    )


def _reference(results: Mapping[str, Budget]) -> tuple[str, Point]:
    """Return the planner and the point that everything is compared with."""
    name, first = next(iter(results.items()))
    return name, first.points[0]


def _curve(results: Mapping[str, Budget]) -> Figure:
    """Draw the time that each planner takes off with each number of slots."""
    planner, start = _reference(results)
    points = [
        CopyPoint(
            line=name,
            redundant=point.redundant[0],
            gain=gain.share,
            low=gain.share - gain.error,
            high=gain.share + gain.error,
        )
        for name, result in results.items()
        for point, gain in zip(
            result.points, gains([(start, point) for point in result.points]), strict=True
        )
    ]
    seconds = next(iter(results.values())).in_seconds
    return copies_curve(
        points,
        name="budget",
        title="Gain from copies",
        says=f"What plans take off the plan of {planner} with {start.redundant[0]} redundant "
        "slots, on unseen steps, with one standard error in the shade; where a line is flat, more "
        "copies gain nothing.",
        series="planner",
        taken_off="time taken off" if seconds else "taken off the busiest rank",
    )


def _points(results: Mapping[str, Budget]) -> Table:
    """List the points of the curve, with their prices and scores."""
    planner, start = _reference(results)
    rows: list[tuple[Cell, ...]] = []
    for name, result in results.items():
        points = result.points
        off = gains([(start, point) for point in points])
        steps = gains(list(pairwise(points)))
        for point, gain, step in zip(points, off, (None, *steps), strict=True):
            rows.append(
                (
                    name,
                    point.redundant[0],
                    None if point.bytes_per_rank is None else point.bytes_per_rank / 1e9,
                    point.kv_tokens,
                    *_scores(point),
                    gain.share,
                    gain.error,
                    None if step is None else step.share,
                    None if step is None else step.error,
                    "yes" if point in result.front[1:] else "",
                )
            )
    seconds = start.step_seconds is not None
    return Table(
        name="budget-table",
        title="Gain from copies, in numbers",
        says=f"Shares taken off the plan of {planner} with {start.redundant[0]} redundant slots, "
        "and off the row above, each with its standard error; a point pays if it is surely faster "
        "than the last one that does, for its memory.",
        head=(
            "planner",
            "redundant",
            "GB a rank",
            "KV tokens",
            *(("step ms", "experts ms") if seconds else ("mean imbalance", "relative step time")),
            "taken off",
            "± taken off",
            "off the row above",
            "± off the row above",
            "pays",
        ),
        rows=tuple(rows),
    )


def _scores(point: Point) -> tuple[float | None, float | None]:
    if point.step_seconds is None or point.expert_seconds is None:
        return point.mean_imbalance, point.relative_step_time
    return 1e3 * point.step_seconds, 1e3 * point.expert_seconds

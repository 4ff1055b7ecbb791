"""The page of a forecast: whether balancing would help, and how many copies pay."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.dispatch.registry import needs_cost
from equipoise.plan.study import hold_out_steps
from equipoise.report.drift import measure_drift
from equipoise.report.measured import Layout, unbalanced
from equipoise.report.page import ageing
from equipoise.report.page.copies import CopyPoint, copies_curve
from equipoise.report.page.figures import Figure
from equipoise.report.page.laid import lay
from equipoise.report.page.story import Band, Number, Origin, Story, in_order
from equipoise.report.page.tables import Table
from equipoise.report.spent import PARTS
from equipoise.report.summary import summarise
from equipoise.simulate.forecast import Forecast
from equipoise.simulate.gain import CONFIDENCE
from equipoise.trace import Trace

PLAIN = "no balancing"


def forecast_story(
    recording: Trace, answers: Sequence[Forecast], hold_out: float, origin: Origin
) -> Story:
    """Make the story of ``equipoise forecast``, on the steps that it measured on.

    Parameters
    ----------
    answers
        Forecasts, one for each time model.
    hold_out
        Share of the steps that was held out.
    """
    held = hold_out_steps(recording, hold_out)[1] or recording
    best = answers[0].best
    placement = best.placement
    dispatch = "even" if needs_cost(best.dispatch) else best.dispatch
    layouts: dict[str, Layout] = {
        PLAIN: unbalanced(held, placement.num_ranks),
        f"best option, {best.redundant} redundant": placement,
    }
    summary = summarise(held, num_ranks=placement.num_ranks)
    window_steps = measure_drift(recording).window_steps
    return Story(
        title=f"A forecast for {recording.provenance.source}",
        trace=held,
        summary=summary,
        laid=lay(held.counts, layouts, dispatch),
        band=_band(answers),
        notes=in_order(
            [
                f"All figures are of {answers[0].unseen_steps} steps that nothing was planned on; "
                f"ranks are shown in assignments, shared by the dispatcher {dispatch}.",
                *summary.notes,
            ]
        ),
        origin=origin,
        drift=tuple(
            ageing.figures(recording, window_steps, placement.num_ranks, placement.num_slots)
        ),
        figures=tuple(_curve(answer, number) for number, answer in enumerate(answers)),
        tables=(
            *(_options(answer, number) for number, answer in enumerate(answers)),
            *(_parts(x, number) for number, x in enumerate(answers) if x.parts is not None),
        ),
    )


def _band(answers: Sequence[Forecast]) -> Band:
    kinds = {answer.verdict.kind for answer in answers}
    is_worse = all(x.best.step_seconds > x.best.plain_seconds for x in answers)
    if is_worse:
        tone, answer = "bad", "Do not balance: the best plan is worse than none."
    elif kinds == {"recommend"}:
        tone, answer = "good", "Balancing would help."
    elif "recommend" in kinds:
        tone, answer = "open", "Balancing would help by some costs, and not by others."
    elif "insufficient evidence" in kinds:
        tone, answer = "open", "The evidence does not tell whether balancing would help."
    else:
        tone, answer = "open", "Balancing would not pay now."
    first, best = answers[0], answers[0].best
    ends = "" if best.interval is None else " to ".join(f"{end:.1%}" for end in best.interval)
    memory = "not known" if best.bytes_per_rank is None else f"{best.bytes_per_rank / 1e9:.2f} GB"
    numbers = [
        Number(
            name="Before", value=f"{1e3 * best.plain_seconds:.3f} ms", means="a step, no balancing"
        ),
        Number(name="After", value=f"{1e3 * best.step_seconds:.3f} ms", means=best.name),
        Number(
            name="Time won",
            value=f"{best.gain:.1%}",
            means=f"{CONFIDENCE:.0%} interval {ends}; {best.needed:.1%} would pay",
        ),
        Number(name="Memory", value=memory, means="on every rank, for copies"),
    ]
    numbers += [
        Number(
            name=f"Waiting, {idle.steps}",
            value=f"{idle.share:.0%}",
            means=f"of the experts' time today; chance alone makes it {idle.chance:.0%}",
        )
        for idle in first.today
    ]
    why = tuple(f"{x.model}: {x.verdict.text}" for x in answers)
    return Band(tone=tone, answer=answer, why=why, numbers=tuple(numbers))


def _curve(answer: Forecast, number: int) -> Figure:
    """Draw the time that each redundancy and dispatcher saves."""
    points = [
        CopyPoint(
            line=x.dispatch,
            redundant=x.redundant,
            gain=x.gain,
            low=x.gain if x.interval is None else x.interval[0],
            high=x.gain if x.interval is None else x.interval[1],
        )
        for x in answer.options
    ]
    return copies_curve(
        points,
        name=f"budget-{number}",
        title=f"Gain from copies, {answer.model}",
        says=f"Share of a step's time that more redundant slots save, for each split, with its "
        f"{CONFIDENCE:.0%} interval; where the line is flat, more copies gain nothing.",
        series="split",
        taken_off="taken off a step",
    )


def _options(answer: Forecast, number: int) -> Table:
    return Table(
        name=f"option-table-{number}",
        title=f"Options, {answer.model}",
        says=f"Seconds of {answer.unseen_steps} unseen steps, planned on {answer.planned_steps}, "
        f"against {answer.against}; it counts {answer.counts}.",
        head=("redundant", "split", "step ms", "shorter by", "throughput", "needed to pay"),
        rows=tuple(
            (x.redundant, x.dispatch, 1e3 * x.step_seconds, x.gain, x.throughput, x.needed)
            for x in answer.options
        ),
    )


def _parts(answer: Forecast, number: int) -> Table:
    """Return the parts of a step, as things are and with the best plan."""
    assert answer.parts is not None  # known
    assert answer.planned_parts is not None
    return Table(
        name=f"part-table-{number}",
        title=f"Parts of a step's time, {answer.model}",
        says=f"Milliseconds of a mean unseen step, {answer.counts}, as it is and with the best "
        "plan kept. Ranks wait by chance because routing is random, for skew because the plan does "
        "not balance even the loads it was made for, and for drift because loads have changed "
        "since.",
        head=("part", answer.against, f"planned, {answer.best.redundant} redundant"),
        rows=tuple(
            (said, 1e3 * answer.parts[name], 1e3 * answer.planned_parts[name])
            for name, said in PARTS.items()
        ),
    )

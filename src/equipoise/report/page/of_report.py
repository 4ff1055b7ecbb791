"""The page of a report: the balance of a recording, without balancing and on a map."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.placement import Placement
from equipoise.report.advice import Advice
from equipoise.report.measured import aligned, unbalanced
from equipoise.report.page import ageing
from equipoise.report.page.laid import Laid, lay
from equipoise.report.page.story import Band, Number, Origin, Story, in_order
from equipoise.report.summary import TraceSummary
from equipoise.trace import Trace

PLAIN = "no balancing"
ON_MAP = "on the map"


def report_story(
    trace: Trace,
    before: TraceSummary,
    origin: Origin,
    *,
    after: TraceSummary | None = None,
    placement: Placement | None = None,
    advice: Advice | None = None,
    said: Sequence[str] = (),
) -> Story:
    """Make the story of ``equipoise report``.

    Parameters
    ----------
    before
        Summary of the trace without balancing.
    after, placement
        Summary of the same trace on a placement, and the placement.
    advice
        Advice whether balancing would help.
    said
        Sentences for the verdict, such as what the loss of a rank takes with the placement.
    """
    layouts = {}
    if before.num_ranks is not None:
        layouts[PLAIN] = unbalanced(trace, before.num_ranks)
    if placement is not None:
        layouts[ON_MAP] = aligned(placement, trace)
    laid = lay(trace.counts, layouts)
    views = [before] if after is None else [after, before]
    return Story(
        title=before.source,
        trace=trace,
        summary=before,
        laid=laid,
        band=_band(before, laid, advice, said),
        notes=in_order([note for view in views for note in view.notes]),
        origin=origin,
        drift=tuple(
            ageing.figures(
                trace, before.drift.window_steps, before.num_ranks, _slots(before, after)
            )
        ),
    )


def _slots(before: TraceSummary, after: TraceSummary | None) -> int:
    """Return the slots of the map, or one redundant slot per rank without a map."""
    if after is not None and after.num_slots is not None:
        return after.num_slots
    ranks = before.num_ranks or 1
    return (before.num_experts // ranks + 1) * ranks


def _band(
    before: TraceSummary, laid: tuple[Laid, ...], advice: Advice | None, said: Sequence[str]
) -> Band:
    verdicts = {} if advice is None else advice.verdicts
    kinds = {verdict.kind for verdict in verdicts.values()}
    why = [*before.headline, *(f"{cost}: {x.text}" for cost, x in verdicts.items())]
    why += said
    if advice is not None:
        why += [f"{cost}: {line}" for cost, lines in advice.spent.items() for line in lines]
        why.append(advice.basis)
    tone, answer = "open", before.headline[0]
    if before.balance is not None and len(laid) > 1:
        tone, answer = _of_map(*laid)
    elif "recommend" in kinds:
        tone, answer = "good", "Balancing would help."
    elif "not now" in kinds:
        answer = "Balancing would not pay now."
    elif kinds:
        answer = "The evidence does not tell whether balancing would help."
    return Band(
        tone=tone,
        answer=answer,
        why=tuple(line for line in why if line != answer),
        numbers=_numbers(before, laid),
    )


def _of_map(plain: Laid, on_map: Laid) -> tuple[str, str]:
    """Judge whether a map is better than no balancing on these steps."""
    before, after = plain.evaluation.mean_peak, on_map.evaluation.mean_peak
    change = abs(after - before) / before
    if after > before:
        return "bad", f"This map is worse than none: the busiest rank carries {change:.1%} more."
    return "good", f"On this map the busiest rank carries {change:.1%} less than without balancing."


def _numbers(before: TraceSummary, laid: tuple[Laid, ...]) -> tuple[Number, ...]:
    balance = before.balance
    if balance is None or before.idle_share is None:
        hottest = before.hottest_experts[0]
        means = f"times the mean expert: layer {hottest.layer}, expert {hottest.expert}"
        return (Number(name="Hottest expert", value=f"{hottest.multiple:.1f}×", means=means),)
    numbers = [
        Number(
            name="Imbalance, " + x.name,
            value=f"{x.evaluation.mean_imbalance:.2f}",
            means="busiest rank over the mean, averaged over steps and layers",
        )
        for x in laid
    ]
    numbers += [
        Number(name="By chance", value=f"{balance.floor:.2f}", means="of a fair router, the floor"),
        Number(
            name="95th percentile",
            value=f"{balance.p95:.2f}",
            means="imbalance of the worst steps and layers, without balancing",
        ),
        Number(
            name="Waiting",
            value=f"{before.idle_share:.0%}",
            means="expert time that ranks wait for the busiest, without balancing",
        ),
    ]
    return tuple(numbers)

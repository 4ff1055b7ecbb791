"""The page of a simulation: what users would see, without the change and with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.report.page.figures import SERIES, Figure, Rows
from equipoise.report.page.story import Band, Number, Origin, Story, in_order
from equipoise.report.page.tables import Table
from equipoise.report.summary import summarise
from equipoise.simulate.gain import CONFIDENCE
from equipoise.simulate.serving import ServingResult
from equipoise.simulate.side_by_side import SideBySide
from equipoise.trace import Trace

PLAIN = "no balancing"

_POINTS = 201  # of a curve
_TONES = {"better": "good", "worse": "bad"}


def simulation_story(
    trace: Trace,
    result: SideBySide,
    name: str,
    origin: Origin,
    *,
    num_ranks: int,
    notes: Sequence[str] = (),
) -> Story:
    """Tell what ``equipoise simulate`` found as a page.

    Parameters
    ----------
    trace
        Recording whose routing the batches had.
    name
        Name of what is compared with no balancing.
    notes
        Sentences on what is assumed or not known.
    """
    summary = summarise(trace, num_ranks=num_ranks)
    before, after = result.before, result.after
    goes_on = before.requests.output_tokens > 1
    curves = [
        _curve(
            "ttft",
            "Time to the first token",
            "requests",
            {PLAIN: before.ttft, name: after.ttft},
        ),
        _curve(
            "steps",
            "Steps of the usual size",
            "recorded steps",
            {PLAIN: result.step_before, name: result.step_after},
        ),
    ]
    if goes_on.any():
        tpot = {PLAIN: before.tpot[goes_on], name: after.tpot[goes_on]}
        curves.insert(1, _curve("tpot", "Time of each later token", "requests", tpot))
    return Story(
        title=f"A simulation on {trace.provenance.source}",
        trace=trace,
        summary=summary,
        laid=(),
        band=_band(result, name),
        notes=in_order([*notes, *summary.notes]),
        origin=origin,
        figures=tuple(curves),
        tables=(_measures(result, name),),
    )


def _band(result: SideBySide, name: str) -> Band:
    before, after = result.before, result.after
    numbers = [
        Number(
            name="TTFT p99",
            value=f"{1e3 * after.ttft_p99:,.4g} ms",
            means=f"{1e3 * before.ttft_p99:,.4g} ms with {PLAIN}",
        ),
        Number(
            name="Tokens a second",
            value=f"{after.output_tokens_per_second:,.0f}",
            means=f"{before.output_tokens_per_second:,.0f} with {PLAIN}",
        ),
        Number(
            name="Goodput",
            value=f"{after.goodput(result.slo):,.3g}",
            means=f"requests a second within the SLO; {before.goodput(result.slo):,.3g} "
            f"with {PLAIN}",
        ),
        Number(name="A step", value=f"{result.step_gain:.1%} shorter", means=_interval(result)),
    ]
    if (before.requests.output_tokens > 1).any():
        tpot = Number(
            name="TPOT p99",
            value=f"{1e3 * after.tpot_p99:,.4g} ms",
            means=f"{1e3 * before.tpot_p99:,.4g} ms with {PLAIN}",
        )
        numbers.insert(1, tpot)
    return Band(
        tone=_TONES.get(result.kind, "open"),
        answer=f"For users, {name} against {PLAIN}: {result.kind}.",
        why=(result.text,),
        numbers=tuple(numbers),
    )


def _interval(result: SideBySide) -> str:
    ends = result.step_interval
    if ends is None:
        return "one recorded step does not show what chance does"
    return f"{CONFIDENCE:.0%} interval {ends[0]:.1%} to {ends[1]:.1%}"


def _curve(name: str, title: str, of: str, values: Mapping[str, NDArray[np.floating]]) -> Figure:
    """Draw the share of requests that take at most a time, a line for each name."""
    shares = np.linspace(0.0, 1.0, _POINTS)
    rows: Rows = [
        {"share": round(float(share), 4), "ms": round(1e3 * float(value), 6), "layout": layout}
        for layout, seconds in values.items()
        for share, value in zip(shares, np.quantile(seconds, shares), strict=True)
    ]
    names = list(values)
    return Figure(
        name=name,
        title=title,
        says=f"The share of {of} that take at most this time; the line further to the left is "
        "better, and its top shows the slowest ones.",
        spec={
            "data": {"values": rows},
            "width": "container",
            "height": 240,
            "mark": {"type": "line", "strokeWidth": 1.8},
            "encoding": {
                "x": {
                    "field": "ms",
                    "type": "quantitative",
                    "title": "ms",
                    "scale": {"zero": False},
                },
                "y": {
                    "field": "share",
                    "type": "quantitative",
                    "title": f"share of {of}",
                    "axis": {"format": ".0%"},
                },
                "color": {
                    "field": "layout",
                    "type": "nominal",
                    "sort": None,
                    "scale": {"domain": names, "range": list(SERIES[: len(names)])},
                    "legend": {"title": None, "orient": "top", "labelLimit": 220},
                },
            },
        },
    )


def _measures(result: SideBySide, name: str) -> Table:
    sides: tuple[ServingResult, ServingResult] = (result.before, result.after)
    numbers = [side.summary(result.slo) for side in sides]
    return Table(
        name="measure-table",
        title="Numbers",
        says="Seconds, tokens and requests a second, shares and queues: over all requests, the "
        "empty start and the end included.",
        head=("measure", PLAIN, name),
        rows=tuple(
            (key.replace("_", " "), value, numbers[1][key]) for key, value in numbers[0].items()
        ),
    )

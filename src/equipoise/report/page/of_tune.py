"""The page of tuning: what every setting costs in time, memory and moves, and which to use."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.report.page.figures import SERIES, Figure, Rows, Spec, tips
from equipoise.report.page.story import Band, Number, Origin, Story, in_order
from equipoise.report.page.tables import Table
from equipoise.report.summary import summarise
from equipoise.simulate.gain import CONFIDENCE
from equipoise.simulate.tune import KINDS, NONE, Setting, Study, Tuning


def tuning_story(study: Study, tuning: Tuning, origin: Origin, *, text: str) -> Story:
    """Make the story of ``equipoise tune``, on the steps that it replayed.

    Parameters
    ----------
    text
        Result in a sentence, marked if the routing is assumed.
    """
    held = study.held
    summary = summarise(held, num_ranks=study.conditions.topology.num_ranks)
    return Story(
        title=f"Settings for {held.provenance.source}",
        trace=held,
        summary=summary,
        laid=(),
        band=_band(tuning, text),
        notes=in_order(
            [
                f"All settings were replayed on {held.num_steps} steps, planned on "
                f"{study.fit.num_steps}; {study.conditions.model.name}.",
                *summary.notes,
            ]
        ),
        origin=origin,
        figures=(
            _front(tuning, "memory", "GB a rank for copies"),
            _front(tuning, "moves", "slots moved"),
        ),
        tables=(_settings(tuning),),
    )


def _band(tuning: Tuning, text: str) -> Band:
    best, none = tuning.best, tuning.none
    numbers = [
        Number(name="Before", value=f"{1e3 * none.step_seconds:.3f} ms", means="a step"),
        Number(name="After", value=f"{1e3 * best.step_seconds:.3f} ms", means=best.name),
        Number(
            name="Time won",
            value=f"{best.gain:.1%}",
            means=f"{CONFIDENCE:.0%} interval {best.low:.1%} to {best.high:.1%}; "
            f"{best.needed:.1%} would pay",
        ),
        Number(name="Memory", value=f"{best.bytes_per_rank / 1e9:.2f} GB", means="on every rank"),
        Number(name="Moves", value=f"{best.moves:,}", means="slots that changed"),
    ]
    is_off = best.kind == NONE
    return Band(
        tone="open" if is_off else "good",
        answer="Leave balancing off." if is_off else f"Use {best.name}.",
        why=(text,),
        numbers=tuple(numbers),
    )


def _front(tuning: Tuning, price: str, title: str) -> Figure:
    """Draw all settings by step time and one price; the front is large."""
    kinds = list(KINDS)
    step: Spec = {
        "field": "ms",
        "type": "quantitative",
        "title": "ms a step",
        "scale": {"zero": False},
    }
    return Figure(
        name=f"front-{price}",
        title=f"Step time and {title}",
        says="A point is a setting; further down is faster, further left is cheaper. Large points "
        "are the front: no other setting is better in step time, memory and moves at once.",
        spec={
            "data": {"values": _points(tuning)},
            "width": "container",
            "height": 260,
            "mark": {"type": "point", "filled": True},
            "encoding": {
                "x": {"field": price, "type": "quantitative", "title": title},
                "y": step,
                "color": {
                    "field": "kind",
                    "type": "nominal",
                    "scale": {"domain": kinds, "range": list(SERIES[: len(kinds)])},
                    "legend": {"title": None, "orient": "top"},
                },
                "size": {
                    "condition": {"test": "datum.front", "value": 140},
                    "value": 25,
                },
                "opacity": {"condition": {"test": "datum.front", "value": 1}, "value": 0.45},
                "tooltip": tips("setting", "ms", "memory", "moves"),
            },
        },
    )


def _points(tuning: Tuning) -> Rows:
    return [
        {
            "setting": s.name,
            "kind": s.kind,
            "ms": 1e3 * s.step_seconds,
            "memory": s.bytes_per_rank / 1e9,
            "moves": s.moves,
            "front": s in tuning.front,
        }
        for s in _fastest_first(tuning.settings)
    ]


def _settings(tuning: Tuning) -> Table:
    return Table(
        name="setting-table",
        title="Settings",
        says="Every setting that was replayed. Those on the front are marked: no other is better "
        "in step time, memory and moves at once.",
        head=("front", "setting", "step ms", "less by", "low", "high", "GB a rank", "moves"),
        rows=tuple(
            (
                "yes" if s in tuning.front else "",
                s.name,
                1e3 * s.step_seconds,
                s.gain,
                s.low,
                s.high,
                s.bytes_per_rank / 1e9,
                s.moves,
            )
            for s in _fastest_first(tuning.settings)
        ),
    )


def _fastest_first(settings: Sequence[Setting]) -> list[Setting]:
    return sorted(settings, key=lambda s: s.price)

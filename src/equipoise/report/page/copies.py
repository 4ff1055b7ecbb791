"""The curve of the gain from copies: time taken off against redundant slots."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.report.page.figures import SERIES, Figure, Spec, tips

LINES = SERIES[1:]
"""Colours of the lines; the first colour of all is that of no balancing."""

_DASHES = ([1, 0], [7, 3], [2, 3], [9, 3, 2, 3], [14, 3])
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")


@dataclass(frozen=True, kw_only=True)
class CopyPoint:
    """A point of the curve.

    Parameters
    ----------
    line
        Line that it is on: the name of a planner, or of a dispatcher.
    redundant
        Redundant slots of a layer.
    gain
        Share of the time that they take off.
    low, high
        Ends of the interval of the share.
    """

    line: str
    redundant: int
    gain: float
    low: float
    high: float

    def row(self, series: str) -> dict[str, object]:
        """Return the point as a row of data, with the sentence that the keyboard reads."""
        slots = f"{self.redundant:,} redundant slot{'' if self.redundant == 1 else 's'}"
        return {
            series: self.line,
            "redundant": self.redundant,
            "gain": self.gain,
            "low": self.low,
            "high": self.high,
            "_said": f"{self.line}, {slots}: {self.gain:z.1%} taken off, "
            f"{self.low:z.1%} to {self.high:z.1%}",
        }


def copies_curve(
    points: list[CopyPoint], *, name: str, title: str, says: str, series: str, taken_off: str
) -> Figure:
    """Draw what more redundant slots take off, a line for each planner or dispatcher.

    Lines differ in colour, dashes and marks, so that they can be told apart in print too. Where
    more lines are given than there are colours, these repeat.

    Parameters
    ----------
    points
        Points of all lines.
    name, title, says
        Fields of ``Figure``.
    series
        Title of what the lines are of.
    taken_off
        Title of the axis.
    """
    lines = list(dict.fromkeys(point.line for point in points))
    styles = [i % len(LINES) for i in range(len(lines))]

    def styled(kind: str, values: tuple[object, ...]) -> Spec:
        scale = {"domain": lines, "range": [values[i] for i in styles]}
        legend = {"title": None, "orient": "top", "labelLimit": 220, "symbolSize": 60}
        return {
            kind: {
                "field": series, "type": "nominal", "sort": None, "scale": scale, "legend": legend,
            }
        }  # fmt: skip

    colour = styled("color", LINES)
    slots = sorted({point.redundant for point in points})
    ends = {end for point in points for end in (point.low, point.high)}
    off: Spec = {
        "type": "quantitative",
        "title": taken_off,
        "axis": {"format": ".0%"},
        # Stated, since Vega complains of the data source "at", which is empty at first.
        "scale": {"domain": [min(0.0, *ends), max(0.0, *ends)], "nice": True},
    }
    tooltip = [
        *tips(series, "redundant"),
        *(
            {"field": field, "type": "quantitative", "format": ".1%"}
            for field in ("gain", "low", "high")
        ),
    ]
    return Figure(
        name=name,
        title=title,
        says=says,
        reads=(series, "redundant"),
        spec={
            "data": {"name": "rows", "values": [point.row(series) for point in points]},
            "width": "container",
            "height": 260,
            "encoding": {
                "x": {
                    "field": "redundant",
                    "type": "quantitative",
                    "title": "redundant slots a layer",
                    "axis": {"values": slots, "labelOverlap": True},
                    "scale": {"domain": [slots[0], slots[-1]]},
                },
            },
            "layer": [
                {
                    "mark": {"type": "area", "opacity": 0.15},
                    "encoding": {**colour, "y": {"field": "low", **off}, "y2": {"field": "high"}},
                },
                {
                    "mark": {"type": "line", "strokeWidth": 1.8},
                    "encoding": {
                        **colour,
                        **styled("strokeDash", _DASHES),
                        "y": {"field": "gain", **off},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1},
                    "encoding": {
                        **colour,
                        **styled("shape", _SHAPES),
                        "y": {"field": "gain", **off},
                        "tooltip": tooltip,
                    },
                },
                {
                    "data": {"name": "at", "values": []},
                    "mark": {"type": "point", "size": 220, "strokeWidth": 2, "color": "$ink"},
                    "encoding": {"y": {"field": "gain", **off}},
                },
            ],
        },
    )

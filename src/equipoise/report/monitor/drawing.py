"""Drawing of a view in the lines and columns of a terminal. Equal views give equal pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from equipoise.report.bars import BLOCKS, draw_bars, fitted, in_its_marks, load_style, next_to
from equipoise.report.heat import joined, span_text
from equipoise.report.monitor.look import Heat
from equipoise.report.monitor.monitor import KEYS
from equipoise.report.monitor.view import Event, HotExpert, Moment, View, squeezed
from equipoise.report.terminal import heat_cell
from equipoise.units import clock

_CHANCE, _FLOOR, _CHANGED = "░", "╌", "▲"
_LEAST_TOP = 1.2  # least upper end of the curve, so that a balanced run looks flat
_TRENDS = ((1.25, "↑"), (1.05, "↗"), (0.95, "→"), (0.8, "↘"), (0.0, "↓"))
_LABEL = 6  # columns for the axis of the curve
_BAR_COLUMNS, _EXPERT_COLUMNS = 36, 24
_AROUND_HEAT = 14  # columns for layer numbers and for the worst rank
_LEAST_BARS = 30  # least number of columns for bars
_ROOMY = 32  # lines of the terminal from which empty lines separate the parts


@dataclass(frozen=True)
class Picture:
    """A picture of a view that fills a terminal.

    Parameters
    ----------
    height
        Number of lines; the terminal's if ``None``.
    """

    view: View
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, in characters that the terminal can show."""
        lines = frame(self.view, options.max_width, self.height or console.height)
        yield from in_its_marks(lines, options)


def frame(view: View, width: int, height: int) -> list[Text]:
    """Draw the picture in exactly this number of lines, none wider than the columns."""
    head = [*_header(view, width), *(Text(trouble, "red") for trouble in view.troubles[:3])]
    gap = [Text()] if height >= _ROOMY else []
    room = height - len(head) - 3 * len(gap) - 4  # the curve's title and marks, events', the keys
    events_room = max(min(room // 5, 12), 3)
    curve_room = max(min(room // 5, 10), 2)
    middle = _middle(view, width, room - events_room - curve_room)
    if middle:
        middle += gap
    else:
        curve_room = room - events_room
    lines = [*head, *gap, *_curve(view, width, curve_room), *gap, *middle]
    lines += _bottom(view, width, max(height - len(lines) - 2, 1))
    lines += [Text()] * (height - 1 - len(lines))
    keys = Text(view.notice, "bold yellow") if view.notice else _keys()
    return [fitted(line, width) for line in [*lines[: max(height - 1, 0)], keys][:height]]


def _header(view: View, width: int) -> list[Text]:
    """Draw the title and the facts, filling each line."""
    lines = [Text(view.title, "bold")]
    for fact in view.facts:
        if lines[-1].cell_len + len(fact) + 3 > width:
            lines.append(Text())
        elif lines[-1]:
            lines[-1].append("   ")
        lines[-1].append(fact, "bold reverse" if fact == "PAUSED" else "")
    return lines[:3]


def _keys() -> Text:
    line = Text()
    for key, what in KEYS:
        line.append(key, "reverse").append(f" {what}  ")
    return line


def _curve(view: View, width: int, rows: int) -> list[Text]:
    """Draw the imbalance from 1 up: dotted up to the noise floor, filled above it."""
    moments = squeezed(view.curve, max(width - _LABEL, 1))
    legend = f"{_CHANCE} chance  {_CHANGED} another map"
    known = [x for m in moments for x in (m.imbalance, m.noise_floor) if x is not None]
    top = max([_LEAST_TOP, *known])
    lines = [_ends(Text(view.curve_title, "bold"), Text(legend, "dim"), width)]
    step = (top - 1) / rows
    for row in reversed(range(rows)):
        label = f"{1 + (row + 1) * step:.2f}" if row == rows - 1 else "1.00" if not row else ""
        line = Text(f"{label:>{_LABEL - 1}} ", "dim")
        for moment in moments:
            line.append(*_point(moment, 1 + row * step, 1 + (row + 1) * step))
        lines.append(line)
    marks = "".join(_CHANGED if moment.map_changed else " " for moment in moments)
    return [*lines, Text(" " * _LABEL + marks, "cyan")]


def _point(moment: Moment, low: float, high: float) -> tuple[str, str]:
    """Choose the character and style of a moment in the line from ``low`` to ``high``."""
    value, floor = moment.imbalance, moment.noise_floor or 1.0
    if value is None or value <= low:
        return (_FLOOR, "dim") if value is not None and low < floor <= high else (" ", "")
    style = load_style(value, floor)
    if value >= high:
        return (_CHANCE, "dim") if low < floor else (BLOCKS[-1], style)
    level = max(round((value - low) / (high - low) * 8), 1)
    return BLOCKS[level], "dim" if value <= floor else style


def _middle(view: View, width: int, rows: int) -> list[Text]:
    """Draw the ranks, and next to them the layers, as far as they are known."""
    if not (view.ranks or view.heat or view.layers):
        return []
    ranks = [Text(view.ranks_title, "bold"), *draw_bars(view.ranks, width, rows - 1, _BAR_COLUMNS)]
    if view.heat is None and not view.layers:
        return ranks
    left = width // 2
    if view.heat is not None:  # one column per rank, if enough room is left for the bars
        most = width - view.heat.multiples.shape[1] - _AROUND_HEAT
        left = min(left, max(most, _LEAST_BARS))
    bars = draw_bars(view.ranks, left - 2, rows - 1, _BAR_COLUMNS)
    narrow = [Text(view.ranks_title, "bold"), *bars]
    if not view.ranks:
        narrow = [Text(view.ranks_title, "bold"), Text("not known", "dim")]
    if view.heat is None:
        title = Text("Layers: busiest over mean rank", "bold")
        right = [title, *draw_bars(view.layers, width - left, rows - 1, _BAR_COLUMNS)]
    else:
        right = _heat(view.heat, width - left, rows)
    return next_to(narrow, right, left)


def _heat(heat: Heat, width: int, rows: int) -> list[Text]:
    """Draw layers x ranks; if there are too many, neighbours share a cell with the busiest."""
    label = _LABEL + 2
    room = max(width - _AROUND_HEAT, 1)
    imbalance = heat.multiples.max(axis=1).tolist()
    cells = joined(
        heat.multiples, heat.layer_ids, imbalance, max_rows=max(rows - 2, 1), max_columns=room
    )
    wide = max(min(room // len(cells.ranks), 4), 1)
    axis = (
        f"rank {cells.ranks[0][0]}".ljust(wide * len(cells.ranks) - 4) + f"{cells.ranks[-1][1]:>4}"
    )
    lines = [
        Text("Layers x ranks: load over the mean", "bold"),
        Text(" " * label + axis[: wide * len(cells.ranks)] + " worst", "dim"),
    ]
    for span, multiples, worst in zip(cells.layers, cells.multiples, cells.imbalance, strict=True):
        line = Text(f"{span_text(span):>{label - 1}} ", "dim")
        for value in multiples:
            line.append_text(heat_cell(value, wide))
        lines.append(line.append("" if worst is None else f" {worst:5.2f}"))
    return lines


def _bottom(view: View, width: int, rows: int) -> list[Text]:
    """Draw the events, the latest first, and the hottest experts."""
    events = [Text("Events", "bold"), *map(_event, reversed(view.events[-rows:]))]
    if not view.events:
        events.append(Text("none yet", "dim"))
    if not view.experts:
        return events
    left = width - _EXPERT_COLUMNS
    experts = [Text("Hottest experts", "bold"), *map(_expert, view.experts[:rows])]
    return next_to([fitted(line, left - 2) for line in events], experts, left)


def _event(event: Event) -> Text:
    return Text.assemble((f"{clock(event.seconds):>7}  ", "dim"), event.text)


def _expert(hot: HotExpert) -> Text:
    trend = next(mark for least, mark in _TRENDS if hot.trend >= least)
    return Text(f"layer {hot.layer:<3} {hot.expert:>4} {hot.multiple:5.1f}x {trend}")


def _ends(left: Text, right: Text, width: int) -> Text:
    """Put a text at each end of a line, or only the left one if both do not fit."""
    space = width - left.cell_len - right.cell_len
    return left if space < 2 else Text.assemble(left, " " * space, right)


def snapshot(view: View, width: int, height: int) -> str:
    """Write the picture as an HTML page, in the size and colours of a terminal."""
    console = Console(
        record=True, file=io.StringIO(), width=width, height=height,
        force_terminal=True, color_system="truecolor", legacy_windows=False,
    )  # fmt: skip
    console.print(Picture(view, height))
    return console.export_html(inline_styles=True)


def shown_lines(lines: Iterable[Text]) -> str:
    """Write a frame as plain text."""
    return "\n".join(line.plain.rstrip() for line in lines)

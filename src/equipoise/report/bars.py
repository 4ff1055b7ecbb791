"""Bars of loads over their mean, drawn in the lines and columns that a terminal has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from rich.console import ConsoleOptions
from rich.text import Text

BLOCKS, LEFT_BLOCKS = " ▁▂▃▄▅▆▇█", " ▏▎▍▌▋▊▉█"
_MEAN = "┊"
_ASCII = str.maketrans("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉░╌┊▲↑↗→↘↓…", "_..-==##.---===:-|^^/>\\v~")
_BUSY, _BUSIER = 1.1, 1.25  # loads over the mean from which colours change


@dataclass(frozen=True)
class Bar:
    """A bar for a rank or a layer: its name, and its load over the mean."""

    name: str
    value: float


def draw_bars(bars: Sequence[Bar], width: int, rows: int, least_width: int) -> list[Text]:
    """Draw one line per bar, in several columns if needed, or only the worst and a summary.

    Parameters
    ----------
    width, rows
        Columns and lines to fill at most.
    least_width
        Columns that a bar needs with its name and number; bars stand side by side where these fit.
    """
    if not bars or rows < 1:
        return []
    columns = max(min(ceil(len(bars) / rows), width // least_width), 1)
    shown, rest = list(bars), list[Bar]()
    if len(bars) > columns * rows:
        ordered = sorted(bars, key=lambda bar: -bar.value)
        shown, rest = ordered[: columns * rows - 1], ordered[columns * rows - 1 :]
    top = max(1.5, *(bar.value for bar in bars))
    name = max(len(bar.name) for bar in bars)
    cell = width // columns
    lines = [_bar(bar, name, cell - 2, top) for bar in shown]
    if rest:
        span = f"{rest[-1].value:.2f} to {rest[0].value:.2f}"
        lines.append(Text(f"… {len(rest)} more, {span}", "dim"))
    stacks = [lines[i : i + rows] for i in range(0, len(lines), rows)]
    whole = stacks[-1]
    for stack in reversed(stacks[:-1]):
        whole = next_to(stack, whole, cell)
    return whole


def _bar(bar: Bar, name: int, width: int, top: float) -> Text:
    room = max(width - name - 7, 1)
    eighths = round(min(bar.value / top, 1.0) * room * 8)
    filled = LEFT_BLOCKS[-1] * (eighths // 8) + LEFT_BLOCKS[eighths % 8] * (eighths % 8 > 0)
    drawn = filled.ljust(room)
    mean = min(round(room / top), room - 1)
    style = load_style(bar.value)
    return Text.assemble(
        f"{bar.name:<{name}} ",
        (drawn[:mean], style),
        (_MEAN, "bold"),
        (drawn[mean + 1 :], style),
        f" {bar.value:5.2f}",
    )


def load_style(value: float, floor: float = 1.0) -> str:
    """Choose the colour of a load over the mean, where chance alone gives ``floor``."""
    return "red" if value > floor * _BUSIER else "yellow" if value > floor * _BUSY else "green"


def next_to(left: Sequence[Text], right: Sequence[Text], at: int) -> list[Text]:
    """Put two parts side by side; the right one begins at a given column."""
    lines = []
    for number in range(max(len(left), len(right))):
        line = left[number].copy() if number < len(left) else Text()
        if number < len(right):
            line.truncate(at - 1)
            line.truncate(at, pad=True)
            line.append_text(right[number])
        lines.append(line)
    return lines


def fitted(line: Text, width: int) -> Text:
    """Cut the end of a line that is wider."""
    if line.cell_len > width:
        line = line.copy()
        line.truncate(width, overflow="ellipsis")
    return line


def in_its_marks(lines: Sequence[Text], options: ConsoleOptions) -> Iterator[Text]:
    """Yield lines in characters that the terminal can show; no newline ends the last."""
    for number, line in enumerate(lines):
        plain = line.plain.translate(_ASCII) if options.ascii_only else line.plain
        end = "\n" if number < len(lines) - 1 else ""
        yield Text(plain, spans=line.spans, no_wrap=True, overflow="crop", end=end)

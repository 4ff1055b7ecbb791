"""The text of a summary for a terminal or a pipe."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from equipoise.report.heat import HeatMap, heat_map, span_text
from equipoise.report.ranks import Balance
from equipoise.report.summary import TraceSummary

_HEAT_ROWS = 26
_HEAT_COLUMNS = 128  # columns of a heat map in a pipe, whose width is not limited
_LABELS = 12
_WORDS = 16  # columns that words from a file may take before they are wrapped
_ANY_WIDTH = 1 << 20
_UNITS = ("", "k", "M", "G", "T", "P")

# Upper edges of the classes of load over mean, and the character and colours of each class. The
# characters alone carry the meaning, for pipes and for colour-blind readers.
_EDGES = (0.5, 0.8, 0.95, 1.05, 1.25, 1.5, 2.0, 3.0)
_MARKS = " .:-=+*#@"
_STYLES = (
    "white on color(24)",
    "white on color(31)",
    "black on color(110)",
    "black on color(252)",
    "black on color(223)",
    "black on color(216)",
    "black on color(209)",
    "white on color(160)",
    "bold white on color(88)",
)


class SummaryView:
    """A summary for ``console.print``: notes, headline, tables and heat map.

    It is as wide as the console, but never so narrow that a word or number is cut. It has no
    colours or escape codes if the console has none.
    """

    def __init__(self, summary: TraceSummary) -> None:
        self.summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts, with an empty line between two of them."""
        for number, part in enumerate(self._parts(options)):
            if number:
                yield Text()
            yield part

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Accept any width from 40 columns up."""
        return Measurement(min(40, options.max_width), options.max_width)

    def _parts(self, options: ConsoleOptions) -> Iterator[RenderableType]:
        summary = self.summary
        yield _title(summary)
        if summary.notes:
            yield _section("Notes", *summary.notes)
        yield Text("\n").join(map(_plain, summary.headline))
        if summary.balance is not None:
            yield _conventions(summary, summary.balance)
        yield _worst_layers(summary)
        yield _hottest_experts(summary)
        if summary.labels:
            yield _labels(summary, _WORDS if options.is_terminal else None)
        yield _drift(summary)
        if summary.rank_p95:
            yield _heat(summary, options.max_width)


def _title(summary: TraceSummary) -> Text:
    ranks = "" if summary.num_ranks is None else f" on {summary.num_ranks} ranks"
    slots = (
        f" in {summary.num_slots} slots"
        if summary.num_slots not in (None, summary.num_experts)
        else ""
    )
    tokens = "" if summary.tokens is None else f", {summary.tokens:,} tokens"
    top_k = "" if summary.top_k is None else f", top-{summary.top_k}"
    steps = "1 step" if summary.num_steps == 1 else f"{summary.num_steps:,} steps"
    facts = (
        f"{steps}{tokens}, {summary.num_layers} layers, "
        f"{summary.num_experts} experts{slots}{ranks}{top_k}"
    )
    source = _plain(summary.source)
    source.stylize("bold")
    return Text("\n").join([source, Text(facts, style="dim")])


def _conventions(summary: TraceSummary, balance: Balance) -> Table:
    table = _table("Balance over all layers and steps")
    table.add_column("measure", no_wrap=True)
    _numbers(table, "value")
    table.add_column("definition", style="dim", overflow="fold")
    rows = [
        ("imbalance", f"{balance.imbalance:.3f}", "mean of max/mean over ranks"),
        ("  by chance", f"{balance.floor:.3f}", "the noise floor: fair router, same step sizes"),
        ("  excess", f"{balance.excess:+.3f}", "imbalance minus the noise floor"),
        ("  beyond chance", f"{balance.beyond_chance:.1%}", "of steps and layers, unbalanced"),
        ("  95th percentile", f"{balance.p95:.3f}", f"worst {balance.worst:.3f}"),
        ("  of summed load", f"{balance.of_window:.3f}", "all steps added up; hides moving spots"),
        ("imbalance ratio", f"{balance.imbalance_ratio:.3f}", "mean of (max - mean)/mean"),
        ("balancedness", f"{balance.balancedness:.3f}", "mean of mean/max"),
        ("step time", f"{summary.relative_step_time:.3f}", "sum of max over sum of mean"),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _worst_layers(summary: TraceSummary) -> Table:
    by_id = {layer.layer: layer for layer in summary.layers}
    table = _table("Worst layers")
    _numbers(table, "layer")
    if summary.num_ranks is not None:
        _numbers(table, "imbalance", "chance", "p95", "worst", "summed", "rank")
    _numbers(table, "hottest", "experts\nused")
    for number in summary.worst_layers:
        layer = by_id[number]
        cells = [str(number)]
        if layer.balance is not None:
            b = layer.balance
            cells += [f"{x:.2f}" for x in (b.imbalance, b.floor, b.p95, b.worst, b.of_window)]
            cells.append(str(layer.busiest_rank))
        used = f"{layer.used_experts}/{summary.num_experts}"
        table.add_row(*cells, f"{layer.expert_imbalance:.1f}x", used)
    return table


def _hottest_experts(summary: TraceSummary) -> Table:
    table = _table("Hottest experts")
    _numbers(table, "layer", "expert", "times\nthe mean", "share\nof layer")
    if summary.num_ranks is not None:
        table.add_column("on ranks", overflow="fold")
    for hot in summary.hottest_experts:
        cells = [str(hot.layer), str(hot.expert), f"{hot.multiple:.1f}x", f"{hot.share:.1%}"]
        if summary.num_ranks is not None:
            cells.append(", ".join(map(str, hot.ranks)))
        table.add_row(*cells)
    return table


def _labels(summary: TraceSummary, max_width: int | None) -> Table:
    table = _table("By label")
    for name in ("label", "value"):  # folded, not cut: the ends of names tell them apart
        table.add_column(name, overflow="fold", max_width=max_width)
    _numbers(table, "steps", "assigned")
    if summary.num_ranks is not None:
        _numbers(table, "imbalance", "chance", "p95")
    _numbers(table, "hottest")
    for row in summary.labels[:_LABELS]:
        cells = [f"{row.num_steps:,}", _short(row.assignments)]
        if summary.num_ranks is not None:
            b = row.balance
            cells += ["-"] * 3 if b is None else [f"{x:.2f}" for x in (b.imbalance, b.floor, b.p95)]
        hottest = f"{row.expert_imbalance:.1f}x"
        table.add_row(_plain(row.label), _plain(row.value), *cells, hottest)
    if len(summary.labels) > _LABELS:
        table.caption = f"{len(summary.labels) - _LABELS} more not shown"
    return table


def _drift(summary: TraceSummary) -> RenderableType:
    drift = summary.drift
    size = "step" if drift.window_steps == 1 else f"window of {drift.window_steps} steps"
    if drift.correlation is None or drift.total_variation is None:
        lines = ["Too few windows to compare."]
    else:
        lines = [
            f"From one {size} to the next, loads correlate {drift.correlation:.2f} and "
            f"{drift.total_variation:.1%} of the load moves to other experts "
            f"({drift.chance_variation:.1%} by chance)."
        ]
    for name, value in drift.labels.items():
        within = "" if value.within is None else f"{value.within:.2f} within one value, "
        lines.append(f"By {name}: correlation {within}{value.between:.2f} between two.")
    return _section("Drift", *lines)


def _heat(summary: TraceSummary, width: int) -> RenderableType:
    room = min(max(8, width - 18), 2 * _HEAT_COLUMNS)
    heat = heat_map(summary, max_rows=_HEAT_ROWS, max_columns=room)
    cell = 2 if 2 * len(heat.ranks) <= room else 1
    label = max(5, *(len(span_text(span)) for span in heat.layers))
    rows = [Text(f"{'layer':>{label}} {_axis(heat, cell)}  mean", style="dim")]
    for span, multiples, mean in zip(heat.layers, heat.multiples, heat.imbalance, strict=True):
        row = Text.assemble((f"{span_text(span):>{label}} ", "dim"))
        for value in multiples:
            row.append_text(heat_cell(value, cell))
        rows.append(row.append("" if mean is None else f" {mean:5.2f}"))
    said = ["mean: imbalance, the busiest rank of each step, mean over steps."]
    if heat.joined:
        said.append(f"Neighbouring {heat.joined} share a cell, which shows the busiest.")
    return _section(_cell(summary), *rows, *said, _legend())


def heat_cell(multiple: float, width: int) -> Text:
    """Draw a cell of a heat map: a character and a colour for a load over the mean."""
    level = bisect_right(_EDGES, multiple)
    return Text(_MARKS[level] * width, style=_STYLES[level])


def _cell(summary: TraceSummary) -> str:
    """Explain the cells of the heat map."""
    load = "Load of each rank over the mean of its step"
    if summary.num_steps == 1:
        return load
    return f"{load}: 95th percentile, so one step in 20 has more"


def _legend() -> Text:
    legend = Text()
    for mark, style, edge in zip(_MARKS, _STYLES, (*_EDGES, None), strict=True):
        legend.append(f" {mark} ", style=style)
        legend.append(f"<{edge:g} " if edge is not None else f">={_EDGES[-1]:g}")
    return legend


def _axis(heat: HeatMap, cell: int) -> str:
    """Write the first and last rank above the ends of the rows."""
    width = cell * len(heat.ranks)
    first, last = str(heat.ranks[0][0]), f"rank {heat.ranks[-1][1]}"
    if len(first) + len(last) >= width:
        return " " * width
    return first + last.rjust(width - len(first))


def _section(title: str, *lines: str | Text) -> RenderableType:
    """Write a bold title above indented lines."""
    body = Group(*(line if isinstance(line, Text) else _plain(line) for line in lines))
    return Group(Text(title, style="bold"), Padding(body, (0, 0, 0, 2), expand=False))


def _plain(words: str) -> Text:
    """Show words from a file unchanged, without markup and control characters."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words))


def _short(number: int) -> str:
    """Write a number with three digits and a unit: ``108M``."""
    size, unit = float(number), 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g}{_UNITS[unit]}"


class WholeTable(Table):
    """A table that is never narrower than its words and numbers.

    Columns of words are wrapped and columns of numbers are not, so nothing is cut.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the rows, wider than the console if necessary."""
        least = self.__rich_measure__(console, options.update(max_width=_ANY_WIDTH)).minimum
        yield from super().__rich_console__(
            console, options.update(max_width=max(options.max_width, least))
        )


def _table(title: str) -> Table:
    return WholeTable(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=None,
        header_style="dim",
        padding=(0, 0, 0, 2),
    )


def _numbers(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)

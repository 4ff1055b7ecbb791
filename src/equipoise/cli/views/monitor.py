"""The monitor on a terminal, and its summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from equipoise.cli.options.names import in_options
from equipoise.cli.views.console import stdout
from equipoise.cli.views.keyboard import Keyboard
from equipoise.engines.files import write_text
from equipoise.errors import EquipoiseError
from equipoise.report.monitor.drawing import Picture, snapshot
from equipoise.report.monitor.looker import Answer, Looker
from equipoise.report.monitor.monitor import Monitor
from equipoise.units import clock

_REDRAW_SECONDS = 0.25
_LAST_EVENTS = 10


def on_screen(
    monitor: Monitor, looker: Looker, most_looks: int | None, ask_for_look: Callable[[], str]
) -> None:
    """Show it until ``q``, Ctrl-C, or a number of looks."""
    console = stdout()
    with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        done = 1
        while most_looks is None or done < most_looks:
            live.update(Picture(monitor.view(time.time())), refresh=True)
            for key in keyboard.keys(_REDRAW_SECONDS):
                monitor.press(key)
                match key:
                    case "q":
                        return
                    case "h":
                        monitor.notice(_keep_page(monitor, console))
                    case "l":
                        looker.hurry()
                        monitor.notice(ask_for_look())
            while (answer := looker.answer(0.0)) is not None:
                _take(monitor, answer)
                done += 1


def in_lines(monitor: Monitor, looker: Looker, most_looks: int | None, json: bool) -> None:
    """Print a line for each look, until Ctrl-C or a number of looks."""
    done = 0
    while True:
        if json:
            print(msgspec.json.encode(monitor.as_dict()).decode(), flush=True)
        else:
            print(monitor.line(time.time()), flush=True)
        done += 1
        if done == most_looks:
            return
        if (answer := looker.answer()) is not None:
            _take(monitor, answer)


def _take(monitor: Monitor, answer: Answer) -> None:
    """Let the monitor know what a look has found, or why nothing."""
    if isinstance(answer, EquipoiseError):
        monitor.fail(in_options(answer.message))
    else:
        monitor.take(answer)


def _keep_page(monitor: Monitor, console: Console) -> str:
    """Write what is shown to a file in the folder we are in, and say so."""
    path = Path(time.strftime("equipoise-monitor-%Y%m%d-%H%M%S.html"))
    width, height = console.size
    try:
        write_text(path, snapshot(monitor.view(time.time()), width, height))
    except (EquipoiseError, OSError) as error:
        return f"No snapshot: {error}"
    return f"Written to {path}"


def print_summary(monitor: Monitor) -> None:
    """What was seen: a row for each map, and the last events."""
    table = Table(box=None, header_style="dim", padding=(0, 0, 0, 2))
    for name in ("map", "seconds", "looks", "imbalance", "chance", "tokens/s"):
        table.add_column(name, justify="right")
    for stretch in monitor.summary():
        table.add_row(
            "-" if stretch.map_version is None else str(stretch.map_version),
            f"{stretch.seconds:.0f}",
            f"{stretch.looks:,}",
            _number(stretch.imbalance, ".3f"),
            _number(stretch.noise_floor, ".3f"),
            _number(stretch.tokens_per_second, ",.0f"),
        )
    console = stdout()
    console.print(table)
    for event in monitor.events[-_LAST_EVENTS:]:
        console.print(f"{clock(event.seconds):>7}  {event.text}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""The live view of serving processes on a terminal, drawn from their statuses.

Nothing here reads a clock or a store, so equal statuses give equal pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from equipoise.control.status import Arrival, Status
from equipoise.report.bars import BLOCKS, Bar, draw_bars, fitted, in_its_marks
from equipoise.units import duration, size

_RATE_SECONDS = 3.0
_WIDTH = 80  # most columns of the picture
_BAR_COLUMNS = 18  # least columns of a bar with its name and number
_CURVE_COLUMNS = 60
_LEAST_SPAN = 0.5  # least range of the curve, so that a balanced run looks flat
_GAPS = 3  # empty lines, where there is room for all
_INDENT = 2
_ECHO = 2  # columns for the ^C of a terminal, which would begin another line after a full one


@dataclass(frozen=True)
class Stretch:
    """A period in which the same processes served one domain on one map.

    The time in which layers move counts for the old map.

    Parameters
    ----------
    began
        Event with which the period begins.
    imbalance
        Mean imbalance that rank 0 published, weighted by the steps of each status.
    """

    began: str
    domain: str
    seconds: float
    steps: int
    tokens: int
    imbalance: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second, all ranks together."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def step_seconds(self) -> float:
        """Mean time of a step, including everything between two steps."""
        return self.seconds / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class Summary:
    """A run in a few rows.

    Parameters
    ----------
    stretches
        Stretches in order of time.
    moved_slots, moved_bytes
        Numbers of slots and bytes that balancing has moved, over all ranks.
    """

    stretches: tuple[Stretch, ...]
    moved_slots: int
    moved_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return the summary for JSON."""
        rows = [
            {
                "began": s.began,
                "domain": s.domain,
                "seconds": s.seconds,
                "steps": s.steps,
                "tokens": s.tokens,
                "imbalance": s.imbalance,
                "tokens_per_second": s.tokens_per_second,
                "step_seconds": s.step_seconds,
            }
            for s in self.stretches
        ]
        return {
            "stretches": rows,
            "moved_slots": self.moved_slots,
            "moved_bytes": self.moved_bytes,
        }

    def table(self) -> Table:
        """Make a table with a row for each stretch."""
        table = Table(box=None, header_style="dim", padding=(0, 0, 0, 2))
        table.add_column("from")
        table.add_column("domain")
        for name in ("seconds", "steps", "ms a step", "tokens/s", "imbalance"):
            table.add_column(name, justify="right")
        for s in self.stretches:
            table.add_row(
                s.began,
                s.domain,
                f"{s.seconds:.1f}",
                f"{s.steps:,}",
                f"{1000 * s.step_seconds:.1f}",
                f"{s.tokens_per_second:,.0f}",
                f"{s.imbalance:.3f}",
            )
        return table


@dataclass(frozen=True)
class _Sample:
    """A status of rank 0, the changes since its last one, and the part they belong to."""

    head: Status
    seconds: float
    steps: int
    tokens: int
    part: _Part


@dataclass(frozen=True)
class _Part:
    """The quantities that are constant in a stretch, and its first event."""

    epoch: int
    domain: str
    moved_slots: int
    began: str

    def next(self, head: Status) -> _Part:
        """Return the part that a status belongs to."""
        domain = head.domain or self.domain
        if head.epoch != self.epoch:
            began = f"epoch {head.epoch}: {_ranks(head)}"
            return _Part(head.epoch, domain, head.moved_slots, began)
        if not self.domain:
            return replace(self, domain=domain)
        if domain != self.domain:
            return _Part(self.epoch, domain, self.moved_slots, f"shift to {domain}")
        if head.moved_slots != self.moved_slots and head.state != "move":
            return _Part(self.epoch, domain, head.moved_slots, f"map {head.version}")
        return self


class View:
    """A view that follows a run and shows it.

    Parameters
    ----------
    title
        Name of what is served.
    seconds
        Planned length of the run.
    processes
        Number of processes that are to serve.
    """

    def __init__(self, title: str, seconds: float, processes: int) -> None:
        self._title, self._seconds, self._processes = title, seconds, processes
        self._arrivals: Mapping[str, Arrival] = {}
        self._samples: list[_Sample] = []
        self._latest: Mapping[str, Status] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the first status."""
        return sum(sample.seconds for sample in self._samples)

    def wait(self, arrivals: Mapping[str, Arrival]) -> bool:
        """Take what each process has done before its first step; return whether any is new."""
        before, self._arrivals = self._arrivals, dict(arrivals)
        return self._arrivals != before

    def update(self, statuses: Mapping[str, Status]) -> bool:
        """Take the last status of every process, including gone ones; return whether any is new."""
        head = _head(statuses)
        last = self._samples[-1] if self._samples else None
        if head is None or (last is not None and _is_old(head, last.head)):
            return False
        before, self._latest = self._latest, dict(statuses)
        if last is None:
            part = _Part(head.epoch, head.domain, head.moved_slots, "start")
            self._samples.append(_Sample(head, 0.0, 0, 0, part))
        else:
            self._samples.append(
                _Sample(
                    head,
                    seconds=max(head.time - last.head.time, 0.0),
                    steps=max(head.step - last.head.step, 0),
                    tokens=_tokens(statuses) - _tokens(before),
                    part=last.part.next(head),
                )
            )
        return True

    def summary(self) -> Summary:
        """Summarise the run so far."""
        stretches = tuple(
            _stretch(part, list(samples))
            for part, samples in groupby(self._samples[1:], key=lambda sample: sample.part)
        )
        moved = sum(s.moved_slots for s in self._lasts_of_epochs())
        return Summary(stretches, moved, self._moved_bytes)

    def line(self) -> str:
        """Write the current state in one line."""
        if not self._samples:
            told = ", ".join(f"{number} {what}" for what, number in self._waiting)
            return f"{self._title}, {self._processes} processes: {told}"
        head = self._samples[-1].head
        loads = " ".join(f"{bar.value:.2f}" for bar in _loads(head))
        return (
            f"{self.elapsed:6.1f} s  {head.domain:<8}  imbalance {head.imbalance:.2f}  "
            f"{self._rate:,.0f} tokens/s  {head.state}, map {head.version}  loads {loads}"
            + (f"  {self._troubles}" if self._troubles else "")
        )

    def render(self) -> RenderableType:
        """Draw the current state, in a picture that fits the terminal."""
        return _Picture(self)

    def frame(self, width: int, height: int) -> list[Text]:
        """Draw the lines of the picture: at most ``height``, none wider than ``width``."""
        lines = self._serving(width, height) if self._samples else self._getting_ready()
        return [fitted(line, width) for line in lines[: max(height, 1)]]

    def _getting_ready(self) -> list[Text]:
        title = Text.assemble((self._title, "bold"), f" on {self._processes} processes")
        parts = [
            Text(f"  {what:<20} {number:>3} of {self._processes}") for what, number in self._waiting
        ]
        return [title, *parts]

    def _serving(self, width: int, height: int) -> list[Text]:
        """Draw what is always shown, ranks in the lines that are left, and gaps if some remain."""
        head = self._samples[-1].head
        curve, facts = self._curve(head), self._facts(head)
        room = height - len(curve) - len(facts) - 2
        bars = draw_bars(_loads(head), width - _INDENT, max(room, 1), _BAR_COLUMNS)
        bars = [Text(" " * _INDENT).append_text(bar) for bar in bars]
        gap = [Text()] * (room - len(bars) >= _GAPS)
        title = Text("Load of each rank over the mean", "bold")
        return [self._headline(head), *gap, title, *bars, *gap, *curve, *gap, *facts]

    @property
    def _waiting(self) -> list[tuple[str, int]]:
        """Stages of processes before they serve, with how many have reached each."""
        stages = list(Arrival)
        reached = [stages.index(arrival) for arrival in self._arrivals.values()]
        return [(s.value, sum(at >= n for at in reached)) for n, s in enumerate(stages)]

    @property
    def _rate(self) -> float:
        """Recent tokens per second."""
        seconds, tokens = 0.0, 0
        for sample in reversed(self._samples):
            seconds, tokens = seconds + sample.seconds, tokens + sample.tokens
            if seconds >= _RATE_SECONDS:
                break
        return tokens / seconds if seconds else 0.0

    @property
    def _moved_bytes(self) -> int:
        return sum(status.moved_bytes for status in self._latest.values())

    @property
    def _troubles(self) -> str:
        """Faults of any process; empty if there are none."""
        failed = sum(status.failed_requests for status in self._latest.values())
        alarms = {alarm for status in self._latest.values() for alarm in status.alarms}
        told = [f"{failed:,} requests failed"] if failed else []
        return ", ".join([*told, *sorted(alarms)])

    def _lasts_of_epochs(self) -> list[Status]:
        """Return the last status of each epoch, because each epoch counts moves from 0."""
        by_epoch = {sample.head.epoch: sample.head for sample in self._samples}
        return list(by_epoch.values())

    def _headline(self, head: Status) -> Text:
        ranks = _ranks(head) + (f", epoch {head.epoch}" if head.epoch > 1 else "")
        return Text.assemble(
            (self._title, "bold"),
            f" on {ranks}   {self.elapsed:.0f} of {self._seconds:g} s   serving ",
            (head.domain or "nothing", "bold"),
        )

    def _curve(self, head: Status) -> list[Text]:
        title = Text.assemble(
            ("Imbalance, busiest over mean rank: ", "bold"), f"{head.imbalance:.2f}"
        )
        values = [sample.head.imbalance for sample in self._samples]
        return [title, Text(f"  {_curve(values)}")]

    def _facts(self, head: Status) -> list[Text]:
        moved = sum(status.moved_slots for status in self._lasts_of_epochs())
        return [
            Text.assemble(
                ("Controller: ", "bold"),
                f"{head.state}, map {head.version}, {_moves(moved, self._moved_bytes)}",
            ),
            Text.assemble(
                ("Serving: ", "bold"),
                f"{self._rate:,.0f} tokens/s, "
                f"{duration(head.step_seconds)} a step, {head.step:,} steps",
            ),
            *([Text(self._troubles, "red")] if self._troubles else []),
            *(Text(f"  {line}", "dim") for line in head.log),
        ]


@dataclass(frozen=True)
class _Picture:
    """The current state, drawn for the size of the terminal that it is printed to."""

    view: View

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width - _ECHO, _WIDTH)
        yield from in_its_marks(self.view.frame(width, console.height - 1), options)


def _curve(values: Sequence[float]) -> str:
    """Draw values over time in one row, from 1 up."""
    parts = np.array_split(np.asarray(values), min(len(values), _CURVE_COLUMNS))
    means = np.array([part.mean() for part in parts])
    marks = BLOCKS[1:]
    top = max(means.max(), 1 + _LEAST_SPAN)
    levels = (means - 1) / (top - 1) * (len(marks) - 1)
    return f"{''.join(marks[level] for level in levels.round().astype(int))}  1 to {top:.2f}"


def _head(statuses: Mapping[str, Status]) -> Status | None:
    """Return the status of rank 0 in the newest epoch that has one; it stands for all."""
    heads = [status for status in statuses.values() if status.rank == 0]
    return max(heads, key=lambda status: status.epoch, default=None)


def _moves(slots: int, number_of_bytes: int) -> str:
    return f"{slots:,} slots, {size(number_of_bytes)} moved" if slots else "nothing moved yet"


def _ranks(head: Status) -> str:
    number = len(head.members)
    return "1 rank" if number == 1 else f"{number} ranks"


def _tokens(statuses: Mapping[str, Status]) -> int:
    return sum(status.tokens for status in statuses.values())


def _is_old(head: Status, last: Status) -> bool:
    """Tell whether a status was already seen."""
    return (head.name, head.time) == (last.name, last.time)


def _stretch(part: _Part, samples: Sequence[_Sample]) -> Stretch:
    steps = [sample.steps for sample in samples]
    values = [sample.head.imbalance for sample in samples]
    return Stretch(
        began=part.began,
        domain=part.domain,
        seconds=sum(sample.seconds for sample in samples),
        steps=sum(steps),
        tokens=sum(sample.tokens for sample in samples),
        imbalance=float(np.average(values, weights=steps if any(steps) else None)),
    )


def _loads(head: Status) -> list[Bar]:
    """Compute the load of each rank over the mean; empty if there is no load."""
    load_R = np.array(head.rank_load, dtype=np.float64)
    if not load_R.any():
        return []
    return [Bar(f"rank {rank}", load) for rank, load in enumerate(load_R / load_R.mean())]

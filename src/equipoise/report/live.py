"""The live view of serving processes on a terminal, drawn from their statuses.

Nothing here reads a clock or a store, so equal statuses give equal pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from equipoise.control.status import Status

_RATE_SECONDS = 3.0
_COLUMNS = 60
_MARKS, _ASCII_MARKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
_LEAST_SPAN = 0.5  # least range of the curve, so that a balanced run looks flat
_BUSY, _BUSIER = 1.1, 1.25  # loads over the mean from which colours change


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
    """

    def __init__(self, title: str, seconds: float) -> None:
        self._title, self._seconds = title, seconds
        self._samples: list[_Sample] = []
        self._latest: Mapping[str, Status] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the first status."""
        return sum(sample.seconds for sample in self._samples)

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
            return self._waiting
        head = self._samples[-1].head
        loads = " ".join(f"{value:.2f}" for value in _multiples(head))
        return (
            f"{self.elapsed:6.1f} s  {head.domain:<8}  imbalance {head.imbalance:.2f}  "
            f"{self._rate:,.0f} tokens/s  {head.state}, map {head.version}  loads {loads}"
            + (f"  {self._troubles}" if self._troubles else "")
        )

    def render(self) -> RenderableType:
        """Draw the current state."""
        if not self._samples:
            return Text(self._waiting)
        head = self._samples[-1].head
        return Group(
            self._headline(head),
            Text(),
            Text("Load of each rank over the mean", style="bold"),
            Padding(_bars(head), (0, 0, 0, 2)),
            Text(),
            self._curve(head),
            Text(),
            self._facts(head),
            *([Text(self._troubles, style="red")] if self._troubles else []),
            *(
                Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis")
                for line in head.log
            ),
        )

    @property
    def _waiting(self) -> str:
        return f"{self._title}: waiting for the processes to load it"

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

    def _curve(self, head: Status) -> Group:
        title = Text.assemble(
            ("Imbalance, busiest over mean rank: ", "bold"), f"{head.imbalance:.2f}"
        )
        values = [sample.head.imbalance for sample in self._samples]
        return Group(title, Padding(_Curve(values), (0, 0, 0, 2)))

    def _facts(self, head: Status) -> Group:
        moved = sum(status.moved_slots for status in self._lasts_of_epochs())
        return Group(
            Text.assemble(
                ("Controller: ", "bold"),
                f"{head.state}, map {head.version}, "
                f"{moved:,} slots, {self._moved_bytes / 1e6:.1f} MB moved",
            ),
            Text.assemble(
                ("Serving: ", "bold"),
                f"{self._rate:,.0f} tokens/s, "
                f"{1000 * head.step_seconds:.1f} ms a step, {head.step:,} steps",
            ),
        )


class _Curve:
    """A curve of values over time in one row, from 1 up."""

    def __init__(self, values: Sequence[float]) -> None:
        parts = np.array_split(np.asarray(values), min(len(values), _COLUMNS))
        self._means = np.array([part.mean() for part in parts])

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the row, in characters that the terminal can show."""
        marks = _ASCII_MARKS if options.ascii_only else _MARKS
        top = max(self._means.max(), 1 + _LEAST_SPAN)
        levels = (self._means - 1) / (top - 1) * (len(marks) - 1)
        row = "".join(marks[level] for level in levels.round().astype(int))
        yield Text(f"{row}  1 to {top:.2f}", no_wrap=True)


def _head(statuses: Mapping[str, Status]) -> Status | None:
    """Return the status of rank 0 in the newest epoch that has one; it stands for all."""
    heads = [status for status in statuses.values() if status.rank == 0]
    return max(heads, key=lambda status: status.epoch, default=None)


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


def _multiples(head: Status) -> list[float]:
    """Compute the load of each rank over the mean; empty if there is no load."""
    load_R = np.array(head.rank_load, dtype=np.float64)
    return [] if not load_R.any() else (load_R / load_R.mean()).tolist()


def _bars(head: Status) -> Table:
    multiples = _multiples(head)
    table = Table.grid(padding=(0, 1))
    for name, value in zip(head.members, multiples, strict=False):
        style = "red" if value > _BUSIER else "yellow" if value > _BUSY else "green"
        bar = ProgressBar(
            total=max(2.0, *multiples),
            completed=value,
            width=_COLUMNS,
            complete_style=style,
            finished_style=style,
        )
        table.add_row(name, bar, f"{value:.2f}")
    return table

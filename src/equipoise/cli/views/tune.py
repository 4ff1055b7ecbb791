"""What tuning has found, as text and as a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, repeat

from rich.console import Console
from rich.table import Table

from equipoise.cli.views.answer import Answer
from equipoise.cli.views.hardware import print_facts
from equipoise.cli.views.launch import print_launch
from equipoise.cli.views.notes import print_recording
from equipoise.simulate.gain import CONFIDENCE
from equipoise.simulate.prior import ASSUMED, is_assumed
from equipoise.simulate.tune import NONE, Setting, Study, Tuning
from equipoise.units import duration

_WIDTH, _HEIGHT = 56, 10
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True)
class Tuned(Answer):
    """What was replayed, and what came of it."""

    study: Study
    tuning: Tuning

    @property
    def is_assumed(self) -> bool:
        """Whether nobody has recorded the routing."""
        return is_assumed(self.study.held)

    @property
    def text(self) -> str:
        """The answer, marked if it rests on a prior."""
        return f"{ASSUMED}: {self.tuning.text}" if self.is_assumed else self.tuning.text


def tuned_document(answer: Tuned) -> dict[str, object]:
    """The answer for programs."""
    tuning = answer.tuning
    return {
        "text": answer.text,
        "assumed": answer.is_assumed,
        "notes": answer.study.held.provenance.notes,
        "model": answer.study.conditions.model.name,
        "counts": answer.study.conditions.model.counts,
        "hardware": answer.facts,
        "prices": _prices(answer),
        "planned_steps": answer.study.fit.num_steps,
        "replayed_steps": answer.study.held.num_steps,
        "confidence": CONFIDENCE,
        "best": None if tuning.best.kind == NONE else _setting(tuning.best),
        "none": _setting(tuning.none),
        "front": [_setting(s) for s in tuning.front],
        "settings": [_setting(s) for s in tuning.settings],
        "launch": answer.launch,
    }


def _prices(answer: Tuned) -> dict[str, object]:
    conditions = answer.study.conditions
    return {
        "expert_bytes": conditions.expert_bytes,
        "interference": conditions.interference,
        "stall_seconds": conditions.stall_seconds,
        "plan_seconds": answer.study.plan_seconds,
        "assumed": answer.prices,
    }


def _setting(setting: Setting) -> dict[str, object]:
    return {name: value for name, value in asdict(setting).items() if name != "blocks"}


def print_tuned(console: Console, answer: Tuned) -> None:
    """Print the answer for people, first and last."""
    study, tuning = answer.study, answer.tuning
    print_recording(console, study.held)
    rest = study.conditions.model.counts
    if study.conditions.other_seconds:
        rest = f"{duration(study.conditions.other_seconds)} of other work in every step"
    console.print(f"\n{answer.text}\n")
    print_facts(console, answer.facts)
    if answer.prices:
        console.print(f"{answer.prices}\n")
    console.print(
        f"{len(tuning.settings)} settings on {study.held.num_steps} steps, planned on "
        f"{study.fit.num_steps}; {study.conditions.model.name}, {rest}. No other setting is better "
        "than these in step time, memory and moves at once:\n"
    )
    console.print(_table(tuning))
    for line in front_plots(tuning.front):
        console.print(line)
    if answer.launch is not None:
        console.print()
        print_launch(console, answer.launch)
    console.print(f"\n{answer.text}")


def _table(tuning: Tuning) -> Table:
    table = Table(box=None)
    head = ["", "what", "redundant", "split", "window", "interval", "alarm", "step ms", "less by"]
    head += [f"{CONFIDENCE:.0%} interval", "GB a rank", "moves", "imbalance"]
    for name in head:
        left = name in ("", "what", "split")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for mark, s in zip(_marks(), tuning.front, strict=False):
        table.add_row(
            mark,
            s.kind,
            str(s.redundant),
            "" if s.kind == NONE else s.dispatch,
            str(s.window or ""),
            str(s.interval or ""),
            f"{s.excess:g}" if s.excess else "",
            f"{1e3 * s.step_seconds:.3f}",
            f"{s.gain:z.1%}",
            f"{s.low:z.1%} to {s.high:z.1%}",
            f"{s.bytes_per_rank / 1e9:.3f}",
            f"{s.moves:,}",
            f"{s.imbalance:.3f}",
        )
    return table


def front_plots(front: Sequence[Setting]) -> list[str]:
    """The step time over memory and over moves, as far as settings differ in them."""
    prices = (
        ("GB a rank", ".3f", [s.bytes_per_rank / 1e9 for s in front]),
        ("slots moved", ",.0f", [float(s.moves) for s in front]),
    )
    times = [1e3 * s.step_seconds for s in front]
    lines = []
    for title, form, values in prices:
        if len(set(values)) > 1:
            lines += ["", *_scatter(times, values, title, form)]
    return lines


def _scatter(times: Sequence[float], values: Sequence[float], title: str, form: str) -> list[str]:
    """The settings as letters, step time over another price; where two fall together, the first."""
    cells = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for mark, time, value in reversed(list(zip(_marks(), times, values, strict=False))):
        row = round(_part(time, times) * (_HEIGHT - 1))
        cells[_HEIGHT - 1 - row][round(_part(value, values) * (_WIDTH - 1))] = mark
    high, low = (f"{end:9.3f}" for end in (max(times), min(times)))
    labels = [high, *[" " * 9] * (_HEIGHT - 2), low]
    lines = [f"{label} |{''.join(row)}" for label, row in zip(labels, cells, strict=True)]
    ends = f"{min(values):{form}}", f"{max(values):{form}}"
    gap = " " * (_WIDTH - sum(map(len, ends)))
    return [
        "  step ms",
        *lines,
        f"{'':9} +{'-' * _WIDTH}",
        f"{'':11}{ends[0]}{gap}{ends[1]}  {title}",
    ]


def _marks() -> Iterator[str]:
    """The letters of settings; those beyond the alphabet share a sign."""
    return chain(_LETTERS, repeat("+"))


def _part(value: float, values: Sequence[float]) -> float:
    """Where it lies between the least and the most, 0 to 1."""
    width = max(values) - min(values)
    return (value - min(values)) / width if width else 0.0

"""A forecast, as text and as a document."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from equipoise.cli.views.answer import Answer
from equipoise.cli.views.hardware import print_facts
from equipoise.cli.views.launch import print_launch
from equipoise.cli.views.notes import print_recording
from equipoise.report.spent import spent
from equipoise.simulate.forecast import Forecast, Option
from equipoise.simulate.gain import CONFIDENCE
from equipoise.simulate.online_trial import InTime
from equipoise.trace import Trace
from equipoise.units import duration


@dataclass(frozen=True, kw_only=True)
class Advice(Answer):
    """A forecast, and how to start the engine with what it recommends, if it does."""

    forecast: Forecast


def forecast_document(advice: Advice) -> dict[str, object]:
    """The forecast for programs."""
    result = advice.forecast
    return {
        "verdict": result.verdict.kind,
        "text": result.verdict.text,
        "model": result.model,
        "planned_steps": result.planned_steps,
        "unseen_steps": result.unseen_steps,
        "against": result.against,
        "other_seconds": result.other_seconds,
        "least_gain": result.least_gain,
        "confidence": CONFIDENCE,
        "counts": result.counts,
        "hardware": advice.facts,
        "today": [asdict(idle) for idle in result.today],
        "parts": result.parts,
        "planned_parts": result.planned_parts,
        "best": _option(result.best),
        "options": [_option(option) for option in result.options],
        "assumed": result.assumed,
        "online": _online(advice),
        "decision": _decision(result),
        "launch": advice.launch,
    }


def _online(advice: Advice) -> dict[str, object] | None:
    """How the controller was tried, and its best; ``None`` if it was not."""
    in_time, best = advice.forecast.in_time, advice.forecast.online
    if in_time is None or best is None:
        return None
    return {
        "best": _option(best),
        "text": _kept_balanced(advice.forecast),
        "steps": in_time.steps.num_steps,
        "steps_of_a_row": in_time.each,
        "interval": in_time.interval,
        **asdict(in_time.online),
        "assumed": advice.prices,
    }


def _option(option: Option) -> dict[str, object]:
    return {
        "policy": "online" if option.is_online else "static",
        "redundant": option.redundant,
        "dispatch": option.dispatch,
        "can_run": option.can_run,
        "step_seconds": option.step_seconds,
        "plain_seconds": option.plain_seconds,
        "gain": option.gain,
        "interval": option.interval,
        "interval_planned_again": option.replanned,
        "throughput": option.throughput,
        "needed": option.needed,
        "bytes_per_rank": option.bytes_per_rank,
        "kv_tokens": option.kv_tokens,
        "moves": option.moves,
        "over_static": option.over_static,
    }


def _decision(result: Forecast) -> dict[str, object] | None:
    """The decision with ``None`` for steps that never come, which JSON cannot say."""
    if result.decision is None:
        return None
    fields = asdict(result.decision).items()
    values = {name: None if value == np.inf else value for name, value in fields}
    return values | {"text": result.decision.text}


def print_forecast(console: Console, recording: Trace, answers: list[Advice]) -> None:
    """Print forecasts for people, each with its verdict first and last."""
    print_recording(console, recording)
    for advice in answers:
        _print_one(console, advice)


def _print_one(console: Console, advice: Advice) -> None:
    result = advice.forecast
    other = result.counts
    if result.other_seconds:
        other = f"{duration(result.other_seconds)} of other work in every step"
    console.print(f"\n{result.model}: {result.verdict.text}\n")
    print_facts(console, advice.facts)
    for idle in result.today:
        console.print(idle.text)
    for sentence in spent(result):
        console.print(sentence)
    console.print(
        f"\nSeconds of {result.unseen_steps} unseen steps, planned on {result.planned_steps}, "
        f"against {result.against}; {other}.\n"
    )
    console.print(_table(result))
    if result.in_time is not None:
        console.print(f"\n{_served(result.in_time)} {advice.prices}".rstrip())
        console.print(_kept_balanced(result))
    if result.decision is not None:
        console.print(f"\n{result.decision.text}")
    if advice.launch is not None:
        console.print()
        print_launch(console, advice.launch)
    console.print(f"\n{result.model}: {result.verdict.text}")


def _served(in_time: InTime) -> str:
    """How the controller was tried, in a sentence or two."""
    drawn = f", {in_time.each} drawn from each recorded row" if in_time.each > 1 else ""
    return (
        f"Online is our controller on {in_time.steps.num_steps} steps in their order{drawn}, with "
        f"a look every {in_time.interval}; planning, moves and stalls are charged. Its interval "
        "does not cover traffic in another order, or other costs of planning and moving."
    )


def _kept_balanced(result: Forecast) -> str:
    """What the controller adds to a plan that stays, in a sentence; nothing if it was not tried."""
    best = result.online
    if best is None or best.over_static is None:
        return ""
    low, high = best.over_static
    worth = best is result.best
    return (
        f"Compared with the best plan that stays, the best online setting ({best.redundant} "
        f"redundant, {best.dispatch}) shortens a step by {low:z.1%} to {high:z.1%}, "
        f"{'surely' if worth else 'not surely'} the {result.least_gain:.1%} that would pay."
    )


_NOT_RUN = ", not by this engine"


def _table(result: Forecast) -> Table:
    table = Table(box=None)
    memory = _memory_columns(result.options)
    head = ["redundant", "split", "step ms", "shorter by", f"{CONFIDENCE:.0%} interval"]
    head += ["throughput", *memory]
    for name in head:
        table.add_column(name, justify="left" if name == "split" else "right", no_wrap=True)
    plain = 1e3 * result.options[0].plain_seconds
    table.add_row("none", "no balancing", f"{plain:.3f}")
    for i, option in enumerate(result.options):
        table.add_row(*_row(option), *(column[i] for column in memory.values()))
    return table


def _row(option: Option) -> list[str]:
    ends = option.interval
    interval = "unknown" if ends is None else f"{ends[0]:z.1%} to {ends[1]:z.1%}"
    return [
        str(option.redundant),
        option.dispatch + ", online" * option.is_online + _NOT_RUN * (not option.can_run),
        f"{1e3 * option.step_seconds:.3f}",
        f"{option.gain:z.1%}",
        interval,
        f"{option.throughput:+z.1%}",
    ]


def _memory_columns(options: tuple[Option, ...]) -> dict[str, list[str]]:
    """What the slots take, in the columns that are known."""
    sizes = [f"{o.bytes_per_rank / 1e9:.3f}" for o in options if o.bytes_per_rank is not None]
    tokens = [f"{o.kv_tokens:,}" for o in options if o.kv_tokens is not None]
    columns = {"GB a rank": sizes, "KV tokens": tokens}
    return {name: column for name, column in columns.items() if column}

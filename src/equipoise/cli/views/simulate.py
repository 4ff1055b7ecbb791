"""A simulation of a server, as text and as a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from equipoise.cli.views.hardware import print_facts
from equipoise.cli.views.notes import print_recording
from equipoise.cli.views.text import one_line
from equipoise.simulate.batching import NO_LIMIT
from equipoise.simulate.contest import Stage
from equipoise.simulate.prior import ASSUMED, is_assumed
from equipoise.simulate.serving import ServingResult, Slo
from equipoise.simulate.side_by_side import SideBySide
from equipoise.trace import Trace

Document = Mapping[str, Any]

_TIMES = {
    "ttft_p50": "TTFT p50 ms",
    "ttft_p99": "TTFT p99 ms",
    "tpot_p50": "TPOT p50 ms",
    "tpot_p99": "TPOT p99 ms",
}
_RATES = {"output_tokens_per_second": "tokens/s", "goodput": "goodput requests/s"}
_SHARES = {"busy_share": "busy", "sequence_share": "sequences", "kv_share": "KV cache"}
_QUEUES = {"mean_queue": "mean queue", "longest_queue": "longest queue"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Simulation:
    """What was simulated.

    Parameters
    ----------
    planned_steps
        Steps that the plan was made from; ``None`` with a map.
    name
        What is compared with no balancing.
    facts
        Where the times came from, by part.
    cache_note
        What is not known of the KV cache, as a sentence; nothing if all is.
    """

    recording: Trace
    stage: Stage
    planned_steps: int | None
    name: str
    slo: Slo
    facts: Mapping[str, str]
    cache_note: str

    @property
    def is_assumed(self) -> bool:
        """Whether nobody has recorded the routing."""
        return is_assumed(self.recording)

    def marked(self, text: str) -> str:
        """An answer, marked if it rests on a prior."""
        return f"{ASSUMED}: {text}" if self.is_assumed else text


def comparison_document(about: Simulation, result: SideBySide) -> dict[str, Any]:
    """Both results for programs."""
    return {
        "verdict": result.kind,
        "text": about.marked(result.text),
        "assumed": about.is_assumed,
        "costs": about.stage.costs.model.name,
        "hardware": about.facts,
        "cache_note": about.cache_note,
        "requests": len(result.before.requests),
        "planned_steps": about.planned_steps,
        "drawn_from_steps": about.stage.decoded.num_steps,
        "step_gain": result.step_gain,
        "step_interval": result.step_interval,
        "kv_tokens": {"before": _kv_tokens(result.before), "after": _kv_tokens(result.after)},
        "measures": [asdict(measure) | {"kind": measure.kind} for measure in result.measures],
        "before": result.before.summary(about.slo),
        "after": result.after.summary(about.slo),
    }


def print_comparison(console: Console, about: Simulation, result: SideBySide) -> None:
    """Print both results for people, the answer first and last."""
    document = comparison_document(about, result)
    _print_head(console, about)
    console.print(f"\n{one_line(about.name)}: {document['text']}\n")
    table = Table(box=None)
    table.add_column("")
    for name in ("no balancing", one_line(about.name), "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _rows(document):
        table.add_row(*row)
    console.print(table)
    console.print(f"\n{one_line(about.name)}: {document['text']}")


def print_sweep(console: Console, about: Simulation, rows: Sequence[Document]) -> None:
    """Print all cases of a sweep for people, a line each."""
    _print_head(console, about)
    table = Table(box=None)
    for name in ("rate", "redundant"):
        table.add_column(name, justify="right")
    table.add_column("split")
    for name in ("TTFT p99 ms", "TPOT p99 ms", "goodput requests/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("than no balancing")
    for row in rows:
        both = row["before"], row["after"]
        table.add_row(
            "file" if row["rate"] is None else f"{row['rate']:g}",
            f"{row['redundant']}",
            row["dispatch"],
            *(
                " to ".join(_number(x[name], 1e3) for x in both)
                for name in ("ttft_p99", "tpot_p99")
            ),
            " to ".join(_number(x["goodput"]) for x in both),
            about.marked(row["verdict"]),
        )
    console.print()
    console.print(table)


def _print_head(console: Console, about: Simulation) -> None:
    print_recording(console, about.recording)
    ranks, stage = about.stage.server, about.stage
    what = "assumed" if about.is_assumed else "recorded"
    source = f"{stage.decoded.num_steps} {what} steps"
    if about.planned_steps is not None:
        source += f", planned on {about.planned_steps} others"
    console.print(
        f"{ranks.num_ranks} ranks, {ranks.max_sequences} sequences and {ranks.max_tokens:,} tokens "
        f"each; batches with the routing of {source}; {stage.costs.model.name}."
    )
    if about.cache_note:
        console.print(one_line(about.cache_note))
    print_facts(console, about.facts)
    console.print(
        f"SLO: first token within {about.slo.ttft_seconds:g} s, each later one within "
        f"{1e3 * about.slo.tpot_seconds:g} ms on average."
    )


def _rows(document: Document) -> list[tuple[str, str, str, str]]:
    """Lines of the table: a name, both values, and the change where it has a sense."""
    before, after, kv = document["before"], document["after"], document["kv_tokens"]
    rows = []
    for names, factor in ((_TIMES, 1e3), (_RATES, 1.0)):
        for key, name in names.items():
            old, new = before[key], after[key]
            change = f"{new / old - 1:+z.1%}" if old and new is not None else ""
            rows.append((name, _number(old, factor), _number(new, factor), change))
    for pool in ("prefill", "decode", "serving"):
        for key, name in {**_SHARES, **_QUEUES}.items():
            if f"{pool}_{key}" not in before or (key == "kv_share" and kv["before"] is None):
                continue
            both = before[f"{pool}_{key}"], after[f"{pool}_{key}"]
            old, new = (f"{x:.1%}" if key in _SHARES else _number(x) for x in both)
            rows.append((f"{pool}: {name}", old, new, ""))
    if kv["before"] is not None:
        rows.append(("KV tokens a rank", f"{kv['before']:,}", f"{kv['after']:,}", ""))
    return rows


def _kv_tokens(result: ServingResult) -> int | None:
    """Tokens that the cache of a rank that decodes holds; ``None`` without limit."""
    tokens = list(result.pools.values())[-1].pool.kv_tokens
    return None if tokens == NO_LIMIT else tokens


def _number(value: float | None, factor: float = 1.0) -> str:
    if value is None:
        return ""
    scaled = factor * value
    return f"{scaled:,.0f}" if scaled >= 1000 else f"{scaled:.3g}"

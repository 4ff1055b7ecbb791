"""How fast the balance is back when traffic begins that no plan has seen.

From the repository root, with ../shared/data next to it:

    python -m benchmarks.quality.adaptation [--study time curve] [--dispatch even] [--json FILE]
    timeout 240 python -m benchmarks.quality.adaptation --results FILE    # again until it is done

GLM-5.2, every twentieth of 75 layers, 256 experts, 32 ranks in nodes of 8, 288 slots. In force is
the plan of ``Robust`` from all windows of six domains; then the seventh begins, each in turn.

time    Steps of ``--tokens`` tokens, each drawn from the counts of a window: 200 of the six
        domains, 1,500 of the seventh from its windows 0 to 3, 500 of it from its windows 4 to 7.
        The policies are those of ``simulate/online.py``; ours is the controller that runs live,
        with the repair of the map in force. A step takes what ``h100-deepep-ep32`` says of its
        slowest ranks, and 0.5 ms a layer besides; a second of transfers takes 0.2 s of serving.
        Columns: steps and seconds from the beginning of the domain until the mean of 50 steps has
        half, and four fifths, of what ``Greedy`` from all of its windows 0 to 3 gains, over the
        domains in which it ever has (how many for four fifths); mean imbalance of the new domain's
        first 1,500 steps and of the 500 from other windows; slots moved over all slots; changes of
        the map; seconds of all steps of the new domain over those of the map that stays.
curve   A plan from a number of tokens of the seventh domain (its windows 0 to 3), by the
        number of slots moved, scored on its windows 4 to 7. ``Repair`` starts from the map in
        force; ``Greedy`` plans from scratch. Waiting is the map in force.

``--results`` keeps every policy and curve that is finished, so an interrupted run goes on there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.heldout import DATA, progress
from benchmarks.quality.machine import about_machine
from benchmarks.quality.one_window import NUM_SLOTS, TOPOLOGY, domains
from benchmarks.quality.protocols import read_glm52
from equipoise.control import Settings
from equipoise.dispatch import dispatcher
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem, Repair, Robust, evaluate
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.online import (
    Conditions,
    Policy,
    Replan,
    Replay,
    Stay,
    controlled,
    replay,
)
from equipoise.simulate.sweep import sweep
from equipoise.trace import Trace

EVERY = 20
OLD_STEPS, NEW_STEPS, UNSEEN_STEPS = 200, 1500, 500
SMOOTH = 50
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 16384)
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
EFFORT = 1 << 14
SEED = 0
CURVE = "the curve by tokens seen"
NUM_LAYERS = len(range(0, 75, EVERY))
CONDITIONS = Conditions(
    topology=TOPOLOGY,
    model=UncertainCost.published("h100-deepep-ep32"),
    expert_bytes=44_040_192,
    interference=0.2,
    other_seconds=0.5e-3 * NUM_LAYERS,
)
REPAIR_SECONDS = {"even": 0.04, "minmax": 0.04}  # a layer, one core, measured
GREEDY_SECONDS = 0.004  # the same


@dataclass(frozen=True)
class Row:
    """A policy on one new domain."""

    dispatch: str
    domain: str
    policy: str
    half_steps: int | None
    half_seconds: float | None
    most_steps: int | None
    most_seconds: float | None
    seen: float
    unseen: float
    moved: float
    changes: int
    seconds: float


@dataclass(frozen=True)
class Point:
    """A plan from few tokens, on windows it has not seen."""

    dispatch: str
    domain: str
    planner: str
    tokens: int
    moved: float
    imbalance: float
    waiting: float


def policies(dispatch: str) -> dict[str, Policy]:
    """What is compared; the first is what the others are compared with."""

    def engine(interval: int, window: int, above: float | None = None) -> Replan:
        return Replan(
            interval=interval, window=window, above=above, plan_seconds=GREEDY_SECONDS * NUM_LAYERS
        )

    def ours(window: int, interval: int) -> Policy:
        return controlled(
            CONDITIONS,
            dispatch,
            Settings(window=window, update_interval=interval, warm_up_steps=0),
            dwell_steps=NEW_STEPS,
            plan_seconds=REPAIR_SECONDS[dispatch] * NUM_LAYERS,
            repair={"proposals": EFFORT, "num_threads": 1},
            top_k=8,
        )

    return {
        "the map stays": Stay(),
        "every 500 steps": engine(500, 500),
        "every 100 steps": engine(100, 100),
        "above 1.5, looks every 100": engine(100, 100, above=1.5),
        "ours, window 300, looks every 300": ours(300, 300),
        "ours, window 100, looks every 100": ours(100, 100),
        "ours, window 32, looks every 32": ours(32, 32),
    }


@dataclass(frozen=True, eq=False)
class Scene:
    """A domain that begins, the map in force, and the steps that are served.

    Parameters
    ----------
    start
        Layout in force, planned from the six other domains.
    new
        Windows of the domain that begins.
    steps
        Steps of the other domains, then of the new one.
    stays
        What becomes of them if the map stays.
    levels
        Mean imbalance of the new domain with the map in force, and with ``Greedy`` from all of its
        first windows.
    """

    start: Layout
    new: Trace
    steps: Trace
    stays: Replay
    levels: tuple[float, float]


@lru_cache(maxsize=2)
def scene(data: Path, dispatch: str, domain: str, tokens: int) -> Scene:
    """Plan for the six other domains, and draw the steps."""
    windows = some_windows(data)
    others = windows.select(domain=[d for d in domains(windows) if d != domain])
    new = windows.select(domain=domain)
    problem = Problem(others, TOPOLOGY, NUM_SLOTS)
    old = Robust(dispatch=dispatch, proposals=1 << 17, num_threads=1).plan(problem).placement
    rng = np.random.default_rng(SEED)
    first, last = new.counts[:4], new.counts[4:]
    counts = [
        drawn(others.counts, OLD_STEPS, tokens, rng),
        drawn(first, NEW_STEPS, tokens, rng),
        drawn(last, UNSEEN_STEPS, tokens, rng),
    ]
    steps = Trace(counts=np.concatenate(counts), top_k=8)
    whole = Greedy().plan(Problem(first.sum(axis=0), TOPOLOGY, NUM_SLOTS)).placement
    kept, planned = (
        float(evaluate(placement, counts[1], dispatch=dispatch).imbalance.mean())
        for placement in (old, whole)
    )
    start = Layout(placement=old, dispatch=dispatcher(dispatch, TOPOLOGY))
    return Scene(
        start=start,
        new=new,
        steps=steps,
        stays=replay(steps, start, Stay(), CONDITIONS),
        levels=(kept, planned),
    )


@lru_cache
def some_windows(data: Path) -> Trace:
    """The windows of all domains, some layers."""
    windows = read_glm52(data)
    return Trace(counts=windows.counts[:, ::EVERY], labels=windows.labels, top_k=8)


def main() -> None:
    args = _arguments()
    chosen = [
        {"dispatch": dispatch, "domain": domain, "tokens": args.tokens, "what": what}
        for dispatch in args.dispatch
        for domain in args.domain or domains(some_windows(args.data))
        for study in args.study
        for what in (policies(dispatch) if study == "time" else [CURVE])
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as executor,
    ):
        found = sweep(
            chosen,
            partial(run, args.data),
            executor=executor,
            path=args.results or Path(folder) / "results.jsonl",
            progress=lambda done, total: progress(f"{done} of {total}"),
        )
    by_case = list(zip(chosen, found, strict=True))
    rows = [Row(**row) for case, row in by_case if case["what"] != CURVE]
    points = [Point(**p) for case, curve in by_case if case["what"] == CURVE for p in curve]
    print(table(rows) + curves(points))
    if args.json:
        document = {"rows": [asdict(r) for r in rows], "points": [asdict(p) for p in points]}
        args.json.write_text(json.dumps({"machine": about_machine(), **document}, indent=1))


def run(data: Path, case: dict[str, Any]) -> Any:
    """The row of a policy, or the points of a curve, as plain data."""
    dispatch, domain, what = case["dispatch"], case["domain"], case["what"]
    seen = scene(data, dispatch, domain, case["tokens"])
    if what == CURVE:
        return [asdict(point) for point in curve(dispatch, domain, seen.start.placement, seen.new)]
    result = replay(seen.steps, seen.start, policies(dispatch)[what], CONDITIONS)
    return asdict(_row(dispatch, domain, what, result, seen))


def drawn(
    windows_WLE: NDArray[np.integer], num_steps: int, tokens: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Steps of this number of tokens, each from the shares of a window drawn at random."""
    share = windows_WLE / windows_WLE.sum(axis=-1, keepdims=True)
    return rng.multinomial(8 * tokens, share[rng.integers(0, len(share), num_steps)])


def _row(dispatch: str, domain: str, name: str, result: Replay, seen: Scene) -> Row:
    new = slice(OLD_STEPS, None)
    half, most = (_back(result, seen.levels, share) for share in (0.5, 0.8))
    return Row(
        dispatch=dispatch,
        domain=domain,
        policy=name,
        half_steps=half,
        half_seconds=_seconds(result, half),
        most_steps=most,
        most_seconds=_seconds(result, most),
        seen=float(result.imbalance[OLD_STEPS : OLD_STEPS + NEW_STEPS].mean()),
        unseen=float(result.imbalance[OLD_STEPS + NEW_STEPS :].mean()),
        moved=result.moves / result.placement.slots.size,
        changes=len(result.changes),
        seconds=float(result.seconds[new].sum() / seen.stays.seconds[new].sum()),
    )


def _back(result: Replay, levels: tuple[float, float], share: float) -> int | None:
    """Steps of the new domain until the balance is back; ``None``: not before it ends."""
    bound = levels[0] - share * (levels[0] - levels[1])
    means = np.convolve(result.imbalance[OLD_STEPS:], np.full(SMOOTH, 1 / SMOOTH), "valid")
    found = np.flatnonzero(means <= bound)
    return int(found[0]) if found.size else None


def _seconds(result: Replay, steps: int | None) -> float | None:
    return None if steps is None else float(result.seconds[OLD_STEPS : OLD_STEPS + steps].sum())


def curve(dispatch: str, domain: str, old: Placement, new: Trace) -> Iterator[Point]:
    """Plans from few tokens, with the slots moved that each budget allows."""
    rng = np.random.default_rng(SEED)
    first, last = new.counts[:4].sum(axis=0), new.counts[4:]
    share = first / first.sum(axis=-1, keepdims=True)

    def score(placement: Placement) -> float:
        return evaluate(placement, last, dispatch=dispatch).mean_imbalance

    waiting = score(old)
    for tokens in TOKENS:
        problem = Problem(rng.multinomial(8 * tokens, share)[None], TOPOLOGY, NUM_SLOTS)
        points = Repair(current=old, dispatch=dispatch, proposals=EFFORT, num_threads=1).curve(
            problem
        )
        for budget in SHARES:
            point = int((points.moves <= budget * old.slots.size).sum()) - 1
            moved = float(points.moves[point] / old.slots.size)
            plan = points.placement(point)
            yield Point(
                dispatch, domain, f"Repair, {budget:.0%}", tokens, moved, score(plan), waiting
            )
        fresh = Greedy().plan(problem).placement
        moved = float((fresh.slots != old.slots).mean())
        yield Point(dispatch, domain, "Greedy", tokens, moved, score(fresh), waiting)


def table(rows: list[Row]) -> str:
    """Markdown: means over domains."""
    lines = []
    for dispatch in dict.fromkeys(row.dispatch for row in rows):
        lines += [
            f"\n**{dispatch}**\n",
            "| policy | half back: steps | s | four fifths: steps | s | domains | imbalance | on "
            "unseen windows | moved | changes | seconds |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name in dict.fromkeys(row.policy for row in rows):
            lines.append(_line([r for r in rows if (r.dispatch, r.policy) == (dispatch, name)]))
    return "\n".join(lines) + "\n"


def _line(rows: list[Row]) -> str:
    def mean(name: str, form: str) -> str:
        known = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        return format(float(np.mean(known)), form) if known else "never"

    back = sum(row.most_steps is not None for row in rows)
    cells = [
        rows[0].policy, mean("half_steps", ".0f"), mean("half_seconds", ".1f"),
        mean("most_steps", ".0f"), mean("most_seconds", ".1f"), f"{back} of {len(rows)}",
        mean("seen", ".3f"), mean("unseen", ".3f"), mean("moved", ".1%"), mean("changes", ".1f"),
        mean("seconds", ".3f"),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def curves(points: list[Point]) -> str:
    """Markdown: imbalance on unseen windows by tokens seen and by slots moved; domains it beats."""
    lines = []
    for dispatch in dict.fromkeys(p.dispatch for p in points):
        of = [p for p in points if p.dispatch == dispatch]
        waiting = np.mean([p.waiting for p in of])
        names = list(dict.fromkeys(p.planner for p in of))
        lines += [
            f"\n**{dispatch}**, waiting {waiting:.3f}\n",
            f"| tokens seen | {' | '.join(names)} |",
            f"|---:|{'---:|' * len(names)}",
        ]
        for tokens in dict.fromkeys(p.tokens for p in of):
            cells = []
            for name in names:
                some = [p for p in of if (p.tokens, p.planner) == (tokens, name)]
                better = sum(p.imbalance < p.waiting for p in some)
                mean = np.mean([p.imbalance for p in some])
                moved = np.mean([p.moved for p in some])
                cells.append(f"{mean:.3f} ({moved:.0%}, {better} of {len(some)})")
            lines.append(f"| {tokens:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="default: ../shared/data")
    parser.add_argument("--study", nargs="+", choices=["time", "curve"], default=["time", "curve"])
    parser.add_argument(
        "--dispatch", nargs="+", choices=list(REPAIR_SECONDS), default=["even", "minmax"]
    )
    parser.add_argument("--domain", nargs="+", help="only these; default: all")
    parser.add_argument("--tokens", type=int, default=8192, help="of a step, all ranks together")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--results", type=Path, help="keep what is finished here, and go on there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here too")
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""How often the change measured later lies in the interval that `equipoise forecast` gave.

    python benchmarks/quality/forecast_coverage.py --data ../shared/data

Every case: forecast on the first part of a recording, which plans on its earlier steps and measures
on the others; load the plan; time the later part, which neither has seen. Cases are all options of
a forecast but for those where nothing is split, once for each dispatcher: they are the same.

``glm52``   The first 4, 5, 6 or 7 of the 8 windows of each domain, then the others; as drawn steps
            of two sizes.
``esft``    The first half to four fifths of the 512-token windows of each task, then the others.
``gptoss``  Decoding of half of the generations, then of the other half, in eight places that are
            always taken: where a generation ends the next begins. Six ways to choose the halves.

Costs are published constants for the ranks, and steps of several sizes: below the knee and above.
The same constants time both parts, so coverage is that of an interval without ``--cost-error``.
Each option is measured twice: with the plan that was forecast, next to its interval, and planned
again from all of the first part, next to the interval of a plan made again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.protocols import Tokens, esft, read_esft, read_glm52, read_gptoss
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.problem import Problem
from equipoise.plan.result import Planner
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.forecast import forecast
from equipoise.simulate.trial import judge_of, step_loads
from equipoise.topology import Topology
from equipoise.trace import Trace

DISPATCH = ("even", "minmax")
PLACES = 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A recording in two parts, and what it is timed by."""

    study: str
    first: Trace
    later: Trace
    ranks: int
    cost: str
    step_assignments: int | None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One option: what was forecast, and what came."""

    study: str
    cost: str
    step_assignments: int | None
    redundant: int
    dispatch: str
    planned_again: bool
    gain: float
    low: float
    high: float
    measured: float

    @property
    def is_inside(self) -> bool:
        return self.low <= self.measured <= self.high


def settings(data: Path, studies: Sequence[str], layers: int) -> Iterator[Setting]:
    """Recordings, ranks, costs and sizes of steps."""
    for study, first, later, sizes, most_ranks in recordings(data, studies):
        parts = [thinned(part, layers) for part in (first, later)]
        for ranks in (8, 16, 32, 64):
            for size in sizes if ranks <= most_ranks else ():
                for cost in costs(ranks):
                    yield Setting(
                        study=study,
                        first=parts[0],
                        later=parts[1],
                        ranks=ranks,
                        cost=cost,
                        step_assignments=size,
                    )


def recordings(
    data: Path, studies: Sequence[str]
) -> Iterator[tuple[str, Trace, Trace, tuple[int | None, ...], int]]:
    """Names, both parts, sizes of steps and most ranks."""
    for study in studies:
        for first, later in HALVES[study](data):
            yield study, first, later, *SIZES[study]


def halves_of_glm52(data: Path) -> Iterator[tuple[Trace, Trace]]:
    """The first windows of each domain, and the others."""
    windows = read_glm52(data)
    number = windows.labels["window"].astype(np.int64)
    turns = np.argsort(number, kind="stable")
    for cut in (4, 5, 6, 7):
        first, later = (
            windows.select(steps=turns[kept[turns]]) for kept in (number < cut, number >= cut)
        )
        yield first, later


def halves_of_esft(data: Path) -> Iterator[tuple[Trace, Trace]]:
    """The first windows of each task, and the others."""
    split = esft(read_esft(data))
    whole = Trace.merge([split.fit, split.tests["known domains"]])
    for share in (0.5, 0.6, 0.7, 0.8):
        yield whole.split(at=share)


def halves_of_gptoss(data: Path) -> Iterator[tuple[Trace, Trace]]:
    """Decoding of half of the generations, and of the other half."""
    tokens = read_gptoss(data)
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(tokens.lengths))
        first, later = (decoding(tokens, half) for half in np.array_split(order, 2))
        yield first, later


HALVES = {"glm52": halves_of_glm52, "esft": halves_of_esft, "gptoss": halves_of_gptoss}
SIZES: dict[str, tuple[tuple[int | None, ...], int]] = {
    "glm52": ((65_536, 524_288), 64),
    "esft": ((None, 65_536), 32),
    "gptoss": ((None,), 16),
}
"""Sizes of steps, and most ranks."""


def decoding(tokens: Tokens, sequences: NDArray[np.int64]) -> Trace:
    """Steps of ``PLACES`` generations, until one of them ends and none is left to begin.

    The next generation begins where one ends, so every step has the same number of tokens.
    """
    free = np.zeros(PLACES, np.int64)  # step from which on each place is free
    step = []
    for s in sequences:
        place = int(free.argmin())
        step.append(free[place] + np.arange(tokens.lengths[s]))
        free[place] += tokens.lengths[s]
    ids = np.concatenate([tokens.sequence(int(s)) for s in sequences])
    steps = np.concatenate(step)
    order = np.argsort(steps, kind="stable")[: PLACES * int(free.min())]
    offsets = np.arange(0, len(order) + 1, PLACES)
    return Trace.from_tokens(ids[order], offsets, num_experts=tokens.num_experts)


def thinned(trace: Trace, layers: int) -> Trace:
    """Some of the layers, evenly spaced, without the tokens."""
    some = np.unique(np.linspace(0, trace.num_layers - 1, layers).astype(int))
    ids = [trace.layer_ids[i] for i in some]
    return Trace(
        counts=trace.counts[:, some], layer_ids=tuple(ids), top_k=trace.top_k, labels=trace.labels
    )


def costs(ranks: int) -> tuple[str, ...]:
    names = {f"h100-deepep-ep{ranks}"} | ({f"gb200-cutlass-ep{ranks}"} if ranks < 64 else set())
    return tuple(sorted(names))


def cases(setting: Setting, *, hold_out: float) -> Iterator[Case]:
    """Forecast, load each plan and a later one, measure."""
    topology, model = Topology(setting.ranks), UncertainCost.published(setting.cost, 0.0)
    later = step_loads(setting.later, setting.step_assignments, seed=1)
    answer = forecast(
        setting.first,
        topology,
        model,
        dispatch=DISPATCH,
        planner=greedy,
        hold_out=hold_out,
        step_assignments=setting.step_assignments,
        further_steps=len(later),
    )
    plain = Layout.unbalanced(setting.first, setting.ranks)
    before = plain.step_seconds(later, topology, [model])[0].mean()
    for option in answer.options:
        if option.redundant == 0 and option.dispatch != DISPATCH[0]:
            continue
        problem = Problem(setting.first, topology, option.placement.num_slots)
        judge = judge_of(option.dispatch, topology, model.planning_cost, None)
        for planned_again, placement, interval in (
            (False, option.placement, option.interval),
            (True, Greedy().plan(problem).placement, option.replanned),
        ):
            layout = Layout(placement=placement, dispatch=judge)
            after = layout.step_seconds(later, topology, [model])[0].mean()
            assert interval is not None
            yield Case(
                study=setting.study,
                cost=setting.cost,
                step_assignments=setting.step_assignments,
                redundant=option.redundant,
                dispatch=option.dispatch,
                planned_again=planned_again,
                gain=option.gain,
                low=interval[0],
                high=interval[1],
                measured=float(1 - after / before),
            )


def greedy(dispatch: str) -> Planner:
    """The quickest planner, which plans for an even split whatever dispatches."""
    del dispatch
    return Greedy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--studies", nargs="+", choices=HALVES, default=list(HALVES))
    parser.add_argument("--layers", type=int, default=6, help="of each recording, evenly spaced")
    parser.add_argument("--hold-out", type=float, default=0.4)
    parser.add_argument("--json", type=Path, help="write every case here")
    args = parser.parse_args()
    found: list[Case] = []
    for setting in settings(args.data, args.studies, args.layers):
        found += cases(setting, hold_out=args.hold_out)
    print_table(found)
    if args.json:
        args.json.write_text(json.dumps([asdict(c) for c in found], indent=1))


def print_table(found: Sequence[Case]) -> None:
    by_study = defaultdict(list)
    for case in found:
        for study in (case.study, "all"):
            by_study[study, "planned again" if case.planned_again else "same plan"].append(case)
    print("| recording | plan | cases | inside | below | above | median width |")
    print("|---|---|---|---|---|---|---|")
    for names, rows in by_study.items():
        inside = np.mean([c.is_inside for c in rows])
        below = np.mean([c.measured < c.low for c in rows])
        above = np.mean([c.measured > c.high for c in rows])
        width = np.median([c.high - c.low for c in rows])
        shares = f"{inside:.0%} | {below:.0%} | {above:.0%} | {width:.1%}"
        print(f"| {' | '.join(names)} | {len(rows)} | {shares} |")


if __name__ == "__main__":
    main()

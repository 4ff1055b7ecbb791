"""How often the change measured later lies in the interval that `equipoise forecast` gave.

    python -m benchmarks.quality.forecast_coverage [--results FILE] [--jobs 2]

Every case: forecast on the first part of a recording, which plans on its earlier steps and measures
on the others; load the plan; time the later part, which neither has seen. Cases are all options of
a forecast but for those where nothing is split, once for each dispatcher: they are the same. The
layers of a recording are dealt to sets of ``--layers``, and each set is a model of its own:
all layers are used, and none twice.

``glm52``   The first 4, 5, 6 or 7 of the 8 windows of each domain, then the others; as drawn steps
            of two sizes.
``esft``    The first half to four fifths of the 512-token windows of each task, then the others.
``gptoss``  Decoding of half of the generations, then of the other half, in eight places that are
            always taken: where a generation ends the next begins. Six ways to choose the halves.

Costs are published constants for the ranks, and steps of several sizes: below the knee and above.
The same constants time both parts, so coverage is that of an interval without ``--cost-error``.
Each option is measured twice: with the plan that was forecast, next to its interval, and planned
again from all of the first part, next to the interval of a plan made again.

Columns: the share of cases whose measured change lies in the interval, below it and above it; the
median width of intervals; *scatter*, how far the measured changes are from the middle of their
intervals over how far the intervals say (medians; 1 if intervals are as wide as they should be,
below 1 if wider). Cases are not independent: those of a recording share its steps, and
those of a set its layers. So the lowest and the highest share inside of a cut and of a set of
layers stand next to the share of all.

The second table: how far the gains of the plan forecast and of the one planned again were apart on
the later part (root mean square), and what the intervals take that to be, which they get from two
plans of half the steps each.

``--results`` keeps every finished setting, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from benchmarks.quality.heldout import DATA, progress
from benchmarks.quality.protocols import Tokens, esft, read_esft, read_glm52, read_gptoss
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.problem import Problem
from equipoise.plan.result import Planner
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.forecast import forecast
from equipoise.simulate.gain import CONFIDENCE
from equipoise.simulate.sweep import sweep
from equipoise.simulate.trial import judge_of, step_loads
from equipoise.topology import Topology
from equipoise.trace import Trace

DISPATCH = ("even", "minmax")
PLACES = 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A recording cut in two, some of its layers, and what they are timed by."""

    study: str
    cut: int
    layers: list[int]
    ranks: int
    cost: str
    step_assignments: int | None
    hold_out: float
    dispatch: list[str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One option: what was forecast, and what came."""

    study: str
    cut: int
    first_layer: int
    ranks: int
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

    @property
    def deviation(self) -> float:
        """How far the measured change is from the middle, in deviations of the interval."""
        one = (self.high - self.low) / 2 / float(ndtri((1 + CONFIDENCE) / 2))
        apart = abs(self.measured - (self.low + self.high) / 2)
        return apart / max(one, np.finfo(np.float64).tiny)


def settings(data: Path, study: str, asked: argparse.Namespace) -> Iterator[Setting]:
    """Sets of layers, cuts, ranks, costs and sizes of steps."""
    cuts = halves(data, study)
    sizes, most_ranks = SIZES[study]
    for rows in dealt(cuts[0][0].num_layers, asked.layers)[: asked.sets]:
        for cut in range(len(cuts)):
            for ranks in (n for n in (8, 16, 32, 64) if n <= most_ranks):
                for size in sizes:
                    for cost in costs(ranks):
                        yield Setting(
                            study=study,
                            cut=cut,
                            layers=rows,
                            ranks=ranks,
                            cost=cost,
                            step_assignments=size,
                            hold_out=asked.hold_out,
                            dispatch=asked.dispatch,
                        )


def dealt(num_layers: int, size: int) -> list[list[int]]:
    """Sets of at least this number of layers, each evenly spaced; all layers, none twice."""
    sets = max(1, num_layers // size)
    return [list(range(first, num_layers, sets)) for first in range(sets)]


@lru_cache
def halves(data: Path, study: str) -> list[tuple[Trace, Trace]]:
    """All cuts of a recording in a first and a later part."""
    return list(HALVES[study](data))


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


def some_layers(trace: Trace, rows: Sequence[int]) -> Trace:
    """Some of the layers, without the tokens."""
    ids = tuple(trace.layer_ids[row] for row in rows)
    return Trace(
        counts=trace.counts[:, list(rows)], layer_ids=ids, top_k=trace.top_k, labels=trace.labels
    )


def costs(ranks: int) -> tuple[str, ...]:
    names = {f"h100-deepep-ep{ranks}"} | ({f"gb200-cutlass-ep{ranks}"} if ranks < 64 else set())
    return tuple(sorted(names))


def run(data: Path, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """All cases of a setting, as plain data."""
    told = Setting(**setting)
    first, later = (some_layers(part, told.layers) for part in halves(data, told.study)[told.cut])
    return [asdict(case) for case in cases(told, first, later)]


def cases(setting: Setting, first: Trace, later: Trace) -> Iterator[Case]:
    """Forecast, load each plan and a later one, measure."""
    topology, model = Topology(setting.ranks), UncertainCost.published(setting.cost, 0.0)
    steps = step_loads(later, setting.step_assignments, seed=1)
    answer = forecast(
        first,
        topology,
        model,
        dispatch=setting.dispatch,
        planner=greedy,
        hold_out=setting.hold_out,
        step_assignments=setting.step_assignments,
        further_steps=len(steps),
    )
    plain = Layout.unbalanced(first, setting.ranks)
    before = plain.step_seconds(steps, topology, [model])[0].mean()
    for option in answer.options:
        if option.redundant == 0 and option.dispatch != setting.dispatch[0]:
            continue
        problem = Problem(first, topology, option.placement.num_slots)
        judge = judge_of(option.dispatch, topology, model.planning_cost, None)
        for planned_again, placement, interval in (
            (False, option.placement, option.interval),
            (True, Greedy().plan(problem).placement, option.replanned),
        ):
            layout = Layout(placement=placement, dispatch=judge)
            after = layout.step_seconds(steps, topology, [model])[0].mean()
            assert interval is not None
            yield Case(
                study=setting.study,
                cut=setting.cut,
                first_layer=setting.layers[0],
                ranks=setting.ranks,
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
    parser.add_argument("--data", type=Path, default=DATA, help="default: ../shared/data")
    parser.add_argument("--studies", nargs="+", choices=HALVES, default=list(HALVES))
    parser.add_argument("--layers", type=int, default=6, help="of each case; all in one: 1000")
    parser.add_argument("--sets", type=int, help="of layers, at most; all if not given")
    parser.add_argument("--dispatch", nargs="+", choices=DISPATCH, default=list(DISPATCH))
    parser.add_argument("--hold-out", type=float, default=0.4)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--results", type=Path, help="keep what is finished here, and go on there")
    args = parser.parse_args()
    chosen = [s for study in args.studies for s in settings(args.data, study, args)]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as executor,
    ):
        found = sweep(
            [asdict(setting) for setting in chosen],
            partial(run, args.data),
            executor=executor,
            path=args.results or Path(folder) / "results.jsonl",
            progress=lambda done, total: progress(f"{done} of {total} settings"),
        )
    made = [Case(**case) for of_setting in found for case in of_setting]
    print_table(made)
    print()
    print_apart(made)


def print_table(found: Sequence[Case]) -> None:
    """A line for each recording and kind of plan."""
    by_study = defaultdict(list)
    for case in found:
        by_study[case.study, "planned again" if case.planned_again else "same plan"].append(case)
    print(
        "| recording | plan | cases | inside | below | above | median width | scatter | inside, by "
        "cut | inside, by set |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for names, rows in by_study.items():
        cells = [
            *names,
            f"{len(rows)}",
            f"{np.mean([c.is_inside for c in rows]):.1%}",
            f"{np.mean([c.measured < c.low for c in rows]):.1%}",
            f"{np.mean([c.measured > c.high for c in rows]):.1%}",
            f"{np.median([c.high - c.low for c in rows]):.2%}",
            f"{np.median([c.deviation for c in rows]) / ndtri(0.75):.2f}",
            least_and_most((c.cut, c.is_inside) for c in rows),
            least_and_most((c.first_layer, c.is_inside) for c in rows),
        ]
        print(f"| {' | '.join(cells)} |")


def print_apart(found: Sequence[Case]) -> None:
    """How far the plan made again was from the other, and what intervals take that to be."""
    apart = defaultdict(list)
    for one, again in zip(found[::2], found[1::2], strict=True):
        widths = np.array([c.high - c.low for c in (one, again)]) / 2 / ndtri((1 + CONFIDENCE) / 2)
        taken = max(widths[1] ** 2 - widths[0] ** 2, 0.0)
        size = "recorded" if one.step_assignments is None else f"{one.step_assignments:,}"
        apart[one.study, size, one.dispatch].append(((again.measured - one.measured) ** 2, taken))
    print("| recording | assignments a step | split | plans apart | taken from halves |")
    print("|---|---:|---|---:|---:|")
    for names, squares in apart.items():
        measured, taken = np.sqrt(np.mean(squares, axis=0))
        print(f"| {' | '.join(names)} | {measured:.2%} | {taken:.2%} |")


def least_and_most(inside: Iterable[tuple[int, bool]]) -> str:
    """The lowest and the highest share inside, of those that belong together."""
    together = defaultdict(list)
    for key, is_inside in inside:
        together[key].append(is_inside)
    shares = [float(np.mean(values)) for values in together.values()]
    return f"{min(shares):.0%} to {max(shares):.0%}"


if __name__ == "__main__":
    main()

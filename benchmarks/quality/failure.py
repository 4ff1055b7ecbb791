"""What losing ranks or nodes takes, and what not to lose anything costs in balance.

    python -m benchmarks.quality.failure [--studies coverage,failover,resize] [--dispatch even]

Plans are made and scored as in ``heldout.py`` (``protocols.py``: real routing, planned on earlier
windows, scored on later ones of the same domains): GLM-5.2 on 32 ranks in nodes of 8,
DeepSeek-V2-Lite (esft_tokens) on 8 ranks in nodes of 4. Tables are printed in Markdown.

coverage   Experts that a layer loses on average with 1 random rank, 2 random ranks, 1 random
           node; chance that 2 random ranks take no expert of any layer; held-out max/mean rank load
           under the dispatcher. "DeepSeek" is its global policy.
failover   Means over the loss of each rank, or each node: experts of a layer that are reloaded,
           slots of a layer that copy one; slots a rank; held-out max/mean before, and after on the
           survivors. "from scratch" is ``Robust`` on the survivors with the same slots, ranks of
           each layer renamed so that fewest slots change: how many do, and what it balances.
resize     The same for a wanted change of the number of ranks; nothing is reloaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.quality import protocols
from benchmarks.quality.protocols import Split
from equipoise.placement import Placement
from equipoise.plan import Greedy, Planner, Problem, Robust, evaluate
from equipoise.plan.planners.survivable import Survivable
from equipoise.plan.weigh.coverage import FAILURE_DOMAINS, coverage
from equipoise.plan.weigh.failover import Content, Refit, failover_maps, resize
from equipoise.topology import Topology

DATA = Path(__file__).parents[3] / "shared" / "data"
COVERAGE_COLUMNS = ("1 rank", "2 ranks", "1 node", "whole, 2 ranks", "max/mean")
REFIT_COLUMNS = (
    "copied",
    "changed from scratch",
    "slots a rank",
    "before",
    "after",
    "from scratch",
)


@dataclass(frozen=True, eq=False)
class Case:
    """Routing, the devices, and the numbers of redundant slots to try."""

    name: str
    split: Split
    topology: Topology
    redundant: tuple[int, ...]

    @property
    def num_experts(self) -> int:
        return self.split.fit.num_experts


def cases(data: Path, names: Iterable[str], every: int) -> Iterator[Case]:
    """The data sets, of the first only each ``every``-th layer."""
    if "glm52" in names:
        windows = protocols.read_glm52(data)
        split = protocols.glm52(windows.select(layers=windows.layer_ids[::every]))
        yield Case("GLM-5.2", split, Topology(32, 8), (32, 64, 256, 288))
    if "esft" in names:
        split = protocols.esft(protocols.read_esft(data))
        yield Case("V2-Lite", split, Topology(8, 4), (8, 64))


@cache
def place(case: Case, planner: Planner, topology: Topology, num_slots: int) -> Placement:
    return planner.plan(Problem(case.split.fit, topology, num_slots)).placement


def show_coverage(case: Case, dispatch: str, proposals: int) -> None:
    head(f"{case.name}, {dispatch}", "redundant", "plan", *COVERAGE_COLUMNS)
    for redundant in case.redundant:
        for name, placement in placements(case, redundant, dispatch, proposals):
            ranks = coverage(placement, case.topology)
            nodes = coverage(placement, case.topology, failure_domain="node")
            lost = (ranks.expected_lost(1), ranks.expected_lost(2), nodes.expected_lost(1))
            alive = ranks.survival(2).model
            score = balance(placement, case, dispatch)
            row(redundant, name, *(f"{x.mean():.2f}" for x in lost), f"{alive:.1%}", f"{score:.3f}")


def placements(
    case: Case, redundant: int, dispatch: str, proposals: int
) -> Iterator[tuple[str, Placement]]:
    """What the first study compares, by name."""
    survivable = Survivable(dispatch=dispatch, proposals=proposals)
    planners: dict[str, Planner] = {
        "DeepSeek": Greedy(allow_same_rank_copies=True),
        "`Robust`": Robust(dispatch=dispatch, proposals=proposals),
        "`Survivable`, rank": survivable,
        "`Survivable`, node": replace(survivable, failure_domain="node"),
    }
    if redundant >= case.num_experts:
        planners["mirrored, node"] = replace(survivable, failure_domain="node", mirrored=True)
    for name, planner in planners.items():
        yield name, place(case, planner, case.topology, case.num_experts + redundant)


def show_failover(case: Case, dispatch: str, proposals: int) -> None:
    head(f"{case.name}, {dispatch}", "redundant", "plan", "lost", "reloaded", *REFIT_COLUMNS)
    for redundant in case.redundant:
        problem = Problem(case.split.fit, case.topology, case.num_experts + redundant)
        for planner in (
            Robust(dispatch=dispatch, proposals=proposals),
            Survivable(dispatch=dispatch, proposals=proposals),
        ):
            placement = place(case, planner, case.topology, problem.num_slots)
            for domain in FAILURE_DOMAINS:
                refits = failover_maps(placement, problem, failure_domain=domain)
                reloaded = np.mean([refit.counts[:, Content.RELOADED] for refit in refits])
                numbers = compared(case, refits, Robust(dispatch=dispatch, proposals=proposals))
                name = f"`{type(planner).__name__}`"
                row(redundant, name, f"1 {domain}", f"{reloaded:.1f}", *numbers)


def show_resize(case: Case, dispatch: str, proposals: int) -> None:
    head(f"{case.name}, {dispatch}", "redundant", "ranks", *REFIT_COLUMNS)
    num_ranks, planner = case.topology.num_ranks, Robust(dispatch=dispatch, proposals=proposals)
    step = num_ranks // 8
    for redundant in case.redundant:
        problem = Problem(case.split.fit, case.topology, case.num_experts + redundant)
        placement = place(case, planner, case.topology, problem.num_slots)
        for wanted in sorted({num_ranks - 1, num_ranks - step, num_ranks + step}):
            refit = resize(placement, problem, wanted)
            row(redundant, f"{num_ranks} to {wanted}", *compared(case, [refit], planner))


def compared(case: Case, refits: Sequence[Refit], planner: Robust) -> list[str]:
    """The columns of both refits: means over refits to equally many ranks."""
    first, dispatch = refits[0].placement, planner.dispatch
    fresh = place(case, planner, Topology(first.num_ranks), first.num_slots)
    scores = (
        balance(refits[0].old, case, dispatch),
        np.mean([balance(refit.placement, case, dispatch) for refit in refits]),
        balance(fresh, case, dispatch),
    )
    return [
        f"{np.mean([refit.counts[:, Content.COPIED] for refit in refits]):.1f}",
        f"{np.mean([changed(refit, fresh) for refit in refits]):.0f}",
        str(first.slots_per_rank),
        *(f"{score:.3f}" for score in scores),
    ]


def balance(placement: Placement, case: Case, dispatch: str) -> float:
    return evaluate(placement, case.split.tests["known domains"], dispatch=dispatch).mean_imbalance


def changed(refit: Refit, fresh: Placement) -> float:
    """Slots of a layer that receive an expert when the survivors change to another placement."""
    stays = refit.old_rank >= 0
    kept = 0
    for old, new in zip(refit.old.copies_on_rank > 0, fresh.copies_on_rank > 0, strict=True):
        common = new.astype(np.float32) @ old[refit.old_rank[stays]].T
        kept += int(common[linear_sum_assignment(common, maximize=True)].sum())
    return fresh.num_slots - kept / fresh.num_layers


def head(title: str, *columns: str) -> None:
    print(f"\n{title}\n")
    row(*columns)
    row(*["---"] * len(columns))


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


STUDIES = {"coverage": show_coverage, "failover": show_failover, "resize": show_resize}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--studies", default=",".join(STUDIES))
    parser.add_argument("--cases", default="glm52,esft")
    parser.add_argument("--dispatch", default="even", choices=["even", "minmax"])
    parser.add_argument("--redundant", help="only these numbers of redundant slots, e.g. 32,256")
    parser.add_argument("--layers", type=int, default=1, help="take every n-th layer of GLM-5.2")
    parser.add_argument("--proposals", type=int, default=Robust.proposals)
    args = parser.parse_args()
    for case in cases(args.data, args.cases.split(","), args.layers):
        if args.redundant:
            wanted = tuple(n for n in case.redundant if str(n) in args.redundant.split(","))
            case = replace(case, redundant=wanted)
        for study in args.studies.split(","):
            STUDIES[study](case, args.dispatch, args.proposals)


if __name__ == "__main__":
    main()

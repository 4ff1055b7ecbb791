"""Copies on LPLB's fixed graphs next to copies placed freely, at equal memory, min-max dispatch.

    python -m benchmarks.quality.fixed_graphs [--data ../shared/data] [--layers N]

glm52   GLM-5.2, 256 experts: plan on windows 0..6 of all 7 domains, test on window 7 of each; mean
        over layers and domains of max/mean rank load under the exact min-max split. 32 ranks in 4
        nodes of 8; one redundant slot for each edge of the graph.
normal  Loads drawn from N(1, 0.3), cut at 0: one load vector, planned on and tested; mean of 20
        draws. LPLB's own tests draw such loads.

"DeepSeek" is its global policy on the summed loads, "free" is ``Robust(dispatch="minmax")``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.quality.robust_glm52 import Case, in_domain
from equipoise.plan import Greedy, Planner, Problem, Robust, evaluate
from equipoise.plan.planners.lplb import GRAPHS, FixedGraph, owners
from equipoise.topology import Topology

TOPOLOGY = Topology(32, 8)
NUM_DRAWS = 20


def planners(graph: str, proposals: int) -> dict[str, Planner]:
    return {
        "DeepSeek": Greedy(allow_same_rank_copies=True),
        graph: FixedGraph(graph=graph, across_nodes="price"),
        "free": Robust(dispatch="minmax", proposals=proposals),
    }


def score(planner: Planner, case: Case, redundant: int) -> float:
    problem = Problem(case.fit, TOPOLOGY, case.fit.shape[2] + redundant, traffic_groups=case.groups)
    placement = planner.plan(problem).placement
    return evaluate(placement, case.tests["in-domain"], dispatch="minmax").mean_imbalance


def normal_cases() -> list[Case]:
    draws = np.random.default_rng(0).normal(1, 0.3, (NUM_DRAWS, 1, 1, 256)).clip(0)
    load = (draws * 10_000).astype(np.int64)
    return [Case(x, np.array(["all"]), {"in-domain": x}, ()) for x in load]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--layers", type=int, default=1, help="take every n-th layer of glm52")
    parser.add_argument("--proposals", type=int, default=Robust().proposals)
    args = parser.parse_args()
    (glm52,) = in_domain(args.data, 7)
    glm52.fit = glm52.fit[:, :: args.layers]
    glm52.tests = {name: load[:, :: args.layers] for name, load in glm52.tests.items()}
    print(f"{'loads':8} {'graph':10} {'redundant':>9} {'DeepSeek':>9} {'graph':>9} {'free':>9}")
    for name, cases in (("glm52", [glm52]), ("normal", normal_cases())):
        for graph in GRAPHS:
            redundant = owners(graph, TOPOLOGY).size
            scores = [
                np.mean([score(planner, case, redundant) for case in cases])
                for planner in planners(graph, args.proposals).values()
            ]
            cells = " ".join(f"{x:9.4f}" for x in scores)
            print(f"{name:8} {graph:10} {redundant:9} {cells}", flush=True)


if __name__ == "__main__":
    main()

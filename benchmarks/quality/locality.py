"""What locality costs in balance, and what it saves on the wires, on tokens not planned on.

From the repository root, with ../shared/data next to it for the first study:

    python -m benchmarks.quality.locality [--study NAME ...] [--layers N] [--proposals N]
        [--json FILE]

esft            Choices of DeepSeek-V2-Lite's router (64 experts, top 6) on three tasks, 16 ranks in
                nodes of 4, 16 redundant slots. Fit and test as "known domains" of ``protocols.py``:
                the first 70 % of each task, windows of the rest.
sample          The recording in the package: 32 experts, top 4, six domains, 8 ranks in nodes of 2,
                8 redundant slots. The first 80 % of each domain, windows of the rest; 8 steps each.
group-limited   Made here: 256 experts in 8 groups, a token keeps the 4 groups whose two best
                experts score highest and takes the 8 best experts of those. Scores are a popularity
                (lognormal, sigma 0.5, another one in each of four domains) times chance (Gumbel).
                32 ranks in 8 nodes of 4, a group's worth each, 32 redundant slots; 24 windows of
                512 tokens a domain to plan on, 8 more to score.

Every planner answers once, from the fit. Columns, means over layers, all on the test:

imbalance       max/mean rank load of a window under an even split, mean over windows too.
ranks, nodes    different ranks and nodes a token goes to, expected over the copies, exact.
sends           copies of a token that leave its node, one a destination node.
ms              time of a layer by ``StepTime``, mean over windows too: constants of the rank cost
                named ``COST``, ``STEP_TOKENS`` tokens a step, ``TOKEN_BYTES`` a token and
                destination, the links of ``Topology``. These are DeepSeek-V3's experts on H100s: a
                common yardstick, not the time of the model recorded.

Rows: "DeepSeek ..." are ours in parity mode, the hierarchical one with 8 groups. "Colocate 2 %" may
raise the peak by 2 % on what it plans on; "Colocate, bytes x 4" lowers the time of a layer whose
tokens have 4 times the bytes. Both start from the ``Robust`` row, or where it says so from
``Hierarchical``, and use the tokens of the fit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import protocols
from benchmarks.quality.machine import about_machine
from equipoise.cost import rank_cost
from equipoise.plan import Contiguous, Greedy, Hierarchical, Plan, Planner, Problem, evaluate
from equipoise.plan.planners.colocate import Colocate
from equipoise.plan.planners.robust import Robust
from equipoise.plan.weigh.traffic import StepTime, measure_traffic
from equipoise.sample import sample_trace_path
from equipoise.topology import Topology
from equipoise.trace import Trace

DATA = Path(__file__).parents[3] / "shared" / "data"
COST = "h100-deepep-ep32"
STEP_TOKENS = 65_536
TOKEN_BYTES = 7_392 + 14_336  # DeepSeek-V3: FP8 with scales there, BF16 back
SLACKS = (0.0, 0.02, 0.1)
PRICES = (0.25, 1.0, 4.0)
COLUMNS = ("imbalance", "ranks", "nodes", "sends", "ms")
SEED = 0

GROUPS, GROUPS_KEPT, EXPERTS, TOP_K = 8, 4, 256, 8
DOMAINS, FIT_WINDOWS, TEST_WINDOWS, WINDOW_TOKENS = 4, 24, 8, 512


@dataclass(frozen=True)
class Study:
    """What is planned on and what scored, on which ranks; ``Hierarchical`` gets the groups."""

    fit: Trace
    test: Trace
    topology: Topology
    redundant: int
    num_expert_groups: int


@dataclass(frozen=True)
class Given:
    """A plan made before, so that several searches start from it."""

    answer: Plan

    def plan(self, _problem: Problem) -> Plan:
        return self.answer


def esft(num_layers: int) -> Study:
    split = protocols.esft(protocols.read_esft(DATA))
    fit, test = (_first(t, num_layers) for t in (split.fit, split.tests["known domains"]))
    return Study(fit, test, Topology(16, 4), 16, 8)


def sample(num_layers: int) -> Study:
    from equipoise.engines.trace_io import read_trace

    trace = _first(read_trace(sample_trace_path()), num_layers)
    fit, test = (part.windows(8) for part in trace.split(at=0.8))
    return Study(fit, test, Topology(8, 2), 8, 8)


def group_limited(num_layers: int) -> Study:
    rng = np.random.default_rng(SEED)
    num_layers = min(num_layers, 4)
    windows = FIT_WINDOWS + TEST_WINDOWS
    ids = np.concatenate([_route(rng, windows * WINDOW_TOKENS, num_layers) for _ in range(DOMAINS)])
    offsets = np.arange(0, len(ids) + 1, WINDOW_TOKENS)
    labels = {"domain": np.repeat([f"domain {i}" for i in range(DOMAINS)], windows)}
    trace = Trace.from_tokens(ids, offsets, num_experts=EXPERTS, labels=labels)
    fit, test = trace.split(at=FIT_WINDOWS / windows)
    return Study(fit, test, Topology(32, 4), 32, GROUPS)


STUDIES: dict[str, Callable[[int], Study]] = {
    "esft": esft,
    "sample": sample,
    "group-limited": group_limited,
}


def route_in_groups(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The experts of each token, ``(D, K)``, from its scores ``(D, E)``; DeepSeek-V3's rule."""
    num_tokens = len(scores)
    grouped = scores.reshape(num_tokens, GROUPS, -1)
    group_score = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    dropped = np.argsort(-group_score, axis=1)[:, GROUPS_KEPT:]
    grouped = grouped.copy()
    np.put_along_axis(grouped, dropped[:, :, None], -np.inf, axis=1)
    left = grouped.reshape(num_tokens, -1)
    return np.argpartition(-left, TOP_K - 1, axis=1)[:, :TOP_K]


def _route(rng: np.random.Generator, num_tokens: int, num_layers: int) -> NDArray[np.int64]:
    """Tokens of a new domain, ``(D, L, K)``."""
    layers = []
    for _ in range(num_layers):
        popularity = rng.normal(0, 0.5, EXPERTS)
        layers.append(route_in_groups(popularity + rng.gumbel(size=(num_tokens, EXPERTS))))
    return np.stack(layers, axis=1)


def _first(trace: Trace, num_layers: int) -> Trace:
    """Layers spread evenly over the model."""
    chosen = np.linspace(0, trace.num_layers - 1, min(num_layers, trace.num_layers)).round()
    return trace.select(layers=[trace.layer_ids[int(i)] for i in chosen])


def step_time(bytes_factor: float = 1.0) -> StepTime:
    return StepTime(
        cost=rank_cost(COST), step_tokens=STEP_TOKENS, token_bytes=bytes_factor * TOKEN_BYTES
    )


def contenders(study: Study, problem: Problem, proposals: int) -> Iterator[tuple[str, Planner]]:
    hierarchical = Hierarchical(num_expert_groups=study.num_expert_groups)
    robust = Given(Robust(seed=SEED, proposals=4 * proposals).plan(problem))
    base = Colocate(tokens=study.fit.tokens, start=robust, proposals=proposals, seed=SEED)
    yield "contiguous", Contiguous()
    yield "DeepSeek global", Greedy(allow_same_rank_copies=True)
    yield "DeepSeek hierarchical", replace(hierarchical, allow_same_rank_copies=True)
    yield "Robust", robust
    for slack in SLACKS:
        yield f"Colocate {100 * slack:g} %", replace(base, price=slack)
    for factor in PRICES:
        yield f"Colocate, bytes x {factor:g}", replace(base, price=step_time(factor))
    yield "... from Hierarchical", replace(base, start=hierarchical, price=step_time())


def score(study: Study, plan: Plan) -> dict[str, float]:
    """The columns of a row."""
    test, placement = study.test, plan.placement
    traffic = measure_traffic(placement, test.tokens, study.topology)
    seconds = step_time().layer_seconds(placement, test.counts, traffic, study.topology)
    return {
        "imbalance": evaluate(placement, test).mean_imbalance,
        "ranks": float(traffic.ranks_per_token.mean()),
        "nodes": float(traffic.nodes_per_token.mean()),
        "sends": float(traffic.network_sends_per_token.mean()),
        "ms": 1e3 * float(seconds.mean()),
    }


def measure(study: Study, proposals: int) -> Iterator[tuple[str, dict[str, float]]]:
    problem = Problem(study.fit, study.topology, study.fit.num_experts + study.redundant)
    for name, planner in contenders(study, problem, proposals):
        yield name, score(study, planner.plan(problem))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument(
        "--layers", type=int, default=1000, help="most layers to look at, spread evenly"
    )
    parser.add_argument(
        "--proposals",
        type=int,
        default=Colocate.proposals,
        help="of Colocate; Robust has four times",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here too")
    args = parser.parse_args()
    print(json.dumps(about_machine()))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in args.study:
        study = STUDIES[name](args.layers)
        print(f"\n{name}: {study.fit.num_layers} layers, {study.topology}")
        print(f"fit {study.fit}\ntest {study.test}")
        print("| planner | " + " | ".join(COLUMNS) + " |\n|---|---|---|---|---|---|")
        found[name] = {}
        for row, numbers in measure(study, args.proposals):
            found[name][row] = numbers
            cells = " | ".join(f"{numbers[c]:.3f}" for c in COLUMNS)
            print(f"| {row} | {cells} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"about": about_machine(), "studies": found}))


if __name__ == "__main__":
    main()

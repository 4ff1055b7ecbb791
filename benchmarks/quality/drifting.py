"""What an engine's rebalancing is worth on the steps that follow it, while the loads drift.

From the repository root:

    python -m benchmarks.quality.drifting [--large] [--rebalances 20] [--seeds 11 12 13]

The loads are made: logarithms of the popularity of experts are normal and drift, an
Ornstein-Uhlenbeck process, and the tokens of a step are drawn from them. A rebalance sees the steps
since the last one; its slots are scored on those until the next. The small case is that of the
integration tests of the vLLM plug-in: 4 layers of 32 experts in 40 slots on 4 ranks, 10 steps of
1,600 assignments. The large one, with ``--large``: 58 layers of 256 experts in 288 slots on 32
ranks in 4 nodes, 16 steps of 32,768 assignments, half a second a plan of ``replan``.

``stock`` is vLLM's policy: DeepSeek's for one node, and experts that stay on their rank stay in
their slot. ``replan`` plans from the sum of the steps, ``plan_ahead`` from the steps one by one;
both may change half of the slots. What ``plan_ahead`` does was chosen on the seeds 1 to 3 and from
21 on.

Columns: slots changed a rebalance; balance, which is mean over busiest rank of the steps that
follow, layers summed first, as vLLM has it; processor milliseconds a plan, compiled before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.machine import about_machine
from equipoise.migration import keep_slots
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem, Situation, evaluate, replan
from equipoise.plan.ahead import plan_ahead
from equipoise.topology import Topology

Loads = NDArray[np.int64]
Policy = Callable[[Loads, Placement], Placement]

SHARE = 0.5  # of the slots that a rebalance may change


@dataclass(frozen=True)
class Case:
    """A model, its ranks, and how its loads drift: what is kept of the popularity in a step."""

    layers: int
    experts: int
    slots: int
    ranks: int
    nodes: int
    steps: int
    assignments: int
    kept: tuple[float, ...]
    seconds: float | None


SMALL = Case(4, 32, 40, 4, 1, 10, 1600, (0.99, 0.999, 0.9999), None)
LARGE = Case(58, 256, 288, 32, 4, 16, 32768, (0.995, 0.999), 0.5)


def windows(case: Case, kept: float, seed: int) -> Iterator[Loads]:
    """The steps between two rebalances, ``(T, L, E)``, again and again."""
    chance = np.random.default_rng(seed)
    popularity = chance.normal(0, 1, (case.layers, case.experts))
    while True:
        steps = []
        for _ in range(case.steps):
            shock = chance.normal(0, 1, popularity.shape)
            popularity = kept * popularity + np.sqrt(1 - kept**2) * shock
            share = np.exp(popularity)
            share /= share.sum(axis=1, keepdims=True)
            steps.append(chance.multinomial(case.assignments, share))
        yield np.stack(steps)


def stock(case: Case, steps: Loads, old: Placement) -> Placement:
    problem = Problem(steps.sum(axis=0)[None], Topology(case.ranks), case.slots)
    return keep_slots(old, Greedy(allow_same_rank_copies=True).plan(problem).placement)


def ours(planner: Callable[..., object], case: Case, steps: Loads, old: Placement) -> Placement:
    answer = planner(
        Situation(
            load=steps if planner is plan_ahead else steps.sum(axis=0),
            num_slots=case.slots,
            num_ranks=case.ranks,
            num_nodes=case.nodes,
            slots=old.slots,
            max_moves=int(SHARE * old.slots.size),
            time_budget_seconds=case.seconds,
        ),
        num_threads=1,
    )
    return Placement(answer.slots, num_ranks=case.ranks, num_experts=case.experts)  # type: ignore[attr-defined]


def run(case: Case, kept: float, seed: int, rebalances: int, policy: Policy) -> list[list[float]]:
    """Moves, balance and milliseconds of each rebalance."""
    slots = np.tile(np.arange(case.slots) % case.experts, (case.layers, 1))
    held = Placement(slots, num_ranks=case.ranks, num_experts=case.experts)
    traffic = windows(case, kept, seed)
    seen, rows = next(traffic), []
    for _ in range(rebalances):
        begin = time.process_time()
        new = policy(seen, held)
        milliseconds = 1000 * (time.process_time() - begin)
        moves = float((new.slots != held.slots).sum())
        held, seen = new, next(traffic)
        scored = evaluate(held, seen.sum(axis=0)[None])
        rows.append([moves, float(scored.mean.sum() / scored.peak.sum()), milliseconds])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Rebalancing while the loads drift.")
    parser.add_argument("--large", action="store_true", help="58 layers of 256 experts")
    parser.add_argument("--rebalances", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    given = parser.parse_args()
    case = LARGE if given.large else SMALL
    policies = {
        "stock": partial(stock, case),
        "replan": partial(ours, replan, case),
        "plan_ahead": partial(ours, plan_ahead, case),
    }
    for policy in policies.values():
        run(case, case.kept[0], 0, 1, policy)  # compiles
    print(about_machine())
    for kept in case.kept:
        for name, policy in policies.items():
            rows = np.array(
                [run(case, kept, seed, given.rebalances, policy) for seed in given.seeds]
            )
            moves, balance = rows[..., 0].mean(), rows[..., 1].mean()
            spread = rows[..., 1].mean(axis=1)
            print(
                f"kept {kept}: {name:10} {moves:8.1f} of {case.layers * case.slots} slots, balance "
                f"{balance:.4f} ({spread.min():.4f} to {spread.max():.4f}), "
                f"{np.median(rows[..., 2]):.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""How often chance is called unbalanced, and how soon a planted shift is noticed.

    python -m benchmarks.quality.false_alarms

Steps of 256 tokens, top-8 of 256 experts, 32 ranks, windows of 64 steps, as in
``tests/test_false_alarms.py``, with other seeds and more skews.

fair     Twelve fair routers, 512 steps each: steps that ``report`` calls beyond chance, and looks
         of the controller, every 8 steps, that raise its alarm.
shift    A fair router, then a skewed one, for several skews and ten routers of one skew: its
         imbalance, and the steps after which the controller's figure stays above the alarm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from equipoise.control.advisor import GatedRepair
from equipoise.control.findings import Question
from equipoise.control.settings import Settings
from equipoise.cost import RankCost
from equipoise.plan import Contiguous, Gate, Problem
from equipoise.report.summary import summarise
from equipoise.simulate.routers import lognormal, sample_trace, steady, uniform
from equipoise.topology import Topology
from equipoise.trace import Trace

TOKENS, TOP_K, EXPERTS, RANKS = 256, 8, 256, 32
WINDOW, STEPS, AFTER = 64, 512, 128
ALARM = Settings().excess_on
TOPOLOGY = Topology(RANKS)


def main() -> None:
    fair = [routed(uniform(EXPERTS, num_layers=1), STEPS, seed=seed) for seed in range(10, 22)]
    shares = [summarise(trace, num_ranks=RANKS).balance.beyond_chance for trace in fair]
    looks = [
        sure_excess(trace, end) for trace in fair for end in range(WINDOW, STEPS + 1, WINDOW // 8)
    ]
    print(f"fair steps beyond chance: {np.mean(shares):.2%} of {STEPS * len(fair):,}")
    print(f"looks that raise the alarm: {sum(x > ALARM for x in looks)} of {len(looks)}, "
          f"largest {max(looks):.3f}, alarm {ALARM}")  # fmt: skip
    print("skew, router: imbalance, noticed after")
    for sigma, seed, imbalance, noticed in shifts():
        print(f"{sigma}, {seed}: {imbalance:.2f}, {noticed or f'not within {AFTER}'}", flush=True)


def shifts() -> Iterator[tuple[float, int, float, int | None]]:
    """Skews, routers, imbalances, and the steps after which the alarm stays raised."""
    same = [(sigma, 3) for sigma in (0.3, 0.4, 0.5, 0.7, 1.0)]
    for sigma, seed in [*same, *((0.7, seed) for seed in range(10, 20))]:
        before = routed(uniform(EXPERTS, num_layers=1), WINDOW, seed=seed + 100)
        after = routed(lognormal(EXPERTS, sigma=sigma, num_layers=1, seed=seed), AFTER, seed=seed)
        steps = Trace(counts=np.concatenate([before.counts, after.counts]), top_k=TOP_K)
        quiet = [n for n in range(AFTER + 1) if sure_excess(steps, WINDOW + n) <= ALARM]
        noticed = quiet[-1] + 1 if quiet[-1] < AFTER else None
        yield sigma, seed, summarise(after, num_ranks=RANKS).balance.imbalance, noticed


def routed(popularity_LE: np.ndarray, num_steps: int, seed: int) -> Trace:
    steps = steady(popularity_LE, num_steps=num_steps)
    return sample_trace(steps, num_tokens=TOKENS, top_k=TOP_K, seed=seed)


def sure_excess(trace: Trace, end: int) -> float:
    """What the controller goes by, of the window that ends there."""
    window = Trace(counts=trace.counts[end - WINDOW : end], top_k=TOP_K)
    placement = Contiguous().plan(Problem(window, TOPOLOGY, EXPERTS)).placement
    gate = Gate(
        cost=RankCost(token_seconds=1e-6),
        expert_bytes=0,
        dwell_steps=1000,
        stall_seconds=0.0,
        interference=0.0,
        delay_steps=0,
        dispatch="even",
    )
    advisor = GatedRepair(topology=TOPOLOGY, gate=gate, top_k=TOP_K)
    question = Question(number=1, current=placement, previous=None, plan_above=np.inf)
    return advisor(question, window).sure_excess


if __name__ == "__main__":
    main()

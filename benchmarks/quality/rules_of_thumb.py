"""Two rules of thumb, tested on real recordings: 10 to 15 % redundancy, and gamma above 1.15.

    python -m benchmarks.quality.rules_of_thumb [--data ../shared/data] [--json FILE]

A case is a recording, a number of ranks and a batch. Plans are DeepSeek's on the earlier windows of
the recording, with 0 to 4 redundant slots a rank; batches are drawn from its later windows. Times
are of the slowest rank under an even split, by the published constants for that number of ranks.

copies pay   some redundancy takes 1 % or more off that time for each slot that a rank has more,
             counted from the plan without redundancy
gamma        busiest rank over mean rank of those batches without any balancing
knee         assignments of an expert from which on computing takes longer than reading its weights
excess       gamma less what a fair router shows in batches of that size
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.robust_glm52 import glm52, token_windows
from equipoise.balance import imbalance
from equipoise.cost import rank_cost
from equipoise.dispatch import Even
from equipoise.noise import noise_floor
from equipoise.plan import Contiguous, Greedy, Problem
from equipoise.plan.weigh.budget import LEAST_GAIN
from equipoise.topology import Topology

Counts = NDArray[np.int64]

DATA = Path("../shared/data")
BATCHES, MOST_SLOTS = 8, 4
TOKENS = (1024, 8192, 65536)
GAMMA, EXCESS = 1.15, 0.05


@dataclass(frozen=True)
class Case:
    """One recording on some ranks in batches of a size, and what was best for it."""

    recording: str
    ranks: int
    tokens: int
    gamma: float
    excess: float
    planned_gamma: float
    per_expert: float
    knee: float
    best_redundancy: float
    gain: float

    @property
    def pays(self) -> bool:
        return self.best_redundancy > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cases = [
        case_of(name, fit, held, top_k, ranks, tokens)
        for name, fit, held, top_k, all_ranks in recordings(args.data)
        for ranks in all_ranks
        for tokens in TOKENS
    ]
    for case in cases:
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}"
                        for k, v in asdict(case).items()))  # fmt: skip
    for line in verdicts(cases):
        print(line)
    if args.json:
        args.json.write_text(json.dumps([asdict(case) for case in cases], indent=1) + "\n")


def recordings(data: Path) -> Iterator[tuple[str, Counts, Counts, int, tuple[int, ...]]]:
    """Name, windows to plan on and to draw from, ``K``, and ranks to try."""
    counts, domains = glm52(data)
    counts = counts[:, :, ::5]
    for name, windows in zip(domains, counts, strict=True):
        yield f"glm52 {name}", windows[:6], windows[6:], 8, (16, 32, 64)
    mixed = counts.sum(axis=0)
    yield "glm52 all", mixed[:6], mixed[6:], 8, (16, 32, 64)
    with np.load(data / "esft_tokens" / "topk_ids.npz") as archive:
        for task in ("intent", "law", "summary"):
            windows = token_windows(archive[f"{task}_topk_ids"][:, ::5], 512, 64)
            cut = round(0.7 * len(windows))
            yield f"esft {task}", windows[:cut], windows[cut:], 6, (8, 16)
    with np.load(data / "gptoss_decode_sample" / "step_counts.npz") as archive:
        steps = archive["counts"][:256, ::5].astype(np.int64)
    yield "gptoss decode", steps[:180], steps[180:], 4, (8,)


def case_of(name: str, fit: Counts, held: Counts, top_k: int, ranks: int, tokens: int) -> Case:
    E, topology = fit.shape[2], Topology(ranks)
    load = _drawn(held, tokens * top_k)
    cost = rank_cost(f"h100-deepep-ep{ranks}")
    seconds, gammas = [], []
    for slots in range(MOST_SLOTS + 1):
        problem = Problem(fit, topology, E + slots * ranks)
        plan = Greedy().plan(problem).placement
        shares = np.stack([Even().split(batch, plan).shares for batch in load])
        seconds.append(cost.rank_seconds(shares, ranks).max(axis=-1).mean())
        gammas.append(_gamma(shares, ranks))
    gains = 1 - np.array(seconds) / seconds[0]
    best = int(np.argmax(gains - LEAST_GAIN * np.arange(MOST_SLOTS + 1)))
    plain = Contiguous().plan(Problem(fit, topology, E)).placement
    gamma = _gamma(np.stack([Even().split(batch, plain).shares for batch in load]), ranks)
    return Case(
        recording=name,
        ranks=ranks,
        tokens=tokens,
        gamma=gamma,
        excess=gamma - noise_floor(tokens, E, top_k, ranks).mean,
        planned_gamma=gammas[0],
        per_expert=tokens * top_k / E,
        knee=cost.knee,
        best_redundancy=best * ranks / E,
        gain=float(gains[best]),
    )


def verdicts(cases: list[Case]) -> Iterator[str]:
    pays = np.array([case.pays for case in cases])
    yield f"{len(cases)} cases; copies pay in {pays.sum()}"
    rules = {
        f"gamma > {GAMMA} without balancing": [case.gamma > GAMMA for case in cases],
        f"gamma > {GAMMA} once placed without copies": [c.planned_gamma > GAMMA for c in cases],
        f"excess > {EXCESS}": [case.excess > EXCESS for case in cases],
        "assignments an expert above the knee": [c.per_expert > c.knee for c in cases],
    }
    for name, said in rules.items():
        says = np.array(said)
        yield (
            f"{name}: says yes in {says.sum()}, right in {(says == pays).mean():.0%} "
            f"(yes and pays {(says & pays).sum()}, yes and does not {(says & ~pays).sum()}, "
            f"no and pays {(~says & pays).sum()}, no and does not {(~says & ~pays).sum()})"
        )
    best = np.array([case.best_redundancy for case in cases])
    inside = (best >= 0.1) & (best <= 0.15)
    yield (
        f"best redundancy within 10 to 15 %: {inside.sum()} of {len(best)}, "
        f"{inside[pays].sum()} of those that pay"
    )
    for tokens in TOKENS:
        some = best[[case.tokens == tokens for case in cases]]
        yield (
            f"  batches of {tokens}: best redundancy from {some.min():.0%} to {some.max():.0%}, "
            f"median {np.median(some):.0%}; none in {(some == 0).sum()} of {len(some)}"
        )


def _drawn(held: Counts, assignments: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(assignments)
    windows = held[np.arange(BATCHES) * len(held) // BATCHES].astype(float)
    return rng.multinomial(assignments, windows / windows.sum(axis=-1, keepdims=True)).astype(float)


def _gamma(shares: NDArray[np.float64], ranks: int) -> float:
    return float(imbalance(shares.reshape(*shares.shape[:2], ranks, -1).sum(axis=-1)).mean())


if __name__ == "__main__":
    main()

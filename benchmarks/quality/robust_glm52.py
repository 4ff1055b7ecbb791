"""What `Robust` gains on routing it has not seen, next to the published DeepSeek baselines.

    python -m benchmarks.quality.robust_glm52 [--data ../shared/data] [--rows in-domain,...]

Protocols, mean over layers and test loads of max/mean rank load:

in-domain   GLM-5.2, 75 layers x 256 experts: plan on windows 0..6 of all 7 domains, test on
            window 7 of each.
mixed       the same plans; the test load is the sum of window 7 over all domains.
unseen      plan on windows 0..6 of six domains, test on window 7 of the seventh; mean of all 7.
esft        DeepSeek-V2-Lite, 26 x 64, three tasks in windows of 512 tokens: plan on the first 70 %
            of the windows of each task, test on the rest; 8 ranks.
gptoss      gpt-oss-20b, 24 x 32: steps of 60 generations decoding in lockstep, summed 16 by 16:
            plan on the first 70 % of the first 256 steps, test on the rest of them; 8 ranks.

"deepseek" is DeepSeek's global policy on the summed loads of the same windows, under the same
dispatcher.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.plan import Greedy, Problem, evaluate
from equipoise.plan.planners.robust import Robust
from equipoise.topology import Topology


@dataclass
class Case:
    """Windows to plan on, ``(T, L, E)``, their groups, and loads to test on."""

    fit: NDArray[np.int64]
    groups: NDArray[np.str_]
    tests: dict[str, NDArray[np.int64]]
    configs: tuple[tuple[int, int], ...]  # ranks, redundant slots


@dataclass
class Row:
    """Imbalance of DeepSeek's plan and of ours on each test."""

    config: str
    scores: dict[str, list[float]]
    seconds: float
    status: str


GLM_CONFIGS = ((32, 0), (32, 32), (32, 64), (16, 16), (64, 64))


def glm52(data: Path, held: int = 7) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    with np.load(data / "glm52" / "windows.npz") as archive:
        return archive["counts"][:, : held + 1].astype(np.int64), archive["domains"]


def in_domain(data: Path, held: int) -> Iterator[Case]:
    counts, domains = glm52(data, held)
    tests = {"in-domain": counts[:, held], "mixed": counts[:, held].sum(axis=0)[None]}
    yield Case(counts[:, :held].reshape(-1, *counts.shape[2:]), domains.repeat(held), tests,
               GLM_CONFIGS)  # fmt: skip


def unseen(data: Path, held: int) -> Iterator[Case]:
    counts, domains = glm52(data, held)
    for out in range(len(domains)):
        keep = np.arange(len(domains)) != out
        yield Case(
            counts[keep, :held].reshape(-1, *counts.shape[2:]), domains[keep].repeat(held),
            {"unseen": counts[out, held][None]}, GLM_CONFIGS[:3],
        )  # fmt: skip


def esft(data: Path, _held: int) -> Iterator[Case]:
    fit, test, groups = [], [], []
    with np.load(data / "esft_tokens" / "topk_ids.npz") as archive:
        for task in ("intent", "law", "summary"):
            windows = token_windows(archive[f"{task}_topk_ids"], 512, 64)
            cut = round(0.7 * len(windows))
            fit.append(windows[:cut])
            test.append(windows[cut:])
            groups += [task] * cut
    yield Case(np.concatenate(fit), np.array(groups), {"esft": np.concatenate(test)},
               ((8, 0), (8, 8), (8, 16)))  # fmt: skip


def gptoss(data: Path, _held: int) -> Iterator[Case]:
    with np.load(data / "gptoss_decode_sample" / "step_counts.npz") as archive:
        steps = archive["counts"][:256].astype(np.int64)
    windows = steps.reshape(16, 16, *steps.shape[1:]).sum(axis=1)
    cut = round(0.7 * len(windows))
    yield Case(windows[:cut], np.full(cut, "decode"), {"gptoss": windows[cut:]},
               ((8, 0), (8, 8), (8, 16)))  # fmt: skip


def token_windows(ids: NDArray[np.integer], size: int, num_experts: int) -> NDArray[np.int64]:
    """Counts of whole windows of ``size`` tokens, ``(T, L, E)``, from ids ``(D, L, K)``."""
    windows = ids[: len(ids) // size * size].reshape(-1, size, *ids.shape[1:])
    counts = np.zeros((len(windows), ids.shape[1], num_experts), np.int64)
    for window, layer in np.ndindex(counts.shape[:2]):
        chosen = windows[window, :, layer].ravel()
        counts[window, layer] = np.bincount(chosen, minlength=num_experts)
    return counts


PROTOCOLS = {"in-domain": in_domain, "unseen": unseen, "esft": esft, "gptoss": gptoss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--dispatch", default="even,minmax")
    parser.add_argument("--configs", help="only these, e.g. 32+32,32+64")
    parser.add_argument("--held", type=int, default=7, help="test on this GLM-5.2 window")
    parser.add_argument("--layers", type=int, default=1, help="take every n-th layer")
    parser.add_argument("--proposals", type=int, default=Robust().proposals)
    parser.add_argument("--time-budget-seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    header = f"{'protocol':10} {'ranks':>5} {'extra':>5} {'dispatch':8}"
    print(f"{header} {'deepseek':>9} {'robust':>9} {'change':>8} {'seconds':>8}  held out inside")
    for protocol in args.protocols.split(","):
        cases = list(PROTOCOLS[protocol](args.data, args.held))
        for ranks, extra in cases[0].configs:
            if args.configs and f"{ranks}+{extra}" not in args.configs.split(","):
                continue
            for dispatch in args.dispatch.split(","):
                if dispatch == "even" or extra:
                    show([compare(case, ranks, extra, dispatch, args) for case in cases])


def compare(case: Case, ranks: int, extra: int, dispatch: str, args: argparse.Namespace) -> Row:
    fit = case.fit[:, :: args.layers]
    problem = Problem(fit, Topology(ranks), fit.shape[2] + extra, traffic_groups=case.groups)
    base = Greedy(allow_same_rank_copies=True).plan(problem).placement
    planner = Robust(
        dispatch=dispatch,
        seed=args.seed,
        proposals=args.proposals,
        time_budget_seconds=args.time_budget_seconds,
    )
    start = time.perf_counter()
    plan = planner.plan(problem)
    seconds = time.perf_counter() - start
    scores = {
        name: [
            evaluate(placement, test[:, :: args.layers], dispatch=dispatch).mean_imbalance
            for placement in (base, plan.placement)
        ]
        for name, test in case.tests.items()
    }
    return Row(f"{ranks:5} {extra:5} {dispatch:8}", scores, seconds, plan.status)


def show(rows: list[Row]) -> None:
    for test in rows[0].scores:
        base, ours = np.mean([row.scores[test] for row in rows], axis=0)
        seconds = np.mean([row.seconds for row in rows])
        finding = rows[0].status.partition(" Over all steps together")[0]
        print(
            f"{test:10} {rows[0].config} {base:9.4f} {ours:9.4f} {ours / base - 1:8.1%} "
            f"{seconds:8.1f}  {finding}",
            flush=True,
        )


if __name__ == "__main__":
    main()

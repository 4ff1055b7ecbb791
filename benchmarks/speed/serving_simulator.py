"""Speed of the serving simulator: real time over its own, time of a step, scaling.

    python -m benchmarks.speed.serving_simulator
    python -m benchmarks.speed.serving_simulator --steps 1000000 --ranks 32

Protocol: Poisson requests at a rate that fills about 60 % of the sequences, lognormal lengths
(prompts: median 1,000 tokens, answers: 350), steps of about 25 ms by `MoeStepTime` with a drawn
imbalance series of 1,000 steps and 58 layers. "decode" gives prompts a pool of a quarter of the
ranks and counts the decode pool's steps; "mixed" has one pool with chunked prefill. Both include
everything from the requests to the summary, except making the requests. One process, one core;
one run each: a run of 20,000 steps varies by about a tenth.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy loads

import numpy as np

from benchmarks.quality import machine
from equipoise.simulate.arrivals import lognormal_tokens, poisson
from equipoise.simulate.batching import Pool
from equipoise.simulate.requests import Requests
from equipoise.simulate.serving import HandOver, ServingResult, serve, serve_disaggregated
from equipoise.simulate.step_time import ImbalanceSeries, LinearStepTime, MoeStepTime

STEP_SECONDS, MEAN_ANSWER, FILLED = 0.025, 480, 0.6
LINEAR = LinearStepTime(
    fixed_seconds=0.012,
    token_seconds=2e-6,
    sequence_seconds=1e-5,
    context_token_seconds=3e-8,
)


def moe_step(expert_token_seconds: float) -> MoeStepTime:
    drawn = 1 + np.random.default_rng(0).gamma(4, 0.05, (1000, 58))
    return MoeStepTime(
        rest=LINEAR,
        expert_token_seconds=expert_token_seconds,
        imbalance=ImbalanceSeries(by_tokens=drawn, seed=1),
    )


def made_requests(num_steps: int, num_ranks: int, sequences: int) -> Requests:
    rate = FILLED * num_ranks * sequences / (MEAN_ANSWER * STEP_SECONDS)
    n = max(1, int(rate * num_steps * STEP_SECONDS))
    return Requests(
        arrival_seconds=poisson(n, requests_per_second=rate, seed=1),
        prompt_tokens=lognormal_tokens(n, median=1000, sigma=0.8, highest=8000, seed=2),
        output_tokens=lognormal_tokens(n, median=350, sigma=0.8, highest=2000, seed=3),
    )


def decode(requests: Requests, num_ranks: int, sequences: int) -> ServingResult:
    limits = {"max_tokens": 8192, "kv_tokens": 800_000}
    prefill = Pool(
        step_time=LINEAR, num_ranks=max(1, num_ranks // 4), max_sequences=sequences, **limits
    )
    answers = Pool(step_time=moe_step(1e-4), num_ranks=num_ranks, max_sequences=sequences, **limits)
    return serve_disaggregated(
        requests, prefill=prefill, decode=answers, hand_over=HandOver(token_seconds=2e-6)
    )


def mixed(requests: Requests, num_ranks: int, sequences: int) -> ServingResult:
    pool = Pool(
        step_time=moe_step(2e-5),
        num_ranks=num_ranks,
        max_sequences=sequences,
        max_tokens=2048,
        kv_tokens=800_000,
    )
    return serve(requests, pool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, help="about this number")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 32, 128, 320])
    parser.add_argument("--sequences", type=int, nargs="+", default=[32, 128])
    args = parser.parse_args()
    print(machine.about_machine()["cpu"])
    print(
        f"{'':8}{'ranks':>6}{'seq/rank':>9}{'requests':>10}{'steps':>10}{'us/step':>9}"
        f"{'simulated s':>12}{'took s':>8}{'x real':>8}{'TPOT p50':>10}"
    )
    for kind in (decode, mixed):
        for num_ranks in args.ranks:
            for sequences in args.sequences:
                requests = made_requests(args.steps, num_ranks, sequences)
                start = time.perf_counter()
                result = kind(requests, num_ranks, sequences)
                tpot = result.summary()["tpot_p50"]
                took = time.perf_counter() - start
                last = list(result.pools.values())[-1]
                steps = len(last.timeline.steps.start)
                print(
                    f"{kind.__name__:8}{num_ranks:6}{sequences:9}{len(requests):10,}{steps:10,}"
                    f"{took / steps * 1e6:9.1f}{result.seconds:12.1f}{took:8.2f}"
                    f"{result.seconds / took:8.0f}{tpot * 1e3:7.1f} ms",
                    flush=True,
                )
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()

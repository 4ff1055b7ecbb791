"""Speed of the serving simulator: real time over its own, time of a step, scaling.

    python -m benchmarks.speed.serving_simulator
    python -m benchmarks.speed.serving_simulator --steps 700000 --ranks 32 --kinds decode
    python -m benchmarks.speed.serving_simulator --tables

Protocol: Poisson requests at a rate that fills about 60 % of the sequences, lognormal lengths
(prompts: median 1,000 tokens, answers: 350), steps of about 25 ms. The step time follows from the
routing of a recording (made: 256 experts, 8 layers) on a placement, by `TabulatedStepTime`;
its table is made beforehand and scaled to 10 ms for the usual batch. "decode" gives prompts a
pool of a quarter of the ranks and counts the decode pool's steps; "mixed" has one pool with
chunked prefill. Both include everything from the requests to the summary, except making the
requests and the table. `--tables` measures the tables: time and memory for several shapes, every
expert once and with copies on a placement of the greedy planner. Seconds are those of the
processor; one process, one core; one run each: a run of 20,000 steps varies by about a tenth.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy loads

import numpy as np

from benchmarks.quality import machine
from equipoise.dispatch import dispatcher
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.problem import Problem
from equipoise.simulate.arrivals import lognormal_tokens, poisson
from equipoise.simulate.batching import Pool
from equipoise.simulate.expert_time import Layout, UncertainCost
from equipoise.simulate.requests import Requests
from equipoise.simulate.routers import lognormal
from equipoise.simulate.serving import HandOver, ServingResult, serve, serve_disaggregated
from equipoise.simulate.step_table import layout_seconds, step_table
from equipoise.simulate.step_time import LinearStepTime, StepTime, TabulatedStepTime
from equipoise.topology import Topology
from equipoise.trace import Trace

STEP_SECONDS, EXPERT_SECONDS, MEAN_ANSWER, FILLED = 0.025, 0.01, 480, 0.6
MAX_TOKENS, TOP_K = 2048, 8
COST = UncertainCost.published("h100-deepep-ep32", error=0)
LINEAR = LinearStepTime(
    fixed_seconds=0.012,
    token_seconds=2e-6,
    sequence_seconds=1e-5,
    context_token_seconds=3e-8,
)


def made_trace(num_experts: int, num_layers: int, num_steps: int = 32) -> Trace:
    popularity = lognormal(num_experts, sigma=0.7, num_layers=num_layers, seed=1)
    rng = np.random.default_rng(2)
    counts = rng.multinomial(4096 * TOP_K, popularity, size=(num_steps, num_layers))
    return Trace(counts=counts, top_k=TOP_K)


def moe_step(trace: Trace, num_ranks: int, sequences: int, max_tokens: int) -> TabulatedStepTime:
    layout, topology = Layout.unbalanced(trace, num_ranks), Topology(num_ranks)
    seconds = layout_seconds(layout, topology, COST)
    table = step_table(trace, seconds, top_k=TOP_K, most_tokens=num_ranks * max_tokens)
    usual = min(table, key=lambda n: abs(n - FILLED * num_ranks * sequences))
    scale = EXPERT_SECONDS / table[usual].mean()
    return TabulatedStepTime(by_tokens={n: scale * t for n, t in table.items()}, rest=LINEAR)


def made_requests(num_steps: int, num_ranks: int, sequences: int) -> Requests:
    rate = FILLED * num_ranks * sequences / (MEAN_ANSWER * STEP_SECONDS)
    n = max(1, int(rate * num_steps * STEP_SECONDS))
    return Requests(
        arrival_seconds=poisson(n, requests_per_second=rate, seed=1),
        prompt_tokens=lognormal_tokens(n, median=1000, sigma=0.8, highest=8000, seed=2),
        output_tokens=lognormal_tokens(n, median=350, sigma=0.8, highest=2000, seed=3),
    )


def decode(
    requests: Requests, step_time: StepTime, num_ranks: int, sequences: int
) -> ServingResult:
    limits = {"max_tokens": 8192, "kv_tokens": 800_000}
    prefill = Pool(
        step_time=LINEAR, num_ranks=max(1, num_ranks // 4), max_sequences=sequences, **limits
    )
    answers = Pool(step_time=step_time, num_ranks=num_ranks, max_sequences=sequences, **limits)
    return serve_disaggregated(
        requests, prefill=prefill, decode=answers, hand_over=HandOver(token_seconds=2e-6)
    )


def mixed(requests: Requests, step_time: StepTime, num_ranks: int, sequences: int) -> ServingResult:
    pool = Pool(
        step_time=step_time,
        num_ranks=num_ranks,
        max_sequences=sequences,
        max_tokens=MAX_TOKENS,
        kv_tokens=800_000,
    )
    return serve(requests, pool)


def time_tables() -> None:
    print(f"{'experts':>8}{'ranks':>6}{'layers':>7}{'split':>8}{'sizes':>6}{'took s':>8}{'GiB':>6}")
    for experts, ranks, layers, redundant in ((256, 32, 58, 32), (512, 320, 61, 128)):
        trace, topology = made_trace(experts, layers), Topology(ranks)
        problem = Problem(trace, topology, experts + redundant)
        placement = Greedy().plan(problem).placement
        layouts = {"once": Layout.unbalanced(trace, ranks)}
        for name in ("even", "minmax"):
            layouts[name] = Layout(placement=placement, dispatch=dispatcher(name, topology))
        for name, layout in layouts.items():
            seconds = layout_seconds(layout, topology, COST)
            seconds(trace.counts[:1].astype(float))  # compiles
            start = time.process_time()
            table = step_table(trace, seconds, top_k=TOP_K, most_tokens=ranks * MAX_TOKENS)
            took = time.process_time() - start
            print(
                f"{experts:8}{ranks:6}{layers:7}{name:>8}{len(table):6}{took:8.1f}{memory():6.2f}",
                flush=True,
            )


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, help="about this number")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 32, 128, 320])
    parser.add_argument("--sequences", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--kinds", nargs="+", default=["decode", "mixed"])
    parser.add_argument("--tables", action="store_true", help="time tables of steps instead")
    args = parser.parse_args()
    print(machine.about_machine()["cpu"])
    if args.tables:
        time_tables()
        return
    trace = made_trace(256, 8)
    print(
        f"{'':8}{'ranks':>6}{'seq/rank':>9}{'requests':>10}{'steps':>10}{'us/step':>9}"
        f"{'simulated s':>12}{'took s':>8}{'x real':>8}{'TPOT p50':>10}"
    )
    for kind in (kind for kind in (decode, mixed) if kind.__name__ in args.kinds):
        for num_ranks in args.ranks:
            for sequences in args.sequences:
                requests = made_requests(args.steps, num_ranks, sequences)
                step_time = moe_step(trace, num_ranks, sequences, MAX_TOKENS)
                start = time.process_time()
                result = kind(requests, step_time, num_ranks, sequences)
                tpot = result.summary()["tpot_p50"]
                took = time.process_time() - start
                last = list(result.pools.values())[-1]
                steps = len(last.timeline.steps.start)
                print(
                    f"{kind.__name__:8}{num_ranks:6}{sequences:9}{len(requests):10,}{steps:10,}"
                    f"{took / steps * 1e6:9.1f}{result.seconds:12.1f}{took:8.2f}"
                    f"{result.seconds / took:8.0f}{tpot * 1e3:7.1f} ms",
                    flush=True,
                )
    print(f"memory: {memory():.2f} GiB")


if __name__ == "__main__":
    main()

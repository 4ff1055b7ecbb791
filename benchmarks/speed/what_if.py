"""Time of a what-if answer, as the dashboard asks for it: 58 layers of 256 experts on 32 ranks.

    python -m benchmarks.speed.what_if

Protocol: the questions of a reader who moves one slider at a time, on generated routing of
DeepSeek-V3 (58 layers, 256 experts, 8 a token). "skew moved" makes new routing, batches, a plan
and times; the other rows find the routing, and some the batches, from the question before. Each
row is the median and the slowest of 9 answers with another value each, after one that is not
counted, which compiles: the command answers once before it says where the page is. Seconds are
those of the processor, one thread: what the clock shows on a core that nobody else uses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy loads

import numpy as np

from benchmarks.quality.machine import about_machine
from equipoise.engines.served_models import served_models
from equipoise.simulate.what_if import DISPATCH, Question, WhatIf

NUM_ANSWERS = 9
START = Question()


def questions() -> Iterator[tuple[str, list[Question]]]:
    numbers = range(NUM_ANSWERS)
    for name in DISPATCH:
        start = replace(START, dispatch=name)
        yield f"skew moved, {name}", [replace(start, skew=0.5 + 0.05 * n) for n in numbers]
    yield "tokens moved", [replace(START, step_tokens=2000 + 100 * n) for n in numbers]
    yield "redundancy moved", [replace(START, redundant_per_rank=n % 8) for n in numbers]
    yield (
        "hardware moved",
        [replace(START, gpu=("h100", "b200", "mi300x")[n % 3]) for n in numbers],
    )
    large = replace(START, num_ranks=128, redundant_per_rank=2)
    yield "skew moved, 128 ranks", [replace(large, skew=0.5 + 0.05 * n) for n in numbers]


def measured(what_if: WhatIf, asked: list[Question]) -> np.ndarray:
    what_if.answer(replace(asked[0], seed=7))
    seconds = []
    for question in asked:
        began = time.process_time()
        what_if.answer(question)
        seconds.append(time.process_time() - began)
    return np.array(seconds)


def main() -> None:
    what_if = WhatIf(served_models())
    print(f"{about_machine()}\n")
    print("| question | median | slowest |\n|---|---|---|")
    for name, asked in questions():
        seconds = 1e3 * measured(what_if, asked)
        print(f"| {name} | {np.median(seconds):.0f} ms | {seconds.max():.0f} ms |", flush=True)


if __name__ == "__main__":
    main()

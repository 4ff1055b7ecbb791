from __future__ import annotations

import torch

from equipoise.runtime.moe.layer import swiglu
from equipoise.runtime.serving.speed import SpeedMeter, in_steps


def test_tells_a_slow_rank_from_noise():
    assert in_steps([(100, 10, 1.0), (110, 9, 1.0), (95, 11, 1.0), (40, 4, 1.0)]) == (
        1, 1, 1, 1.25**-4,
    )  # fmt: skip
    assert in_steps([(100, 10, 1.0), (100, 10, 1.2)]) == (1, 1)
    assert in_steps([(100, 10, 1.0), (0, 0, 0.0), (100, 10, 1.0)]) == (1, 1, 1)
    assert in_steps([(0, 0, 0.0)]) == (1,)


def test_few_rows_on_many_experts_are_not_slow():
    """Three ranks of the same speed, for which an expert takes time and a row hardly any."""
    work = [(rows, experts, experts * 1.0) for rows, experts in ((90, 3), (30, 12), (60, 6))]
    assert in_steps(work) == (1, 1, 1)


def measured(group):
    rank = torch.distributed.get_rank(group)
    now = [0.0]

    def compute(rows, counts, weights):
        now[0] += len(rows) * (4.0 if rank == 1 else 1.0)
        return swiglu(rows, counts, weights)

    meter = SpeedMeter(compute, clock=lambda: now[0])
    weights = {"gate_up_proj": torch.ones(2, 4, 3), "down_proj": torch.ones(2, 3, 2)}
    rows = torch.ones(5, 3)
    same = torch.equal(meter(rows, [2, 3], weights), swiglu(rows, [2, 3], weights))
    return same, meter.speeds(group), meter.speeds(group)


def test_all_ranks_know_all_speeds(pool):
    for same, speeds, nothing_since in pool.run(measured, ranks=4):
        assert same
        assert speeds == (1, 1.25**-6, 1, 1)
        assert nothing_since == (1, 1, 1, 1)

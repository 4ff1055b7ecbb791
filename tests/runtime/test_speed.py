from __future__ import annotations

import torch

from equipoise.runtime.moe.layer import swiglu
from equipoise.runtime.serving.speed import SpeedMeter


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

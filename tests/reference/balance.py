"""The quantities of the field in plain loops, slow and obviously right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from equipoise.placement import Placement


def expert_loads(topk_ids: Sequence[Sequence[int]], num_experts: int) -> list[int]:
    loads = [0] * num_experts
    for token in topk_ids:
        for expert in token:
            if 0 <= expert < num_experts:
                loads[expert] += 1
    return loads


def imbalance(loads: Sequence[float]) -> float:
    total = sum(loads)
    return max(loads) / (total / len(loads)) if total else 1.0


def device_loads(loads: Sequence[float], num_devices: int, placement: Sequence[int]) -> list[float]:
    on_device = [0.0] * num_devices
    for expert, load in enumerate(loads):
        on_device[placement[expert]] += load
    return on_device


def dropped_tokens(loads: Sequence[int], numerator: int, denominator: int) -> int:
    """Capacity factor ``numerator / denominator``, in whole numbers throughout."""
    capacity = -(-numerator * sum(loads) // (denominator * len(loads)))
    return sum(max(0, load - capacity) for load in loads)


def rank_loads(load: Sequence[Sequence[float]], placement: Placement) -> list[list[float]]:
    on_rank = [[0.0] * placement.num_ranks for _ in load]
    for layer, slots in enumerate(placement.slots.tolist()):
        for slot, expert in enumerate(slots):
            rank = slot // placement.slots_per_rank
            on_rank[layer][rank] += load[layer][expert] / slots.count(expert)
    return on_rank


def active_experts(load: Sequence[Sequence[float]], placement: Placement) -> list[list[int]]:
    active = [[0] * placement.num_ranks for _ in load]
    for layer, slots in enumerate(placement.slots.tolist()):
        for slot, expert in enumerate(slots):
            active[layer][slot // placement.slots_per_rank] += load[layer][expert] > 0
    return active


def collapsed(rank_loads: Sequence[Sequence[float]]) -> float:
    """Imbalance of the loads summed over layers: what must never be reported as balance."""
    return imbalance([math.fsum(column) for column in zip(*rank_loads, strict=True)])

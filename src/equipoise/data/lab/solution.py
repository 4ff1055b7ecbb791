"""One way to fill in ``exercise.py``."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil


def expert_loads(choices: Sequence[Sequence[int]], num_experts: int) -> list[int]:
    """Count the assignments of every expert, each choice of a token by itself."""
    loads = [0] * num_experts
    for experts in choices:
        for expert in experts:
            loads[expert] += 1
    return loads


def imbalance(loads: Sequence[float]) -> float:
    """Divide the largest load by the mean."""
    return max(loads) * len(loads) / sum(loads)


def step_time(
    loads: Sequence[float], num_devices: int, placement: Sequence[int] | None = None
) -> float:
    """Find the load of the busiest device."""
    on_device = [0.0] * num_devices
    for expert, load in enumerate(loads):
        device = expert % num_devices if placement is None else placement[expert]
        on_device[device] += load
    return max(on_device)


def efficiency(loads: Sequence[float], num_devices: int) -> float:
    """Divide the work by the time that was paid for: all devices, as long as the busiest one."""
    return sum(loads) / (num_devices * step_time(loads, num_devices))


def dropped(loads: Sequence[float], capacity_factor: float) -> float:
    """Add up what every expert has beyond the capacity."""
    capacity = ceil(capacity_factor * sum(loads) / len(loads))
    return sum(max(load - capacity, 0) for load in loads)

"""Your part of the lab: five small functions. Fill them in, then run ``python -m unittest -v``.

A layer of a mixture-of-experts model has experts, numbered from 0. A router sends every token to
one or more of them. A token and an expert it chose make one assignment. Loads are assignments per
expert: ``[3, 0, 1]`` says that expert 0 has three. Experts live on devices, and a step is over when
the busiest device is done.
"""

from __future__ import annotations

from collections.abc import Sequence


def expert_loads(choices: Sequence[Sequence[int]], num_experts: int) -> list[int]:
    """Count the assignments of every expert.

    ``choices`` has a row for each token, of the experts it chose. An expert that a token chose
    twice has two assignments of it.
    """
    raise NotImplementedError("count the assignments of every expert")


def imbalance(loads: Sequence[float]) -> float:
    """Divide the largest load by the mean: 1 is perfect balance."""
    raise NotImplementedError("divide the largest load by the mean")


def step_time(
    loads: Sequence[float], num_devices: int, placement: Sequence[int] | None = None
) -> float:
    """Find the load of the busiest device, which all others wait for.

    ``placement`` is the device of each expert. ``None`` deals them out: expert ``e`` lives on
    device ``e % num_devices``.
    """
    raise NotImplementedError("add up the load of every device, and return the largest")


def efficiency(loads: Sequence[float], num_devices: int) -> float:
    """Say which share of the devices' time does work, from 0 to 1, with experts dealt out."""
    raise NotImplementedError("divide the work by the time that was paid for")


def dropped(loads: Sequence[float], capacity_factor: float) -> float:
    """Count the assignments beyond their expert's capacity, which a training system would drop.

    The capacity of every expert is ``capacity_factor`` times the mean load, rounded up.
    """
    raise NotImplementedError("add up what every expert has beyond the capacity")

"""The two ideas behind every planner, in a form to experiment with: placing and copying.

Here a device may hold any number of experts; the planners that engines use fill equal numbers of
slots. ``docs/lab.md`` walks through both.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import as_loads, check_count
from equipoise.errors import EquipoiseError


def best_placement(loads: ArrayLike, num_devices: int) -> NDArray[np.int64]:
    """Put each expert, heaviest first, on the device that is lightest so far.

    Longest processing time first (Graham, 1969): the busiest device is at most 4/3 of the optimum.
    Equal loads go in order of expert, equal devices in order of device.

    Parameters
    ----------
    loads
        Assignments per expert, ``(E,)``.
    num_devices
        Devices to fill; each may hold any number of experts.

    Returns
    -------
    The device of each expert, ``(E,)`` int64, as ``ep_step_time`` takes it.
    """
    x = _as_row(loads)
    check_count("num_devices", num_devices)
    devices = [(0.0, device) for device in range(num_devices)]
    placement = np.empty(len(x), dtype=np.int64)
    for expert in np.argsort(-x, kind="stable"):
        load, device = heapq.heappop(devices)
        placement[expert] = device
        heapq.heappush(devices, (load + float(x[expert]), device))
    return placement


def add_copies(
    loads: ArrayLike, num_copies: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Give extra copies, one by one, to the expert with the most load per copy.

    Every copy of an expert takes an equal share of its load. What comes back can be placed like
    experts; whoever puts two copies of one expert on the same device has wasted one.

    Parameters
    ----------
    loads
        Assignments per expert, ``(E,)``.
    num_copies
        ``X``, extra copies in all.

    Returns
    -------
    The load of each copy, ``(E + X,)`` float64, and the expert it is a copy of, ``(E + X,)``
    int64: first every expert, then the extra copies in the order given out.
    """
    x = _as_row(loads)
    check_count("num_copies", num_copies)
    copies = np.ones(len(x))
    expert = np.arange(len(x) + num_copies)
    for extra in range(len(x), len(expert)):
        expert[extra] = np.argmax(x / copies)
        copies[expert[extra]] += 1
    return (x / copies)[expert], expert


def _as_row(loads: ArrayLike) -> NDArray[np.float64]:
    x = as_loads(loads)
    if x.ndim != 1:
        raise EquipoiseError(
            f"Loads have shape {x.shape}; expected one number for each expert of one layer."
        )
    return x

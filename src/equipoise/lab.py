"""Load balancing in small, to experiment with: devices, capacity, placing, copying.

Here a device may hold any number of experts; the planners that engines use fill equal numbers of
slots. Functions take lists or arrays and change none of them. ``equipoise explain lab`` walks
through all.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import balancedness
from equipoise.checks import as_array, as_loads, check_count, check_number
from equipoise.errors import EquipoiseError


def device_loads(
    loads: ArrayLike, num_devices: int, placement: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Assignments on each device when every expert lives on one of them.

    Parameters
    ----------
    loads
        Assignments per expert, ``(E,)`` or ``(..., E)``.
    placement
        The device of each expert, ``(E,)``; ``None`` deals them out: expert ``e`` on
        ``e % num_devices``. For experts with copies see ``rank_loads``.

    Returns
    -------
    ``(D,)`` or ``(..., D)``, ``D`` devices.
    """
    x = as_loads(loads)
    num_devices = check_count("num_devices", num_devices)
    device = _device_of_expert(placement, num_experts=x.shape[-1], num_devices=num_devices)
    on_device = np.zeros((num_devices, *x.shape[:-1]))
    np.add.at(on_device, device, np.moveaxis(x, -1, 0))
    return np.moveaxis(on_device, 0, -1)


def ep_step_time(
    loads: ArrayLike, num_devices: int, placement: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Load of the busiest device, in assignments: what the step takes, as all wait for it.

    Arguments are those of ``device_loads``. Rows are layers, each a barrier: a step through all of
    them takes the sum of the result, never the busiest device of the summed loads.

    Returns
    -------
    A scalar, or ``(...)`` for loads ``(..., E)``.
    """
    busiest: NDArray[np.float64] = device_loads(loads, num_devices, placement).max(axis=-1)
    return busiest


def parallel_efficiency(
    loads: ArrayLike, num_devices: int, placement: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Share of the devices' time that does work, in (0, 1]: sum / (devices x max); 1 without load.

    Arguments are those of ``device_loads``.
    """
    return balancedness(device_loads(loads, num_devices, placement))


def dropped_tokens(loads: ArrayLike, capacity_factor: float) -> NDArray[np.float64]:
    """Assignments beyond their expert's capacity, which a training system would drop.

    The capacity of every expert is ``ceil(capacity_factor * assignments / E)``. Serving must never
    drop: a dropped assignment corrupts the output.

    Parameters
    ----------
    loads
        Assignments per expert, ``(E,)`` or ``(..., E)``.
    """
    x = as_loads(loads)
    capacity_factor = check_number("capacity_factor", capacity_factor, low=0, high=np.inf)
    with np.errstate(over="ignore"):  # a capacity of infinity drops nothing
        share = capacity_factor * x.mean(axis=-1, keepdims=True)
        # Rounded first, or 2.1 * (10 / 3) = 7.000000000000001 would become a capacity of 8.
        capacity = np.ceil(np.where(share < 2**53, np.round(share, 9), share))
    beyond: NDArray[np.float64] = np.maximum(x - capacity, 0).sum(axis=-1)
    return beyond


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


def _device_of_expert(
    placement: ArrayLike | None, *, num_experts: int, num_devices: int
) -> NDArray[np.int64]:
    if placement is None:
        return np.arange(num_experts) % num_devices
    device = as_array(placement, "The devices of the placement")
    if device.shape != (num_experts,) or device.dtype.kind not in "iu":
        raise EquipoiseError(
            f"The placement has shape {device.shape} and type {device.dtype}; "
            f"expected the device of each of the {num_experts} experts."
        )
    outside = np.flatnonzero((device < 0) | (device >= num_devices))
    if len(outside):
        expert = outside[0]
        raise EquipoiseError(
            f"Expert {expert} is placed on device {device[expert]}; "
            f"expected a device from 0 to {num_devices - 1}."
        )
    return device.astype(np.int64)


def _as_row(loads: ArrayLike) -> NDArray[np.float64]:
    x = as_loads(loads)
    if x.ndim != 1:
        raise EquipoiseError(
            f"Loads have shape {x.shape}; expected one number for each expert of one layer."
        )
    return x

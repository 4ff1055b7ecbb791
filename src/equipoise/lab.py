"""Small functions to learn load balancing with: load, capacity, placing and copying of experts.

Here a device may hold any number of experts, whereas the maps that engines load give every device
the same number of slots. The functions take lists or arrays and do not change them. ``equipoise
explain lab`` walks through all of them.
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
    """Add up the load of each device when every expert is on exactly one of them.

    For experts with copies see ``rank_loads``.

    Parameters
    ----------
    loads
        Assignments per expert, ``(E,)`` or ``(..., E)``.
    num_devices
        Number of devices, ``D``.
    placement
        Device of each expert, ``(E,)``; ``None`` puts expert ``e`` on device ``e % num_devices``.

    Returns
    -------
    Assignments per device, ``(D,)`` or ``(..., D)`` float64.

    Raises
    ------
    EquipoiseError
        A placement of another size, or with a device that does not exist.
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
    """Compute the load of the busiest device, which all other devices wait for.

    Arguments are those of ``device_loads``. Each row of loads is one layer, and each layer is a
    barrier. A step through several layers therefore takes the sum of the result, not the busiest
    device of the summed loads.

    Returns
    -------
    Assignments: a scalar, or ``(...)`` float64 for loads of shape ``(..., E)``.
    """
    busiest: NDArray[np.float64] = device_loads(loads, num_devices, placement).max(axis=-1)
    return busiest


def parallel_efficiency(
    loads: ArrayLike, num_devices: int, placement: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Compute the share of the devices' time that is spent on work: mean load / max load.

    Arguments are those of ``device_loads``.

    Returns
    -------
    Shares in (0, 1], and 1 without load: a scalar, or ``(...)`` for loads of shape ``(..., E)``.
    """
    return balancedness(device_loads(loads, num_devices, placement))


def dropped_tokens(loads: ArrayLike, capacity_factor: float) -> NDArray[np.float64]:
    """Count the assignments beyond the experts' capacity, which a training system would drop.

    The capacity of every expert is ``ceil(capacity_factor * assignments / E)``. A serving system
    must not drop any: a dropped assignment changes the output.

    Parameters
    ----------
    loads
        Assignments per expert, ``(E,)`` or ``(..., E)``.
    capacity_factor
        Capacity of an expert over the mean load of an expert, >= 0.

    Returns
    -------
    Dropped assignments: a scalar, or ``(...)`` float64 for loads of shape ``(..., E)``.
    """
    x = as_loads(loads)
    capacity_factor = check_number("capacity_factor", capacity_factor, low=0, high=np.inf)
    with np.errstate(over="ignore"):  # a capacity of infinity drops nothing
        share = capacity_factor * x.mean(axis=-1, keepdims=True)
        # Round first: 2.1 * (10 / 3) = 7.000000000000001 must not become a capacity of 8.
        capacity = np.ceil(np.where(share < 2**53, np.round(share, 9), share))
    beyond: NDArray[np.float64] = np.maximum(x - capacity, 0).sum(axis=-1)
    return beyond


def best_placement(loads: ArrayLike, num_devices: int) -> NDArray[np.int64]:
    """Put each expert, heaviest first, on the device with the least load so far.

    This is the rule "longest processing time first" (Graham, 1969). The busiest device has at most
    4/3 of the load that the best possible placement gives it. Ties go to the lower number.

    Parameters
    ----------
    loads
        Assignments per expert, ``(E,)``.
    num_devices
        Number of devices to fill; each may hold any number of experts.

    Returns
    -------
    Device of each expert, ``(E,)`` int64, which ``ep_step_time`` takes as ``placement``.
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

    Every copy of an expert takes an equal share of its load. ``best_placement`` can place the
    copies like experts. Two copies of one expert on the same device are no better than one.

    Parameters
    ----------
    loads
        Assignments per expert, ``(E,)``.
    num_copies
        Number of extra copies in all, ``X``.

    Returns
    -------
    Two arrays: the load of each copy, ``(E + X,)`` float64, and its expert, ``(E + X,)`` int64. The
    first ``E`` entries are the experts in order; the extra copies follow in the order they were
    given.
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

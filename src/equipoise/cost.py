"""The time that a rank needs for its share of an MoE layer, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import (
    as_array,
    brief,
    check_count,
    check_number,
    check_type,
    check_whole,
)
from equipoise.errors import EquipoiseError, argument
from equipoise.showing import differing

_SHORTEST, _LONGEST = 1e-100, 1e100  # seconds; within these no sum or ratio overflows


@dataclass(frozen=True, kw_only=True)
class RankCost:
    """A model of the time that one rank's experts take in one layer (a grouped GEMM).

    The time is ``fixed + sum(max(expert, token * padded_load))``, where the sum is over the slots
    with load. An expert with few assignments takes as long as reading its weights; one with many
    (above the ``knee``) takes as long as computing them.

    Parameters
    ----------
    fixed_seconds
        Time spent once per layer, whatever the load.
    expert_seconds
        Time to read the weights of one expert that has load.
    token_seconds
        Time to compute one assignment; above 0.
    token_block
        Multiple to which the kernel pads the assignments of an expert: 128 for contiguous grouped
        GEMM (prefill), 1 for masked decode.
    source
        Text that says where the constants come from.

    Raises
    ------
    EquipoiseError
        Times that are negative or not finite, or a ``token_seconds`` of 0.
    """

    fixed_seconds: float = 0.0
    expert_seconds: float = 0.0
    token_seconds: float
    token_block: int = 1
    source: str = field(default="", repr=False)

    __repr__ = differing

    def __post_init__(self) -> None:
        for name in ("fixed_seconds", "expert_seconds", "token_seconds"):
            seconds = check_number(name, getattr(self, name), low=0, high=_LONGEST)
            if 0 < seconds < _SHORTEST:
                raise EquipoiseError(
                    f"{name} is {seconds}; expected 0, or {_SHORTEST} or more. Check the "
                    "unit: these are seconds."
                )
            object.__setattr__(self, name, seconds)
        if self.token_seconds == 0:
            raise EquipoiseError("token_seconds is 0; expected what one assignment takes.")
        object.__setattr__(self, "token_block", check_count("token_block", self.token_block))
        check_type("source", self.source, str)

    @property
    def knee(self) -> float:
        """Assignments above which an expert's tokens, not its weights, determine its time."""
        return self.expert_seconds / self.token_seconds

    def slot_seconds(self, load: ArrayLike) -> NDArray[np.float64]:
        """Compute the time of each slot from its load in assignments; 0 where there is no load.

        The result has the shape of ``load``.
        """
        x = _as_slot_loads(load)
        padded = np.ceil(x / self.token_block) * self.token_block if self.token_block > 1 else x
        seconds = np.maximum(self.expert_seconds, self.token_seconds * padded)
        return np.where(x > 0, seconds, 0.0)

    def rank_seconds(self, slot_load: ArrayLike, num_ranks: int) -> NDArray[np.float64]:
        """Compute the time of each rank at speed 1, ``(..., R)``.

        Divide by the ranks' relative speeds where they differ. A layer lasts as long as its
        slowest rank: the maximum over ranks.

        Parameters
        ----------
        slot_load
            Assignments per slot, ``(..., S)``; not changed.
        num_ranks
            Number of ranks; it divides ``S``.
        """
        x = _as_slot_loads(slot_load)
        check_whole("num_ranks", num_ranks, low=1)
        if x.ndim < 1 or not x.size or x.shape[-1] % num_ranks:
            raise EquipoiseError(
                f"Slot loads have shape {x.shape}; expected a multiple of {num_ranks} slots."
            )
        by_rank = self.slot_seconds(x).reshape(*x.shape[:-1], num_ranks, -1)
        return np.asarray(self.fixed_seconds + by_rank.sum(axis=-1))


def _as_slot_loads(load: ArrayLike) -> NDArray[np.float64]:
    """Return loads of any shape, also a single number, as float64.

    Negative loads are accepted: they are rounding errors, and count as no load.
    """
    x = np.asarray(as_array(load, "Loads"), dtype=np.float64)
    if x.size and not x.max() < np.inf:  # also false for NaN
        raise EquipoiseError("Slot loads hold NaN or infinity; expected finite numbers.")
    return x


_FIT = "least-squares fit to NVIDIA's public aiconfigurator kernel tables, DeepSeek-V3 expert"


def _published(
    kernel: str, fixed: float, expert: float, token: float, token_block: int = 1
) -> RankCost:
    return RankCost(
        fixed_seconds=fixed * 1e-6,
        expert_seconds=expert * 1e-6,
        token_seconds=token * 1e-6,
        token_block=token_block,
        source=f"{kernel}; {_FIT}",
    )


RANK_COSTS: Mapping[str, RankCost] = MappingProxyType(
    {
        "h100-deepep-ep8": _published("H100, DeepEP, FP8, EP 8", 21.3, 16.04, 0.087),
        "h100-deepep-ep16": _published("H100, DeepEP, FP8, EP 16", 21.3, 16.04, 0.094),
        "h100-deepep-ep32": _published("H100, DeepEP, FP8, EP 32", 21.3, 16.04, 0.110),
        "h100-deepep-ep64": _published("H100, DeepEP, FP8, EP 64", 21.3, 16.04, 0.145),
        "h100-cutlass-ep32": _published("H100, WideEP cutlass, FP8, EP 32", 14.5, 16.79, 0.24),
        "gb200-cutlass-ep8": _published("GB200, WideEP cutlass, NVFP4, EP 8", 53.2, 3.54, 0.034),
        "gb200-cutlass-ep16": _published("GB200, WideEP cutlass, NVFP4, EP 16", 53.2, 3.54, 0.040),
        "gb200-cutlass-ep32": _published("GB200, WideEP cutlass, NVFP4, EP 32", 53.2, 3.54, 0.055),
    }
)
"""Published constants by name. They are approximate: calibrate your own for exact times."""


def costs_for(ranks: int) -> tuple[str, ...]:
    """Name the published constants for a number of ranks; raise ``EquipoiseError`` if none are."""
    found = tuple(name for name in RANK_COSTS if name.endswith(f"-ep{ranks}"))
    if not found:
        raise EquipoiseError(
            f"There are no published constants for {ranks} ranks; give {argument('gpu')}, or "
            f"choose with {argument('cost')} from {', '.join(RANK_COSTS)}."
        )
    return found


def rank_cost(name: str) -> RankCost:
    """Look up published constants by name.

    Parameters
    ----------
    name
        Key of ``RANK_COSTS``.

    Returns
    -------
    Constants of that name, in seconds.

    Raises
    ------
    EquipoiseError
        The name is unknown; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in RANK_COSTS:
        raise EquipoiseError(
            f"There is no rank cost {brief(name)}; use one of {', '.join(RANK_COSTS)}."
        )
    return RANK_COSTS[name]

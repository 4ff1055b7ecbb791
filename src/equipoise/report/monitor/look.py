"""The result of one look at a running system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import SplitResult

import numpy as np
from numpy.typing import NDArray

from equipoise.balance import imbalance
from equipoise.control.exposition import Buckets
from equipoise.units import duration

Floats = NDArray[np.float64]

MOST_LETTERS = 60
"""Largest number of characters shown of a name from outside."""


def harmless(name: str) -> str:
    """Remove terminal control characters from a name that comes from a file or a server."""
    short = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 3]}..."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in short)


@dataclass(frozen=True, kw_only=True, eq=False)
class Loads:
    """The recent loads of single layers.

    Parameters
    ----------
    layer_ids
        Layer numbers of the model, ``L`` of them.
    load_LE
        Assignments of each expert, ``(L, E)``.
    load_LR
        Assignments of each rank, ``(L, R)``; ``None`` if the placement is unknown.
    """

    layer_ids: tuple[int, ...]
    load_LE: NDArray[np.integer]
    load_LR: Floats | None = None


@dataclass(frozen=True, eq=False)
class Heat:
    """Load of ranks over the mean of their layer: ``(L, R)``, and the model's layer numbers."""

    layer_ids: tuple[int, ...]
    multiples: Floats


@dataclass(frozen=True)
class Gain:
    """Gain of a change of the map in a step: assignments of the busiest ranks, and their time.

    The time is ``None`` if the system does not know what an assignment takes.
    """

    assignments: float
    seconds: float | None = None

    def __str__(self) -> str:
        if self.seconds is not None:
            return duration(self.seconds)
        return f"{self.assignments:,.0f}"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counters of a system since its start, which never fall.

    Parameters
    ----------
    step_buckets
        Number of steps by their time: upper bounds in seconds, ascending, and how many steps took
        at most that.
    rebalances
        Number of attempts to balance, by outcome.
    """

    steps: float = 0.0
    step_seconds: float = 0.0
    step_buckets: Buckets = ()
    stall_seconds: float = 0.0
    tokens: float | None = None
    moved_slots: float | None = None
    moved_bytes: float = 0.0
    rebalances: Mapping[str, float] = field(default_factory=dict)
    failures: float = 0.0
    failed_requests: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """The result of one look; ``None`` or empty stands for what the source does not say.

    Parameters
    ----------
    time
        Time of the look, in seconds since 1970.
    step
        Number of the current step of a recording.
    epoch
        Number of the agreement on which ranks serve.
    model, state
        Name of the model, and state of the controller.
    num_ranks, map_version
        Number of ranks that serve together, and number of changes of the map so far.
    looked_at
        Time of the system's own last look at its loads, in seconds since 1970.
    imbalance, noise_floor
        Imbalance of ranks, and that of a fair router by chance, by phase.
    rank_load
        Load of each rank over the mean rank's, all layers together, by rank.
    layer_imbalance
        Imbalance of single layers, by layer.
    loads
        Loads of single layers.
    heat
        Loads of single ranks of layers, where a system tells them itself.
    counts
        Counters, as far as they are known.
    ttft_p99
        Seconds within which 99 % of recent requests had their first token.
    predicted_gain, achieved_gain
        Gain expected of the last plan, and gain of the last move.
    recovery_seconds
        Seconds without serving when the ranks last changed.
    alarms
        Names of the alarms that are on.
    silent
        Addresses that did not answer, with the reason.
    """

    time: float
    step: int | None = None
    model: str = ""
    state: str = ""
    epoch: int | None = None
    num_ranks: int | None = None
    map_version: int | None = None
    looked_at: float | None = None
    imbalance: Mapping[str, float] = field(default_factory=dict)
    noise_floor: Mapping[str, float] = field(default_factory=dict)
    rank_load: Mapping[int, float] = field(default_factory=dict)
    layer_imbalance: Mapping[int, float] = field(default_factory=dict)
    loads: Loads | None = None
    heat: Heat | None = None
    counts: Counts = field(default_factory=Counts)
    ttft_p99: float | None = None
    predicted_gain: Gain | None = None
    achieved_gain: Gain | None = None
    recovery_seconds: float | None = None
    alarms: frozenset[str] = frozenset()
    silent: Mapping[str, str] = field(default_factory=dict)


def look_at_loads(
    loads: Loads,
    *,
    time: float,
    step: int,
    noise_floor: float | None = None,
    map_version: int | None = None,
    moved_slots: int | None = None,
) -> Look:
    """Make a look from the loads of a step; layers without load are left out.

    Parameters
    ----------
    noise_floor
        Noise floor, mean over layers.
    """
    load_LR = loads.load_LR
    if load_LR is None:
        return Look(time=time, step=step, loads=loads)
    busy = np.asarray(load_LR.any(axis=1))
    by_layer = imbalance(load_LR)
    load_R = load_LR.sum(axis=0)
    some = bool(busy.any())
    return Look(
        time=time,
        step=step,
        num_ranks=load_LR.shape[1],
        map_version=map_version,
        counts=Counts(moved_slots=moved_slots),
        imbalance={"all": float(by_layer[busy].mean())} if some else {},
        noise_floor={"all": noise_floor} if some and noise_floor is not None else {},
        rank_load=dict(enumerate((load_R / load_R.mean()).tolist())) if some else {},
        layer_imbalance={
            layer: value
            for layer, value, has_load in zip(
                loads.layer_ids, by_layer.tolist(), busy.tolist(), strict=True
            )
            if has_load
        },
        loads=loads,
    )


class Source(Protocol):
    """The protocol of sources, which can be looked at repeatedly."""

    @property
    def name(self) -> str:
        """Name of the source, as given by the user."""

    @property
    def look_url(self) -> SplitResult | None:
        """Address that takes a POST for fresh figures; ``None`` without one."""

    def look(self) -> list[Look]:
        """Return what is new since the last call, oldest first; possibly nothing.

        Raises
        ------
        EquipoiseError
            A source that does not answer, or answers with something else.
        """

"""What one look at a running system shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import SplitResult

import numpy as np
from numpy.typing import NDArray

from equipoise.balance import imbalance
from equipoise.control.exposition import Buckets

Floats = NDArray[np.float64]

MOST_LETTERS = 60
"""Letters of a name from outside that are shown."""


def harmless(name: str) -> str:
    """A name from a file or a server, without anything that a terminal would obey."""
    short = name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 3]}..."
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in short)


@dataclass(frozen=True, kw_only=True, eq=False)
class Loads:
    """What single layers carried lately.

    Parameters
    ----------
    layer_ids
        The model's numbers of the ``L`` layers.
    load_LE
        Assignments to each expert, ``(L, E)``.
    load_LR
        Assignments on each rank, ``(L, R)``; ``None`` where nothing says who holds which expert.
    """

    layer_ids: tuple[int, ...]
    load_LE: NDArray[np.integer]
    load_LR: Floats | None = None


@dataclass(frozen=True, eq=False)
class Heat:
    """Load of ranks over the mean of their layer: ``(L, R)``, and the model's layer numbers."""

    layer_ids: tuple[int, ...]
    multiples: Floats


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What only grows while a system runs: counted from its start.

    Parameters
    ----------
    step_buckets
        Steps by their time: upper bounds in seconds, ascending, and how many steps are up to each.
    rebalances
        Attempts to balance, by what became of them.
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
    """What one look has found; ``None``, or nothing, stands for what the source does not say.

    Parameters
    ----------
    time
        When, in seconds since 1970.
    step
        Number of the step that a recording is at.
    epoch
        Number of the agreement on which ranks serve.
    model, state
        What serves, and what its controller does.
    num_ranks, map_version
        Ranks that serve together, and changes of the map so far.
    looked_at
        When the system itself last looked at its loads, in seconds since 1970.
    imbalance, noise_floor
        Busiest over mean rank, and what chance gives a fair router, by phase.
    rank_load
        Load of each rank over the mean rank, all layers together, by rank.
    layer_imbalance
        Busiest over mean rank of single layers, by layer.
    loads
        Loads of single layers.
    heat
        Loads of single ranks of layers, where a system tells them itself.
    counts
        Counters, as far as there are any.
    ttft_p99
        Seconds in which 99 of 100 requests lately had their first token.
    predicted_gain, achieved_gain
        Seconds of a step that the last plan was to save, and that the last move saved.
    recovery_seconds
        Time without serving when the ranks last changed.
    alarms
        Names of what is wrong.
    silent
        What did not answer, and why.
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
    predicted_gain: float | None = None
    achieved_gain: float | None = None
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
    """What the loads of a step show: of layers without load nothing.

    Parameters
    ----------
    noise_floor
        Mean over the layers of what chance gives a fair router.
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
    """Something that can be looked at again and again."""

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def look_url(self) -> SplitResult | None:
        """Where fresh figures can be asked for, by a POST; ``None`` if it looks when it is due."""

    def look(self) -> list[Look]:
        """What is new since the last time, oldest first; may be nothing.

        Raises
        ------
        EquipoiseError
            It does not answer, or not with what it should.
        """

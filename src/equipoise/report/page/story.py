"""What a page tells: the steps, the layouts on them, the answer, and where it all came from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.noise import trace_noise_floor
from equipoise.report.page.figures import Figure
from equipoise.report.page.laid import Laid, means
from equipoise.report.page.tables import Table
from equipoise.report.summary import TraceSummary
from equipoise.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Number:
    """A figure of the verdict: what it is called, its value, what it means."""

    name: str
    value: str
    means: str


@dataclass(frozen=True, kw_only=True)
class Band:
    """The answer at the top of a page.

    Parameters
    ----------
    tone
        ``good``, ``bad`` (a plan that is worse than none), or ``open``.
    answer
        What to do, in a few words.
    why
        Sentences that say why.
    numbers
        The figures behind it.
    """

    tone: str
    answer: str
    why: tuple[str, ...]
    numbers: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How to get the same page again: facts by name, such as the command and its version."""

    facts: dict[str, str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Story:
    """All that a page shows.

    Parameters
    ----------
    title
        The page's title.
    trace
        The steps shown.
    summary
        Summary of them as they are.
    laid
        The steps under each layout; what is in force first, a plan after it.
    band
        The answer.
    notes
        What weakens the numbers; they stand above them.
    drift
        Figures of how the loads move.
    figures
        Figures besides those that every page has.
    tables
        Tables besides those that every page has.
    origin
        How to get the same page again.
    """

    title: str
    trace: Trace
    summary: TraceSummary
    laid: tuple[Laid, ...]
    band: Band
    notes: tuple[str, ...]
    origin: Origin
    drift: tuple[Figure, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def floor_by_step(self) -> list[float | None]:
        """Noise floor of each step, mean over the layers with load; ``None`` without any."""
        num_ranks = self.laid[0].layout.num_ranks
        return means(trace_noise_floor(self.trace, num_ranks).mean, self.laid[0].loaded, axis=1)


def quality(trace: Trace) -> dict[str, str]:
    """How far the numbers of a trace can be trusted: its size, its gaps, its smallest steps."""
    T, L, E = trace.counts.shape
    load_TL = trace.counts.sum(axis=2, dtype=np.float64)
    empty = int((load_TL == 0).sum())
    unseen = int((trace.total == 0).sum())
    loaded = load_TL[load_TL > 0]
    labels = ", ".join(
        f"{name} ({len(set(values.tolist()))} values)" for name, values in trace.labels.items()
    )
    return {
        "steps, layers, experts": f"{T:,} x {L} x {E}",
        "assignments of a layer in a step": (
            f"{loaded.min():,.0f} to {loaded.max():,.0f}, mean {loaded.mean():,.0f}"
        ),
        "assignments of an expert in a step": f"{loaded.mean() / E:,.1f} on average",
        "steps of a layer without load": f"{empty:,} of {T * L:,}",
        "experts never chosen": f"{unseen:,} of {L * E:,}",
        "labels": labels or "none",
    }


def checksum(trace: Trace) -> str:
    """SHA-256 over the shape, the layers and the loads of a trace."""
    counts = np.ascontiguousarray(trace.counts)
    head = f"{counts.shape},{trace.layer_ids};"
    digest = hashlib.sha256(head.encode())
    for step in counts:
        digest.update(step.astype("<i8").tobytes())
    return digest.hexdigest()


def in_order(notes: Sequence[str]) -> tuple[str, ...]:
    """The notes, each once."""
    return tuple(dict.fromkeys(map(str, notes)))

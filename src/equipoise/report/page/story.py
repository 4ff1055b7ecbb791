"""The content of a page: the steps, the layouts on them, the answer, and their origin."""

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
    """A number in the verdict: its name, value and meaning."""

    name: str
    value: str
    means: str


@dataclass(frozen=True, kw_only=True)
class Band:
    """The answer at the top of a page.

    Parameters
    ----------
    tone
        Kind of answer: ``good``, ``bad`` (a plan that is worse than none), or ``open``.
    answer
        Advice in a few words.
    why
        Sentences with the reasons.
    numbers
        Numbers behind the answer.
    """

    tone: str
    answer: str
    why: tuple[str, ...]
    numbers: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Facts by name that reproduce the page, such as the command and the version."""

    facts: dict[str, str]


@dataclass(frozen=True, eq=False, kw_only=True)
class Story:
    """Everything that a page shows.

    Parameters
    ----------
    title
        Title of the page.
    trace
        Trace of the steps shown.
    summary
        Summary of the steps without balancing.
    laid
        Steps under each layout: first the one in force, then a plan.
    band
        Answer at the top.
    notes
        Notes that qualify the numbers; they are shown above them.
    drift
        Figures of the drift of loads.
    figures
        Figures of its own, shown before those that every page has.
    tables
        Tables of its own, shown before those that every page has.
    origin
        Facts that reproduce the page.
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
        """Compute the noise floor of each step, mean over layers with load, or ``None``."""
        num_ranks = self.laid[0].layout.num_ranks
        return means(trace_noise_floor(self.trace, num_ranks).mean, self.laid[0].loaded, axis=1)


def quality(trace: Trace) -> dict[str, str]:
    """Describe the quality of a trace: its size, its gaps and its smallest steps."""
    T, L, E = trace.counts.shape
    load_TL = trace.counts.sum(axis=2, dtype=np.float64)
    empty = int((load_TL == 0).sum())
    unseen = int((trace.total == 0).sum())
    loaded = load_TL[load_TL > 0]
    labels = ", ".join(
        f"{name} ({(n := len(set(values.tolist())))} value{'' if n == 1 else 's'})"
        for name, values in trace.labels.items()
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
    """Compute the SHA-256 of a trace's shape, layers and loads."""
    counts = np.ascontiguousarray(trace.counts)
    head = f"{counts.shape},{trace.layer_ids};"
    digest = hashlib.sha256(head.encode())
    for step in counts:
        digest.update(step.astype("<i8").tobytes())
    return digest.hexdigest()


def in_order(notes: Sequence[str]) -> tuple[str, ...]:
    """Remove repeated notes, keeping their order."""
    return tuple(dict.fromkeys(map(str, notes)))

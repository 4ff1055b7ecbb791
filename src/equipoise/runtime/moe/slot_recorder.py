"""Counting the slots that each rank's own tokens went to, for a file of each rank.

``LoadRecorder`` adds up the ranks and counts experts; here every rank keeps its own counts, by the
slot that served, as engines do which record with a map in force.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import EquipoiseError

logger = logging.getLogger("equipoise.runtime")


@dataclass(frozen=True, eq=False, kw_only=True)
class RankRecording:
    """The recording of one rank.

    Parameters
    ----------
    rank
        The rank whose tokens were counted.
    iterations
        Forward passes, counted from 0, ``(T,)``, ascending.
    layer_ids
        The model's number of each MoE layer, ``L`` of them.
    counts
        Assignments of the rank's tokens to each slot, ``(T, L, S)`` int64.
    map_versions
        Number of changes of the map before each pass, ``(T,)``.
    top_k
        ``K``, choices per token.
    """

    rank: int
    iterations: NDArray[np.int64]
    layer_ids: tuple[int, ...]
    counts: NDArray[np.int64]
    map_versions: NDArray[np.int64]
    top_k: int


@dataclass(frozen=True)
class SlotRecording:
    """The forward passes to record, and the destination of the counts.

    Parameters
    ----------
    iterations
        Range ``(START, STOP)``: the forward passes ``START <= i < STOP``, counted from 0.
    write
        Function that writes what a rank has recorded; called once on every rank. If it raises,
        the log says so and serving goes on.

    Raises
    ------
    EquipoiseError
        The iterations are not a range.
    """

    iterations: tuple[int, int]
    write: Callable[[RankRecording], None]

    def __post_init__(self) -> None:
        if not 0 <= self.iterations[0] < self.iterations[1]:
            raise EquipoiseError(
                f"Iterations {self.iterations} are not a range; expected START, STOP with "
                "START < STOP."
            )


class SlotRecorder:
    """Counts for one ``SlotRecording`` on one rank.

    The counts stay in memory until the range is over: ``8 L S`` bytes an iteration.

    Parameters
    ----------
    wanted
        Passes to record, and destination of the counts.
    rank
        This rank.
    layer_ids
        The model's number of each MoE layer, ``L`` of them.
    num_slots
        ``S``, slots of a layer on all ranks.
    top_k
        ``K``, choices per token.
    """

    def __init__(
        self,
        wanted: SlotRecording,
        *,
        rank: int,
        layer_ids: Sequence[int],
        num_slots: int,
        top_k: int,
    ) -> None:
        self._wanted, self._rank, self._top_k = wanted, rank, top_k
        self._row = {layer: row for row, layer in enumerate(layer_ids)}
        self._num_slots = num_slots
        self._recorded: dict[int, NDArray[np.int64]] = {}
        self._versions: dict[int, int] = {}  # of the map, by iteration
        self._now: NDArray[np.int64] | None = None  # the iteration under way, if it is recorded
        self._next = 0
        self.closed = False
        """Whether the range is over, or serving is: nothing more is counted."""

    @contextmanager
    def iteration(self, number: int, map_version: int) -> Iterator[None]:
        """Count what is added while one forward pass runs; one that is broken off counts nothing.

        The counts are written after the last iteration of the range.

        Parameters
        ----------
        map_version
            Number of changes of the map so far.
        """
        start, stop = self._wanted.iterations
        self._now = None
        if start <= number < stop:
            self._now = np.zeros((len(self._row), self._num_slots), dtype=np.int64)
        yield
        if self._now is not None:
            self._recorded[number], self._versions[number] = self._now, map_version
            self._now = None
        self._next = number + 1
        if self._next >= stop:
            self.close()

    def add(self, layer_id: int, counts: NDArray[np.int64]) -> None:
        """Add assignments of this rank's tokens to the slots of a layer, ``(S,)``."""
        if self._now is not None:
            self._now[self._row[layer_id]] += counts

    def close(self) -> None:
        """Write what was recorded; the log says if the range was not reached or not completed."""
        if self.closed:
            return
        self.closed = True
        start, stop = self._wanted.iterations
        if not self._recorded:
            logger.warning(
                "Nothing was recorded: iterations %d to %d were asked for, %d were served.",
                start, stop - 1, self._next,
            )  # fmt: skip
            return
        if len(self._recorded) < stop - start:
            logger.warning(
                "Iterations %d to %d were recorded, fewer than the %d to %d asked for.",
                min(self._recorded), max(self._recorded), start, stop - 1,
            )  # fmt: skip
        recorded = RankRecording(
            rank=self._rank,
            iterations=np.array(list(self._recorded)),
            layer_ids=tuple(self._row),
            counts=np.stack(list(self._recorded.values())),
            map_versions=np.array(list(self._versions.values())),
            top_k=self._top_k,
        )
        self._recorded, self._versions = {}, {}
        try:
            self._wanted.write(recorded)
        except Exception as error:  # from a disk or a folder: serving does not depend on it
            logger.warning("The recorded iterations could not be written: %s", error)
            return
        first, last = recorded.iterations[[0, -1]].tolist()
        logger.info("Iterations %d to %d are recorded.", first, last)

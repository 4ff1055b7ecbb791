"""The end of a vLLM statistics file that the engine is still writing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import naming
from equipoise.engines.vllm.load_stats import Meta, Stats, fold, known, parse_record
from equipoise.errors import EquipoiseError, FormatError, argument
from equipoise.noise import trace_noise_floor
from equipoise.report.monitor.look import Loads, Look, look_at_loads
from equipoise.trace import Trace

_MOST_BYTES = 1 << 24  # of a line, and of what one look reads; of an old file, the end of that size


class Tail:
    """A growing statistics file. Every record is a look at the loads, with the map in force.

    Parameters
    ----------
    path
        Path of the file.
    num_ranks
        Number of ranks, if the file does not state it.
    clock
        Function that returns the time in seconds since 1970.
    """

    def __init__(
        self, path: Path, num_ranks: int | None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._path, self._num_ranks, self._clock = path, num_ranks, clock
        self._begin()

    @property
    def name(self) -> str:
        """The file."""
        return self._path.name

    @property
    def look_url(self) -> None:
        """No address: a recording grows when its writer decides."""

    def _begin(self) -> None:
        self._at = 0
        self._meta: Meta | None = None
        self._map: NDArray[np.int64] | None = None
        self._version, self._moved_slots = 0, 0

    def look(self) -> list[Look]:
        """Return the new records whose lines are complete."""
        with naming(self._path), self._path.open("rb") as file:
            size = file.seek(0, 2)
            if size < self._at:  # the engine was started again
                self._begin()
            if not self._at and size > _MOST_BYTES:
                self._skip(file, size - _MOST_BYTES)
            return [
                self._look(record)
                for line in self._lines(file)
                if (record := self._record(line)) is not None
            ]

    def _skip(self, file: BinaryIO, to: int) -> None:
        """Read the first line, which describes the recording, and continue near the end."""
        file.seek(0)
        self._record(file.readline(_MOST_BYTES))
        file.seek(to)
        file.readline(_MOST_BYTES)  # the rest of a line
        self._at = file.tell()

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        file.seek(self._at)
        piece = file.read(_MOST_BYTES)
        end = piece.rfind(b"\n") + 1
        if not end and len(piece) == _MOST_BYTES:
            raise FormatError(f"{self._path}: a line is longer than {_MOST_BYTES >> 20} MB.")
        self._at += end
        return filter(bytes.strip, piece[:end].splitlines())

    def _record(self, line: bytes) -> Stats | None:
        """Return a record of loads; keep a record that describes all of them."""
        try:
            record = known(parse_record(line))
        except (EquipoiseError, msgspec.ValidationError) as error:
            raise FormatError(f"{self._path}: {str(error).removesuffix('.')}.") from error
        if isinstance(record, Meta):
            self._meta = record
        return record if isinstance(record, Stats) else None

    def _look(self, stats: Stats) -> Look:
        load_LE = self._folded(stats)
        load_LS = np.array(stats.expert_load, dtype=np.float64)
        self._follow_map(np.array(stats.p2l_map, dtype=np.int64))
        L, S = load_LS.shape
        R = self._ranks(stats, S)
        trace = Trace(counts=load_LE[None])
        loads = Loads(
            layer_ids=trace.layer_ids,
            load_LE=load_LE,
            load_LR=load_LS.reshape(L, R, S // R).sum(axis=2),
        )
        busy = load_LE.any(axis=1)
        floor = trace_noise_floor(trace, R).mean[0, busy]
        return look_at_loads(
            loads,
            time=self._clock(),
            step=stats.step,
            map_version=self._version,
            moved_slots=self._moved_slots,
            noise_floor=float(floor.mean()) if busy.any() else None,
        )

    def _folded(self, stats: Stats) -> NDArray[np.int64]:
        try:
            return fold(stats, self._meta)
        except FormatError as error:
            raise FormatError(f"{self._path}: {error}") from error

    def _follow_map(self, slot_expert: NDArray[np.int64]) -> None:
        if self._map is not None and self._map.shape == slot_expert.shape:
            changed = int((self._map != slot_expert).sum())
            self._version += changed > 0
            self._moved_slots += changed
        self._map = slot_expert

    def _ranks(self, stats: Stats, num_slots: int) -> int:
        said = stats.num_ranks if self._meta is None else self._meta.num_ranks
        ranks = self._num_ranks if said is None else said
        if ranks is None:
            raise FormatError(
                f"{self._path} does not say how many ranks recorded it; "
                f"give {argument('num_ranks')}."
            )
        if not 0 < ranks <= num_slots or num_slots % ranks:
            raise FormatError(f"{self._path}: {num_slots} slots do not divide over {ranks} ranks.")
        return ranks

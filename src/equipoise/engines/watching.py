"""Following a recording while an engine writes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from equipoise.engines._shared.arrays import naming
from equipoise.engines.trace_io import detect_trace, read_trace
from equipoise.errors import EquipoiseError, argument
from equipoise.noise import trace_noise_floor
from equipoise.placement import Placement
from equipoise.report.measured import Layout, aligned, rank_loads, unbalanced
from equipoise.report.monitor.look import Loads, Look, Source, look_at_loads
from equipoise.trace import Trace

_MOST_STEPS = 1024  # number of last steps that are read of an old recording


def watch(path: Path, *, num_ranks: int | None, placement: Placement | None) -> Source:
    """Follow a file or folder of any format that can be read.

    Parameters
    ----------
    num_ranks
        Number of ranks of the running system; without a placement, experts are in order on them.
    placement
        Map that the system serves.

    Raises
    ------
    EquipoiseError
        A path that cannot be read, or a placement for a format whose records have their own.
    """
    known = detect_trace(path)
    if known.watch is None:
        return Recording(path, num_ranks=num_ranks, placement=placement)
    if placement is not None:
        raise EquipoiseError(
            f"The records of {path} carry the map they were counted under; leave the map out."
        )
    return known.watch(path, num_ranks)


class Recording:
    """A source: a recording that is read again as a whole when its files have changed.

    Parameters
    ----------
    path, num_ranks, placement
        Parameters of ``watch``.
    clock
        Function that returns the time in seconds since 1970.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_ranks: int | None,
        placement: Placement | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._num_ranks, self._placement = path, num_ranks, placement
        self._clock = clock
        self._files: list[tuple[str, int, int]] = []
        self._seen = 0

    @property
    def name(self) -> str:
        """Path of the file or folder."""
        return self._path.name

    @property
    def look_url(self) -> None:
        """No address: a recording grows when its writer decides."""

    def look(self) -> list[Look]:
        """Return a look for each added step."""
        with naming(self._path):
            files = self._present()
        if files == self._files:
            return []
        trace = read_trace(self._path)
        layout = self._layout(trace)
        self._files = files
        if trace.num_steps < self._seen:  # the path now holds another recording
            self._seen = 0
        first = max(self._seen, trace.num_steps - _MOST_STEPS)
        self._seen = trace.num_steps
        return [self._look(trace, step, layout) for step in range(first, trace.num_steps)]

    def _present(self) -> list[tuple[str, int, int]]:
        """Return name, size and time of the files."""
        files = sorted(self._path.iterdir()) if self._path.is_dir() else [self._path]
        found = [(file, file.stat()) for file in files]
        return [(file.name, stat.st_size, stat.st_mtime_ns) for file, stat in found]

    def _layout(self, trace: Trace) -> Layout | None:
        if self._placement is not None:
            return aligned(self._placement, trace, self._num_ranks)
        if self._num_ranks is None:
            return None
        if self._num_ranks > trace.num_experts:
            raise EquipoiseError(
                f"{argument('num_ranks')} is {self._num_ranks}, but {self._path} has "
                f"{trace.num_experts} experts; give the map that is served."
            )
        return unbalanced(trace, self._num_ranks)

    def _look(self, trace: Trace, step: int, layout: Layout | None) -> Look:
        load_LE = trace.counts[step]
        busy = load_LE.any(axis=1)
        floor = None
        if layout is not None and busy.any():
            of_step = Trace(counts=trace.counts[step : step + 1], top_k=trace.top_k)
            floor = float(trace_noise_floor(of_step, layout.num_ranks).mean[0, busy].mean())
        return look_at_loads(
            Loads(
                layer_ids=trace.layer_ids,
                load_LE=load_LE,
                load_LR=None if layout is None else rank_loads(load_LE[None], layout)[0],
            ),
            time=self._clock(),
            step=int(trace.steps[step]),
            noise_floor=floor,
        )

"""The input of TensorRT-LLM's scripts: a folder of statistics, or part of its iterations."""

from __future__ import annotations

from pathlib import Path

from equipoise.engines.formats import Progress, TraceOptions, no_progress
from equipoise.engines.trace_io import read_trace
from equipoise.engines.trtllm.rank_files import CHOSEN, COUNTS, META, RAW, numbered
from equipoise.engines.trtllm.traces import FORMAT, read_meta
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.trace import Trace

_FOREVER = 1 << 53


def read_statistic(
    path: Path, start: int | None, stop: int | None, progress: Progress = no_progress
) -> Trace:
    """Read a folder as the engine's scripts do, with all stated experts, whether loaded or not.

    Parameters
    ----------
    start, stop
        First and past-the-last iteration; ``None``: no limit on that side.

    Raises
    ------
    FormatError
        ``read_trace`` refuses the folder.
    EquipoiseError
        Some of the iterations were not recorded.
    """
    wanted = None
    if start is not None or stop is not None:
        wanted = (start or 0, _FOREVER if stop is None else stop)
    stated = read_meta(path / META)[0].num_experts if path.is_dir() else None
    options = TraceOptions(num_experts=stated, iterations=wanted)
    trace = read_trace(path, options, format=FORMAT.name, progress=progress)
    first, last = trace.steps[[0, -1]].tolist()
    if start not in (None, first) or stop not in (None, last + 1):
        asked = f"{first if start is None else start} to {last if stop is None else stop - 1}"
        raise EquipoiseError(
            f"{path}: the iterations {asked} were asked for, {format_ids(trace.steps.tolist())} "
            "were recorded."
        )
    return trace


def num_rank_files(path: Path) -> int:
    """Return the number of rank files, which the scripts take as the expert-parallel size."""
    return len(numbered(path, COUNTS) or numbered(path, CHOSEN) or numbered(path, RAW))

"""Timed runs in folders: the routing, the time of each step, and the map in force."""

from __future__ import annotations

from pathlib import Path

from equipoise.dispatch import dispatcher
from equipoise.engines.files import check_readable
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import read_map
from equipoise.engines.trace_io import read_trace
from equipoise.errors import FormatError
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.own_runs import Run
from equipoise.simulate.tables import read_step_seconds
from equipoise.topology import Topology

STEP_SECONDS = "step_seconds.csv"
"""Name of the file with a column ``seconds`` and a row for each recorded step."""

_MAP = "map.json"


def is_timed_run(folder: Path) -> bool:
    """Tell whether a folder holds the times of a run's steps."""
    return (folder / STEP_SECONDS).is_file()


def read_timed_run(folder: Path, topology: Topology, dispatch: str = "even") -> Run:
    """Read the run in a folder.

    Parameters
    ----------
    folder
        Folder with ``step_seconds.csv``, one recording named ``trace`` with any suffix, and
        ``map.json`` unless experts were in order without copies.
    dispatch
        Name of the dispatcher that shared batches over the copies.

    Raises
    ------
    FormatError
        A missing or damaged file.
    """
    recordings = sorted(folder.glob("trace*"))
    if len(recordings) != 1:
        raise FormatError(
            f"{folder} holds {len(recordings)} recordings named trace; expected one next to "
            f"{STEP_SECONDS}."
        )
    trace = read_trace(recordings[0])
    layout = Layout.unbalanced(trace, topology.num_ranks)
    if (folder / _MAP).exists():
        check_readable(folder / _MAP)
        context = MapContext(
            num_ranks=topology.num_ranks, layer_ids=trace.layer_ids, num_experts=trace.num_experts
        )
        placement = read_map(folder / _MAP, context)
        runs = dispatcher(dispatch, topology, top_k=trace.top_k)
        layout = Layout(placement=placement, dispatch=runs)
    return Run(
        name=str(folder),
        trace=trace,
        layout=layout,
        topology=topology,
        step_seconds=read_step_seconds(folder / STEP_SECONDS),
    )

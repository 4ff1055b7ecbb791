"""``equipoise report``: how unbalanced a recording is, and how much of it is chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.limits import Size
from equipoise.cli.options.machine import numbers
from equipoise.cli.options.output import Json, check_output
from equipoise.cli.options.recording import TraceArguments
from equipoise.cli.views.advice import print_advice
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.progress import progress_bar
from equipoise.engines.files import write_text
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import MapReading, examine_map
from equipoise.engines.trtllm.table import TrtllmTable, trtllm_table
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.weigh.coverage import coverage
from equipoise.report.advice import advise
from equipoise.report.measured import aligned, source_ranks, unbalanced
from equipoise.report.on_map import summarise_on_map
from equipoise.report.page import render_page
from equipoise.report.stragglers import straggler_text
from equipoise.report.summary import TraceSummary, summarise
from equipoise.report.terminal import SummaryView
from equipoise.topology import Topology
from equipoise.trace import Trace


def report(
    trace: Path,
    /,
    *,
    ranks: Annotated[int | None, Size] = None,
    map: Path | None = None,
    per_expert: Annotated[bool, Parameter(negative=())] = False,
    html: Path | None = None,
    rank_seconds: str | None = None,
    reading: TraceArguments | None = None,
    json: Json = False,
) -> int:
    """Report how unbalanced a recording is, by layer, how much is chance, and if balancing pays.

    It ends with the verdict of a quick forecast. A TensorRT-LLM dump is first shown as that
    engine's own script shows it, to the last digit.

    Parameters
    ----------
    trace
        A recording: file or directory of any known format.
    ranks
        Expert-parallel ranks; those of the recording if it has one file a rank.
    map
        Show the recorded load on this map, and without balancing for comparison.
    per_expert
        TensorRT-LLM's table per expert (with --map: per slot) instead of per rank.
    html
        Also write a self-contained page.
    rank_seconds
        What each rank took for its experts while this was recorded, as a profiler shows it, one
        number a rank (0.81,0.80,1.62,0.79): names ranks that are slow for their load.
    """
    reading = reading or TraceArguments()
    if json and per_expert:
        raise EquipoiseError(
            "--per-expert prints a table of text; leave out --per-expert or --json."
        )
    if html is not None:
        check_output(html, trace, map, reading.run_map)
    recording = reading.read(trace, ranks=ranks)
    found = None if map is None else _examine(map, recording, ranks)
    placement = None if found is None else found.placement
    num_ranks = ranks if placement is None else placement.num_ranks
    before = summarise(recording, num_ranks=num_ranks)
    after = None if found is None else summarise_on_map(recording, found.placement, found.notes)
    table = None if json else _engine_table(recording, num_ranks, placement, per_expert)
    if html is not None:
        write_text(html, render_page(before, after=after))
    advice = None
    if before.num_ranks is not None:
        with progress_bar("forecast") as progress:
            advice = advise(recording, before.num_ranks, placement, progress)
    lost = None
    if placement is not None:
        lost = coverage(placement, Topology(placement.num_ranks)).text
    slow = None
    if rank_seconds is not None:
        slow = _stragglers(recording, num_ranks, placement, rank_seconds)
    if json:
        document = {"before": before, "after": after, "loss_of_a_rank": lost, "stragglers": slow}
        print_json({**document, "forecast": advice})
        return 0
    if table is not None:
        print(table)
        print()
    _print_summaries(before, after)
    for sentence in filter(None, (lost, slow)):
        stdout().print(f"\n{sentence}")
    if advice is not None:
        print_advice(stdout(), advice)
    return 0


def _stragglers(
    recording: Trace, num_ranks: int | None, placement: Placement | None, text: str
) -> str:
    """The ranks that are slow for their load, on the map or as engines start."""
    ranks = source_ranks(recording) if num_ranks is None else num_ranks
    if placement is None and ranks is None:
        raise EquipoiseError("--rank-seconds needs the ranks; give --ranks or --map.")
    layout = unbalanced(recording, ranks or 1) if placement is None else placement
    if isinstance(layout, Placement):
        layout = aligned(layout, recording)
    return straggler_text(recording, layout, numbers("--rank-seconds", text))


def _engine_table(
    recording: Trace, num_ranks: int | None, placement: Placement | None, per_expert: bool
) -> TrtllmTable | None:
    """What TensorRT-LLM's own script shows, where it can: its ranks hold equal shares."""
    if per_expert:
        return trtllm_table(recording, placement=placement, per_expert=True)
    if recording.provenance.format != "trtllm":
        return None
    ranks = source_ranks(recording) if num_ranks is None else num_ranks
    if placement is None and ranks is not None and recording.num_experts % ranks:
        return None
    return trtllm_table(recording, num_ranks=num_ranks, placement=placement)


def _examine(map: Path, recording: Trace, ranks: int | None) -> MapReading:
    context = MapContext(
        num_ranks=ranks, num_experts=recording.num_experts, layer_ids=recording.layer_ids
    )
    return examine_map(map, context)


def _print_summaries(before: TraceSummary, after: TraceSummary | None) -> None:
    console = stdout()
    console.print(SummaryView(before))
    if after is not None:
        console.print("\nOn the map\n")
        console.print(SummaryView(after))

"""``equipoise report``: how unbalanced a recording is, and how much of it is chance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console

from equipoise.cli.options.limits import Size
from equipoise.cli.options.machine import numbers
from equipoise.cli.options.output import Json
from equipoise.cli.options.page import PageArguments, origin
from equipoise.cli.options.recording import Recording, TraceArguments
from equipoise.cli.views.advice import print_basis, print_verdicts
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.progress import progress_bar
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import MapReading, examine_map
from equipoise.engines.trtllm.table import trtllm_table
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.weigh.coverage import coverage
from equipoise.report.advice import advise
from equipoise.report.measured import aligned, source_ranks, unbalanced
from equipoise.report.on_map import summarise_on_map
from equipoise.report.page.of_report import report_story
from equipoise.report.stragglers import straggler_text
from equipoise.report.summary import TraceSummary, summarise
from equipoise.report.terminal import SummaryView
from equipoise.topology import Topology
from equipoise.trace import Trace


def report(
    trace: Recording,
    /,
    *,
    ranks: Annotated[int | None, Size] = None,
    map: Path | None = None,
    rank_seconds: str | None = None,
    engine_table: Literal["rank", "expert"] | None = None,
    json: Json = False,
    page: PageArguments | None = None,
    reading: TraceArguments | None = None,
) -> int:
    """Say how unbalanced a recording is, and how much of that is chance.

    The report begins and ends with the verdict of a quick forecast: whether balancing would make
    steps shorter.

    For example:

        equipoise report sample --ranks 8
        equipoise report sample --ranks 8 --phase decode --html report.html
        equipoise report RECORDING --map map.json

    Parameters
    ----------
    ranks
        Number of expert-parallel ranks. If not given: that of the recording, where it has one file
        for each rank.
    map
        Map to show the recorded load on, next to the load without balancing.
    rank_seconds
        Seconds that each rank took for its experts during the recording, as a profiler shows them,
        as in 0.81,0.80,1.62,0.79. Names the ranks that are slow for their load.
    engine_table
        Further table to print, as the script of TensorRT-LLM prints it, to the last digit: by rank,
        or by expert (with --map: by slot).
    """
    reading, page = reading or TraceArguments(), page or PageArguments()
    if json and engine_table is not None:
        raise EquipoiseError("--engine-table prints text; leave out --engine-table or --json.")
    page.check(trace, map, reading.run_map)
    recording = reading.read(trace, ranks=ranks)
    found = None if map is None else _examine(map, recording, ranks)
    placement = None if found is None else found.placement
    num_ranks = ranks if placement is None else placement.num_ranks
    before = summarise(recording, num_ranks=num_ranks)
    after = None if found is None else summarise_on_map(recording, found.placement, found.notes)
    table = None
    if engine_table is not None:
        by_expert = engine_table == "expert"
        table = trtllm_table(
            recording,
            num_ranks=None if by_expert else num_ranks,
            placement=placement,
            per_expert=by_expert,
        )
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
    said = [sentence for sentence in (lost, slow) if sentence is not None]
    page.write(
        lambda: report_story(
            recording,
            before,
            origin(recording, {"map": placement}),
            after=after,
            placement=placement,
            advice=advice,
            said=said,
        )
    )
    if json:
        document = {"before": before, "after": after, "loss_of_a_rank": lost, "stragglers": slow}
        print_json({**document, "forecast": advice})
        return 0
    console = stdout()
    if advice is not None:
        print_verdicts(console, advice)
        console.print()
    if table is not None:
        console.print(f"{table}\n")
    _print_summaries(console, before, after)
    for sentence in said:
        console.print(f"\n{sentence}")
    if advice is not None:
        console.print()
        print_basis(console, advice)
        print_verdicts(console, advice)
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


def _examine(map: Path, recording: Trace, ranks: int | None) -> MapReading:
    context = MapContext(
        num_ranks=ranks, num_experts=recording.num_experts, layer_ids=recording.layer_ids
    )
    return examine_map(map, context)


def _print_summaries(console: Console, before: TraceSummary, after: TraceSummary | None) -> None:
    console.print(SummaryView(before))
    if after is not None:
        console.print("\nOn the map\n")
        console.print(SummaryView(after))

"""``equipoise report``: how unbalanced a recording is, and how much of it is chance."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.common import (
    Json,
    Size,
    TraceArguments,
    check_output,
    print_json,
    stdout,
)
from equipoise.engines.files import write_text
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import MapReading, examine_map
from equipoise.engines.trtllm.table import TrtllmTable, trtllm_table
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.weigh.coverage import coverage
from equipoise.report.measured import source_ranks
from equipoise.report.page import render_page
from equipoise.report.summary import TraceSummary, summarise
from equipoise.report.terminal import SummaryView
from equipoise.topology import Topology
from equipoise.trace import Trace

_ORIGIN = "trace: "  # before the recording that a map of our format names


def report(
    trace: Path,
    /,
    *,
    ranks: Annotated[int | None, Size] = None,
    map: Path | None = None,
    per_expert: Annotated[bool, Parameter(negative=())] = False,
    html: Path | None = None,
    reading: TraceArguments | None = None,
    json: Json = False,
) -> int:
    """Report how unbalanced a recording is, by layer, and how much of it is chance.

    A TensorRT-LLM dump is first shown as that engine's own script shows it, to the last digit.

    Parameters
    ----------
    trace
        A recording: file or directory of any known format.
    ranks
        Expert-parallel ranks; those of the recording if it has one file a rank.
    map
        Show the recorded load on this map, beside no balancing.
    per_expert
        TensorRT-LLM's table per expert (with --map: per slot) instead of per rank.
    html
        Also write a self-contained page.
    """
    reading = reading or TraceArguments()
    if json and per_expert:
        raise EquipoiseError("--per-expert asks for a table of text; leave --json or it out.")
    if html is not None:
        check_output(html, trace, map, reading.run_map)
    recording = reading.read(trace, ranks=ranks)
    found = None if map is None else _examine(map, recording, ranks)
    placement = None if found is None else found.placement
    num_ranks = ranks if placement is None else placement.num_ranks
    before = summarise(recording, num_ranks=num_ranks)
    after = None if found is None else _on_the_map(recording, found)
    table = None if json else _engine_table(recording, num_ranks, placement, per_expert)
    if html is not None:
        write_text(html, render_page(before, after=after))
    lost = None if placement is None else _loss_of_a_rank(placement)
    if json:
        print_json({"before": before, "after": after, "loss_of_a_rank": lost})
        return 0
    if table is not None:
        print(table)
        print()
    _print_summaries(before, after)
    if lost is not None:
        stdout().print(f"\n{lost}")
    return 0


def _loss_of_a_rank(placement: Placement) -> str:
    """What the map holds against it, in a sentence."""
    found = coverage(placement, Topology(placement.num_ranks))
    if found.guaranteed_losses:
        return "The loss of any rank leaves every expert alive."
    alone, lost = int(found.endangered(1).max()), float(found.expected_lost(1).mean())
    return (
        f"A lost rank takes {lost:.1f} experts of a layer on average; up to {alone} of "
        f"{placement.num_experts} live on one rank only."
    )


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


def _on_the_map(recording: Trace, found: MapReading) -> TraceSummary:
    summary = summarise(recording, placement=found.placement)
    return replace(summary, notes=(_what_it_proves(recording, found.notes), *summary.notes))


def _what_it_proves(recording: Trace, notes: Sequence[str]) -> str:
    """Whether a map, with these notes in its file, is shown on the steps it was made from."""
    origin = next((n.removeprefix(_ORIGIN) for n in notes if n.startswith(_ORIGIN)), None)
    if origin is not None and _is_source_of(recording, origin):
        return (
            "This map was made from these very steps, or from some of them: the numbers show how "
            "well it fits those, and new traffic gains less. Report steps that were recorded later."
        )
    known = "the file does not say which" if origin is None else f"it was made from {origin}"
    return f"The numbers count only on steps that the map was not made from; {known}."


def _is_source_of(recording: Trace, origin: str) -> bool:
    source = recording.provenance.source
    if recording.provenance.format == "array":  # from memory, as are many others
        return False
    with suppress(OSError, ValueError):  # a name of a file that is not here, or of none
        return origin == source or Path(origin).samefile(source)
    return False


def _print_summaries(before: TraceSummary, after: TraceSummary | None) -> None:
    console = stdout()
    console.print(SummaryView(before))
    if after is not None:
        console.print("\nOn the map\n")
        console.print(SummaryView(after))

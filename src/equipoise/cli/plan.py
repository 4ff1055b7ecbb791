"""``equipoise plan``: a placement, scored on steps it has not seen, and the map an engine loads."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from equipoise.cli.common import (
    EngineArguments,
    Json,
    MachineArguments,
    Redundant,
    Size,
    TraceArguments,
    check_decoder_layers,
    check_output,
    option_name,
    print_json,
    stdout,
)
from equipoise.cli.locality import LocalityArguments, Reach
from equipoise.cli.moves import moves_document, moves_text
from equipoise.cli.planners import PlannerArguments
from equipoise.cli.progress import progress_bar
from equipoise.cli.repair import RepairArguments
from equipoise.cli.scores import Scores, score, scores_document, scores_table
from equipoise.cli.text import one_line
from equipoise.engines.formats import Launch, MapContext, given
from equipoise.engines.launch import launch
from equipoise.engines.map_io import check_map_path, write_map
from equipoise.errors import EquipoiseError
from equipoise.migration import Migration
from equipoise.migration import diff as compare
from equipoise.plan import Plan, Problem
from equipoise.trace import Trace


def plan(
    trace: Path,
    /,
    *,
    ranks: Annotated[int, Size],
    redundant: Annotated[int, Redundant] = 0,
    hold_out: float = 0.2,
    for_: Annotated[str | None, Parameter(name="--for")] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    planning: PlannerArguments | None = None,
    repairing: RepairArguments | None = None,
    gathering: LocalityArguments | None = None,
    machine: MachineArguments | None = None,
    engine: EngineArguments | None = None,
    reading: TraceArguments | None = None,
    json: Json = False,
) -> int:
    """Choose copies and places, score them on held-out steps, write the map an engine loads.

    Parameters
    ----------
    trace
        A recording: file or directory of any known format.
    ranks
        Expert-parallel ranks.
    redundant
        Redundant slots of a layer, all ranks together; (experts + redundant) must divide by ranks.
    hold_out
        Share of the steps, the latest of each domain, to score on; 0 plans on everything and
        scores nothing unseen.
    for_
        Format of the map: equipoise, trtllm, sglang, vllm-41141, vllm-49572, vllm-53022, ascend.
    output
        The map file to write; needs --for.
    """
    reading, engine = reading or TraceArguments(), engine or EngineArguments()
    planning, repairing = planning or PlannerArguments(), repairing or RepairArguments()
    gathering, machine = gathering or LocalityArguments(), machine or MachineArguments()
    _check_target(for_, output, engine, trace, reading.run_map, repairing.from_map)
    repairing.check(planning)
    gathering.check(planning, repairing)
    planning.check(machine, gathering.uses)
    topology = machine.topology(ranks)
    recording = reading.read(trace, ranks=ranks)
    fit, held = _split(recording, hold_out)
    problem = Problem(fit, topology, recording.num_experts + redundant)
    current = repairing.read(problem)
    judge = planning.judge(topology, recording.top_k)
    with progress_bar("planning") as progress:
        if current is None:
            planner = planning.configured(judge, progress)
            result = gathering.applied(planner, planning, fit).plan(problem)
        else:
            result = repairing.configured(current, planning, judge).plan(problem)
    outcome = _Outcome(
        plan=result,
        scores=score(result, fit, held, judge, planning.step_assignments),
        migration=None if current is None else compare(current, result.placement, topology),
        expert_bytes=repairing.expert_bytes,
        reach=gathering.reach(result, held),
        written=_write(result, for_, output, engine, recording.provenance.source),
    )
    if json:
        print_json(_document(outcome))
    else:
        _print(stdout(), recording, outcome)
    return 0


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """A plan and what is to be said of it."""

    plan: Plan
    scores: Scores
    migration: Migration | None
    expert_bytes: int | None
    reach: Reach | None
    written: _Written | None


def _check_target(
    format: str | None, output: Path | None, engine: EngineArguments, *inputs: Path | None
) -> None:
    """Refuse what would fail, or be ignored, only after the planning."""
    if (format is None) != (output is None):
        raise EquipoiseError("A map needs both --for and --output; give both or neither.")
    if format is None or output is None:
        if given(engine):
            names = ", ".join(sorted(map(option_name, given(engine))))
            raise EquipoiseError(f"{names}: only for a map; give --for and --output as well.")
        return
    check_map_path(output, format)
    check_output(output, *inputs)
    check_decoder_layers(engine.hidden_layers, format)


@dataclass(frozen=True)
class _Written:
    """A map on disk, what it does not say, and how to start the engine with it."""

    path: Path
    lost: list[str]
    launch: Launch | None


def _write(
    result: Plan, format: str | None, output: Path | None, engine: EngineArguments, source: str
) -> _Written | None:
    if format is None or output is None:
        return None
    # Flags first: a combination the engine would ignore is refused before a file exists.
    flags = launch(result.placement, format, output.name, engine.options)
    context = MapContext(
        num_hidden_layers=engine.hidden_layers, planner=result.planner, trace=source
    )
    return _Written(
        output, write_map(result.placement, output, format=format, context=context), flags
    )


def _split(recording: Trace, hold_out: float) -> tuple[Trace, Trace | None]:
    if hold_out == 0:
        return recording, None
    if not 0 < hold_out < 1:
        raise EquipoiseError(f"--hold-out is {hold_out}; expected a share from 0 to below 1.")
    if recording.num_steps == 1:
        raise EquipoiseError(
            "The recording has one step, so none can be held out; record more steps, "
            "or give --hold-out 0 to plan without a score on unseen traffic."
        )
    return recording.split(at=1 - hold_out)


def _document(outcome: _Outcome) -> dict[str, object]:
    result, migration, written = outcome.plan, outcome.migration, outcome.written
    return {
        "planner": result.planner,
        "dispatch": result.dispatch,
        "ranks": result.placement.num_ranks,
        "experts": result.placement.num_experts,
        "slots": result.placement.num_slots,
        "checksum": result.placement.checksum,
        "status": result.status,
        "gap": result.gap,
        "scores": scores_document(outcome.scores),
        "noise_floor_held_out": outcome.scores.chance_held,
        "reach_held_out": outcome.reach,
        "moves": None if migration is None else moves_document(migration, outcome.expert_bytes),
        "layers": [
            {"layer": b.layer, "peak": peak, "bound": bound, "binds": b.kind, "why": b.text}
            for b, peak, bound in zip(
                result.binding, result.peak.tolist(), result.bound.tolist(), strict=True
            )
        ],
        "map": None if written is None else {"path": str(written.path), "lost": written.lost},
        "launch": None if written is None else written.launch,
    }


def _print(console: Console, recording: Trace, outcome: _Outcome) -> None:
    _print_plan(console, recording, outcome)
    if outcome.written is not None:
        _print_map(console, outcome.written)


def _print_plan(console: Console, recording: Trace, outcome: _Outcome) -> None:
    result, placement = outcome.plan, outcome.plan.placement
    console.print(one_line(f"{recording}"))
    for note in recording.provenance.notes:
        console.print(f"  note: {one_line(note)}")
    console.print(
        f"{result.planner}: {placement.num_experts} experts in "
        f"{placement.num_slots} slots on {placement.num_ranks} ranks "
        f"({placement.num_redundant} redundant, {placement.slots_per_rank} slots a rank)\n"
    )
    console.print(scores_table(outcome.scores))
    console.print(f"\n{result.status}")
    if outcome.migration is not None:
        console.print(moves_text(outcome.migration, outcome.expert_bytes))
    if outcome.reach is not None:
        console.print(outcome.reach.text)
    hardest = sorted(
        range(placement.num_layers),
        key=lambda i: -result.bound[i] * placement.num_ranks / max(result.load[i].sum(), 1),
    )
    for i in hardest[:3]:
        if result.binding[i].kind != "mean":
            console.print(f"  {result.binding[i].text}")


def _print_map(console: Console, written: _Written) -> None:
    console.print(f"\nWritten, read back and compared: {written.path}")
    for sentence in written.lost:
        console.print(f"  not in the file: {sentence}")
    flags = written.launch
    if flags is None:
        return
    console.print(f"Start {flags.engine} {flags.version} with")
    for name, value in flags.environment:
        console.print(f"  {name}={value}")
    console.print(f"  {shlex.join(flags.command)}")
    for name, content in flags.files:
        console.print(f"and this as {name}:")
        console.print(textwrap.indent(content.rstrip(), "  "))
    for note in flags.notes:
        console.print(f"  note: {note}")

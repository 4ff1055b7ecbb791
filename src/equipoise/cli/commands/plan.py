"""``equipoise plan``: a placement, scored on steps it has not seen, and the map an engine loads."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.console import Console

from equipoise.cli.options.common import (
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
from equipoise.cli.options.locality import LocalityArguments, Reach
from equipoise.cli.options.planner import PlannerArguments
from equipoise.cli.options.repair import RepairArguments
from equipoise.cli.views.moves import moves_document, moves_text
from equipoise.cli.views.progress import progress_bar
from equipoise.cli.views.scores import (
    Scores,
    score_before,
    scores_document,
    scores_table,
    verdict_document,
)
from equipoise.cli.views.text import one_line
from equipoise.engines.formats import Launch, MapContext, given
from equipoise.engines.launch_flags import launch
from equipoise.engines.map_io import check_map_path, write_map
from equipoise.errors import EquipoiseError
from equipoise.migration import Migration
from equipoise.migration import diff as compare
from equipoise.placement import Placement
from equipoise.plan import Plan, Problem
from equipoise.plan.search.anneal import fill_up
from equipoise.plan.search.layout import first_layout
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
    even_if_worse: Annotated[bool, Parameter(negative=())] = False,
    planning: PlannerArguments | None = None,
    repairing: RepairArguments | None = None,
    gathering: LocalityArguments | None = None,
    machine: MachineArguments | None = None,
    engine: EngineArguments | None = None,
    reading: TraceArguments | None = None,
    json: Json = False,
) -> int:
    """Choose copies and places, score them on held-out steps, write the map an engine loads.

    The plan is compared with leaving things as they are: no balancing, or the map in force. Where
    it is not better, by more than chance explains, no map is written and the exit status is 1.

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
    even_if_worse
        Write the map even if it is no gain over leaving things as they are.
    """
    reading, engine = reading or TraceArguments(), engine or EngineArguments()
    planning, repairing = planning or PlannerArguments(), repairing or RepairArguments()
    gathering, machine = gathering or LocalityArguments(), machine or MachineArguments()
    target = _target(for_, output, engine, even_if_worse)
    if target is not None:
        target.check(trace, reading.run_map, repairing.from_map)
    repairing.check(planning)
    gathering.check(planning, repairing)
    planning.check(machine, gathering.uses)
    topology = machine.topology(ranks)
    recording = reading.read(trace, ranks=ranks)
    fit, held = _split(recording, hold_out)
    problem = Problem(fit, topology, recording.num_experts + redundant)
    current = repairing.read(problem)
    judge = planning.judge(topology, recording.top_k)
    before = score_before(
        fit, held, topology, judge, current=current, step_assignments=planning.step_assignments
    )
    if target is not None:
        target.rehearse(problem)
    with progress_bar("planning") as progress:
        if current is None:
            planner = planning.configured(judge, progress)
            result = gathering.applied(planner, planning, fit).plan(problem)
        else:
            result = repairing.configured(current, planning, judge).plan(problem)
    scores = before.with_plan(result.placement)
    wanted = scores.verdict.is_gain or even_if_worse
    source = recording.provenance.source
    outcome = _Outcome(
        # Certified for the steps and the dispatcher it is scored with.
        plan=replace(result, dispatcher=judge, problem=problem.of_steps(planning.step_assignments)),
        scores=scores,
        migration=None if current is None else compare(current, result.placement, topology),
        expert_bytes=repairing.expert_bytes,
        reach=gathering.reach(result, held),
        written=target.write(result, source) if target is not None and wanted else None,
        withheld=target is not None and not wanted,
    )
    if json:
        print_json(_document(outcome))
    else:
        _print(stdout(), recording, outcome)
    return 0 if wanted else 1


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """A plan and what is to be said of it."""

    plan: Plan
    scores: Scores
    migration: Migration | None
    expert_bytes: int | None
    reach: Reach | None
    written: _Written | None
    withheld: bool


@dataclass(frozen=True)
class _Written:
    """A map on disk, what it does not say, and how to start the engine with it."""

    path: Path
    lost: list[str]
    launch: Launch | None


@dataclass(frozen=True)
class _Target:
    """The map to write."""

    format: str
    path: Path
    engine: EngineArguments

    def check(self, *inputs: Path | None) -> None:
        """Refuse what can be told before anything is read."""
        check_map_path(self.path, self.format)
        check_output(self.path, *inputs)
        check_decoder_layers(self.engine.hidden_layers, self.format)

    def rehearse(self, problem: Problem) -> None:
        """Refuse before the search all that writing would refuse after it.

        Flags and a map are made for a placement of the same shape that needs no search, in a folder
        next to the map that is gone at once.
        """
        placement = _unsearched(problem)
        launch(placement, self.format, self.path.name, self.engine.options)
        try:
            with TemporaryDirectory(dir=self.path.parent, prefix=".equipoise.") as folder:
                rehearsed = Path(folder) / self.path.name
                try:
                    self._write_map(placement, rehearsed, "", "")
                except EquipoiseError as error:
                    raise EquipoiseError(
                        f"{error}".replace(f"{rehearsed}", f"{self.path}")
                    ) from error
        except OSError as error:
            raise EquipoiseError(f"{self.path}: cannot be written ({error.strerror}).") from error

    def write(self, result: Plan, source: str) -> _Written:
        """The map, and the flags that go with it."""
        try:
            # Flags first: a combination the engine would ignore is refused before a file exists.
            flags = launch(result.placement, self.format, self.path.name, self.engine.options)
            lost = self._write_map(result.placement, self.path, result.planner, source)
        except EquipoiseError as error:
            kept = _keep(result, source)
            raise EquipoiseError(f"{error} The plan is not lost: it is in {kept}.") from error
        return _Written(self.path, lost, flags)

    def _write_map(self, placement: Placement, path: Path, planner: str, source: str) -> list[str]:
        context = MapContext(
            num_hidden_layers=self.engine.hidden_layers, planner=planner, trace=source
        )
        return write_map(placement, path, format=self.format, context=context)


def _target(
    format: str | None, output: Path | None, engine: EngineArguments, even_if_worse: bool
) -> _Target | None:
    """The map asked for, if one is; refuses what would be ignored without one."""
    if (format is None) != (output is None):
        raise EquipoiseError("A map needs both --for and --output; give both or neither.")
    if format is not None and output is not None:
        return _Target(format, output, engine)
    unused = {*given(engine), *(["even_if_worse"] if even_if_worse else [])}
    if unused:
        names = ", ".join(sorted(map(option_name, unused)))
        raise EquipoiseError(f"{names}: only for a map; give --for and --output as well.")
    return None


def _unsearched(problem: Problem) -> Placement:
    """A placement of the problem's shape: experts in order, again and again until slots are full.

    Where ranks have less room than slots, with the repetitions that fill the rest.
    """
    topology, num_slots = problem.topology, problem.num_slots
    slots = np.tile(np.arange(num_slots) % problem.num_experts, (problem.num_layers, 1))
    if topology.room is not None:
        slots = fill_up(first_layout(problem.total, num_slots, topology), topology.num_ranks)
    return problem.placement(slots)


def _keep(result: Plan, source: str) -> Path:
    """The plan in our own format, where temporary files go."""
    folder = Path(mkdtemp(prefix="equipoise-plan-"))
    path = folder / "plan.json"
    context = MapContext(planner=result.planner, trace=source)
    write_map(result.placement, path, format="equipoise", context=context)
    return path


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
        "verdict": verdict_document(outcome.scores.verdict),
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
    if outcome.withheld:
        console.print("\nNo map was written; --even-if-worse writes it all the same.")


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
    console.print(f"\n{outcome.scores.verdict.text}")
    console.print(f"\n{result.status}")
    if outcome.migration is not None:
        console.print(moves_text(outcome.migration, outcome.expert_bytes))
    if outcome.reach is not None:
        console.print(outcome.reach.text)
    hardest = sorted(
        range(placement.num_layers),
        key=lambda i: -result.bound[i] / result.mean[i] if result.mean[i] > 0 else 0.0,
    )
    for i in hardest[:3]:
        if result.binding[i].kind != "mean":
            console.print(f"  {result.binding[i].text}")


def _print_map(console: Console, written: _Written) -> None:
    console.print("\n" + one_line(f"Written, read back and compared: {written.path}"))
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

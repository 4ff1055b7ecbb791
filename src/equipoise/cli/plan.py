"""``equipoise plan``: a placement, scored on steps it has not seen, and the map an engine loads."""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from equipoise.cli.common import (
    EngineArguments,
    Json,
    Redundant,
    Size,
    TraceArguments,
    check_decoder_layers,
    check_output,
    option_name,
    print_json,
    stdout,
)
from equipoise.cli.planners import PlannerArguments
from equipoise.cli.text import one_line
from equipoise.engines.formats import Launch, MapContext, given
from equipoise.engines.launch import launch
from equipoise.engines.map_io import check_map_path, write_map
from equipoise.errors import EquipoiseError
from equipoise.noise import trace_noise_floor
from equipoise.plan import Evaluation, evaluate, without_balancing
from equipoise.plan.problem import Plan, Problem
from equipoise.topology import Topology
from equipoise.trace import Trace


def plan(
    trace: Path,
    /,
    *,
    ranks: Annotated[int, Size],
    redundant: Annotated[int, Redundant] = 0,
    ranks_per_node: Annotated[int | None, Size] = None,
    hold_out: float = 0.2,
    for_: Annotated[str | None, Parameter(name="--for")] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    planning: PlannerArguments | None = None,
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
    ranks_per_node
        Ranks behind one fast interconnect; all of them if not given.
    hold_out
        Share of the steps, the latest of each domain, to score on; 0 plans on everything and
        scores nothing unseen.
    for_
        Format of the map: equipoise, trtllm, sglang, vllm-41141, vllm-49572, vllm-53022, ascend.
    output
        The map file to write; needs --for.
    """
    reading, engine = reading or TraceArguments(), engine or EngineArguments()
    planning = planning or PlannerArguments()
    _check_target(for_, output, engine, trace, reading.run_map)
    planning.check()
    recording = reading.read(trace, ranks=ranks)
    fit, held = _split(recording, hold_out)
    problem = Problem(fit, Topology(ranks, ranks_per_node), recording.num_experts + redundant)
    result = planning.plan(problem)
    scores = _score(result, problem, fit, held, planning.dispatch)
    written = None
    if for_ is not None and output is not None:
        source = recording.provenance.source
        written = _write(result, for_, output, engine, source)
    if json:
        print_json(_document(result, scores, written))
    else:
        _print_plan(stdout(), recording, result, scores)
        if written is not None:
            _print_map(stdout(), written)
    return 0


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
    result: Plan, format: str, output: Path, engine: EngineArguments, source: str
) -> _Written:
    # Flags first: a combination the engine would ignore is refused before a file exists.
    flags = launch(result.placement, format, output.name, engine.options)
    context = MapContext(
        num_hidden_layers=engine.hidden_layers, planner=result.planner, trace=source
    )
    return _Written(
        output, write_map(result.placement, output, format=format, context=context), flags
    )


@dataclass(frozen=True)
class _Scores:
    """Imbalance without balancing and with the plan, on steps planned from and on unseen ones.

    ``chance_held`` is the noise floor of the unseen steps: what is left of a perfect even split.
    """

    plain_fit: Evaluation
    plan_fit: Evaluation
    plain_held: Evaluation | None
    plan_held: Evaluation | None
    chance_held: float | None


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


def _score(
    result: Plan, problem: Problem, fit: Trace, held: Trace | None, dispatch: str
) -> _Scores:
    plain = without_balancing(fit, problem.topology)
    return _Scores(
        plain_fit=evaluate(plain, fit, dispatch=dispatch),
        plan_fit=evaluate(result.placement, fit, dispatch=dispatch),
        plain_held=None if held is None else evaluate(plain, held, dispatch=dispatch),
        plan_held=None if held is None else evaluate(result.placement, held, dispatch=dispatch),
        chance_held=None if held is None else _chance(held, problem.topology.num_ranks),
    )


def _chance(held: Trace, ranks: int) -> float:
    """Mean imbalance that a fair router would show in steps of these sizes."""
    return float(trace_noise_floor(held, ranks).mean[held.counts.any(axis=2)].mean())


def _document(result: Plan, scores: _Scores, written: _Written | None) -> dict[str, object]:
    rows = {
        "plain_fit": scores.plain_fit,
        "plan_fit": scores.plan_fit,
        "plain_held_out": scores.plain_held,
        "plan_held_out": scores.plan_held,
    }
    return {
        "planner": result.planner,
        "dispatch": result.dispatch,
        "ranks": result.placement.num_ranks,
        "experts": result.placement.num_experts,
        "slots": result.placement.num_slots,
        "checksum": result.placement.checksum,
        "status": result.status,
        "gap": result.gap,
        "scores": {name: None if e is None else _numbers(e) for name, e in rows.items()},
        "noise_floor_held_out": scores.chance_held,
        "layers": [
            {"layer": b.layer, "peak": peak, "bound": bound, "binds": b.kind, "why": b.text}
            for b, peak, bound in zip(
                result.binding, result.peak.tolist(), result.bound.tolist(), strict=True
            )
        ],
        "map": None if written is None else {"path": str(written.path), "lost": written.lost},
        "launch": None if written is None else written.launch,
    }


def _numbers(evaluation: Evaluation) -> dict[str, float]:
    return {
        "mean_imbalance": evaluation.mean_imbalance,
        "p95_imbalance": evaluation.p95_imbalance,
        "worst_imbalance": evaluation.worst_imbalance,
        "relative_step_time": evaluation.relative_step_time,
    }


def _print_plan(console: Console, recording: Trace, result: Plan, scores: _Scores) -> None:
    placement = result.placement
    console.print(one_line(f"{recording}"))
    for note in recording.provenance.notes:
        console.print(f"  note: {one_line(note)}")
    console.print(
        f"{result.planner}: {placement.num_experts} experts in "
        f"{placement.num_slots} slots on {placement.num_ranks} ranks "
        f"({placement.num_redundant} redundant, {placement.slots_per_rank} slots a rank)\n"
    )
    console.print(_score_table(scores))
    console.print(f"\n{result.status}")
    hardest = sorted(
        range(placement.num_layers),
        key=lambda i: -result.bound[i] * placement.num_ranks / max(result.load[i].sum(), 1),
    )
    for i in hardest[:3]:
        if result.binding[i].kind != "mean":
            console.print(f"  {result.binding[i].text}")


def _score_table(scores: _Scores) -> Table:
    table = Table(
        f"max/mean rank load, {scores.plan_fit.dispatch} split",
        "mean",
        "p95",
        "worst",
        "step time",
        box=None,
    )
    rows = {
        "planned steps, no balancing": scores.plain_fit,
        "planned steps, this plan": scores.plan_fit,
        "unseen steps, no balancing": scores.plain_held,
        "unseen steps, this plan": scores.plan_held,
    }
    for name, evaluation in rows.items():
        if evaluation is not None:
            table.add_row(name, *(f"{x:.3f}" for x in _numbers(evaluation).values()))
    if scores.chance_held is not None:
        table.add_row("unseen steps, chance alone", f"{scores.chance_held:.3f}")
    return table


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

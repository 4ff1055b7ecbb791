"""``equipoise plan``: a placement, scored on steps it has not seen, and the map an engine loads."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.deployment import Deployment
from equipoise.cli.options.engine import EngineArguments
from equipoise.cli.options.hardware import StepArguments
from equipoise.cli.options.limits import Redundant, Size
from equipoise.cli.options.locality import LocalityArguments
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.maps import check_decoder_layers
from equipoise.cli.options.model import ModelArguments
from equipoise.cli.options.names import option_name
from equipoise.cli.options.output import Json, check_output
from equipoise.cli.options.page import PageArguments, origin
from equipoise.cli.options.planner import PlannerArguments
from equipoise.cli.options.recording import TraceArguments
from equipoise.cli.options.repair import RepairArguments
from equipoise.cli.options.trtllm import TrtllmArguments
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.plan import Outcome, plan_document, print_plan
from equipoise.cli.views.progress import progress_bar
from equipoise.engines.formats import given
from equipoise.engines.map_io import check_map_path
from equipoise.engines.map_target import MapTarget
from equipoise.engines.registry import written_as
from equipoise.errors import EquipoiseError
from equipoise.plan import Planner
from equipoise.plan.study import study
from equipoise.report.page.of_plan import plan_story
from equipoise.simulate.whole import judged_whole
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
    serving: ModelArguments | None = None,
    hardware: StepArguments | None = None,
    layer_updates_per_iter: Annotated[int, Redundant] = 0,
    trtllm: TrtllmArguments | None = None,
    reading: TraceArguments | None = None,
    page: PageArguments | None = None,
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
        Or vllm, whose releases read no map: flags of its own balancing, and the plan in our format.
    output
        The map file to write; needs --for.
    even_if_worse
        Write the map even if it is no gain over leaving things as they are.
    layer_updates_per_iter
        TensorRT-LLM: layers that the engine re-plans per iteration, from the map on; 0: it keeps
        the map.
    """
    reading, engine = reading or TraceArguments(), engine or EngineArguments()
    planning, repairing = planning or PlannerArguments(), repairing or RepairArguments()
    gathering, machine = gathering or LocalityArguments(), machine or MachineArguments()
    serving, trtllm = serving or ModelArguments(), trtllm or TrtllmArguments()
    hardware, page = hardware or StepArguments(), page or PageArguments()
    target = _target(for_, output, engine, serving, trtllm, layer_updates_per_iter, even_if_worse)
    if target is not None:
        inputs = (trace, reading.run_map, repairing.from_map)
        check_output(target.path, *inputs)
        trtllm.check(target.path, *inputs)
        check_decoder_layers(engine.hidden_layers, written_as(target.format))
    page.check(trace, reading.run_map, repairing.from_map, other=output)
    expert_bytes = (serving.need_expert_bytes if repairing.is_priced else serving.expert_bytes)(
        repairing.expert_bytes
    )
    planning = hardware.before_reading(planning)
    repairing.check(planning, expert_bytes)
    gathering.check(planning, repairing)
    planning.check(machine, gathering.uses)
    deployed = Deployment.read(
        trace, lambda: reading.read(trace, ranks=ranks), ranks, machine, hardware, serving
    )
    recording, topology, times = deployed.recording, deployed.topology, deployed.machine
    planning = planning.by(times)
    current = repairing.read(recording, ranks, redundant)
    judge = planning.judge(topology, recording.top_k)
    with progress_bar("planning") as progress:

        def planner(fit: Trace) -> Planner:
            if current is not None:
                return repairing.configured(current, planning, judge, expert_bytes)
            return gathering.applied(planning.configured(judge, progress), planning, fit)

        result = study(
            recording,
            topology,
            num_slots=recording.num_experts + redundant,
            planner=planner,
            dispatch=judge,
            hold_out=hold_out,
            current=current,
            step_assignments=planning.step_assignments,
            before_search=None if target is None else lambda p: target.rehearse(p, recording),
        )
    if times is not None:
        result = judged_whole(result, recording, current, times)
    wanted = result.verdict.is_gain or even_if_worse
    outcome = Outcome(
        study=result,
        model=serving.config,
        expert_bytes=expert_bytes,
        facts=deployed.facts,
        reach=None if gathering.locality_price is None else result.reach,
        written=target.write(result.plan, recording) if target is not None and wanted else None,
        withheld=target is not None and not wanted,
    )
    maps = {"plan": result.plan.placement, "map in force": current}
    page.write(
        lambda: plan_story(
            recording,
            result,
            origin(recording, maps),
            current=current,
            expert_bytes=expert_bytes,
        )
    )
    if json:
        print_json(plan_document(outcome))
    else:
        print_plan(stdout(), recording, outcome)
    return 0 if wanted else 1


def _target(
    format: str | None,
    output: Path | None,
    engine: EngineArguments,
    serving: ModelArguments,
    trtllm: TrtllmArguments,
    layer_updates_per_iter: int,
    even_if_worse: bool,
) -> MapTarget | None:
    """The map asked for, if one is; refuses what would be ignored without one."""
    if (format is None) != (output is None):
        raise EquipoiseError("A map needs both --for and --output; give both or neither.")
    of_trtllm = {*given(trtllm), *(["layer_updates_per_iter"] if layer_updates_per_iter else [])}
    if format is None or output is None:
        unused = {*given(engine), *of_trtllm, *(["even_if_worse"] if even_if_worse else [])}
        _refuse(unused, "only for a map; give --for and --output as well")
        return None
    check_map_path(output, written_as(format))
    options = engine.options(serving.config)
    if format == "trtllm":
        return trtllm.target(output, layer_updates_per_iter, options)
    _refuse(of_trtllm, f"only for trtllm, not {format}")
    return MapTarget(
        format=format,
        path=output,
        num_hidden_layers=serving.hidden_layers(engine.hidden_layers),
        options=options,
    )


def _refuse(names: Collection[str], why: str) -> None:
    """Raise ``EquipoiseError`` if there are options that would be ignored."""
    if names:
        raise EquipoiseError(f"{', '.join(sorted(map(option_name, names)))}: {why}.")

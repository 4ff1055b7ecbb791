"""``equipoise forecast``: whether balancing would help, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.deployment import Deployment
from equipoise.cli.options.engine import EngineArguments
from equipoise.cli.options.groups import HARDWARE, VERDICT
from equipoise.cli.options.hardware import StepArguments
from equipoise.cli.options.limits import Amount, Size
from equipoise.cli.options.lists import names, whole_numbers
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.model import ModelArguments
from equipoise.cli.options.moving import MovingArguments
from equipoise.cli.options.names import option_name
from equipoise.cli.options.output import For, Json
from equipoise.cli.options.page import PageArguments, origin
from equipoise.cli.options.planner import PlannerArguments
from equipoise.cli.options.recording import Recording, TraceArguments
from equipoise.cli.options.source import check_source, read_source
from equipoise.cli.options.units import ByteCount, Seconds
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.forecast import Advice, forecast_document, print_forecast
from equipoise.cli.views.progress import PartsOf, progress_bar
from equipoise.cost import costs_for
from equipoise.engines.formats import Launch, LaunchOptions, given
from equipoise.engines.launch_flags import launch
from equipoise.engines.machines import assignments_of
from equipoise.engines.map_io import placeholder_name
from equipoise.engines.registry import rule_of
from equipoise.engines.verdicts import dispatchers_to_try
from equipoise.errors import EquipoiseError
from equipoise.plan import Planner
from equipoise.plan.weigh.budget import LEAST_GAIN
from equipoise.report.page.of_forecast import forecast_story
from equipoise.simulate.expert_time import COST_ERROR, ComputeModel
from equipoise.simulate.forecast import Forecast
from equipoise.simulate.forecast import forecast as foresee
from equipoise.simulate.named_cost import cost_model


def forecast(
    trace: Recording | None = None,
    /,
    *,
    ranks: Annotated[int, Size],
    prior: str | None = None,
    redundant: str | None = None,
    hold_out: Annotated[float, Parameter(validator=Number(gt=0, lt=1), group=VERDICT)] = 0.2,
    batch_tokens: Annotated[int | None, Amount] = None,
    least_gain: Annotated[
        float, Parameter(validator=Number(gte=0, lt=1), group=VERDICT)
    ] = LEAST_GAIN,
    cost_error: Annotated[
        float | None, Parameter(validator=Number(gte=0, lte=1), group=HARDWARE)
    ] = None,
    other_seconds: Annotated[float, Seconds, Parameter(group=HARDWARE)] = 0.0,
    expert_bytes: Annotated[int | None, ByteCount, Parameter(group=HARDWARE)] = None,
    for_: Annotated[str | None, For] = None,
    planning: PlannerArguments | None = None,
    machine: MachineArguments | None = None,
    hardware: StepArguments | None = None,
    moving: MovingArguments | None = None,
    engine: EngineArguments | None = None,
    serving: ModelArguments | None = None,
    reading: TraceArguments | None = None,
    page: PageArguments | None = None,
    json: Json = False,
) -> int:
    r"""Say whether balancing would make steps shorter, and how sure that is.

    Plans are made on the earlier steps, with several numbers of redundant slots and several
    dispatchers, and timed on the later steps. With --hardware a whole step is timed: experts,
    exchanges and attention. With --rank-cost only the computation of experts is timed, plus
    --other-seconds. Without both, all published constants for this number of ranks are tried.
    --rank-cost and --dispatch take several names, as in even,minmax. More: equipoise explain
    forecast.

    For example:

        equipoise forecast sample --ranks 8 --planner greedy
        equipoise forecast sample --ranks 8 --planner greedy --hardware h100 \
            --phase decode
        equipoise forecast RECORDING --ranks 32 --hardware h100 --model deepseek-v3 \
            --for sglang --online

    Parameters
    ----------
    ranks
        Number of expert-parallel ranks.
    prior
        Routing that is assumed instead of a recording, by family of models: glm-5.2,
        deepseek-v2-lite, gpt-oss-20b, or a file. It needs --batch-tokens, and nothing is
        recommended on it.
    redundant
        Numbers of redundant slots of a layer to try, as in 0,32,64. If not given: the fewest, and
        one and two more on each rank.
    hold_out
        Share of the steps to time, the latest of each domain.
    cost_error
        Relative error of each constant of --rank-cost, 0.15 if not given (equipoise explain costs).
        The profiles of --hardware say their own errors.
    other_seconds
        Seconds of a step in addition to what is timed, such as 10ms. With --rank-cost these are
        attention, communication and all other work.
    batch_tokens
        Tokens of a mean step, all ranks together, in place of --step-assignments: the recorded
        steps are drawn again in this size.
    least_gain
        Share of a step's time that a change must save, and that each further slot on every rank
        must save.
    expert_bytes
        Bytes of one expert in one layer, scales included, as in 44M: adds the memory that the slots
        take on a rank.
    for_
        Engine that would load the map, as for equipoise plan. Only what it can run is recommended,
        with the flags to start it.
    """
    planning, machine = planning or PlannerArguments(), machine or MachineArguments()
    serving, engine = serving or ModelArguments(), engine or EngineArguments()
    moving, hardware = moving or MovingArguments(), hardware or StepArguments()
    reading, page = reading or TraceArguments(), page or PageArguments()
    page.check(trace, reading.run_map, moving.from_map)
    expert_bytes = serving.need_expert_bytes(expert_bytes)
    prices = moving.moving(expert_bytes)
    online, assumed = moving.prices(expert_bytes)
    check_source(trace, prior, reading)
    if prior is not None and batch_tokens is None:
        raise EquipoiseError("--prior needs --batch-tokens, the size of a step.")
    rule = None if for_ is None else rule_of(for_)
    if for_ is None and given(engine):
        unused = ", ".join(sorted(map(option_name, given(engine))))
        raise EquipoiseError(f"{unused}: only with --for, the engine.")
    if batch_tokens is not None and planning.step_assignments is not None:
        raise EquipoiseError(
            "--batch-tokens and --step-assignments both size the steps; give one of the two."
        )
    config = serving.config
    dispatch = names(planning.dispatch) if planning.dispatch else dispatchers_to_try(rule)
    if hardware.hardware is not None and cost_error is not None:
        raise EquipoiseError("--cost-error: not with --hardware, whose parts say their own errors.")
    planning = replace(hardware.before_reading(planning), dispatch=None)
    named: Sequence[str] = []
    if hardware.hardware is None:
        named = names(planning.rank_cost) if planning.rank_cost else costs_for(ranks)
    for variant in [replace(planning, rank_cost=name) for name in named] or [planning]:
        variant.check(machine)
    deployed = Deployment.read(
        trace or prior,
        lambda: read_source(trace, prior, reading, ranks=ranks, step_tokens=batch_tokens),
        ranks,
        machine,
        hardware,
        serving,
    )
    recording, topology, whole = deployed.recording, deployed.topology, deployed.machine
    error = COST_ERROR if cost_error is None else cost_error
    models: list[ComputeModel] = [cost_model(name, error) for name in named]
    models += [] if whole is None else [whole]
    step_assignments = planning.step_assignments
    if batch_tokens is not None and prior is None:
        step_assignments = assignments_of(batch_tokens, recording, config)
    current = moving.read(recording, ranks)
    slot_bytes = None if expert_bytes is None else expert_bytes * recording.num_layers
    if config is not None and config.moe_layer_ids is not None and expert_bytes is not None:
        slot_bytes = expert_bytes * len(config.moe_layer_ids)
    answers = []
    for model in models:
        told = replace(
            planning,
            rank_cost=None,
            timed=model.planning_cost,
            step_assignments=step_assignments,
        )
        with progress_bar(f"forecast, {model.name}") as progress:
            plans = PartsOf(progress)

            def planner(
                name: str, told: PlannerArguments = told, plans: PartsOf = plans
            ) -> Planner:
                told = replace(told, dispatch=name)
                return told.configured(told.judge(topology, recording.top_k), plans)

            result = foresee(
                recording,
                topology,
                model,
                redundant=None if redundant is None else whole_numbers("--redundant", redundant),
                dispatch=dispatch,
                engine_dispatch=rule,
                planner=planner,
                hold_out=hold_out,
                step_assignments=step_assignments,
                other_seconds=other_seconds,
                least_gain=least_gain,
                current=current,
                moving=prices,
                online=online,
                slot_bytes=slot_bytes,
                kv_bytes_per_token=None if config is None else config.kv_bytes_per_token,
                progress=plans.begin,
            )
        flags = _flags(result, for_, engine.options(config))
        answers.append(
            Advice(
                forecast=result,
                launch=flags,
                facts={} if whole is None else whole.facts,
                prices=assumed,
            )
        )
    foreseen = [answer.forecast for answer in answers]
    page.write(lambda: forecast_story(recording, foreseen, hold_out, origin(recording)))
    if json:
        print_json([forecast_document(answer) for answer in answers])
    else:
        print_forecast(stdout(), recording, answers)
    return 0


def _flags(result: Forecast, target: str | None, options: LaunchOptions) -> Launch | None:
    """How to start the engine with what is recommended; ``None`` if nothing is."""
    if target is None or result.verdict.kind != "recommend":
        return None
    return launch(result.best.placement, target, placeholder_name(target), options)

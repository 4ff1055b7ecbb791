"""``equipoise simulate``: what users of a server would see, with balancing and without."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise import __version__
from equipoise.cli.options.deployment import Deployment
from equipoise.cli.options.groups import HARDWARE, METRICS, VERDICT
from equipoise.cli.options.hardware import HardwareArguments
from equipoise.cli.options.limits import Size
from equipoise.cli.options.lists import names, positive_numbers, whole_numbers
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.model import ModelArguments
from equipoise.cli.options.names import option_name
from equipoise.cli.options.output import Json, check_output
from equipoise.cli.options.page import PageArguments, origin
from equipoise.cli.options.planner import PlannerArguments, silent
from equipoise.cli.options.recording import Recording, TraceArguments
from equipoise.cli.options.requests import RequestArguments
from equipoise.cli.options.serving import ServingArguments
from equipoise.cli.options.source import check_source, read_source
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.progress import PartsOf, progress_bar, progress_parts
from equipoise.cli.views.simulate import (
    Simulation,
    comparison_document,
    print_comparison,
    print_sweep,
)
from equipoise.engines.files import write_text
from equipoise.engines.formats import MapContext, given
from equipoise.engines.map_io import read_map
from equipoise.engines.server_costs import cache_of, server_costs
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Planner
from equipoise.plan.problem import Problem
from equipoise.plan.study import hold_out_steps
from equipoise.report.page.of_simulate import simulation_story
from equipoise.simulate.contest import Contest, Stage, in_such_nodes
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.metrics import metrics_text
from equipoise.simulate.named_cost import cost_model
from equipoise.simulate.progress import Parts, Progress
from equipoise.simulate.requests import Requests
from equipoise.simulate.serving_costs import ServingCosts
from equipoise.simulate.side_by_side import SideBySide
from equipoise.simulate.sweep import fingerprint
from equipoise.simulate.sweep import sweep as run_all
from equipoise.simulate.trial import Plans, judge_of
from equipoise.topology import Topology
from equipoise.trace import Trace

_HELD_OUT = 0.2


def simulate(
    trace: Recording | None = None,
    /,
    *,
    ranks: Annotated[int, Size],
    prior: str | None = None,
    rate: str | None = None,
    map: Path | None = None,
    redundant: str | None = None,
    sweep: Path | None = None,
    metrics: Annotated[Path | None, Parameter(group=METRICS)] = None,
    page: PageArguments | None = None,
    json: Json = False,
    requesting: RequestArguments | None = None,
    serving: ServingArguments | None = None,
    hardware: HardwareArguments | None = None,
    model: ModelArguments | None = None,
    other_seconds: Annotated[
        float, Parameter(validator=Number(gte=0, lte=1e4), group=HARDWARE)
    ] = 0.0,
    machine: MachineArguments | None = None,
    hold_out: Annotated[
        float | None, Parameter(validator=Number(gt=0, lt=1), group=VERDICT)
    ] = None,
    planning: PlannerArguments | None = None,
    reading: TraceArguments | None = None,
) -> int:
    r"""Show what users of a server would see, with balancing and without.

    Requests are served in simulation, by a plan or a map and without balancing. The results are the
    time to the first token (TTFT), the time for each later token (TPOT), throughput and goodput.

    For example:

        equipoise simulate sample --ranks 8 --rate 20 --duration 20 \
            --rank-cost h100-deepep-ep8 --planner greedy
        equipoise simulate RECORDING --ranks 32 --redundant 32 --rate 40 \
            --hardware h100 --model deepseek-v3
        equipoise simulate RECORDING --ranks 32 --redundant 0,32 --rate 20,40 \
            --hardware h100 --model deepseek-v3 --sweep results.jsonl

    Parameters
    ----------
    ranks
        Number of expert-parallel ranks, each with sequences of its own.
    prior
        Routing that is assumed instead of a recording, by family of models: glm-5.2,
        deepseek-v2-lite, gpt-oss-20b, or a file.
    rate
        Requests that arrive each second. With --sweep several rates, as in 10,20,40.
    map
        Map to compare with no balancing, in place of a plan.
    redundant
        Redundant slots of a layer in the plan; none if not given. With --sweep several numbers, as
        in 0,32.
    sweep
        File of results: all combinations of --rate, --redundant and --dispatch are tried and kept
        there. A sweep that was stopped continues where it was.
    metrics
        File for the metrics that the map or plan would export at the end, under the names of a real
        server; all ranks together.
    other_seconds
        Seconds of a step in addition to what --hardware or --rank-cost counts.
    hold_out
        Share of the steps that batches are drawn from, the latest of each domain; the plan is made
        from the others. 0.2 if not given.
    """
    requesting, serving = requesting or RequestArguments(), serving or ServingArguments()
    planning, machine = planning or PlannerArguments(), machine or MachineArguments()
    model = model or ModelArguments()
    check_source(trace, prior, reading)
    reading = reading or TraceArguments()
    hardware = hardware or HardwareArguments()
    cases = _cases(rate, redundant, planning, is_sweep=sweep is not None)
    serving.check(hardware.serve)
    if map is not None:
        _refuse_planning(planning, redundant, hold_out)
    page = page or PageArguments()
    _check_outputs(page, metrics, sweep, trace, map, reading.run_map, requesting.requests)
    planning = replace(hardware.before_reading(planning), dispatch=None)
    planning.check(machine)
    if planning.cost is None:
        raise EquipoiseError(
            "The time of a step is not known; give --hardware, or --rank-cost "
            "(equipoise explain costs)."
        )
    requests = {case["rate"]: requesting.at(case["rate"]) for case in cases}
    some = requests[cases[0]["rate"]]
    deployed = Deployment.read(
        trace or prior,
        lambda: read_source(trace, prior, reading, ranks=ranks),
        ranks,
        machine,
        hardware,
        model,
    )
    recording, topology = deployed.recording, deployed.topology
    placement = None if map is None else _read(map, recording, topology)
    share = 0.0 if map is not None else hold_out or _HELD_OUT
    fit, unseen = hold_out_steps(recording, share)
    cache = cache_of(
        hardware.profile,
        model.config,
        slots_per_rank=-(-recording.num_experts // ranks),
        kv_tokens=serving.kv_tokens,
    )
    stage = Stage(
        server=serving.server(
            ranks,
            longest_prompt=max(int(x.prompt_tokens.max()) for x in requests.values()),
            cache=cache,
        ),
        trace=unseen or recording,
        topology=topology,
        top_k=_top_k(recording, model),
        costs=_costs(hardware, planning, recording, model, topology, serving, some, other_seconds),
        layers_factor=_layers_factor(recording, model),
        seed=requesting.seed,
    )
    cost = stage.costs.model.planning_cost

    def layout(number: int, name: str, progress: Progress | None) -> Layout:
        judge = judge_of(name, topology, cost, stage.top_k)
        if placement is not None:
            return Layout(placement=placement, dispatch=judge)

        def planner(told: str) -> Planner:
            asked = replace(planning, dispatch=told, rank_cost=None, timed=cost)
            return asked.configured(asked.judge(topology, stage.top_k), progress or silent)

        plans = Plans(fit, topology, planner)
        return Layout(placement=plans.plan(number, name), dispatch=judge)

    contest = Contest(stage, layout, requesting.slo)

    def run(case: Mapping[str, Any], begin: Parts) -> SideBySide:
        return contest.run(
            requests[case["rate"]],
            redundant=case["redundant"],
            dispatch=case["dispatch"],
            begin=begin,
        )

    about = Simulation(
        recording=recording,
        stage=stage,
        planned_steps=fit.num_steps if unseen else None,
        name="the plan" if map is None else f"{map}",
        slo=requesting.slo,
        facts=stage.costs.facts,
        cache_note=cache.note,
    )
    if sweep is None:
        with progress_parts("simulating") as begin:
            result = run(cases[0], begin)
        if metrics is not None:
            write_text(metrics, metrics_text(result.after, _served(about, model, cases[0])))
        page.write(
            lambda: simulation_story(
                stage.decoded,
                result,
                about.name,
                origin(recording, {"map": placement}),
                num_ranks=ranks,
                notes=[about.cache_note] if about.cache_note else [],
            )
        )
        if json:
            print_json(comparison_document(about, result))
        else:
            print_comparison(stdout(), about, result)
        return 0
    settings = [asdict(x) for x in (requesting, serving, planning, machine, model, hardware)]
    arrays = [recording.counts] if placement is None else [recording.counts, placement.slots]
    common = fingerprint([__version__, ranks, other_seconds, share, settings], arrays)
    with progress_bar("simulating") as bar, ThreadPoolExecutor(1) as executor:
        parts = PartsOf(bar)
        parts.begin(0, len(cases))

        def say(name: str) -> None:
            parts(0, 1, name)

        rows = run_all(
            [case | {"settings": common} for case in cases],
            lambda case: dict(case) | comparison_document(about, run(case, say)),
            executor=executor,
            path=sweep,
            progress=parts.begin,
        )
    if json:
        print_json(rows)
    else:
        print_sweep(stdout(), about, rows)
    return 0


def _check_outputs(
    page: PageArguments, metrics: Path | None, sweep: Path | None, *inputs: Path | None
) -> None:
    """Refuse, before any long work, files that cannot be written, or are of a single case."""
    if sweep is not None and (metrics, page) != (None, PageArguments()):
        raise EquipoiseError(
            "--metrics, --html and --figure are of one simulation; leave them, or --sweep, out."
        )
    if metrics is not None:
        check_output(metrics, *inputs)
    page.check(*inputs, other=metrics)
    if sweep is not None:
        check_output(sweep, *inputs)


def _served(about: Simulation, model: ModelArguments, case: Mapping[str, Any]) -> dict[str, str]:
    """What was simulated, for the metric that says what serves."""
    return {
        "version": __version__,
        "model": str(model.model or about.recording.provenance.source),
        "dispatch": case["dispatch"],
        "planner": about.name,
    }


def _costs(
    hardware: HardwareArguments,
    planning: PlannerArguments,
    recording: Trace,
    model: ModelArguments,
    topology: Topology,
    serving: ServingArguments,
    requests: Requests,
    other_seconds: float,
) -> ServingCosts:
    """What steps take, by the hardware or by the published constants."""
    if hardware.profile is None:
        assert planning.rank_cost is not None  # else it was refused
        return ServingCosts.of_ranks(cost_model(planning.rank_cost, error=0), other_seconds)
    return server_costs(
        hardware.profile,
        recording,
        model.config,
        topology,
        in_such_nodes(topology, serving.prefill_ranks or topology.num_ranks),
        hardware.serving,
        requests=requests,
        other_seconds=other_seconds,
    )


def _cases(
    rate: str | None, redundant: str | None, planning: PlannerArguments, *, is_sweep: bool
) -> list[dict[str, Any]]:
    """Every combination of the values given; one unless it is a sweep."""
    rates = [None] if rate is None else positive_numbers("--rate", rate)
    numbers = whole_numbers("--redundant", redundant or "0")
    dispatchers = names(planning.dispatch or planning.dispatch_name)
    cases = [
        {"rate": per_second, "redundant": number, "dispatch": name}
        for per_second, number, name in product(rates, numbers, dispatchers)
    ]
    if len(cases) > 1 and not is_sweep:
        raise EquipoiseError(
            f"--rate, --redundant and --dispatch make {len(cases)} cases; give one of each, or "
            "--sweep, the file that keeps their results."
        )
    return cases


def _refuse_planning(
    planning: PlannerArguments, redundant: str | None, hold_out: float | None
) -> None:
    """Refuse what says how to plan where a map is given."""
    unused = set(given(planning)) - {"dispatch", "rank_cost"}
    unused |= {"redundant"} if redundant is not None else set()
    unused |= {"hold_out"} if hold_out is not None else set()
    if unused:
        listed = ", ".join(sorted(option_name(name) for name in unused))
        raise EquipoiseError(f"{listed}: only for a plan; leave --map out, or these.")


def _read(path: Path, recording: Trace, topology: Topology) -> Placement:
    """The map, of the recorded model on these ranks."""
    context = MapContext(
        num_experts=recording.num_experts,
        num_ranks=topology.num_ranks,
        layer_ids=recording.layer_ids,
    )
    placement = read_map(path, context)
    other = Problem(recording, topology, placement.num_slots).difference(placement)
    if other is not None:
        raise EquipoiseError(
            f"{path} has other {other} than the recording and --ranks say; give the map of the "
            "recorded model on these ranks."
        )
    return placement


def _layers_factor(recording: Trace, model: ModelArguments) -> float:
    """MoE layers of the model over those recorded, which may be some of them."""
    known = None if model.config is None else model.config.moe_layer_ids
    return 1.0 if known is None else max(len(known) / recording.num_layers, 1.0)


def _top_k(recording: Trace, model: ModelArguments) -> int:
    known = recording.top_k or (model.config.top_k if model.config is not None else None)
    if known is None:
        raise EquipoiseError(
            "The recording does not say how many experts a token chooses; give --model."
        )
    return known

"""``equipoise tune``: which settings to balance with, replayed on steps that no plan has seen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from equipoise.cli.options.engine import EngineArguments
from equipoise.cli.options.hardware import StepArguments
from equipoise.cli.options.limits import Amount, Size
from equipoise.cli.options.lists import names, positive_numbers, whole_numbers
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.model import ModelArguments
from equipoise.cli.options.moving import replay_prices
from equipoise.cli.options.names import option_name
from equipoise.cli.options.output import Json, check_output
from equipoise.cli.options.recording import TraceArguments
from equipoise.cli.options.source import check_source
from equipoise.cli.options.units import ByteCount, Seconds
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.progress import progress_bar
from equipoise.cli.views.tune import Tuned, print_tuned, tuned_document
from equipoise.cost import costs_for
from equipoise.engines.formats import LaunchOptions, given
from equipoise.engines.launch_flags import launch
from equipoise.engines.registry import launcher_for, rule_of
from equipoise.errors import EquipoiseError
from equipoise.plan.study import hold_out_steps
from equipoise.simulate.batches import virtual_steps
from equipoise.simulate.named_cost import cost_model
from equipoise.simulate.online import Conditions
from equipoise.simulate.prior import assumed_trace
from equipoise.simulate.profiles import prior as read_prior
from equipoise.simulate.tune import ENGINE, NONE, Setting, Study, cases, first_map
from equipoise.simulate.tune import tune as find
from equipoise.trace import Trace

_MAP = "MAP"
_STEPS = 512

_ESSENTIAL = Group("Essential", sort_key=1)
_TRIED = Group("Settings to try", sort_key=2)
_MOVING = Group("What moving costs", sort_key=3)
_WORK = Group("The work", sort_key=4)
_HARDWARE = Group("Whole steps, by hardware", sort_key=5)
_REST = Group("The machine, the model, the engine, the recording", sort_key=6)
_HALF = Annotated[float, Parameter(validator=Number(gt=0, lt=1))]


def tune(
    trace: Path | None = None,
    /,
    *,
    ranks: Annotated[int, Size, Parameter(group=_ESSENTIAL)],
    step_tokens: Annotated[int | None, Amount, Parameter(group=_ESSENTIAL)] = None,
    expert_bytes: Annotated[int | None, ByteCount, Parameter(group=_ESSENTIAL)] = None,
    for_: Annotated[str | None, Parameter(name="--for", group=_ESSENTIAL)] = None,
    prior: Annotated[str | None, Parameter(group=_ESSENTIAL)] = None,
    rank_cost: Annotated[str | None, Parameter(group=_ESSENTIAL)] = None,
    json: Annotated[Json, Parameter(group=_ESSENTIAL)] = False,
    redundant: Annotated[str | None, Parameter(group=_TRIED)] = None,
    dispatch: Annotated[str | None, Parameter(group=_TRIED)] = None,
    try_window: Annotated[str | None, Parameter(group=_TRIED)] = None,
    try_interval: Annotated[str | None, Parameter(group=_TRIED)] = None,
    try_excess: Annotated[str, Parameter(group=_TRIED)] = "0.05",
    kinds: Annotated[str, Parameter(group=_TRIED)] = "static,engine,online",
    interference: Annotated[
        float | None, Parameter(validator=Number(gte=0, lte=1), group=_MOVING)
    ] = None,
    stall_seconds: Annotated[float | None, Seconds, Parameter(group=_MOVING)] = None,
    plan_seconds: Annotated[float | None, Seconds, Parameter(group=_MOVING)] = None,
    other_seconds: Annotated[float, Seconds, Parameter(group=_MOVING)] = 0.0,
    steps: Annotated[int | None, Amount, Parameter(group=_WORK)] = None,
    hold_out: Annotated[_HALF, Parameter(group=_WORK)] = 0.5,
    proposals: Annotated[int, Amount, Parameter(group=_WORK)] = 1 << 14,
    results: Annotated[Path | None, Parameter(group=_WORK)] = None,
    jobs: Annotated[int, Size, Parameter(group=_WORK)] = 1,
    hardware: Annotated[StepArguments | None, Parameter(group=_HARDWARE)] = None,
    machine: Annotated[MachineArguments | None, Parameter(group=_REST)] = None,
    serving: Annotated[ModelArguments | None, Parameter(group=_REST)] = None,
    engine: Annotated[EngineArguments | None, Parameter(group=_REST)] = None,
    reading: Annotated[TraceArguments | None, Parameter(group=_REST)] = None,
) -> int:
    """Find the settings to balance with: redundancy, split, window, interval, alarm.

    Plans a first map on the earlier steps and replays the later ones with every setting: nothing,
    that map kept, the engine's way of planning again, our controller. Planning takes time and moves
    are charged. Prints the settings that no other beats in step time, memory and moves at once, and
    one sentence: what to use, or to leave it off. equipoise explain tune.

    Parameters
    ----------
    trace
        A recording: file or directory of any known format; or give --prior.
    ranks
        Expert-parallel ranks.
    step_tokens
        Tokens of a step, all ranks together: steps of that size are drawn from the recording. Its
        rows are the steps if not given.
    expert_bytes
        Bytes of one expert in one layer, scales included; --model says it as well.
    for_
        The engine, by the format of its map as for equipoise plan: its split is tried, and the
        flags that go with the answer are printed.
    prior
        What a family of models is assumed to route, in place of a recording: glm-5.2,
        deepseek-v2-lite, gpt-oss-20b, or a file.
    rank_cost
        What ranks take, by published constants of this name, or by a file that equipoise calibrate
        wrote from timed runs; the first published ones for this number of ranks if neither this nor
        --hardware is given. All names in equipoise explain costs.
    redundant
        Redundant slots of a layer, as in 0,32; the fewest, one and two a rank more if not given.
    dispatch
        Dispatchers, as in even,minmax; those if not given. An engine has its own.
    try_window
        Steps looked at, as in 100,400; an eighth and a thirty-second of those replayed if not
        given.
    try_interval
        Steps from one look to the next; the same if not given.
    try_excess
        Imbalance above the noise floor that raises our controller's alarm, as in 0.02,0.1.
    kinds
        What to try: static, engine and online.
    interference
        Serving seconds lost for each second of transfers; 1, that serving waits for them, is
        assumed if not given.
    stall_seconds
        Seconds for which serving stands still at each change of the map; 0 is assumed if not given.
    plan_seconds
        Seconds a plan of our controller takes; 1 is assumed if not given. The engine's takes none.
    other_seconds
        What a step takes besides what --hardware, or --rank-cost, counts.
    steps
        With --step-tokens: steps to replay, 512 if not given.
    hold_out
        Share of the steps, the latest of each domain, to replay.
    proposals
        Proposals per layer of the searches.
    results
        File that results are kept in; settings found there are not replayed again.
    jobs
        Processes that replay at the same time.
    """
    serving, engine = serving or ModelArguments(), engine or EngineArguments()
    size = serving.need_expert_bytes(expert_bytes)
    if size is None:
        raise EquipoiseError(
            "Moves are charged, and nothing says what an expert weighs; give --expert-bytes or "
            "--model."
        )
    if for_ is None and given(engine):
        unused = ", ".join(sorted(map(option_name, given(engine))))
        raise EquipoiseError(f"{unused}: only with --for, the engine.")
    if results is not None:
        check_output(results, trace)
    hardware = hardware or StepArguments()
    hardware.check(rank_cost)
    named = None if hardware.profile else cost_model(rank_cost or costs_for(ranks)[0])
    topology = hardware.topology(machine or MachineArguments(), ranks)
    prices = replay_prices(
        interference=interference, stall_seconds=stall_seconds, plan_seconds=plan_seconds
    )
    fit, held = _parts(trace, prior, reading, ranks, step_tokens, steps, hold_out)
    serving.check_fits(f"{trace or prior}", held.num_experts, held.layer_ids)
    whole = hardware.machine(fit, serving.config, topology)
    model = whole or named
    assert model is not None  # one of the two
    study = Study(
        fit=fit,
        held=held,
        conditions=Conditions(
            topology=topology,
            model=model,
            expert_bytes=size,
            interference=prices.interference,
            stall_seconds=prices.stall_seconds,
            other_seconds=other_seconds,
        ),
        proposals=proposals,
        plan_seconds=prices.plan_seconds,
    )
    chosen = cases(
        study,
        dispatch=_splits(dispatch, for_),
        redundant=_whole("--redundant", redundant),
        window=_whole("--try-window", try_window),
        interval=_whole("--try-interval", try_interval),
        excess=positive_numbers("--try-excess", try_excess),
        kinds=names(kinds),
    )
    with (
        _kept(results) as path,
        _executor(jobs) as executor,
        progress_bar("replaying settings") as progress,
    ):
        found = find(study, chosen, executor=executor, path=path, progress=progress)
    flags = None
    if for_ is not None and found.best.kind != NONE:
        placement = first_map(study, found.best.redundant, found.best.dispatch)
        flags = launch(placement, for_, _MAP, _options(found.best, for_, engine, serving))
    answer = Tuned(
        study=study,
        tuning=found,
        launch=flags,
        facts={} if whole is None else {**whole.facts, **hardware.facts},
        prices=prices.assumed,
    )
    if json:
        print_json(tuned_document(answer))
    else:
        print_tuned(stdout(), answer)
    return 0


def _parts(
    path: Path | None,
    prior: str | None,
    reading: TraceArguments | None,
    ranks: int,
    step_tokens: int | None,
    steps: int | None,
    hold_out: float,
) -> tuple[Trace, Trace]:
    """The steps to plan on, and those to replay."""
    check_source(path, prior, reading)
    if step_tokens is None and (steps is not None or prior is not None):
        what = "--steps" if steps is not None else "--prior"
        raise EquipoiseError(f"{what} needs --step-tokens, the size of a step.")
    num_steps = steps or _STEPS
    if prior is not None:
        assert step_tokens is not None  # checked
        whole = round(num_steps / hold_out)
        drawn = assumed_trace(read_prior(prior), step_tokens=step_tokens, num_steps=whole)
        return drawn.split(at=1 - num_steps / whole)
    assert path is not None
    recording = (reading or TraceArguments()).read(path, ranks=ranks)
    fit, held = hold_out_steps(recording, hold_out)
    assert held is not None  # a share above 0
    if step_tokens is None:
        return fit, held
    return fit, virtual_steps(held, step_tokens=step_tokens, num_steps=num_steps)


def _splits(given_names: str | None, target: str | None) -> list[str]:
    """The dispatchers to try: an engine has its own and no other."""
    rule = None if target is None else rule_of(target)
    chosen = [] if given_names is None else names(given_names)
    if rule is not None and chosen not in ([], [rule]):
        raise EquipoiseError(
            f"--dispatch is {given_names}, and {target} shares batches by {rule}; leave one of the "
            "two options out."
        )
    return chosen or ([rule] if rule is not None else ["even", "minmax"])


def _whole(option: str, text: str | None) -> list[int] | None:
    return None if text is None else whole_numbers(option, text)


def _options(
    best: Setting, target: str, engine: EngineArguments, serving: ModelArguments
) -> LaunchOptions:
    """What decides the flags: the window and the interval too, where the engine plans by them."""
    options = engine.options(serving.config)
    launcher = launcher_for(target)
    if best.kind != ENGINE or launcher is None or "window_size" not in launcher.options:
        return options
    return replace(
        options,
        window_size=options.window_size or best.window,
        step_interval=options.step_interval or best.interval,
        use_async=False if "use_async" in launcher.options else None,  # as it was replayed
    )


@contextmanager
def _kept(path: Path | None) -> Iterator[Path]:
    """Where results are kept: the file that was asked for, or one that goes away."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "results.jsonl"


def _executor(jobs: int) -> Executor:
    if jobs == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))

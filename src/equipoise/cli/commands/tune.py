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

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.deployment import Deployment
from equipoise.cli.options.engine import EngineArguments
from equipoise.cli.options.groups import EFFORT, HARDWARE, MOVING, TRIED
from equipoise.cli.options.hardware import StepArguments
from equipoise.cli.options.limits import Amount, Size
from equipoise.cli.options.lists import names, positive_numbers, whole_numbers
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.model import ModelArguments
from equipoise.cli.options.moving import replay_prices
from equipoise.cli.options.names import option_name
from equipoise.cli.options.output import For, Json, check_output
from equipoise.cli.options.page import PageArguments, origin
from equipoise.cli.options.recording import Recording, TraceArguments
from equipoise.cli.options.source import check_source, read_source
from equipoise.cli.options.units import ByteCount, Seconds
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.progress import progress_bar
from equipoise.cli.views.tune import Tuned, print_tuned, tuned_document
from equipoise.cost import costs_for
from equipoise.engines.formats import LaunchOptions, given
from equipoise.engines.launch_flags import launch
from equipoise.engines.map_io import placeholder_name
from equipoise.engines.registry import launcher_for, rule_of
from equipoise.errors import EquipoiseError
from equipoise.plan.study import hold_out_steps
from equipoise.report.page.of_tune import tuning_story
from equipoise.simulate.batches import virtual_steps
from equipoise.simulate.named_cost import cost_model
from equipoise.simulate.online import Conditions
from equipoise.simulate.tune import ENGINE, NONE, Setting, Study, cases, first_map
from equipoise.simulate.tune import tune as find

_STEPS = 512

_HALF = Annotated[float, Parameter(validator=Number(gt=0, lt=1))]


def tune(
    trace: Recording | None = None,
    /,
    *,
    ranks: Annotated[int, Size],
    step_tokens: Annotated[int | None, Amount] = None,
    expert_bytes: Annotated[int | None, ByteCount] = None,
    for_: Annotated[str | None, For] = None,
    prior: str | None = None,
    rank_cost: Annotated[str | None, Parameter(group=HARDWARE)] = None,
    json: Json = False,
    redundant: Annotated[str | None, Parameter(group=TRIED)] = None,
    dispatch: Annotated[str | None, Parameter(group=TRIED)] = None,
    try_window: Annotated[str | None, Parameter(group=TRIED)] = None,
    try_interval: Annotated[str | None, Parameter(group=TRIED)] = None,
    try_excess: Annotated[str, Parameter(group=TRIED)] = "0.05",
    kinds: Annotated[str, Parameter(group=TRIED)] = "static,engine,online",
    interference: Annotated[
        float | None, Parameter(validator=Number(gte=0, lte=1), group=MOVING)
    ] = None,
    stall_seconds: Annotated[float | None, Seconds, Parameter(group=MOVING)] = None,
    plan_seconds: Annotated[float | None, Seconds, Parameter(group=MOVING)] = None,
    other_seconds: Annotated[float, Seconds, Parameter(group=MOVING)] = 0.0,
    steps: Annotated[int | None, Amount, Parameter(group=EFFORT)] = None,
    hold_out: Annotated[_HALF, Parameter(group=EFFORT)] = 0.5,
    proposals: Annotated[int, Amount, Parameter(group=EFFORT)] = 1 << 14,
    results: Annotated[Path | None, Parameter(group=EFFORT)] = None,
    jobs: Annotated[int, Size, Parameter(group=EFFORT)] = 1,
    hardware: StepArguments | None = None,
    machine: MachineArguments | None = None,
    serving: ModelArguments | None = None,
    engine: EngineArguments | None = None,
    reading: TraceArguments | None = None,
    page: PageArguments | None = None,
) -> int:
    r"""Find the settings to balance with, by replaying steps that no plan has seen.

    The settings are redundancy, split, window, interval and alarm. A first map is planned on the
    earlier steps; the later ones are replayed without balancing, with that map kept, with the
    engine's way of planning again, and with our controller. Planning takes time, and moves are
    charged. It prints the settings that no other setting beats in step time, memory and moves
    together, and one sentence: which setting to use, or that balancing should stay off. More:
    equipoise explain tune.

    For example:

        equipoise tune sample --ranks 8 --expert-bytes 1M --kinds static \
            --proposals 1000 --window 8
        equipoise tune RECORDING --ranks 32 --model deepseek-v3 --step-tokens 4096 \
            --results results.jsonl
        equipoise tune --prior glm-5.2 --ranks 32 --step-tokens 8192 \
            --expert-bytes 44M

    Parameters
    ----------
    ranks
        Number of expert-parallel ranks.
    step_tokens
        Tokens of a step, all ranks together: steps of this size are drawn from the recording. If
        not given: the rows of the recording are the steps.
    expert_bytes
        Bytes of one expert in one layer, scales included, as in 44M. --model gives it too; one of
        the two is needed.
    for_
        Engine that would load the map, as for equipoise plan. Its own split is tried, and the flags
        that go with the answer are printed.
    prior
        Routing that is assumed instead of a recording, by family of models: glm-5.2,
        deepseek-v2-lite, gpt-oss-20b, or a file.
    rank_cost
        Time that ranks take: the name of published constants (equipoise explain costs lists them),
        or a file that equipoise calibrate wrote from timed runs. If neither this nor --hardware is
        given: the first published constants for this number of ranks.
    redundant
        Numbers of redundant slots of a layer, as in 0,32. If not given: the fewest, and one and two
        more on each rank. All layers have the same number, because no engine supports one for each
        layer.
    dispatch
        Dispatchers to try, such as even,minmax, which is the default. An engine (--for) has its
        own.
    try_window
        Numbers of steps that a plan looks at, as in 100,400. If not given: an eighth and a
        thirty-second of the steps replayed.
    try_interval
        Numbers of steps from one look to the next. If not given: those of --try-window.
    try_excess
        Imbalances above the noise floor that raise the alarm of our controller, as in 0.02,0.1.
    kinds
        Kinds of balancing to try: static, engine and online.
    interference
        Seconds of serving lost for each second of transfers. If not given, 1 is assumed: serving
        waits for transfers.
    stall_seconds
        Seconds for which serving stops at each change of the map; 0 is assumed if not given.
    plan_seconds
        Seconds that a plan of our controller takes; 1 is assumed if not given. That of the engine
        takes none.
    other_seconds
        Seconds of a step in addition to what --hardware or --rank-cost counts.
    steps
        Number of steps to replay (with --step-tokens); 512 if not given.
    hold_out
        Share of the steps to replay, the latest of each domain.
    proposals
        Number of proposals per layer of the searches.
    results
        File that keeps the results; settings found there are not replayed again.
    jobs
        Number of processes that replay at the same time.
    """
    serving, engine = serving or ModelArguments(), engine or EngineArguments()
    size = serving.need_expert_bytes(expert_bytes)
    if size is None:
        raise EquipoiseError(
            "Moves are charged, and the size of an expert is not known; give --expert-bytes or "
            "--model."
        )
    if for_ is None and given(engine):
        unused = ", ".join(sorted(map(option_name, given(engine))))
        raise EquipoiseError(f"{unused}: only with --for, the engine.")
    page = page or PageArguments()
    if results is not None:
        check_output(results, trace)
    page.check(trace, other=results)
    hardware = hardware or StepArguments()
    hardware.check(rank_cost)
    named = None if hardware.profile else cost_model(rank_cost or costs_for(ranks)[0])
    prices = replay_prices(
        interference=interference, stall_seconds=stall_seconds, plan_seconds=plan_seconds
    )
    check_source(trace, prior, reading)
    _check_sizes(prior, step_tokens, steps)
    num_steps = steps or _STEPS
    assumed = round(num_steps / hold_out)
    deployed = Deployment.read(
        trace or prior,
        lambda: read_source(
            trace, prior, reading, ranks=ranks, step_tokens=step_tokens, num_steps=assumed
        ),
        ranks,
        machine or MachineArguments(),
        hardware,
        serving,
    )
    share = hold_out if prior is None else num_steps / assumed
    fit, held = hold_out_steps(deployed.recording, share)
    assert held is not None  # a share above 0
    if prior is None and step_tokens is not None:
        held = virtual_steps(held, step_tokens=step_tokens, num_steps=num_steps)
    model = deployed.machine or named
    assert model is not None  # one of the two
    study = Study(
        fit=fit,
        held=held,
        conditions=Conditions(
            topology=deployed.topology,
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
        flags = launch(
            placement, for_, placeholder_name(for_), _options(found.best, for_, engine, serving)
        )
    answer = Tuned(
        study=study,
        tuning=found,
        launch=flags,
        facts=deployed.facts,
        prices=prices.assumed,
    )
    page.write(lambda: tuning_story(study, found, origin(held), text=answer.text))
    if json:
        print_json(tuned_document(answer))
    else:
        print_tuned(stdout(), answer)
    return 0


def _check_sizes(prior: str | None, step_tokens: int | None, steps: int | None) -> None:
    """Refuse what needs the size of a step without it."""
    if step_tokens is None and (steps is not None or prior is not None):
        what = "--steps" if steps is not None else "--prior"
        raise EquipoiseError(f"{what} needs --step-tokens, the size of a step.")


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

"""``equipoise budget``: how many redundant slots pay, and in which layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from equipoise.cli.options.deployment import Deployment
from equipoise.cli.options.groups import HARDWARE, VERDICT
from equipoise.cli.options.hardware import StepArguments
from equipoise.cli.options.limits import Redundant, Size
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.model import ModelArguments
from equipoise.cli.options.output import Json
from equipoise.cli.options.page import PageArguments, origin
from equipoise.cli.options.planner import PlannersArguments
from equipoise.cli.options.recording import Recording, TraceArguments
from equipoise.cli.options.units import ByteCount
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.hardware import print_facts
from equipoise.cli.views.model import model_document, slot_text
from equipoise.cli.views.notes import print_recording
from equipoise.cli.views.progress import PartsOf, progress_bar
from equipoise.dispatch import Dispatcher
from equipoise.engines.transformers.config import ModelConfig
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.plan.weigh.budget import LEAST_GAIN, Budget, Gain, Point
from equipoise.plan.weigh.budget import budget as weigh
from equipoise.report.page.of_budget import budget_story, planned
from equipoise.report.page.story import Story
from equipoise.report.terminal import WholeTable
from equipoise.simulate.expert_time import EXPERTS_ALONE
from equipoise.simulate.whole import layer_seconds
from equipoise.trace import Trace


def budget(
    trace: Recording,
    /,
    *,
    ranks: Annotated[int, Size],
    up_to: Annotated[int | None, Redundant] = None,
    expert_bytes: Annotated[int | None, ByteCount, Parameter(group=HARDWARE)] = None,
    kv_bytes_per_token: Annotated[int | None, ByteCount, Parameter(group=HARDWARE)] = None,
    hold_out: Annotated[float, Parameter(validator=Number(gt=0, lt=1), group=VERDICT)] = 0.2,
    least_gain: Annotated[
        float, Parameter(validator=Number(gte=0, lt=1), group=VERDICT)
    ] = LEAST_GAIN,
    planning: PlannersArguments | None = None,
    machine: MachineArguments | None = None,
    serving: ModelArguments | None = None,
    hardware: StepArguments | None = None,
    reading: TraceArguments | None = None,
    page: PageArguments | None = None,
    json: Json = False,
) -> int:
    r"""Say how many redundant slots pay, and in which layers.

    Plans are made with more and more redundant slots and scored on unseen steps, up to the number
    where the next slot does not pay.

    For example:

        equipoise budget sample --ranks 8 --planner greedy
        equipoise budget sample --ranks 8 --planner greedy --also trtllm --html b.html
        equipoise budget sample --ranks 8 --planner greedy --up-to 16 \
            --phase decode --hardware h100
        equipoise budget RECORDING --ranks 32 --model deepseek-v3 --hardware h100

    With --hardware whole steps are timed: experts, exchanges and attention. With --rank-cost only
    the experts' computation is timed. Without both, the balance of loads decides.

    Parameters
    ----------
    ranks
        Number of expert-parallel ranks.
    up_to
        Largest number of redundant slots of a layer to try, all ranks together; four for each rank
        if not given.
    expert_bytes
        Bytes of one expert in one layer, scales included, as in 44M: adds the memory that the slots
        take on a rank.
    kv_bytes_per_token
        Bytes of KV cache that a token takes on a rank, all layers together: adds the number of
        tokens that would fit in the same memory. With --model it is needed only where a rank keeps
        a part of each token.
    hold_out
        Share of the steps to score on, the latest of each domain.
    least_gain
        Share of the time that each further slot on every rank must save to be worth its memory.
    """
    planning, machine = planning or PlannersArguments(), machine or MachineArguments()
    page = page or PageArguments()
    page.check(trace)
    serving, hardware = serving or ModelArguments(), hardware or StepArguments()
    expert_bytes = serving.need_expert_bytes(expert_bytes)
    planning = hardware.before_reading(planning)
    planning.check(machine)
    if planning.step_assignments is not None:
        raise EquipoiseError(
            "equipoise budget uses the recorded size of every step; leave --step-assignments out."
        )
    reading = reading or TraceArguments()
    deployed = Deployment.read(
        trace, lambda: reading.read(trace, ranks=ranks), ranks, machine, hardware, serving
    )
    recording, topology, times = deployed.recording, deployed.topology, deployed.machine
    if kv_bytes_per_token is None and serving.config is not None:
        kv_bytes_per_token = serving.config.kv_bytes_per_token or None
    planning = planning.by(times)
    fit, held = recording.split(at=1 - hold_out)
    judge = planning.judge(topology, recording.top_k)
    with progress_bar("planning") as progress:
        plans = PartsOf(progress)
        results = {
            entry.name: weigh(
                fit,
                held,
                topology,
                up_to=up_to,
                planner=planning.made(entry, judge, plans),
                dispatch=judge,
                whole=None if times is None else layer_seconds(times, topology, judge),
                expert_bytes=expert_bytes,
                kv_bytes_per_token=kv_bytes_per_token,
                least_gain=least_gain,
                progress=_part_of(plans, number, len(planning.entries)),
            )
            for number, entry in enumerate(planning.entries)
        }
    facts = {} if times is None else times.facts
    counts = EXPERTS_ALONE if times is None else times.counts
    page.write(lambda: _story(recording, held, results, judge, counts))
    if json:
        first, *others = (_document(result, counts) for result in results.values())
        about = {"model": model_document(serving.config), "hardware": facts}
        print_json(first | {"also": others} | about)
    else:
        print_recording(stdout(), recording)
        for number, result in enumerate(results.values()):
            if number:
                stdout().print()
            _print(stdout(), result, counts)
        print_facts(stdout(), facts)
        if serving.config is not None:
            stdout().print(slot_text(serving.config, expert_bytes))
            _print_missing_layers(recording, serving.config)
    return 0


def _part_of(plans: PartsOf, number: int, total: int) -> Callable[[int, int], None]:
    """Begin a plan as one of those of all planners."""
    return lambda done, size: plans.begin(number * size + done, total * size)


def _story(
    recording: Trace, held: Trace, results: Mapping[str, Budget], judge: Dispatcher, counts: str
) -> Story:
    """The page, with what makes it again."""
    facts = origin(recording, {**planned(results)})
    in_seconds = next(iter(results.values())).in_seconds
    return budget_story(recording, held, results, judge, facts, counts=counts if in_seconds else "")


def _document(result: Budget, counts: str) -> dict[str, object]:
    placement = result.placements[0]
    return {
        "planner": result.planner,
        "dispatch": result.dispatch,
        "ranks": placement.num_ranks,
        "experts": placement.num_experts,
        "layers": placement.layer_ids,
        "held_out_steps": len(result.mean),
        "least_gain": result.least_gain,
        "counts": counts,
        "decided": result.is_decided,
        "points": [
            {
                "redundant": point.redundant[0],
                "pays": point in result.front[1:],
                **_numbers(point, result.points[0]),
                "by_layer": {
                    "redundant": chosen.redundant,
                    **_numbers(chosen, result.points[0]),
                    "gain_over_equal_layers": chosen.gain_over(point),
                },
            }
            for point, chosen in zip(result.points, result.by_layer, strict=True)
        ],
        "layer_gain": result.layer_gain.tolist(),
        "advice": result.advice,
    }


def _numbers(point: Point, first: Point) -> dict[str, object]:
    return {
        "bytes_per_rank": point.bytes_per_rank,
        "kv_tokens": point.kv_tokens,
        "mean_imbalance": point.mean_imbalance,
        "relative_step_time": point.relative_step_time,
        "step_seconds": point.step_seconds,
        "expert_seconds": point.expert_seconds,
        "gain": point.gain_over(first),
    }


def _print(console: Console, result: Budget, counts: str) -> None:
    what = f"Seconds, {counts}, of" if result.in_seconds else "Max/mean rank load of"
    console.print(
        f"{result.planner}\n\n{what} {len(result.mean)} unseen steps, {result.dispatch} split; "
        "what the slots save, with its standard error: in total, by the last step alone, "
        "and if layers may have different numbers in the same memory.\n"
    )
    console.print(_table(result))
    console.print(f"\n{result.advice}")
    _print_by_layer(console, result)


def _print_missing_layers(recording: Trace, config: ModelConfig) -> None:
    """Say of how many of the model's layers the table is, where some are not recorded."""
    layers = config.moe_layer_ids
    if layers is not None and recording.num_layers < len(layers):
        stdout().print(
            f"The recording has {recording.num_layers} of these layers; the table counts only them."
        )


def _table(result: Budget) -> WholeTable:
    table = WholeTable(box=None)
    scores: tuple[str, ...] = ("mean", "time")
    if result.in_seconds:
        scores = ("experts ms",) if result.whole is None else ("step ms", "experts ms")
    for name in ("redundant", "GB", "KV tokens", *scores, "in all", "last step", "by layer"):
        table.add_column(name, justify="right", no_wrap=True)
    first = before = result.points[0]
    for point, chosen in zip(result.points, result.by_layer, strict=True):
        gains = (point.gain_over(first), point.gain_over(before), chosen.gain_over(point))
        table.add_row(
            str(point.redundant[0]),
            "" if point.bytes_per_rank is None else f"{point.bytes_per_rank / 1e9:.3f}",
            "" if point.kv_tokens is None else f"{point.kv_tokens:,}",
            *_scores(point, len(scores)),
            *("" if point is first else _short(gain) for gain in gains),
        )
        before = point
    return table


def _scores(point: Point, number: int) -> list[str]:
    if point.step_seconds is not None:
        seconds = (point.step_seconds, point.expert_seconds or 0.0)
        return [f"{1e3 * value:.3f}" for value in seconds[:number]]
    assert point.mean_imbalance is not None
    assert point.relative_step_time is not None
    return [f"{point.mean_imbalance:.3f}", f"{point.relative_step_time:.3f}"]


def _short(gain: Gain) -> str:
    return f"{100 * gain.share:z.1f}±{100 * gain.error:.1f} %"


def _print_by_layer(console: Console, result: Budget) -> None:
    """The choice by layer that gains most over equal layers, if any is worth it."""
    if result.best_by_layer is None:
        return
    equal, chosen, gain = result.best_by_layer
    console.print(
        f"At the memory of {equal.redundant[0]} redundant slots, layers that differ take {gain} "
        "more off:"
    )
    layers, redundant = np.array(result.placements[0].layer_ids), np.array(chosen.redundant)
    for number in np.unique(redundant):
        where = format_ids(layers[redundant == number].tolist())
        console.print(f"  {number} redundant slots: layers {where}")
    console.print("Advice only: the engines' maps have the same number of slots in every layer.")

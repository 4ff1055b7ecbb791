"""``equipoise generate_eplb_config``: TensorRT-LLM's script of that name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from equipoise.cli.options.limits import Iteration, Redundant, Size
from equipoise.cli.options.output import check_output
from equipoise.cli.options.planner import PlannerArguments
from equipoise.cli.options.trtllm import TrtllmArguments
from equipoise.cli.views.console import stdout
from equipoise.cli.views.plan import Outcome, print_map, print_plan
from equipoise.cli.views.progress import progress_bar
from equipoise.engines.map_io import check_map_path
from equipoise.engines.trtllm.scripts import num_rank_files, read_statistic
from equipoise.engines.trtllm.target import TrtllmTarget
from equipoise.engines.trtllm.traces import perhaps_slots
from equipoise.errors import EquipoiseError
from equipoise.plan.study import study
from equipoise.topology import Topology


def generate_eplb_config(
    *,
    expert_statistic_path: Annotated[Path | None, Parameter(name="--expert_statistic_path")] = None,
    output_path: Annotated[Path, Parameter(name="--output_path")],
    ep_size: Annotated[int | None, Size, Parameter(name="--ep_size")] = None,
    num_slots: Annotated[int | None, Size, Parameter(name="--num_slots")] = None,
    layer_updates_per_iter: Annotated[
        int, Redundant, Parameter(name="--layer_updates_per_iter")
    ] = 0,
    iter_start: Annotated[int | None, Iteration, Parameter(name="--iter_start")] = None,
    iter_stop: Annotated[int | None, Iteration, Parameter(name="--iter_stop")] = None,
    planner: Literal["robust", "trtllm"] = "robust",
    experts: Annotated[int | None, Size] = None,
    files: TrtllmArguments | None = None,
) -> int:
    r"""Write the load balancer's file from a recording.

    The flags are those of TensorRT-LLM's script; flags with dashes are ours. Like the script, it
    plans on all iterations and always writes. equipoise plan holds some iterations out to score the
    map on, and has more options.

    For example:

        equipoise generate_eplb_config --expert_statistic_path DUMP --num_slots 288 \
            --output_path moe_load_balancer.yaml
        equipoise generate_eplb_config --expert_statistic_path DUMP --num_slots 288 \
            --planner trtllm --output_path moe_load_balancer.yaml
        equipoise generate_eplb_config --ep_size 8 --num_slots 288 --experts 256 \
            --layer_updates_per_iter 2 --output_path moe_load_balancer.yaml

    Parameters
    ----------
    expert_statistic_path
        Folder of the recording: EXPERT_STATISTIC_PATH. Without it the file has no assignments, for
        online balancing.
    output_path
        File to write.
    ep_size
        Number of expert-parallel ranks. If not given: one for each file of the recording.
    num_slots
        Slots of a layer, all ranks together. If not given: one for each expert.
    layer_updates_per_iter
        Layers that the engine plans again in each iteration; 0: it keeps the map.
    iter_start
        First iteration; the first one recorded if not given.
    iter_stop
        Iteration after the last one; all recorded iterations if not given.
    planner
        Planner: robust, our own; or trtllm, which gives what the script gives, slot for slot.
    experts
        Number of experts of a layer, for a file without assignments.
    """
    files = files or TrtllmArguments()
    check_map_path(output_path, "trtllm")
    check_output(output_path, expert_statistic_path)
    files.check(output_path, expert_statistic_path)
    target = files.target(output_path, layer_updates_per_iter)
    if expert_statistic_path is None:
        unused = {"--iter_start": iter_start, "--iter_stop": iter_stop}
        unused |= {"--planner": planner != "robust", "--mtp-layers": files.mtp_layers}
        _refuse(unused, "only with --expert_statistic_path")
        _write_online(target, ep_size, num_slots, experts)
        return 0
    _refuse({"--experts": experts}, "only without --expert_statistic_path, which states them")
    with progress_bar(f"reading {expert_statistic_path.name}") as progress:
        recording = read_statistic(expert_statistic_path, iter_start, iter_stop, progress)
    recording = recording.with_notes(*perhaps_slots(recording.num_experts))
    planning = PlannerArguments(planner=planner)
    judge = planning.judge()
    with progress_bar("planning") as progress:
        result = study(
            recording,
            Topology(num_rank_files(expert_statistic_path) if ep_size is None else ep_size),
            num_slots=recording.num_experts if num_slots is None else num_slots,
            planner=planning.configured(judge, progress),
            dispatch=judge,
            hold_out=0,
            before_search=lambda problem: target.rehearse(problem, recording),
        )
    written = target.write(result.plan, recording)
    outcome = Outcome(
        study=result, model=None, expert_bytes=None, reach=None, written=written, withheld=False
    )
    print_plan(stdout(), recording, outcome)
    return 0


def _refuse(given: Mapping[str, object], why: str) -> None:
    """Raise ``EquipoiseError`` for options that were given and would be ignored."""
    names = ", ".join(name for name, value in given.items() if value)
    if names:
        raise EquipoiseError(f"{names}: {why}.")


def _write_online(
    target: TrtllmTarget, ep_size: int | None, num_slots: int | None, experts: int | None
) -> None:
    """Write a file of two numbers, checked against the deployment."""
    if ep_size is None or num_slots is None or experts is None:
        raise EquipoiseError(
            "Without --expert_statistic_path the file has no assignments; give --ep_size, "
            "--num_slots and --experts to check it against."
        )
    print_map(stdout(), target.write_online(experts, num_slots, ep_size))

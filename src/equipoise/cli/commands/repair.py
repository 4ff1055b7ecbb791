"""``equipoise repair``: a better placement, few moves away from the map in force."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from equipoise.cli.options.limits import Size
from equipoise.cli.options.recording import Recording
from equipoise.cli.options.repair import RepairArguments
from equipoise.cli.options.study import StudyArguments, rehearsal
from equipoise.cli.views.progress import progress_bar
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import detect_map, read_map
from equipoise.plan.study import study


def repair(
    map: Path,
    trace: Recording,
    /,
    *,
    ranks: Annotated[int | None, Size] = None,
    repairing: RepairArguments | None = None,
    told: StudyArguments | None = None,
) -> int:
    r"""Improve the map in force by few moves, score the change, write the new map.

    Experts stay in place where possible; only the moves that gain most are made. The new map is
    compared with the map in force. If it is not better by more than chance, no map is written and
    the exit status is 1. equipoise diff OLD NEW --trace decides whether the moves pay.

    For example:

        equipoise repair old.json sample --max-moves 20
        equipoise repair old.json sample --max-moves 20 -o new.json
        equipoise repair old.yaml RECORDING --ranks 32 --model deepseek-v3 \
            --max-seconds 0.5 --dispatch trtllm -o new.yaml

    Parameters
    ----------
    map
        Map in force.
    ranks
        Number of expert-parallel ranks, if the map does not state it.
    """
    told, repairing = told or StudyArguments(), repairing or RepairArguments()
    target = told.target(map, trace, usual=_format_to_keep(map, told.output))
    priced = told.serving.need_expert_bytes if repairing.is_priced else told.serving.expert_bytes
    expert_bytes = priced(repairing.expert_bytes)
    repairing = told.hardware.before_reading(repairing)
    repairing.check(expert_bytes)
    recording = told.read(trace, ranks)
    current = read_map(
        map,
        MapContext(
            num_ranks=ranks, num_experts=recording.num_experts, layer_ids=recording.layer_ids
        ),
    )
    topology = told.hardware.topology(told.machine, current.num_ranks)
    times = told.hardware.machine(recording, told.serving.config, topology)
    repairing = repairing.by(times)
    judge = repairing.judge(topology, recording.top_k)
    with progress_bar("planning"):
        result = study(
            recording,
            topology,
            num_slots=current.num_slots,
            planner=repairing.configured(current, judge, expert_bytes),
            dispatch=judge,
            hold_out=told.hold_out,
            current=current,
            step_assignments=repairing.step_assignments,
            before_search=rehearsal(target, recording),
        )
    return told.conclude(
        recording, result, target, current=current, expert_bytes=expert_bytes, times=times
    )


def _format_to_keep(map: Path, output: Path | None) -> str | None:
    """The format of the map in force, if the new file may have it too."""
    if output is None:
        return None
    known = detect_map(map)
    return known.name if output.suffix in known.suffixes else None

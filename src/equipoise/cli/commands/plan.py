"""``equipoise plan``: a placement, scored on steps it has not seen, and the map an engine loads."""

from __future__ import annotations

from typing import Annotated

from equipoise.cli.options.limits import Redundant, Size
from equipoise.cli.options.planner import AnyPlannerArguments
from equipoise.cli.options.recording import Recording
from equipoise.cli.options.study import StudyArguments, rehearsal
from equipoise.cli.views.progress import progress_bar
from equipoise.plan.study import study


def plan(
    trace: Recording,
    /,
    *,
    ranks: Annotated[int, Size],
    redundant: Annotated[int, Redundant] = 0,
    planning: AnyPlannerArguments | None = None,
    told: StudyArguments | None = None,
) -> int:
    r"""Choose copies and places, score them on unseen steps, write the engine's map.

    The plan is compared with no balancing. If it is not better by more than chance, no map is
    written and the exit status is 1. To change a map that is in force, see equipoise repair.

    For example:

        equipoise plan sample --ranks 8 --redundant 8
        equipoise plan sample --ranks 8 --redundant 8 -o map.yaml
        equipoise plan RECORDING --ranks 32 --redundant 32 --hardware h100 \
            --model deepseek-v3 --for sglang -o map.json

    Parameters
    ----------
    ranks
        Number of expert-parallel ranks.
    redundant
        Redundant slots of a layer, all ranks together. Experts and redundant slots together must
        divide by the ranks.
    """
    told, planning = told or StudyArguments(), planning or AnyPlannerArguments()
    target = told.target(trace)
    planning = told.hardware.before_reading(planning)
    planning.check(told.machine)
    topology = told.hardware.topology(told.machine, ranks)
    recording = told.read(trace, ranks)
    times = told.hardware.machine(recording, told.serving.config, topology)
    planning = planning.by(times)
    judge = planning.judge(topology, recording.top_k)
    with progress_bar("planning") as progress:
        result = study(
            recording,
            topology,
            num_slots=recording.num_experts + redundant,
            planner=lambda fit: planning.configured(judge, progress, fit),
            dispatch=judge,
            hold_out=told.hold_out,
            step_assignments=planning.step_assignments,
            before_search=rehearsal(target, recording),
        )
    return told.conclude(
        recording,
        result,
        target,
        expert_bytes=told.serving.expert_bytes(None),
        reach=result.reach if planning.looks_at_tokens else None,
        times=times,
    )

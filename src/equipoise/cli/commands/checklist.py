"""``equipoise checklist``: what to decide about a deployment, in order, with its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.limits import Size
from equipoise.cli.options.output import For, Json
from equipoise.cli.options.recording import Recording, TraceArguments
from equipoise.cli.views.checklist import checklist_document, print_checklist
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.notes import print_recording
from equipoise.cli.views.progress import progress_bar
from equipoise.engines.knobs import ENGINES, FRAMEWORKS, knobs
from equipoise.engines.registry import rule_of
from equipoise.engines.transformers.config import read_model_config
from equipoise.engines.transformers.expert_shape import expert_shape
from equipoise.engines.verdicts import quick_forecasts
from equipoise.simulate.checklist import checklist as go_through
from equipoise.simulate.layer_time import LayerTime
from equipoise.simulate.profiles import hardware as hardware_profile
from equipoise.simulate.profiles import link as link_profile


def checklist(
    trace: Recording,
    /,
    *,
    ranks: Annotated[int, Size],
    model: Path,
    hardware: str,
    link: str = "infiniband-400g",
    ranks_per_node: Annotated[int | None, Size] = None,
    step_tokens: Annotated[float | None, Parameter(validator=Number(gte=1, lte=1e9))] = None,
    for_: Annotated[str | None, For] = None,
    reading: TraceArguments | None = None,
    json: Json = False,
) -> int:
    r"""Go through the decisions about a deployment, each with its numbers.

    In order: wide expert parallelism or not, token budget, concurrency, chunked prefill, kernel
    mode, overlap of two micro-batches, buffers, and load balancing last. Each says what was found,
    what that means, whether to keep or change it, and which options of the engine change it. More:
    equipoise explain checklist.

    For example:

        equipoise checklist sample --ranks 8 --model sample --hardware h100
        equipoise checklist RECORDING --ranks 32 --model deepseek-v3 --hardware h100
        equipoise checklist RECORDING --ranks 32 --model deepseek-v3 --hardware h200 \
            --link aws-efa --for vllm

    Parameters
    ----------
    ranks
        Number of expert-parallel ranks.
    model
        Model that is served: its config.json, the folder of it, the name of a public model such as
        deepseek-v3, or sample, the model of the recording that ships.
    hardware
        GPU that serves: the name of a profile, such as h100, or the file of one.
    link
        Link between nodes: the name of a profile (infiniband-400g, infiniband-400g-proxy, aws-efa)
        or the file of one.
    ranks_per_node
        Ranks that share one fast interconnect. If not given: those that the profile of the GPU
        says.
    step_tokens
        Tokens of a mean step, all ranks together, where the rows of the recording are sums of
        several steps.
    for_
        Engine whose options are named: vllm, sglang or trtllm. If not given: all three.
    """
    engines = tuple(ENGINES) if for_ is None else (for_,)
    options = {engine: knobs(engine) for engine in engines}
    config, gpu = read_model_config(model), hardware_profile(hardware)
    layer = LayerTime(
        shape=expert_shape(config),
        hardware=gpu,
        num_ranks=ranks,
        ranks_per_node=ranks_per_node or int(gpu.ranks_per_node.value),
        link=link_profile(link),
        framework=FRAMEWORKS.get(engines[0], "sglang"),
    )
    recording = (reading or TraceArguments()).read(trace, ranks=ranks)
    config.check_fits(f"{trace}", recording.num_experts, recording.layer_ids)
    with progress_bar("forecasting") as progress:
        forecasts = quick_forecasts(
            recording,
            layer,
            config,
            rule=None if for_ is None else rule_of(for_),
            step_tokens=step_tokens,
            progress=progress,
        )
    result = go_through(
        recording,
        layer,
        forecasts,
        num_layers=len(config.moe_layer_ids or recording.layer_ids),
        kv_bytes_per_token=config.kv_bytes_per_token or None,
        step_tokens=step_tokens,
    )
    if json:
        print_json(checklist_document(result, options))
        return 0
    print_recording(stdout(), recording)
    print_checklist(stdout(), result, options)
    return 0

"""The time model of a deployment, from its hardware, model configuration and recording."""

from __future__ import annotations

from dataclasses import dataclass, replace

from equipoise.engines.transformers.config import ModelConfig, read_model_config
from equipoise.errors import EquipoiseError, argument
from equipoise.simulate.machine import Exchange, Machine, machine
from equipoise.simulate.own_work import Phase
from equipoise.simulate.profiles import HardwareProfile, LinkProfile, link
from equipoise.topology import Topology
from equipoise.trace import Trace

CONTEXT_TOKENS = 4096
"""Default for the mean number of tokens before the new one."""

FAR_LINK = "infiniband-400g"
"""Default link between nodes."""

_STAND_IN = "deepseek-v3"  # model that is assumed if no configuration is given


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The way in which steps run.

    Parameters
    ----------
    phase
        Phase of the steps; ``None`` takes the recording's label.
    link
        Link between nodes; ``None`` for ``FAR_LINK``.
    exchange
        Kernel mode of dispatch and combine; ``None`` for the usual one of the phase.
    context_tokens
        Mean number of tokens before the new one; ``None`` for ``CONTEXT_TOKENS``.
    overlap
        Flag that one micro-batch computes while the other communicates.
    chunk_tokens
        Number of tokens of one chunk, all ranks together; ``None`` if steps are not cut.
    attention_imbalance
        Largest number of own tokens on a rank over the mean.
    """

    phase: Phase | None = None
    link: LinkProfile | None = None
    exchange: Exchange | None = None
    context_tokens: float | None = None
    overlap: bool = False
    chunk_tokens: int | None = None
    attention_imbalance: float = 1.0


def machine_of(
    gpu: HardwareProfile,
    recording: Trace,
    config: ModelConfig | None,
    topology: Topology,
    serving: Serving,
) -> Machine:
    """Make the time model of steps like the recorded ones on these ranks.

    Without a configuration, the shapes are those of DeepSeek-V3, with the recorded numbers of
    experts and choices; the facts say so.

    Raises
    ------
    EquipoiseError
        Steps whose phase is unknown, or a model whose weight format was never timed.
    """
    model = config or read_model_config(_STAND_IN)
    shape = model.expert_shape
    top_k = recording.top_k or shape.top_k
    far = serving.link or (link(FAR_LINK) if topology.num_nodes > 1 else None)
    context = CONTEXT_TOKENS if serving.context_tokens is None else serving.context_tokens
    made = machine(
        gpu,
        replace(shape, num_experts=recording.num_experts, top_k=top_k),
        phase=serving.phase or phase_of(recording),
        num_nodes=topology.num_nodes,
        link=far,
        exchange=serving.exchange,
        own_work=model.own_work,
        context_tokens=context,
        micro_batches=2 if serving.overlap else 1,
        max_tokens=serving.chunk_tokens,
        source_imbalance=serving.attention_imbalance,
    )
    said = "" if config is not None else ", since no model was given"
    assumed = " (assumed)" if serving.context_tokens is None else ""
    rest = (
        f"every rank its own tokens, {context:g} tokens of context{assumed}"
        if model.own_work is not None
        else f"left out, since {model.unknown['own_work']}"
    )
    facts = {"model": f"{model.source}{said}", **made.facts, "attention": rest}
    return replace(made, facts=facts)


def assignments_of(tokens: float, recording: Trace, config: ModelConfig | None) -> float:
    """Compute the assignments of a step in a layer; ``EquipoiseError`` if top-k is unknown."""
    top_k = recording.top_k or (None if config is None else config.top_k)
    if top_k is None:
        raise EquipoiseError(
            "The recording does not say how many experts a token chooses, so that tokens cannot be "
            f"told in assignments; give {argument('step_assignments')} or {argument('model')}."
        )
    return float(tokens * top_k)


def phase_of(recording: Trace) -> Phase:
    """Return the phase of all recorded steps.

    Raises
    ------
    EquipoiseError
        Steps without a phase, or with different phases.
    """
    labels = recording.labels.get("phase")
    named: set[str] = set() if labels is None else set(labels.tolist())
    if named == {"decode"}:
        return "decode"
    if named == {"prefill"}:
        return "prefill"
    if named >= {"decode", "prefill"}:
        raise EquipoiseError(
            "The recording has steps of decode and of prefill, which take different kernels; keep "
            f"one kind with {argument('phase_label')}."
        )
    raise EquipoiseError(
        "The recording does not say whether its steps decode or prefill; give "
        f"{argument('serve')}, decode or prefill."
    )

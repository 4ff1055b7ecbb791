"""The machine of a deployment: its hardware, the model's configuration and what was recorded."""

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
"""Tokens before the new one where nobody says how many."""

FAR_LINK = "infiniband-400g"
"""The link between nodes where nobody says which."""

_STAND_IN = "deepseek-v3"  # what a model is taken for whose configuration is not given


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How steps are run.

    Parameters
    ----------
    phase
        What steps do; ``None``: what the recording says of them.
    link
        The link between nodes; ``None``: ``FAR_LINK``.
    exchange
        The kernel of dispatch and combine; ``None``: the usual one of the phase.
    context_tokens
        Tokens before the new one; ``None``: ``CONTEXT_TOKENS``.
    overlap
        Whether one micro-batch computes while the other is exchanged.
    chunk_tokens
        Tokens of one chunk, all ranks together; ``None``: steps are not cut.
    attention_imbalance
        Own tokens of the rank with most over the mean.
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
    """What steps like those recorded take on these ranks.

    Without a configuration the experts and the rest are those of DeepSeek-V3, with the number of
    experts and choices that was recorded; the facts say so.

    Raises
    ------
    EquipoiseError
        Steps of which nobody says whether they decode, a model whose weights nobody timed.
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


def assignments_of(tokens: int, recording: Trace, config: ModelConfig | None) -> float:
    """Assignments of a step in a layer; ``EquipoiseError`` if nobody says top-k."""
    top_k = recording.top_k or (None if config is None else config.top_k)
    if top_k is None:
        raise EquipoiseError(
            "The recording does not say how many experts a token chooses, so that tokens cannot be "
            f"told in assignments; give {argument('step_assignments')} or {argument('model')}."
        )
    return float(tokens * top_k)


def phase_of(recording: Trace) -> Phase:
    """What all recorded steps do.

    Raises
    ------
    EquipoiseError
        They do not say, or some decode and others do not.
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

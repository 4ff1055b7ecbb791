"""The costs of a simulated server's steps, and the room in its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from equipoise.checks import brief, check_type
from equipoise.errors import EquipoiseError
from equipoise.simulate.expert_time import ComputeModel
from equipoise.simulate.machine import Machine
from equipoise.simulate.profiles import HardwareProfile
from equipoise.simulate.step_time import LinearStepTime, StepTime

MEMORY_SHARE = 0.9
"""Share of a GPU's memory that engines use by default; activations get the rest."""


@dataclass(frozen=True, kw_only=True)
class ServingCosts:
    """The costs of steps.

    Parameters
    ----------
    model
        Time model for steps of ranks that decode, by the routing of their batches.
    prefill_model
        Time model for steps of ranks that compute only prompts.
    rest
        Further time of steps of ranks that decode, or do both.
    prefill_rest
        Further time of steps of ranks that compute only prompts.
    facts
        Sources of the times, by part.
    """

    model: ComputeModel
    prefill_model: ComputeModel
    rest: StepTime
    prefill_rest: StepTime
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_ranks(cls, model: ComputeModel, other_seconds: float) -> ServingCosts:
        """Make costs from one time model for all steps, plus a fixed time."""
        rest = LinearStepTime(fixed_seconds=other_seconds)
        return cls(model=model, prefill_model=model, rest=rest, prefill_rest=rest)

    @classmethod
    def of_machines(
        cls, decode: Machine, prefill: Machine, *, context_tokens: float, other_seconds: float
    ) -> ServingCosts:
        """Make costs from machines: experts, communication and attention on given hardware.

        Reading the cache is timed by the context of each step. If chunks of prompts share steps
        with sequences, their attention between tokens of the prompt is left out.

        Parameters
        ----------
        decode, prefill
            Machines of each phase.
        context_tokens
            Mean number of tokens before a decoded one.
        """
        by_context = LinearStepTime(
            fixed_seconds=other_seconds,
            context_token_seconds=_context_token_seconds(decode, context_tokens),
        )
        return cls(
            model=replace(decode, context_tokens=0.0),
            prefill_model=prefill,
            rest=by_context,
            prefill_rest=LinearStepTime(fixed_seconds=other_seconds),
            facts=decode.facts,
        )


def memory_for_cache(
    gpu: HardwareProfile, *, slot_bytes: int, slots_per_rank: int, other_weight_bytes: float
) -> int:
    """Compute the bytes of a rank that remain for its KV cache next to the weights.

    Parameters
    ----------
    slot_bytes
        Bytes of one slot in all layers.
    slots_per_rank
        Number of slots of a rank without redundant experts.
    other_weight_bytes
        Bytes of all weights other than the routed experts, which every rank holds.

    Raises
    ------
    EquipoiseError
        Weights that do not fit.
    """
    usable = MEMORY_SHARE * check_type("gpu", gpu, HardwareProfile).memory_bytes.value
    weights = slots_per_rank * slot_bytes + other_weight_bytes
    if weights >= usable:
        raise EquipoiseError(
            f"{slots_per_rank} experts of every layer and the other weights take "
            f"{weights / 1e9:.1f} GB of a rank, and {brief(gpu.name)} has {usable / 1e9:.1f} GB "
            "to use; take more ranks."
        )
    return int(usable - weights)


def _context_token_seconds(decode: Machine, context_tokens: float) -> float:
    """Compute the time that one more token of context adds to a step."""
    if decode.own_work is None:
        return 0.0
    own = decode.own_work
    with_context, without = (
        float(own.layer_seconds(1.0, decode.device, "decode", tokens)) * own.num_moe_layers
        for tokens in (context_tokens, 0.0)
    )
    return (with_context - without) / context_tokens

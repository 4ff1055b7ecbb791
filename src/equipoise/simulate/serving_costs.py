"""What a simulated server's steps take, and what its memory has room for."""

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
"""Share of a GPU's memory that engines use by default; the rest is for activations."""


@dataclass(frozen=True, kw_only=True)
class ServingCosts:
    """What steps take.

    Parameters
    ----------
    model
        Time of the steps of ranks that decode, by the routing of their batches.
    prefill_model
        That of ranks for prompts only.
    rest
        What is added for ranks that decode, or do both.
    prefill_rest
        What is added for ranks for prompts only.
    facts
        Where the times came from, by part.
    """

    model: ComputeModel
    prefill_model: ComputeModel
    rest: StepTime
    prefill_rest: StepTime
    facts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_ranks(cls, model: ComputeModel, other_seconds: float) -> ServingCosts:
        """A model of the ranks, the same for all steps, and a fixed time."""
        rest = LinearStepTime(fixed_seconds=other_seconds)
        return cls(model=model, prefill_model=model, rest=rest, prefill_rest=rest)

    @classmethod
    def of_machines(
        cls, decode: Machine, prefill: Machine, *, context_tokens: float, other_seconds: float
    ) -> ServingCosts:
        """Experts, exchanges and attention on given hardware.

        The cache that a decoded token reads is timed by the context that each step has. What chunks
        of prompts that share steps with sequences compute for pairs of tokens is left out.

        Parameters
        ----------
        decode, prefill
            Machines of each phase.
        context_tokens
            Tokens before one that is decoded, on average.
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
    """Bytes of a rank that are left for its KV cache next to the weights.

    Parameters
    ----------
    slot_bytes
        Bytes of one slot in all layers.
    slots_per_rank
        Slots of a rank without redundant experts.
    other_weight_bytes
        Bytes of all weights besides the routed experts, which every rank has.

    Raises
    ------
    EquipoiseError
        The weights do not fit.
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
    """What a token of the context adds to a step, of contexts of about that length."""
    if decode.own_work is None:
        return 0.0
    own = decode.own_work
    with_context, without = (
        float(own.layer_seconds(1.0, decode.device, "decode", tokens)) * own.num_moe_layers
        for tokens in (context_tokens, 0.0)
    )
    return (with_context - without) / context_tokens

"""Costs and room of a simulated server, from hardware and the model's configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from equipoise.engines.machines import Serving, machine_of
from equipoise.engines.transformers.config import ModelConfig
from equipoise.simulate.batching import NO_LIMIT
from equipoise.simulate.profiles import HardwareProfile
from equipoise.simulate.requests import Requests
from equipoise.simulate.serving_costs import ServingCosts, memory_for_cache
from equipoise.topology import Topology
from equipoise.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Room of a rank for keys and values, as ``Server`` takes it.

    Parameters
    ----------
    note
        Sentence on what is not known of it; empty if all is known.
    """

    kv_tokens: int = NO_LIMIT
    token_bytes: int = 1
    slot_bytes: int = 0
    note: str = ""


def server_costs(
    gpu: HardwareProfile,
    recording: Trace,
    config: ModelConfig | None,
    topology: Topology,
    prefill_topology: Topology,
    serving: Serving,
    *,
    requests: Requests,
    other_seconds: float,
) -> ServingCosts:
    """Return what steps take on hardware; raises as ``machine_of``.

    Parameters
    ----------
    prefill_topology
        The ranks for prompts only; those of ``topology`` if there are none.
    serving
        Way in which steps are run; ranks that also compute prompts take the kernels of its phase.
    requests
        Requests whose mean lengths say how many tokens are before a new one.
    """
    prompt = float(requests.prompt_tokens.mean())
    context = prompt + float(requests.output_tokens.mean()) / 2
    decode, prefill = (
        machine_of(
            gpu, recording, config, ranks, replace(serving, phase=phase, context_tokens=tokens)
        )
        for ranks, phase, tokens in (
            (topology, serving.phase or "decode", context),
            (prefill_topology, "prefill", prompt / 2),
        )
    )
    return ServingCosts.of_machines(
        decode, prefill, context_tokens=context, other_seconds=other_seconds
    )


def cache_of(
    gpu: HardwareProfile | None,
    config: ModelConfig | None,
    *,
    slots_per_rank: int,
    kv_tokens: int | None,
) -> Cache:
    """Room for keys and values; without limit if nothing says it.

    Parameters
    ----------
    slots_per_rank
        Slots of a rank without redundant experts.
    kv_tokens
        Tokens that a rank holds then; ``None``: what memory is left by the weights.

    Raises
    ------
    EquipoiseError
        Weights that do not fit.
    """
    if config is None or config.kv_bytes_per_token is None or config.slot_bytes is None:
        why = _unknown(config)
        if kv_tokens is None:
            return Cache(note=f"The KV cache has no limit, since {why}; give --kv-tokens.")
        return Cache(
            kv_tokens=kv_tokens,
            note=f"Redundant experts take no room of the KV cache, since {why}.",
        )
    if kv_tokens is None:
        if gpu is None:
            return Cache(note="The KV cache has no limit; give --kv-tokens or --hardware.")
        memory = memory_for_cache(
            gpu,
            slot_bytes=config.slot_bytes,
            slots_per_rank=slots_per_rank,
            other_weight_bytes=0 if config.own_work is None else config.own_work.weight_bytes,
        )
        kv_tokens = max(memory // config.kv_bytes_per_token, 1)
    return Cache(
        kv_tokens=kv_tokens,
        token_bytes=config.kv_bytes_per_token,
        slot_bytes=config.slot_bytes,
    )


def _unknown(config: ModelConfig | None) -> str:
    """Say why the bytes of a token or a slot are not known, as the end of a sentence."""
    if config is None:
        return "no --model is given"
    names = ("kv_bytes_per_token", "expert_bytes", "moe_layer_ids")
    return next(config.unknown[name] for name in names if name in config.unknown)

"""Flags and files that start TensorRT-LLM with a placement file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from equipoise.engines._shared.model_notes import speculative_notes
from equipoise.engines._shared.releases import (
    Releases,
    check_expert_parallel,
    same_rank_notes,
)
from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, Launcher, LaunchOptions
from equipoise.engines.transformers.config import ModelConfig
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement

OPTIONS_FILE = "extra_llm_api_options.yaml"

ARCHITECTURES = (
    "DeepseekV3ForCausalLM",
    "DeepseekV32ForCausalLM",
    "DeepseekV4ForCausalLM",
    "GlmMoeDsaForCausalLM",
    "GptOssForCausalLM",
    "KimiK25ForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "MixtralForCausalLM",
    "NemotronHForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
)
"""Architectures that the engine balances (``main``); all other models run unbalanced."""

UNBALANCED_BACKENDS = ("VANILLA", "TRITON", "MARLIN")
MAX_SLOTS = 32767  # the routing kernel's slots are int16
MAX_EXPERTS = 1024  # the routing kernel's limit
FUSED_ROUTING_SLOTS = 256  # 8 groups of at most 32
ROWS_NOTE = "The map needs a row for every MoE layer that runs, also for speculative (MTP) layers."


@dataclass(frozen=True)
class _Release:
    """The places where a release reads its options, the map and the MoE backend."""

    flag: str
    map_at: tuple[str, ...]
    backend_at: tuple[str, ...] | None  # None: not known


_SINCE_1_0 = (("moe_config", "load_balancer"), ("moe_config", "backend"))
RELEASES = Releases(
    engine="TensorRT-LLM",
    default="main",
    newest="1.4",
    since={
        "1.3": _Release("--config", *_SINCE_1_0),
        "1.0": _Release("--extra_llm_api_options", *_SINCE_1_0),
        "0.21": _Release("--extra_llm_api_options", ("moe_load_balancer",), ("moe_backend",)),
    },
    builds={
        "main": _Release("--config", *_SINCE_1_0),
        "first-era": _Release(
            "--extra_llm_api_options",
            ("pytorch_backend_config", "moe_load_balancer"),
            None,
        ),
    },
)


def launch(placement: Placement, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS) -> Launch:
    """Return flags and options file with which TensorRT-LLM loads a static placement.

    Parameters
    ----------
    placement
        Placement that the map holds.
    map_name
        Path of the map for the engine's processes.
    options
        Version (``None``: ``main``), model, architecture (``None``: that of the model) and MoE
        backend. The version ``first-era`` means the builds whose options file has a section
        ``pytorch_backend_config``.

    Raises
    ------
    EquipoiseError
        The engine would ignore the map in silence or fail: there is one rank, the engine does not
        balance the architecture or the backend, or its kernels cannot address that number of slots
        or experts.
    """
    name, release = RELEASES.choose(options.version)
    check_expert_parallel("TensorRT-LLM", placement, "ignores maps without expert parallelism")
    _check_limits(placement)
    architecture = _architecture(options)
    if release is None:
        return RELEASES.unknown("trtllm", name, placement)
    content: dict[str, Any] = {
        "enable_attention_dp": True,
        "moe_expert_parallel_size": placement.num_ranks,
    }
    _put(content, release.map_at, map_name)
    if options.backend is not None:
        _put(content, _backend_place(name, release, options.backend), options.backend)
    return Launch(
        engine="trtllm",
        version=name,
        command=(release.flag, OPTIONS_FILE),
        files=((OPTIONS_FILE, yaml.safe_dump(content)),),
        notes=_notes(placement, name, architecture, options.model),
    )


def _put(content: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *sections, key = path
    for section in sections:
        content = content.setdefault(section, {})
    content[key] = value


def _check_limits(placement: Placement) -> None:
    if placement.num_slots > MAX_SLOTS or placement.num_experts > MAX_EXPERTS:
        raise EquipoiseError(
            f"The map has {placement.num_experts} experts in {placement.num_slots} slots; "
            f"TensorRT-LLM's routing kernels take at most {MAX_EXPERTS} experts and {MAX_SLOTS} "
            "slots."
        )


def _architecture(options: LaunchOptions) -> str | None:
    """Return the model's architecture, if it is known; raise for one that runs unbalanced."""
    read = None if options.model is None else options.model.architecture
    architecture = options.architecture or read
    if options.model is not None and read not in (None, architecture):
        raise EquipoiseError(
            f"The architecture {architecture} was given, and {options.model.source} says {read}; "
            "leave one of the two out."
        )
    if architecture is not None and architecture not in ARCHITECTURES:
        raise EquipoiseError(
            f"TensorRT-LLM ignores maps for {architecture}; it balances {', '.join(ARCHITECTURES)}."
        )
    return architecture


def _backend_place(version: str, release: _Release, backend: str) -> tuple[str, ...]:
    """Return the place where the options name the MoE backend; raise if there is none."""
    if backend.upper() in UNBALANCED_BACKENDS:
        raise EquipoiseError(
            f"The MoE backend {backend} does not support load balancing; choose one other than "
            f"{', '.join(UNBALANCED_BACKENDS)}, or none for the engine's default."
        )
    if release.backend_at is None:
        raise EquipoiseError(
            f"It is not known how TensorRT-LLM {version} names its MoE backend; leave "
            f"{argument('backend')} out and add it to {OPTIONS_FILE} by hand."
        )
    return release.backend_at


def _notes(
    placement: Placement, version: str, architecture: str | None, model: ModelConfig | None
) -> tuple[str, ...]:
    ranks = placement.num_ranks
    notes = [
        f"Start with tensor-parallel size {ranks} and MoE cluster size 1; with MoE clusters the "
        "engine ignores the map without a warning.",
        ROWS_NOTE,
        *speculative_notes(
            model,
            placement,
            missing="The map has no row for it, so speculative decoding fails at start-up.",
            present="The map has a row for it.",
        ),
        *_quantisation_notes(model),
        "Two servers on one machine need different values of TRTLLM_EPLB_SHM_NAME.",
        "Unset EXPERT_STATISTIC_ITER_RANGE: recording switches CUDA graphs off.",
    ]
    if architecture is None:
        notes.append(
            "The model's architecture was not checked: TensorRT-LLM ignores the map without a "
            "warning if equipoise explain launch does not list it."
        )
    if version != "main":
        notes.append(
            f"Architectures and backends were checked against main; {version} may balance fewer."
        )
    if placement.num_slots > FUSED_ROUTING_SLOTS:
        notes.append(
            f"{placement.num_slots} slots may exceed the limit of fused routing on some MoE "
            "backends (32 experts a group); try another backend if start-up fails."
        )
    return (*notes, *same_rank_notes(placement))


def _quantisation_notes(model: ModelConfig | None) -> tuple[str, ...]:
    if model is not None and model.quantisation is None:
        return ()
    experts = "" if model is None else f" The experts are quantised by {model.quantisation}."
    return (
        "Compare answers with and without the map first: with some quantisations balancing has "
        f"produced wrong text instead of an error.{experts}",
    )


LAUNCHER = Launcher(
    options=frozenset({"version", "architecture", "backend"}),
    launch=launch,
    versions=RELEASES.names,
)

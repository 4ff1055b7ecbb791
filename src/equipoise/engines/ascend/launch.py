"""Flags that start vllm-ascend with a placement file."""

from __future__ import annotations

import json
from dataclasses import dataclass

from equipoise.engines._shared.model_notes import speculative_notes
from equipoise.engines._shared.releases import Releases, check_expert_parallel, same_rank_copy
from equipoise.engines.ascend.plugin import VARIABLE
from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, Launcher, LaunchOptions
from equipoise.engines.transformers.config import ModelConfig
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

SUFFIX = ".json"


@dataclass(frozen=True)
class _Release:
    """The names of a release in ``--additional-config``.

    ``nested`` releases read the keys inside ``eplb_config``; from 0.14 on they silently ignore keys
    at the top. They also have a second model runner, which reads no map. ``doubtful`` releases seem
    to load weights in the default layout whatever the map holds.
    """

    nested: bool = True
    doubtful: bool = False


RELEASES = Releases(
    engine="vllm-ascend",
    default="2026-08",
    newest="0.30",
    since={
        "0.24": _Release(doubtful=True),
        "0.13": _Release(),
        "0.11": _Release(nested=False),
    },
    builds={"2026-08": _Release(doubtful=True)},
)


def launch(placement: Placement, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS) -> Launch:
    """Return flags with which vllm-ascend (model runner V1) loads a static placement.

    Parameters
    ----------
    placement
        Placement that the map holds.
    map_name
        Path of the map for the engine's processes.
    options
        Version; ``None``: 2026-08, the tree of that month.

    Raises
    ------
    EquipoiseError
        There is one rank; the name does not end in ``.json``; or an expert is twice on one device,
        which would shift the engine's slot numbers.
    """
    name, release = RELEASES.choose(options.version)
    check_expert_parallel("vllm-ascend", placement, "reads maps only with expert parallelism")
    if not map_name.endswith(SUFFIX):
        raise EquipoiseError(
            f"vllm-ascend refuses the map name {map_name!r}; it has to end in {SUFFIX}."
        )
    _check_copies(placement)
    if release is None:
        return RELEASES.unknown("ascend", name, placement)
    # Without the count the engine allocates no redundant slots and refuses the map.
    count = "num_redundant_experts" if release.nested else "init_redundancy_expert"
    config = {"expert_map_path": map_name, count: placement.num_redundant}
    return Launch(
        engine="ascend",
        version=name,
        command=(
            "--enable-expert-parallel",
            "--additional-config",
            json.dumps({"eplb_config": config} if release.nested else config),
        ),
        environment=(("VLLM_USE_V2_MODEL_RUNNER", "0"),) if release.nested else (),
        notes=(*_notes(placement, release), *_model_notes(placement, options.model)),
    )


def _check_copies(placement: Placement) -> None:
    twice = same_rank_copy(placement)
    if twice is not None:
        layer, rank, expert = twice
        raise EquipoiseError(
            f"Layer {layer}: device {rank} holds expert {expert} twice, so vllm-ascend would "
            "number slots wrongly; plan without copies on the same rank."
        )


def _notes(placement: Placement, release: _Release) -> tuple[str, ...]:
    notes = [
        f"TP x DP must be {placement.num_ranks}, the devices of the map: the engine ignores "
        "devices beyond it.",
        "The map's entries are MoE layers in the order in which they are built, and every pipeline "
        "stage probably counts from 0: use one map for each stage.",
        "Leave DYNAMIC_EPLB and expert_map_record_path out: they turn dynamic balancing on, which "
        "changes the map.",
        f"To let equipoise make new plans from this map on, use its plug-in ({VARIABLE}='{{}}', "
        "dynamic_eplb, eplb_policy_type 2; in 0.13, 0.18, 0.23 and 0.30): equipoise explain "
        "plugins.",
    ]
    if placement.num_redundant:
        notes.append("In 0.30, devices of the A2 series take no redundant experts.")
    if release.doubtful:
        notes.append(
            "Compare answers with and without the map first: trees from 2026-07 on seem to load "
            "weights in the default layout and to ignore the map."
        )
    if release.nested:
        notes += [
            "Keep VLLM_USE_V2_MODEL_RUNNER=0: model runner V2 reads no static map, and 0.30 "
            "announces their removal from V1.",
        ]
    if placement.num_redundant > placement.num_ranks:
        notes.append(
            f"For dynamic balancing later, use another policy than 1 (Default): it allows one "
            f"redundant expert per device, and the map has {placement.num_redundant} on "
            f"{placement.num_ranks} devices."
        )
    return tuple(notes)


def _model_notes(placement: Placement, model: ModelConfig | None) -> tuple[str, ...]:
    draft = "vllm-ascend does not use a map for it: draft layers keep the default layout."
    return (
        *_layer_notes(model),
        "Dynamic balancing refuses some quantisations: 0.24 moves experts that are unquantised, "
        "W8A8 or of its MX types, and W4A8 only with fused MC2.",
        *speculative_notes(model, placement, missing=draft, present=draft),
    )


def _layer_notes(model: ModelConfig | None) -> tuple[str, ...]:
    """Return notes on layers: the engine takes all after the first dense ones for MoE layers."""
    if model is None or model.moe_layer_ids is None:
        return (
            "The model was not checked: the engine assumes that every layer after the first dense "
            "ones is an MoE layer, and does not work with other models.",
        )
    first = model.num_hidden_layers - len(model.moe_layer_ids)
    if model.moe_layer_ids == tuple(range(first, model.num_hidden_layers)):
        return ()
    return (
        f"{model.source}: some layers after the first dense ones are not MoE layers. The engine "
        "assumes that all are, so the map's entries belong to other layers.",
    )


LAUNCHER = Launcher(
    options=frozenset({"version"}),
    launch=launch,
    versions=RELEASES.names,
)

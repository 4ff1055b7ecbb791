"""How to start vllm-ascend with a placement file."""

from __future__ import annotations

import json
from dataclasses import dataclass

from equipoise.engines._shared.releases import check_expert_parallel, choose_release, same_rank_copy
from equipoise.engines.formats import ENGINE_DEFAULTS, Launch, Launcher, LaunchOptions
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

SUFFIX = ".json"


@dataclass(frozen=True)
class _Release:
    """How a release names things in ``--additional-config``.

    ``nested`` releases read the keys inside ``eplb_config`` and ignore them at the top in silence;
    they also have a second model runner, which reads no map.
    """

    nested: bool
    redundant_key: str


RELEASES = {
    "2026-08": _Release(True, "num_redundant_experts"),
    "0.22.1rc": _Release(True, "num_redundant_experts"),
    "0.11.0": _Release(False, "init_redundancy_expert"),
}


def launch(placement: Placement, map_name: str, options: LaunchOptions = ENGINE_DEFAULTS) -> Launch:
    """Flags that make vllm-ascend (model runner V1) load a static placement.

    Parameters
    ----------
    placement
        What the map holds.
    map_name
        Path of the map as the engine's processes will see it.
    options
        The version; 2026-08, the tree of that month, if ``None``.

    Raises
    ------
    EquipoiseError
        One rank; a name that does not end in ``.json``; an expert twice on one device, which
        shifts the engine's slot numbers.
    """
    name, release = choose_release("vllm-ascend", options.version, RELEASES)
    check_expert_parallel("vllm-ascend", placement, "reads maps only with expert parallelism")
    if not map_name.endswith(SUFFIX):
        raise EquipoiseError(
            f"vllm-ascend refuses the map name {map_name!r}; it has to end in {SUFFIX}."
        )
    _check_copies(placement)
    # Without the count the engine allocates no redundant slots and refuses the map.
    config = {"expert_map_path": map_name, release.redundant_key: placement.num_redundant}
    return Launch(
        engine="ascend",
        version=name,
        command=(
            "--enable-expert-parallel",
            "--additional-config",
            json.dumps({"eplb_config": config} if release.nested else config),
        ),
        environment=(("VLLM_USE_V2_MODEL_RUNNER", "0"),) if release.nested else (),
        notes=_notes(placement, release),
    )


def _check_copies(placement: Placement) -> None:
    twice = same_rank_copy(placement)
    if twice is not None:
        layer, rank, expert = twice
        raise EquipoiseError(
            f"Layer {layer}: expert {expert} is twice on device {rank}, which makes vllm-ascend "
            "number slots wrongly; plan without copies on the same rank."
        )


def _notes(placement: Placement, release: _Release) -> tuple[str, ...]:
    notes = [
        f"TP x DP must be {placement.num_ranks}, the devices of the map: the engine ignores "
        "devices beyond it.",
        "Entries are MoE layers in the order they are built, probably from 0 again on every "
        "pipeline stage; use a map for each stage.",
        "Give no other balancing switch: a static map needs no DYNAMIC_EPLB, and "
        "expert_map_record_path turns dynamic balancing on.",
    ]
    if release.nested:
        notes += [
            "Check answers before relying on it: in trees from 2026-07 on, weights seem to be "
            "loaded in the default layout whatever the map says.",
            "Static maps are announced for removal, and model runner V2 has none; "
            "VLLM_USE_V2_MODEL_RUNNER=0 keeps V1.",
        ]
    if placement.num_redundant > placement.num_ranks:
        notes.append(
            f"{placement.num_redundant} redundant experts on {placement.num_ranks} devices: "
            "should you turn on dynamic balancing later, policy 1 (Default) takes at most one a "
            "device."
        )
    return tuple(notes)


LAUNCHER = Launcher(
    options=frozenset({"version"}),
    launch=launch,
    versions=tuple(RELEASES),
)

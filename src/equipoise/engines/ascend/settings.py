"""The options of vllm-ascend's SwiftBalancer, old names and new: ``--additional-config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from equipoise.engines._shared.options import (
    BALANCES,
    NO_PLANNER,
    RECORD_PATH,
    REDUNDANT,
    Found,
    Option,
    OptionTable,
    flag,
    path,
)
from equipoise.errors import EquipoiseError

_DEFAULTS: dict[str, Any] = {"window": 600, "update_interval": 600, "wait_steps": 50}
_HEAT = Option(
    here="Steps from one look at the loads to the next, and number of steps whose loads count. 400 "
    "or more for stable traffic, 100 to 200 for changing traffic. 600 if not given.",
    sets=("window", "update_interval"),
)
_WAIT = Option(
    here="Steps that the planner may take; give 30 or more. Serving does not wait for it. A later "
    "plan is still used until the next look is due, and a planner that needs more steps in the "
    "warm-up gets more. 50 if not given.",
    sets=("wait_steps",),
)
_PHASES = "prefill and decode are both counted, separately"


def together(found: Found, by: Mapping[str, str]) -> Found:
    """Derive whether anything moves: a map alone is static, and recording needs balancing."""
    asked, records = found.pop(BALANCES, None), found.get(RECORD_PATH) is not None
    if asked is False and records:
        raise EquipoiseError(
            "dynamic_eplb is false, but expert_map_record_path records the result of balancing; "
            "set dynamic_eplb to true, or leave one of the two out."
        )
    if asked or records:
        return _DEFAULTS | found
    if found.get("map_path") is None:
        raise EquipoiseError(
            "dynamic_eplb is false by default, and there is no expert_map_path: nothing "
            'would ever be balanced. Give "dynamic_eplb": true, or a map.'
        )
    for setting in ("wait_steps", "once"):
        if found.get(setting):
            raise EquipoiseError(
                f"{by[setting]} would have no effect: with expert_map_path alone nothing is "
                'planned. Leave it out, or give "dynamic_eplb": true.'
            )
    return _DEFAULTS | {"layers_per_step": 0} | found


TABLE = OptionTable(
    engine="vllm-ascend",
    given_as="--additional-config",
    options={
        "dynamic_eplb": Option(
            here="Balances while it serves. Without it a map in `expert_map_path` stays as it is. "
            "No environment variable is needed.",
            sets=(BALANCES,),
            read=flag,
        ),
        "expert_heat_collection_interval": _HEAT,
        "num_iterations_eplb_update": replace(
            _HEAT, here="Old name of `expert_heat_collection_interval`."
        ),
        "algorithm_execution_interval": _WAIT,
        "num_wait_worker_iterations": replace(
            _WAIT, here="Old name of `algorithm_execution_interval`."
        ),
        "num_wait_woker_iterations": replace(
            _WAIT,
            here="A misspelling of `num_wait_worker_iterations`, read as that.",
            advice="it is read as num_wait_worker_iterations, which it misspells",
        ),
        "num_redundant_experts": REDUNDANT,
        "init_redundancy_expert": replace(REDUNDANT, here="Old name of `num_redundant_experts`."),
        "gate_eplb": Option(
            here="Balances once: after the first change that is complete and was judged, the map "
            "stays. Old option that newer releases do not have.",
            sets=("once",),
        ),
        "expert_map_path": Option(
            here="The map to start from, of any format that `read_map` knows. Alone it is static; "
            "with `dynamic_eplb` balancing starts from it.",
            sets=("map_path",),
            read=path,
        ),
        "expert_map_record_path": Option(
            here="The map that is served is written here, as `expert_map.json`, at the first look "
            "at the loads and after every change. Turns balancing on, and the changes are made.",
            sets=(RECORD_PATH,),
            read=path,
        ),
        "eplb_policy_type": Option(here=NO_PLANNER, harmless=(1, 2)),
        "stair_config": Option(here=NO_PLANNER, harmless=(None,)),
        "eplb_heat_collection_stage": Option(here=_PHASES, harmless=("all",)),
        "load_collection_phase": Option(here=_PHASES, harmless=("all",)),
    },
    together=together,
    sections=(("eplb_config",),),
    is_shared=True,
)
"""Every option: what it sets, or why it has no effect."""

"""The options of vLLM for balancing: its ``EPLBConfig``, and what open proposals add to it."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.engines._shared.options import (
    BALANCES,
    NO_PLANNER,
    REDUNDANT,
    Found,
    Option,
    OptionTable,
    flag_off,
    path,
)
from equipoise.errors import EquipoiseError

_MAP = Option(
    here="The map to start from, of any format that `read_map` knows; balancing goes on from it. "
    "Of an open proposal.",
    sets=("map_path",),
    read=path,
)
_TOLD = "the metric equipoise_balancedness always reports it, and the log does not"
_STATISTICS = "loads are recorded with a recorder, see equipoise explain runtime"


def together(found: Found, by: Mapping[str, str]) -> Found:
    """Refuse to keep the map fixed without a map."""
    if not found.pop(BALANCES, True):
        if found.get("map_path") is None:
            raise EquipoiseError(
                f"{by[BALANCES]} is true, and there is no initial_mapping_path: nothing would ever "
                "be balanced. Give a map, or leave it out."
            )
        return {"layers_per_step": 0} | found
    return found


TABLE = OptionTable(
    engine="vLLM",
    given_as="--eplb-config",
    options={
        "window_size": Option(
            here="Steps whose loads are looked at; at most `step_interval`. 1000 if not given.",
            sets=("window",),
        ),
        "step_interval": Option(
            here="Steps from one look at the loads to the next. The first is after the warm-up and "
            "a window, not after a quarter of the interval. 3000 if not given.",
            sets=("update_interval",),
        ),
        "num_redundant_experts": REDUNDANT,
        "use_async": Option(
            here="Experts move while it serves; with false serving waits for every move. True if "
            "not given.",
            sets=("background",),
        ),
        "initial_mapping_path": _MAP,
        "initial_expert_map_path": _MAP,
        "expert_map_path": _MAP,
        "disable_online_rebalancing": Option(
            here="Keeps the map as it is; needs one. Of an open proposal.",
            sets=(BALANCES,),
            read=flag_off,
        ),
        "log_balancedness": Option(
            here=_TOLD,
            harmless=(True, False),
            advice=_TOLD,
        ),
        "log_balancedness_interval": Option(here=_TOLD, harmless=(1,)),
        "policy": Option(here=NO_PLANNER, harmless=("default",)),
        "communicator": Option(
            here="experts travel over the process groups of the layers", harmless=(None,)
        ),
        "enable_migration_batching": Option(
            here="layers_per_step says how many layers move in a step", harmless=(False,)
        ),
        "expert_load_stats_path": Option(here=_STATISTICS, harmless=(None,)),
        "expert_load_stats_interval": Option(here=_STATISTICS, harmless=(None,)),
        "expert_map_record_path": Option(
            here="its file is of a plug-in, and only read here; vllm-ascend's option of that name "
            "writes a map",
            harmless=(None,),
        ),
    },
    together=together,
)
"""Every option: what it sets, or why it has no effect."""

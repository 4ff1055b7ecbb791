"""The options of FastDeploy for balancing: its ``EPLBConfig``."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.engines._shared.options import (
    NO_PLANNER,
    REDUNDANT,
    Found,
    Option,
    OptionTable,
)

_REQUEST = "nobody has to ask for a rearrangement; the loads are looked at every 3000 steps"
_FILES = "experts move from memory to memory, not from the model's files"


def together(found: Found, _by: Mapping[str, str]) -> Found:
    """Return the options unchanged: no two of them depend on each other."""
    return found


TABLE = OptionTable(
    engine="FastDeploy",
    given_as="--eplb-config",
    options={
        "redundant_experts_num": REDUNDANT,
        "enable_eplb": Option(
            here="the command's switch --enable-eplb decides, in the engine too",
            harmless=(True, False),
        ),
        "redundant_expert_eplb_strategy": Option(here=NO_PLANNER, harmless=("",)),
        "redundant_expert_dump_workload_interval": Option(
            here="loads are counted in every step, not every few seconds", harmless=(10,)
        ),
        "redundant_expert_api_user": Option(here=_REQUEST, harmless=("",)),
        "redundant_expert_api_password": Option(here=_REQUEST, harmless=("",)),
        "redundant_expert_ip_shm_size": Option(here=_REQUEST, harmless=(1024,)),
        "redundant_expert_enable_schedule_cordon": Option(here=_REQUEST, harmless=(True,)),
        "redundant_expert_meta_dir": Option(here=_FILES, harmless=(None,)),
        "redundant_expert_async_load_model_shmem_size_gb": Option(here=_FILES, harmless=(0,)),
        "model_use_safetensors": Option(here=_FILES, harmless=(True,)),
        "model_use_offline_quant": Option(here=_FILES, harmless=(True,)),
        "moe_quant_type": Option(here=_FILES, harmless=("w4a8",)),
    },
    together=together,
    sections=(("eplb_config",),),
)
"""Every option: what it sets, or why it has no effect."""

"""Runner V2's own classes around our policy: ``python -m tests.integration.ascend.contract_v2``.

One rank, so that nothing is moved; what is checked is who makes the policy and whose the state then
asks, that it hands over the time axis, and what comes of loads from before a move. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import torch

from tests.integration.ascend import stand_ins

LAYERS, EXPERTS, RANKS, STEPS = 2, 32, 4, 20


def main() -> None:
    stand_ins.install()
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.distributed.eplb import eplb_state
    from vllm.plugins import load_general_plugins

    eplb_state._move_to_workspace = lambda model_state, ep_rank: None  # one rank has no moves
    os.environ["EQUIPOISE_ASCEND"] = "{}"
    load_general_plugins()
    with set_current_vllm_config(VllmConfig()), tempfile.TemporaryDirectory() as folder:
        parallel_state.init_distributed_environment(1, 0, f"file://{folder}/s", 0, backend="gloo")
        parallel_state.initialize_model_parallel(backend="gloo")
        parallel_state._EPLB = parallel_state._EP = parallel_state._TP
        found = check()
        found["asked"] = {name: policy_of_state(name) for name in ("stair", "default")}
        json.dump(found, sys.stdout)


def policy_of_state(name: str) -> str:
    """Return the class of the policy that the controller's state asks, for a policy's name."""
    from vllm_ascend.ascend_config import EplbConfig
    from vllm_ascend.worker.v2.eplb import AscendEPLBController

    from tests.integration.vllm import stand_ins as of_vllm

    of_vllm.install()
    stand_ins.device_of_state()
    parallel = of_vllm.configuration(1, 8, steps=STEPS, use_async=True).parallel_config
    parallel.eplb_config.policy = name
    controller = AscendEPLBController(parallel, torch.device("cpu"), EplbConfig())
    controller.prepare_load()
    controller.state.add_model(of_vllm.Model(0, 1, LAYERS, EXPERTS, 40), of_vllm.ModelConfig())
    policy = type(controller.state.policy)
    return f"{policy.__module__}.{policy.__name__}"


def check() -> dict[str, object]:
    from vllm.distributed.eplb import eplb_state as upstream
    from vllm_ascend.distributed.eplb.eplb_state import AscendEplbState
    from vllm_ascend.distributed.eplb.policy.factory import create_eplb_policy

    policy = create_eplb_policy("stair", None)
    state = AscendEplbState.__new__(AscendEplbState)
    state.policy, state.expert_load_window_size = policy, STEPS
    slots = torch.arange(40).repeat(LAYERS, 1) % EXPERTS
    rng = np.random.default_rng(0)
    popularity = np.exp(rng.normal(0, 1, (LAYERS, 40)))
    window = torch.from_numpy(rng.poisson(1000 * popularity, (STEPS, LAYERS, 40)))
    model = SimpleNamespace(num_logical_experts=EXPERTS, num_moe_layers=LAYERS)
    known = SimpleNamespace(
        model=model,
        physical_to_logical_map=slots,
        expert_load_window=window,
        pending_result=SimpleNamespace(layer_idx=0),
    )
    state.model_states = {"m": known}
    state._initialize_load_stats_state(known)
    state._local_load_collection_mask[:] = 1
    state._physical_load_sample_slots = torch.arange(STEPS)
    state._num_recorded_load_steps = STEPS
    stats = state.collect_global_load_stats()["m"]
    new = policy.rebalance_experts(
        stats,
        40,
        1,
        1,
        RANKS,
        slots,
        last_committed_mean_ratios=known._last_committed_mean_ratios,
        rank_node_ids=np.zeros(RANKS, dtype=np.int64),
    )
    idle = policy.rebalance_experts(torch.zeros(LAYERS, EXPERTS), 40, 1, 1, RANKS, slots)
    upstream._move_to_workspace(model_state=known, ep_rank=0)
    return {
        "policy": f"{type(policy).__module__}.{type(policy).__name__}",
        "windows": list(stats.values.shape),
        "steps": stats.sample_counts.tolist(),
        "before": imbalance(slots, stats.values),
        "after": imbalance(new, stats.values),
        "moves": int((new != slots).sum()),
        "complete": all(set(row.tolist()) == set(range(EXPERTS)) for row in new),
        "idle moves": int((idle != slots).sum()),
        "left out": state.collect_global_load_stats() is None,
    }


def imbalance(slots: torch.Tensor, windows: torch.Tensor) -> float:
    load = windows.sum(dim=0).double()
    copies = torch.zeros(LAYERS, EXPERTS).scatter_add_(1, slots, torch.ones(slots.shape))
    ranks = (load / copies).gather(1, slots).reshape(LAYERS, RANKS, -1).sum(dim=2)
    return float((ranks.amax(dim=1) / ranks.mean(dim=1)).mean())


if __name__ == "__main__":
    main()

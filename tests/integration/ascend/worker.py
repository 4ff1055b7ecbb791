"""Plans of a release's own planning worker: ``python -m tests.integration.ascend.worker ANSWER``.

One process is enough: every rank's worker makes the whole plan. 4 ranks of 32 experts with 8 and 4
redundant ones, and 32 ranks of 256 with 32; two layers; the first plan from the layout that the
release starts with, then 19 more while the popularity drifts.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.integration.ascend import stand_ins

SIZES = ((4, 32, 8, 20), (4, 32, 4, 20), (32, 256, 32, 20))
"""Ranks, experts, redundant experts and plans."""
LAYERS, DRIFT = 2, 0.99
OURS = {
    "equipoise": {},
    "equipoise, gate 0.02": {"gate": 0.02},
    "equipoise, gate 0.1": {"gate": 0.1},
}
"""Options of ours by name, besides no limit on moves."""


def main() -> None:
    stand_ins.install()
    answer = Path(sys.argv[1])
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    with set_current_vllm_config(VllmConfig()):
        store = f"file://{answer}.store"
        parallel_state.init_distributed_environment(1, 0, store, 0, backend="gloo")
        parallel_state.initialize_model_parallel(backend="gloo")
        found = [
            {"size": size, "policy": name, **plans(name, *size)}
            for size in SIZES
            for name in ("Swift", *OURS, *(["STAIR"] if has_stair() else []))
        ]
    answer.write_text(json.dumps(found))


def has_stair() -> bool:
    import vllm_ascend

    return (Path(vllm_ascend.__file__).parent / "distributed/eplb/policy/stair.py").is_file()


def plans(name: str, ranks: int, experts: int, redundant: int, rounds: int) -> dict[str, Any]:
    """Imbalance, busiest rank over mean, before and after each plan on the loads planned for."""
    rng = np.random.default_rng(0)
    popularity = rng.normal(0, 1, (LAYERS, experts))
    plan, maps = planner(name, ranks, experts, redundant)
    found: dict[str, Any] = {"before": [], "after": [], "sent": [], "seconds": []}
    for _ in range(rounds):
        load = rng.poisson(1000 * np.exp(popularity))
        begin = time.perf_counter()
        try:
            new = plan(maps, load)
        except ValueError as error:
            return {"refused": str(error)}
        found["seconds"].append(time.perf_counter() - begin)
        found["before"].append(imbalance(maps, load))
        found["after"].append(imbalance(new, load))
        found["sent"].append(int(((new >= 0) & (maps < 0)).sum()))
        maps = new
        popularity = DRIFT * popularity + np.sqrt(1 - DRIFT**2) * rng.normal(0, 1, popularity.shape)
    return found


def planner(name: str, ranks: int, experts: int, redundant: int) -> tuple[Any, np.ndarray]:
    """From maps ``(L, R, E)`` and loads of experts ``(L, E)`` to new maps, and the first ones."""
    from vllm_ascend.eplb.core.eplb_utils import init_eplb_config
    from vllm_ascend.eplb.core.eplb_worker import EplbWorker
    from vllm_ascend.eplb.core.policy.policy_factory import PolicyFactory

    config = stand_ins.Ascend(10, 2, redundant, 2)
    moe = SimpleNamespace(num_experts=experts, ep_size=ranks, ep_rank=0, supports_eplb=True)
    first = torch.stack([init_eplb_config(config, layer, moe)[0] for layer in range(LAYERS)])
    if name == "STAIR":
        return stair, first.numpy()
    generate = PolicyFactory.generate_policy
    if name in OURS:
        from equipoise.engines._shared.start_map import StartOptions
        from equipoise.engines.ascend import runner_v1

        runner_v1.install(StartOptions(max_moves_share=1.0, **OURS[name]))
    shared = {"expert_maps": first}
    worker = EplbWorker(shared, 2)
    PolicyFactory.generate_policy = staticmethod(generate)

    def plan(maps: np.ndarray, load: np.ndarray) -> np.ndarray:
        shared["expert_maps"] = torch.from_numpy(maps)
        shared["moe_load"] = torch.from_numpy(of_slots(maps, load))
        worker.do_update()
        return shared["expert_maps"].numpy()

    return plan, first.numpy()


def stair(maps: np.ndarray, load: np.ndarray) -> np.ndarray:
    """STAIR's own rule, without its threads and processes, from one window."""
    from vllm_ascend.ascend_config import StairConfig
    from vllm_ascend.distributed.eplb.policy.stair import StairEplbPolicy

    nobody = np.full(LAYERS, np.nan)
    plan = StairEplbPolicy.plan_rebalance(
        load[None], held(maps), nobody, np.zeros(maps.shape[1], dtype=np.int64), StairConfig()
    )
    new = np.full(maps.shape, -1)
    slots = np.broadcast_to(np.arange(plan.rank_expert_ids.shape[-1]), plan.rank_expert_ids.shape)
    np.put_along_axis(new, plan.rank_expert_ids, slots, axis=2)
    return new


def held(maps: np.ndarray) -> np.ndarray:
    """Experts of the slots, ``(L, R, C)``."""
    size = maps.max() + 1
    return np.argsort(np.where(maps < 0, maps.shape[-1], maps), axis=2, kind="stable")[..., :size]


def of_slots(maps: np.ndarray, load: np.ndarray) -> np.ndarray:
    """Loads of the slots, ``(L, R, C)``, if copies share evenly."""
    each = load / (maps >= 0).sum(axis=1)
    return np.take_along_axis(np.repeat(each[:, None], maps.shape[1], axis=1), held(maps), axis=2)


def imbalance(maps: np.ndarray, load: np.ndarray) -> float:
    ranks = of_slots(maps, load).sum(axis=2)
    return float((ranks.max(axis=1) / ranks.mean(axis=1)).mean())


if __name__ == "__main__":
    main()

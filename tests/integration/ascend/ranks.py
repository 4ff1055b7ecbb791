"""Four ranks that balance a model with model runner V1's own classes, in a release's own process.

    python -m tests.integration.ascend.ranks CASES ANSWER

with the folder of the release first on the path. ``CASES`` is a file of JSON, a list of arguments
of ``Case``; what each came to is written to ``ANSWER``.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.integration.ascend import stand_ins
from tests.integration.processes import answers_of_ranks

if __name__ in ("__main__", "__mp_main__"):  # a planning process that is spawned needs them too
    stand_ins.install()

LAYERS, HEAT, WAIT = 4, 10, 2
TOKENS = 4000
DRIFT = 0.999
SHOCK = np.sqrt(1 - DRIFT**2)
"""Logarithms of the popularity of experts are normal and drift with every step."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is served.

    Parameters
    ----------
    options
        Value of ``EQUIPOISE_ASCEND``; ``None``: not set.
    planner
        Name of one of ``PLANNERS`` that fails at some rebalances.
    method
        How planning processes start.
    """

    name: str
    options: str | None = None
    rebalances: int = 20
    redundant: int = 8
    ranks: int = 4
    experts: int = 32
    policy: int = 2
    planner: str | None = None
    method: str = "fork"


@dataclass
class Served:
    """What the ranks saw.

    Parameters
    ----------
    imbalance
        Busiest rank over mean, mean of layers, before the first rebalance and after each.
    sent
        Experts that a rank got from another, one entry per rebalance.
    wrong
        Slots with the numbers of another expert, of all ranks and all steps.
    lost
        Experts that a rank would have sent to a slot that does not hold them.
    planners
        Process ids of the planning processes.
    """

    policy: str = ""
    imbalance: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    wrong: int = 0
    lost: int = 0
    planners: list[int] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


def main() -> None:
    cases, answer = (Path(name) for name in sys.argv[1:])
    import_once()
    found = {}
    for arguments in json.loads(cases.read_text()):
        case = Case(**arguments)
        found[case.name] = asdict(serve(case, answer.parent / case.name))
        answer.write_text(json.dumps(found))


def import_once() -> None:
    """What takes long, before processes are forked."""
    from vllm_ascend.eplb import eplb_updator  # noqa: F401

    from equipoise.plan import Situation, replan

    slots = np.arange(12)[None] % 8
    replan(Situation(load=np.arange(1, 9)[None], num_slots=12, num_ranks=4, slots=slots))


def serve(case: Case, folder: Path) -> Served:
    folder.mkdir()
    found = answers_of_ranks(case.ranks, lambda rank: _Rank(rank, case, folder).serve(), case.name)
    first = found[0]
    for other in found[1:]:
        first.wrong += other.wrong
        first.lost += other.lost
        first.planners += other.planners
    first.log += (folder / "log").read_text().splitlines()
    return first


class _Rank:
    def __init__(self, rank: int, case: Case, folder: Path) -> None:
        self.rank, self.case, self.folder = rank, case, folder
        self.slots = (case.experts + case.redundant) // case.ranks
        self.served = Served()

    def serve(self) -> Served:
        torch.set_num_threads(1)
        self._keep_log()
        if self.case.options is not None:
            os.environ["EQUIPOISE_ASCEND"] = self.case.options
        multiprocessing.set_start_method(self.case.method, force=True)
        self._load_plugins()
        from vllm.config import ParallelConfig, VllmConfig, set_current_vllm_config

        config = VllmConfig()
        config.parallel_config = ParallelConfig(
            tensor_parallel_size=self.case.ranks, enable_expert_parallel=True
        )
        with set_current_vllm_config(config):
            self._join_groups()
            manager = multiprocessing.get_context("fork").Manager()
            try:
                self._build(manager.dict())
                self._steps()
                self.updator.shutdown()
            finally:
                manager.shutdown()
        return self.served

    def _keep_log(self) -> None:
        """In a file, since planning processes write too."""
        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging

        os.environ["EQUIPOISE_TEST_LOG"] = str(self.folder / "log")
        configure_logging(LoggingConfig())
        keep_log()

    def _load_plugins(self) -> None:
        from vllm.plugins import load_general_plugins

        from tests.integration.ascend import planners

        load_general_plugins()
        if self.case.planner is not None:
            planners.install(self.case.planner, self.rank)

    def _join_groups(self) -> None:
        from vllm.distributed import parallel_state

        parallel_state.init_distributed_environment(
            self.case.ranks, self.rank, f"file://{self.folder}/store", self.rank, backend="gloo"
        )
        parallel_state.initialize_model_parallel(self.case.ranks, backend="gloo")

    def _build(self, shared: Any) -> None:
        """As the model runner does, in its order."""
        from vllm_ascend.eplb.adaptor.vllm_adaptor import VllmEplbAdaptor
        from vllm_ascend.eplb.core.eplb_device_transfer_loader import D2DExpertWeightLoader
        from vllm_ascend.eplb.core.eplb_utils import init_eplb_config
        from vllm_ascend.eplb.core.eplb_worker import EplbProcess
        from vllm_ascend.eplb.eplb_updator import EplbUpdator

        config = stand_ins.Ascend(HEAT, WAIT, self.case.redundant, self.case.policy)
        stand_ins.group(config)
        shared.update({"expert_map": None, "moe_load": None, "expert_maps": None})
        loader = D2DExpertWeightLoader()
        process = EplbProcess(shared_dict=shared, policy_type=self.case.policy, enable_d2d=True)
        child = process._launch_process()
        self.served.planners.append(child.pid)
        self.served.policy = type(process.worker.policy).__name__
        self.updator = EplbUpdator(config, loader, process, child)
        moe = SimpleNamespace(
            num_experts=self.case.experts,
            ep_size=self.case.ranks,
            ep_rank=self.rank,
            supports_eplb=True,
        )
        self.layers = []
        for number in range(LAYERS):
            maps, _, log2phy, _ = init_eplb_config(config, number, moe)
            self.layers.append(stand_ins.Layer(number, self.rank, maps, log2phy))
        model = stand_ins.Model(self.layers)
        stand_ins.register(model, self.layers, VllmEplbAdaptor)
        self.adaptor = VllmEplbAdaptor(model=model)
        loader.set_adator(self.adaptor)
        self.updator.set_adaptor(self.adaptor)
        self.updator.warm_up_eplb()

    def _steps(self) -> None:
        """Serve a whole round of steps after the last rebalance."""
        traffic, tokens = np.random.default_rng(0), np.random.default_rng(1 + self.rank)
        popularity = traffic.normal(0, 1, (LAYERS, self.case.experts))
        load = torch.zeros(LAYERS, self.case.ranks * self.slots, dtype=torch.int64)
        maps, begun = self._maps(), 0
        while len(self.served.imbalance) <= self.case.rebalances:
            popularity = DRIFT * popularity + SHOCK * traffic.normal(0, 1, popularity.shape)
            share = np.exp(popularity) / np.exp(popularity).sum(axis=1, keepdims=True)
            chosen = torch.from_numpy(tokens.multinomial(TOKENS // self.case.ranks, share))
            self.updator.forward_before()
            counted = self._route(chosen)
            load += counted
            for layer, row in zip(self.layers, counted, strict=True):
                layer.moe_load += row.reshape(self.case.ranks, -1)[self.rank]
            if hasattr(self.updator, "take_update_info_from_eplb_process"):
                self.updator.take_update_info_from_eplb_process()
            self.updator.forward_end()
            self._check_content()
            begun += 1
            if begun == HEAT:  # the loads of these steps are what is planned on
                self._note(load)
                load.zero_()
            if self.updator.cur_iterations < begun:  # a new round, or the plan was left out
                begun = self.updator.cur_iterations
                maps, before = self._maps(), maps
                load.zero_()
                self.served.sent.append(int(((maps >= 0) & (before < 0)).sum()))
                self.served.lost += self._lost(maps)

    def _route(self, chosen: torch.Tensor) -> torch.Tensor:
        """Count the assignments of all ranks by slot, ``(L, S)``: each rank has its own table."""
        from vllm.distributed import get_ep_group

        counted = torch.zeros(LAYERS, self.case.ranks * self.slots, dtype=torch.int64)
        for number in range(LAYERS):
            table = self.adaptor.log2phy_map_per_layer[number].long()
            counted[number].index_add_(0, table, chosen[number])
        torch.distributed.all_reduce(counted, group=get_ep_group().cpu_group)
        return counted

    def _note(self, load: torch.Tensor) -> None:
        ranks = load.reshape(LAYERS, self.case.ranks, -1).sum(dim=-1).double()
        self.served.imbalance.append(float((ranks.amax(dim=1) / ranks.mean(dim=1)).mean()))

    def _check_content(self) -> None:
        for number, layer in enumerate(self.layers):
            self.served.wrong += layer.wrong_slots(self.adaptor.expert_map_per_layer_cpu[number])

    def _maps(self) -> torch.Tensor:
        """What all ranks say that they hold, ``(R, L, E)``."""
        from vllm.distributed import get_ep_group

        own = torch.stack([self.adaptor.expert_map_per_layer_cpu[n] for n in range(LAYERS)]).long()
        parts = [torch.empty_like(own) for _ in range(self.case.ranks)]
        torch.distributed.all_gather(parts, own, group=get_ep_group().cpu_group)
        return torch.stack(parts)

    def _lost(self, maps: torch.Tensor) -> int:
        lost = 0
        for number in range(LAYERS):
            slot = self.adaptor.log2phy_map_per_layer[number].long()
            expert = torch.arange(self.case.experts)
            lost += int((maps[slot // self.slots, number, expert] != slot % self.slots).sum())
        return lost


def keep_log() -> None:
    handler = logging.FileHandler(os.environ["EQUIPOISE_TEST_LOG"])
    handler.setFormatter(logging.Formatter("[%(process)d] %(levelname)s %(message)s"))
    logging.getLogger("vllm").addHandler(handler)


if __name__ == "__mp_main__":
    keep_log()

if __name__ == "__main__":
    main()

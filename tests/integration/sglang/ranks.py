"""Four ranks that balance a model with SGLang's own recorder, manager and weight movement."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.integration.processes import answers_of_ranks

RANKS, EXPERTS, SLOTS = 4, 32, 40
LAYERS, DENSE = 5, 1
"""Decoder layers, and how many of them come first and have no experts."""

PASSES = 10
"""Forward passes between two rebalances; one of them is idle."""

TOKENS, TOP_K = 100, 4
"""Tokens of a pass on one rank, and experts of each."""

DRIFT = 0.999
SHOCK = np.sqrt(1 - DRIFT**2)
"""Logarithms of the popularity of experts are normal and drift: half is new after 70 rebalances."""


@dataclass
class Served:
    """What rank 0 saw, one entry per rebalance.

    Parameters
    ----------
    moves
        Slots of MoE layers whose content changed.
    balancedness
        Mean over busiest rank of the passes before the first rebalance and after each, by SGLang's
        own formula, mean of the MoE layers.
    milliseconds
        Time from SGLang's question whether to rebalance to the end of the rebalance.
    wrong
        Slots with the numbers of another expert, of all ranks that are alive and all passes.
    read
        Times that weights were read from disk, on all ranks.
    slots
        Experts in force at the end, ``(L, S)``.
    log
        Lines of the log.
    """

    moves: list[int] = field(default_factory=list)
    balancedness: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    wrong: int = 0
    read: int = 0
    slots: Any = None
    log: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to serve.

    Parameters
    ----------
    algorithm
        Value of ``--eplb-algorithm``.
    options
        Value of ``EQUIPOISE_SGLANG``; ``None``: not set.
    rebalances
        Rebalances after which serving ends.
    change
        What a rank does after SGLang has loaded its plug-ins.
    dies
        Rank that is lost before the second rebalance; ``None``: none.
    arguments
        Further arguments of the server.
    """

    algorithm: str = "equipoise"
    options: str | None = None
    rebalances: int = 20
    change: Callable[[], None] | None = None
    dies: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def serve(folder: Path, run: Run) -> Served:
    """Serve until there were this number of rebalances."""
    from tests.integration.sglang import stand_ins

    stand_ins.install()  # once, then the processes are forked

    def serve_rank(rank: int) -> Served:
        os.environ.pop("EQUIPOISE_SGLANG", None)
        if run.options is not None:
            os.environ["EQUIPOISE_SGLANG"] = run.options
        return _Rank(rank, folder, run).serve()

    found = answers_of_ranks(RANKS, serve_rank, folder.name)
    found[0].wrong = sum(answer.wrong for answer in found)
    found[0].read = sum(answer.read for answer in found)
    return found[0]


class _Rank:
    def __init__(self, rank: int, folder: Path, run: Run) -> None:
        self.rank, self.run = rank, run
        self.served = Served()
        self._set_up(folder)

    def _set_up(self, folder: Path) -> None:
        """Do what SGLang's model runner does, in its order."""
        import torch
        from sglang.srt.eplb import eplb_manager, expert_distribution, expert_location
        from sglang.srt.plugins import load_plugins

        from tests.integration.sglang import stand_ins

        torch.set_num_threads(1)
        torch.manual_seed(self.rank)
        logging.getLogger().setLevel(logging.INFO)
        logging.getLogger().addHandler(_Lines(self.served.log))
        load_plugins()
        if self.run.change is not None:
            self.run.change()
        stand_ins.configuration(
            self.rank,
            RANKS,
            num_layers=LAYERS,
            num_experts=EXPERTS,
            eplb_algorithm=self.run.algorithm,
            eplb_rebalance_num_iterations=PASSES,
            expert_distribution_recorder_buffer_size=PASSES,
            **{"ep_num_redundant_experts": SLOTS - EXPERTS, **self.run.arguments},
        )
        torch.distributed.init_process_group(
            "gloo", f"file://{folder}/store", rank=self.rank, world_size=RANKS
        )
        self._make_elastic()
        self.metadata = expert_location.compute_initial_expert_location_metadata(None, self.rank)
        expert_location.set_global_expert_location_metadata(self.metadata)
        self.recorder = expert_distribution.ExpertDistributionRecorder.init_new(
            self.metadata, self.rank
        )
        expert_distribution.set_global_expert_distribution_recorder(self.recorder)
        self.model = stand_ins.Model(
            self.rank, range(DENSE, LAYERS), self.metadata.physical_to_logical_map, RANKS
        )
        self.disk = stand_ins.Disk(self.model)
        updater = self._updater()
        self.manager = eplb_manager.EPLBManager(
            model_config=None,
            get_model=lambda: self.model,
            get_expert_location_updater=lambda: updater,
            get_expert_backup_client=lambda: None,
            get_weight_updater=lambda: self.disk,
        )

    def _make_elastic(self) -> None:
        if self.run.dies is None:
            return
        import torch
        from sglang.srt.elastic_ep.elastic_ep import ElasticEPStateManager

        ElasticEPStateManager._instance = ElasticEPStateManager._build_state(
            ep_size=RANKS, device=torch.device("cpu")
        )

    def _updater(self) -> Any:
        from sglang.srt.eplb.expert_location_updater import ExpertLocationUpdater

        if self.rank != self.run.dies:
            return ExpertLocationUpdater()
        metadata, alive = self.metadata, self._serves

        class OfALostRank(ExpertLocationUpdater):
            """Gloo needs all ranks, so this one stays in its sums and takes no part otherwise."""

            def update(self, weights: Any, new: Any, update_layer_ids: Any, **how: Any) -> Any:
                if alive():
                    return super().update(weights, new, update_layer_ids, **how)
                metadata.update(new, update_layer_ids=update_layer_ids)
                return {}

        return OfALostRank()

    def serve(self) -> Served:
        """Serve up to the pass before one rebalance more would begin"""
        import torch

        traffic, tokens = np.random.default_rng(0), np.random.default_rng(1 + self.rank)
        popularity = traffic.normal(0, 1, (LAYERS, EXPERTS))
        load = torch.zeros(self.metadata.physical_to_logical_map.shape)
        slots = self.metadata.physical_to_logical_map_cpu
        for number in range(PASSES * (self.run.rebalances + 1)):
            popularity = DRIFT * popularity + SHOCK * traffic.normal(0, 1, popularity.shape)
            load += self._forward(number, popularity, tokens)
            before = slots.clone()
            rebalances = number > 0 and number % PASSES == 0
            if rebalances:
                self._close_window(load)
                load.zero_()
                self._lose_rank(len(self.served.moves))
            begin = time.perf_counter()
            self.manager.on_forward_pass_end()
            if rebalances:
                self.served.milliseconds.append(1000 * (time.perf_counter() - begin))
                alive = self._alive().repeat_interleave(slots.shape[1] // RANKS)
                changed = (slots != before)[DENSE:, alive]
                self.served.moves.append(int(changed.sum()))
            if self._serves():
                self.served.wrong += self.model.wrong_slots(slots)
        self._close_window(load)
        self.served.slots, self.served.read = slots.numpy(), self.disk.num_read
        return self.served

    def _forward(self, number: int, popularity: Any, tokens: np.random.Generator) -> Any:
        """One pass: SGLang picks the copies, and its recorder counts them, ``(L, S)``."""
        import torch
        from sglang.srt.eplb.expert_location_dispatch import (
            ExpertLocationDispatchInfo,
            topk_ids_logical_to_physical,
        )

        counts = torch.zeros(self.metadata.physical_to_logical_map.shape)
        idle = number % PASSES == 3
        with self.recorder.with_forward_pass(number, None):
            for layer in range(DENSE, LAYERS):
                noise = tokens.gumbel(size=(TOKENS, EXPERTS))
                chosen = np.argsort(popularity[layer] + noise, axis=1)[:, -TOP_K:]
                chosen = torch.from_numpy(chosen[:0] if idle or not self._serves() else chosen)
                info = ExpertLocationDispatchInfo.init_new(layer)
                picked = topk_ids_logical_to_physical(chosen, info)
                with self.recorder.with_current_layer(layer):
                    self.recorder.on_select_experts(picked)
                counts[layer] = torch.bincount(picked.flatten(), minlength=counts.shape[1])
        return counts

    def _close_window(self, load: Any) -> None:
        """Note how the passes since the last rebalance were balanced, over the ranks alive."""
        import torch
        from sglang.srt.eplb.expert_distribution import (
            compute_gpu_physical_count,
            compute_utilization_rate,
        )

        load = load.clone()
        torch.distributed.all_reduce(load)
        ranks = compute_gpu_physical_count(load[DENSE:], num_gpu=RANKS)[:, self._alive()]
        self.served.balancedness.append(float(compute_utilization_rate(ranks).mean()))

    def _lose_rank(self, rebalances: int) -> None:
        if self.run.dies is None or rebalances != 1:
            return
        from sglang.srt.elastic_ep.elastic_ep import ElasticEPStateManager

        state = ElasticEPStateManager.instance()
        state.active_ranks[self.run.dies] = 0
        state.sync_active_to_cpu()

    def _alive(self) -> Any:
        import torch
        from sglang.srt.elastic_ep.elastic_ep import ElasticEPStateManager

        state = ElasticEPStateManager.instance()
        return torch.ones(RANKS, dtype=torch.bool) if state is None else state.active_ranks_cpu > 0

    def _serves(self) -> bool:
        return bool(self._alive()[self.rank])


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

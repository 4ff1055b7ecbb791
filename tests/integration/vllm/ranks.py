"""Four ranks that balance a model with vLLM's own state, policies and weight movement."""

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

RANKS, LAYERS, EXPERTS, SLOTS = 4, 4, 32, 40
STEPS = 10
"""Steps between two rebalances; the loads of all of them count."""

TOKENS = 400
"""Assignments of a step and layer on one rank."""

DRIFT = 0.999
SHOCK = np.sqrt(1 - DRIFT**2)
"""Logarithms of the popularity of experts are normal and drift: half is new after 70 rebalances."""


@dataclass
class Served:
    """What rank 0 saw, one entry per rebalance.

    Parameters
    ----------
    moves
        Slots whose content changed.
    balancedness
        Mean over busiest rank, of the steps before the first rebalance and after each, by vLLM's
        own formula.
    milliseconds
        Time that vLLM's call of the policy took.
    wrong
        Slots with the numbers of another expert, of all ranks and all steps.
    stale
        Loads in rank 0's window that a layer recorded before it moved, counted after each move.
    resized
        Slots of the ranks that serve whose content changed when ranks left and when they came.
    counted
        Moves of layers that vllm-ascend's state knows of.
    policy
        Class that balanced.
    log
        Lines of vLLM's log.
    """

    moves: list[int] = field(default_factory=list)
    balancedness: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    wrong: int = 0
    stale: int = 0
    resized: list[int] = field(default_factory=list)
    counted: int = 0
    policy: str = ""
    log: list[str] = field(default_factory=list)


class Rank:
    """A rank that serves its share.

    Attributes
    ----------
    slots
        Slots of all ranks together.
    steps
        Steps between two rebalances.
    variable
        Environment variable that asks for the plug-in.
    """

    slots = SLOTS
    steps = STEPS
    variable = "EQUIPOISE_VLLM"

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self.folder = rank, folder
        self.served = Served()
        self._hear_log()

    def serve(self, rebalances: int, use_async: bool, change: Callable[[], None] | None) -> Served:
        import torch
        from vllm.config import set_current_vllm_config
        from vllm.distributed import parallel_state
        from vllm.plugins import load_general_plugins

        from tests.integration.vllm import stand_ins

        torch.set_num_threads(1)
        stand_ins.install()
        load_general_plugins()
        if change is not None:
            change()
        config = stand_ins.configuration(
            RANKS, self.slots - EXPERTS, steps=self.steps, use_async=use_async
        )
        with set_current_vllm_config(config):
            parallel_state.init_distributed_environment(
                RANKS, self.rank, f"file://{self.folder}/store", self.rank, backend="gloo"
            )
            parallel_state.initialize_model_parallel(RANKS, backend="gloo")
            self.model = self.new_model()
            self.state = self.new_state(config.parallel_config)
            self.state.add_model(self.model, stand_ins.ModelConfig())
            self._time_policy()
            self.state.step(is_profile=True)
            self.state.start_async_loop()
            self.run(rebalances)
        return self.served

    def new_model(self) -> Any:
        """The model that is served."""
        from tests.integration.vllm import stand_ins

        return stand_ins.Model(self.rank, RANKS, LAYERS, EXPERTS, self.slots)

    def new_state(self, config: Any) -> Any:
        """The state that balances, from vLLM's configuration of ranks."""
        import torch
        from vllm.distributed.eplb.eplb_state import EplbState

        state = EplbState(config, torch.device("cpu"))
        state.device_index = 0
        return state

    def begin_step(self) -> None:
        """Do what a model runner does before a forward pass, for the state."""

    def run(self, rebalances: int) -> None:
        """Serve up to the step before one rebalance more would begin."""
        self._steps(rebalances)

    def _hear_log(self) -> None:
        """As a worker of vLLM does first, then with what is logged kept."""
        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging

        configure_logging(LoggingConfig())
        logging.getLogger("vllm").addHandler(_Lines(self.served.log))

    def _time_policy(self) -> None:
        policy = self.state.policy
        self.served.policy = f"{getattr(policy, '__name__', type(policy).__name__)}"
        self.state.policy = _Timed(policy, self.served.milliseconds)

    def _steps(self, rebalances: int) -> None:
        import torch

        from tests.integration.vllm import stand_ins

        (model,) = self.state.model_states.values()
        traffic, tokens = np.random.default_rng(0), np.random.default_rng(1 + self.rank)
        popularity = traffic.normal(0, 1, (LAYERS, EXPERTS))
        self.state.expert_rearrangement_step = 0  # a whole window before the first rebalance
        load = torch.zeros(model.expert_load_pass.shape)
        for step in range(1, self.steps * (rebalances + 1)):
            popularity = DRIFT * popularity + SHOCK * traffic.normal(0, 1, popularity.shape)
            share = np.exp(popularity) / np.exp(popularity).sum(axis=1, keepdims=True)
            chosen = torch.from_numpy(tokens.multinomial(TOKENS, share))
            before = model.physical_to_logical_map.clone()
            self.begin_step()
            stand_ins.record(model.expert_load_pass, before, chosen)
            load += model.expert_load_pass
            self._wait_for_background(model)
            self.state.step()
            if step % self.steps == 0:
                self._close_window(load)
                self.served.moves.append(0)
                load.zero_()
            changed = model.physical_to_logical_map != before
            self.served.stale += int(model.expert_load_window[:, changed.any(dim=1)].sum())
            if self.served.moves:
                self.served.moves[-1] += int(changed.sum())
            self.served.wrong += self.model.wrong_slots(model.physical_to_logical_map)
        self._close_window(load)

    def _wait_for_background(self, model: Any) -> None:
        """A step here takes no time, so the background thread would never have a layer ready."""
        while self.state.is_async and model.rebalanced and model.pending_result is None:
            assert self.state.async_worker.is_alive(), "The background thread has ended."
            time.sleep(0.001)

    def _close_window(self, load: Any) -> None:
        """Note how the steps since the last rebalance were balanced."""
        import torch
        from vllm.distributed.eplb.eplb_state import _compute_eplb_load_stats
        from vllm.distributed.parallel_state import get_ep_group

        load, group = load.clone(), get_ep_group()
        torch.distributed.all_reduce(load, group=group.cpu_group)
        by_rank = load.reshape(LAYERS, group.world_size, -1).sum(dim=-1)
        mean, most = _compute_eplb_load_stats(by_rank)
        self.served.balancedness.append(float(mean / most))


def serve(
    folder: Path,
    *,
    options: str | None,
    rebalances: int,
    use_async: bool = False,
    change: Callable[[], None] | None = None,
    rank_class: type[Rank] = Rank,
    seconds: float = 170,
) -> Served:
    """Serve until there were this number of rebalances.

    Parameters
    ----------
    options
        Value of the rank's ``variable``; ``None``: not set.
    change
        What a rank does after vLLM has loaded its plug-ins.
    rank_class
        What a rank does then.
    seconds
        Time that it may take.
    """
    import vllm.distributed.eplb.eplb_state  # noqa: F401  once, then the processes are forked

    def serve_rank(rank: int) -> Served:
        if options is not None:
            os.environ[rank_class.variable] = options
        return rank_class(rank, folder).serve(rebalances, use_async, change)

    found = answers_of_ranks(RANKS, serve_rank, folder.name, seconds=seconds)
    found[0].wrong = sum(answer.wrong for answer in found)
    return found[0]


class _Timed:
    """A policy, and the time that each of its plans takes."""

    def __init__(self, policy: Any, milliseconds: list[float]) -> None:
        self._policy, self._milliseconds = policy, milliseconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def rebalance_experts(self, *given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        answer = self._policy.rebalance_experts(*given, **named)
        self._milliseconds.append(1000 * (time.perf_counter() - begin))
        return answer


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

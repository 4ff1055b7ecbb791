"""Real processes that run test functions together over gloo."""

from __future__ import annotations

import datetime
import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

NUM_PROCESSES = 4
ANSWER_SECONDS = 300  # a busy machine is slow, and only a hanging test waits this long
PATIENCE_SECONDS = 15  # for the other processes once one has failed
PRELOAD = [
    "torch.distributed",
    "transformers.models.qwen2_moe.modeling_qwen2_moe",
    "equipoise.runtime.moe.model",
    "equipoise.dispatch._kernels",
    "equipoise.dispatch._near_kernels",
    "equipoise.dispatch._token_kernels",
]


class Pool:
    """Processes 0 to 3, started once, since starting them takes longer than most tests."""

    def __init__(self, folder: Any) -> None:
        self._folder, self._generation = folder, 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(
        self, function: Callable[..., Any], *args: Any, ranks: int = NUM_PROCESSES
    ) -> list[Any]:
        """What ``function(group, *args)`` answers on each of the first ``ranks`` processes."""
        if not self._processes:
            self._start()
        for pipe in self._pipes[:ranks]:
            pipe.send((function, args, ranks))
        answers = self._collect(ranks)
        failures = [f"process {rank}: {text}" for rank, (ok, text) in answers.items() if not ok]
        if failures or len(answers) < ranks:
            self.close()  # what is left may wait for one another
            raise AssertionError("\n".join(failures) or f"only {sorted(answers)} have answered")
        return [answers[rank][1] for rank in range(ranks)]

    def _start(self) -> None:
        self._generation += 1
        store = str(self._folder / f"store-{self._generation}")
        for rank in range(NUM_PROCESSES):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(rank, store, theirs))
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _collect(self, ranks: int) -> dict[int, tuple[bool, Any]]:
        answers: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + ANSWER_SECONDS
        while len(answers) < ranks and (left := deadline - time.monotonic()) > 0:
            waiting = [pipe for rank, pipe in enumerate(self._pipes[:ranks]) if rank not in answers]
            for pipe in wait(waiting, timeout=left):
                rank = self._pipes.index(pipe)
                try:
                    answers[rank] = pipe.recv()
                except EOFError:
                    answers[rank] = False, "died"
                if not answers[rank][0]:
                    deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
        return answers

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(PATIENCE_SECONDS)
            process.kill()
            process.join()
        self._processes, self._pipes = [], []


def _serve(rank: int, store: str, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, NUM_PROCESSES),
        rank=rank,
        world_size=NUM_PROCESSES,
        timeout=datetime.timedelta(seconds=ANSWER_SECONDS),
    )
    groups = {n: dist.new_group(list(range(n))) for n in (1, 2)} | {NUM_PROCESSES: None}
    while True:
        try:
            function, args, ranks = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(groups[ranks], *args)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send(answer)

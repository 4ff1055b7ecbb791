"""Ranks of an engine as processes of their own, and what each came to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class _Fault:
    """Why a rank has no answer."""

    words: str


def answers_of_ranks(
    num_ranks: int, serve: Callable[[int], Any], name: str, *, seconds: float = 170
) -> list[Any]:
    """What every rank's process returned; ``AssertionError`` with the traceback of one that failed.

    The processes are forked, so what takes long to import is imported once, before. All are there
    until the last has answered, since the others may still talk to a rank that is done.

    Parameters
    ----------
    serve
        What a process does, from its rank.
    name
        Name for what the ranks share, which no two groups of this process may have at a time.
    seconds
        Time that an answer may take.
    """
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    ident = f"{os.getpid()}_{name}"
    processes = [
        fork.Process(target=_answer, args=(rank, serve, ident, answers))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    found = {}
    try:
        while len(found) < num_ranks:
            rank, answer = answers.get(timeout=seconds)
            assert not isinstance(answer, _Fault), f"{name}, rank {rank}: {answer.words}"
            found[rank] = answer
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.kill()
            process.join()
        for left in Path("/dev/shm").glob(f"{ident}*"):
            left.unlink()  # vLLM's memory shared by ranks, which no process removes that is ended
    return [found[rank] for rank in range(num_ranks)]


def _answer(rank: int, serve: Callable[[int], Any], ident: str, answers: Any) -> None:
    os.setpgid(0, 0)
    os.environ["VLLM_DIST_IDENT"] = ident  # as vLLM's worker for CPUs does
    try:
        answer = serve(rank)
    except BaseException as error:  # the test has to hear of it
        answer = _Fault(f"{error!r}\n{traceback.format_exc()}")
    answers.put((rank, answer))
    while True:
        signal.pause()  # until it is ended

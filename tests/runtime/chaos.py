"""Randomised runs of real processes that serve the small model while things go wrong.

    python -m tests.runtime.chaos [--runs 200] [--seed 0] [--json FILE]

A run starts two to four processes with a dispatcher, a redundancy and a way to move experts drawn
at random, under an advisor that moves experts all the time, and does one thing to it, once that is
there which it is to hit: a move under way, a plan that is awaited, one to three moves made. What
does not come within 2,000 steps is no longer waited for; a busy machine has slower steps, not
fewer. The run goes on until experts have moved after it too:

=========  =====================================================================================
kill       ``kill -9`` of one process; of two; of one, and a new one joins; or of one, and a bit
           of what another has is flipped while the model is rebuilt
stop       SIGSTOP of one process for longer than the silence that is put up with, then SIGCONT
leave      SIGTERM of one process
corrupt    one process sends every chunk of experts with a bit flipped, for a while
slow       planners that take longer than may be waited for
garbage    planners that answer a map with an expert missing, or no map at all
full       every map that is to be kept finds the disk full
none       nothing
=========  =====================================================================================

A run is right if all processes end by themselves, every request is answered, and every
token of every answer is that of the plain transformers model in a single process. Prompts are such
that the best token leads by more than 1e-3 at every step, so that rounding cannot decide.
Recovery is the time from the fault to the first status of a step in a later epoch.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from equipoise.control.settings import Settings
from equipoise.control.status import status_key
from equipoise.placement import Placement
from equipoise.runtime.members.filling import Filling
from equipoise.runtime.moving import transfer
from equipoise.runtime.moving.checksum import slot_bytes
from equipoise.runtime.serving import server
from equipoise.runtime.serving.requests import Ledger, Request
from equipoise.runtime.serving.server import Options, serve
from tests.control.advisors import Restless
from tests.runtime.processes import PRELOAD
from tests.runtime.same_answers import Plain
from tests.runtime.small_model import FOLDER

NEW_TOKENS = 16
NUM_PROMPTS = 40
LEAD = 1e-3
SHAPES = {2: (0, 8, 16), 3: (1, 4, 16), 4: (0, 8, 16)}  # processes, and redundant slots for them
SILENCE_SECONDS = 2.0
BYTES_PER_SECOND = 4e6  # in the background, so that moves take long enough to be hit
PATIENCE_SECONDS = 90.0  # without a step, after which a run hangs
MOST_STEPS = 2000  # that what is to be hit is waited for
STEPS_AFTER = 600  # that a move is waited for after a fault
FAULTS = (
    "kill", "kill", "kill two", "kill, join", "kill, flip", "stop", "leave", "corrupt", "slow",
    "garbage", "full", "none",
)  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """The source of requests: prompts known beforehand, round and round."""

    ids: tuple[tuple[int, ...], ...]

    def __call__(self, number: int) -> Request:
        return Request(number, self.ids[number % len(self.ids)])


def disk_full(_placement: Placement) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Closing(Ledger):
    """A ledger that gives out no more numbers than a file says, once it is there."""

    file = Path()

    def exchange(self, *args: Any) -> list[int]:
        if self.file.exists():
            self._limit = min(self._limit, int(self.file.read_text()))
        return super().exchange(*args)


def serve_badly(host: str, port: int, name: str, options: Options, flag: Path) -> None:
    """``serve``, sending every chunk with a bit flipped as long as the flag is there.

    Or, if it says so, with a bit flipped in what has come in the next rebuild.
    """
    Closing.file, server.Ledger = flag.with_name("limit"), Closing
    whole = transfer._messages

    def messages(weights: dict[str, torch.Tensor], slot: int) -> list[torch.Tensor]:
        chunks = whole(weights, slot)
        if flag.exists() and flag.read_text() == name:
            chunks = [chunk.clone() for chunk in chunks]
            chunks[-1][-1] ^= 1
        return chunks

    exchange = Filling.exchange

    def spoiling(filling: Filling, group: Any) -> None:
        exchange(filling, group)
        if flag.exists() and flag.read_text() == f"{name} rebuilds":
            flag.unlink()
            slot_bytes(next(iter(filling.new.values())), 0)[0] ^= 1

    transfer._messages = messages
    Filling.exchange = spoiling  # type: ignore[method-assign]
    logging.basicConfig(filename=flag.with_name(f"{name}.log"), level=logging.INFO, force=True)
    serve(host, port, name, options)


@dataclass
class Run:
    """One run and what came of it."""

    seed: int
    fault: str
    about: str
    wrong: list[str] = field(default_factory=list)
    recovery_seconds: float | None = None
    seconds: float = 0.0
    moves: int = 0  # changes of the map that were begun
    moved_slots: int = 0
    hit: bool = True  # what was to be hit was there
    requests: int = 0  # that were to be answered


class Group:
    """The processes of a run, as their launcher sees them."""

    def __init__(self, context: Any, folder: Path, options: Options) -> None:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.folder, self.options, self._context = folder, options, context
        self.flag = folder / "corrupt"
        self.processes: dict[str, Any] = {}
        self._moved: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))  # by epoch
        for _ in range(options.processes):
            self.start()

    def start(self) -> str:
        name = f"p{len(self.processes)}"
        process = self._context.Process(
            target=serve_badly,
            name=name,
            args=("127.0.0.1", self.store.port, name, self.options, self.flag),
        )
        process.start()
        self.processes[name] = process
        return name

    def status(self, name: str) -> dict[str, Any]:
        key = status_key(name)
        return json.loads(self.store.get(key)) if self.store.check([key]) else {}

    def statuses(self) -> list[dict[str, Any]]:
        return [status for name in self.processes if (status := self.status(name))]

    def wait(self, what: Callable[[list[dict[str, Any]]], bool], steps: int = MOST_STEPS) -> bool:
        """Wait until the statuses of the last epoch say something, at most for these steps.

        Whether they do.
        """
        last = first = self._step
        heard = time.monotonic()
        while self.serves and time.monotonic() - heard < PATIENCE_SECONDS:
            said = self.statuses()
            for status in said:
                self._moved[status["epoch"]] = max(
                    self._moved[status["epoch"]], (status["version"], status["moved_slots"])
                )
            if what([status for status in said if status["epoch"] == self.epoch]):
                return True
            if self._step > last:
                last, heard = self._step, time.monotonic()
            if last - first >= steps:
                return False
            time.sleep(0.02)
        return False

    @property
    def moved(self) -> tuple[int, int]:
        """Changes of the map that were begun, and slots that moved, as far as was looked."""
        moves, slots = zip((0, 0), *self._moved.values(), strict=True)
        return sum(moves), sum(slots)

    @property
    def epoch(self) -> int:
        """The last one that a process has told of."""
        return max((status["epoch"] for status in self.statuses()), default=0)

    @property
    def _step(self) -> int:
        return max((status["step"] for status in self.statuses()), default=0)

    def close(self) -> None:
        """Give out no more requests than a few; the processes end when these are answered."""
        limit = json.loads(self.store.get("requests"))["next"] + 2 * len(self.processes)
        (self.folder / "limit.new").write_text(str(limit))
        (self.folder / "limit.new").rename(self.folder / "limit")
        self.options = replace(self.options, limit=limit)

    def signal(self, name: str, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.processes[name].pid, number)

    @property
    def serves(self) -> bool:
        return any(process.is_alive() for process in self.processes.values())

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()


def run(
    seed: int, context: Any, prompts: Prompts, answers: list[list[int]], fault: str | None = None
) -> Run:
    """One run, with a fault or the one drawn."""
    draw = random.Random(seed)
    drawn = draw.choice(FAULTS)
    fault = fault or drawn
    processes = draw.choice((3, 4) if fault == "kill two" else (2, 3, 4))
    settings = Settings(
        num_redundant=draw.choice(SHAPES[processes]), window=8, update_interval=8,
        wait_steps=200 if fault == "slow" else 1000,
        warm_up_steps=0, cool_down_steps=8, background=draw.random() < 0.7,
        layers_per_step=draw.choice((1, 2, 5)),
    )  # fmt: skip
    dispatch = draw.choice(("even", "minmax", "nearest", "fewest"))
    done = Run(seed, fault, f"{processes} x {dispatch} +{settings.num_redundant} "
               f"{'background' if settings.background else 'blocking'}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            model=FOLDER, source=prompts, limit=sys.maxsize,
            processes=processes, settings=settings, dispatch=dispatch, batch_size=2,
            new_tokens=NEW_TOKENS, advisor=Restless(seed, fault),
            keep=disk_full if fault == "full" else None, results=Path(folder),
            bytes_per_second=BYTES_PER_SECOND if settings.background else None,
            timeout_seconds=20.0, silence_seconds=SILENCE_SECONDS,
        )  # fmt: skip
        began = time.monotonic()
        group = Group(context, Path(folder), options)
        try:
            _let_happen(group, draw, done)
            group.wait(lambda said: any(s["moved_slots"] for s in said), STEPS_AFTER)
            group.close()
            await_end(group, done)
            done.seconds = time.monotonic() - began
            done.hit &= done.fault != "kill, flip" or not group.flag.exists()
            check_answers(group, answers, done)
        finally:
            group.end()
        if done.wrong:
            for path in sorted(Path(folder).glob("*.log")):
                print(path.name, path.read_text()[-3000:], sep="\n")
    return done


def await_steps(group: Group, steps: int) -> bool:
    """Wait until all processes have served this number of steps."""
    return group.wait(
        lambda said: len(said) == len(group.processes) and min(s["step"] for s in said) >= steps
    )


def _let_happen(group: Group, draw: random.Random, done: Run) -> None:
    """Wait for what is to be hit, then let the fault happen."""
    await_steps(group, 1)
    moves = draw.randint(1, 3)
    targets: list[Callable[[dict[str, Any]], bool]] = [
        lambda status: status["state"] == "move",
        lambda status: status["state"] == "plan" and bool(status["version"]),
        lambda status: status["version"] >= moves,
    ]
    target = draw.choice(targets)
    if done.fault in ("slow", "garbage", "full", "none"):  # from the start, or not at all
        target = targets[-1]
    done.hit = group.wait(lambda said: any(map(target, said)))
    if not group.serves:
        done.wrong.append("all have ended before anything was done to them")
        return
    names = draw.sample(sorted(group.processes), 2)
    epoch = group.epoch
    at = time.monotonic()
    if done.fault == "kill, flip":
        group.flag.write_text(f"{names[1]} rebuilds")
    if done.fault.startswith("kill"):
        for name in names[: 2 if done.fault == "kill two" else 1]:
            group.signal(name, signal.SIGKILL)
        if done.fault == "kill, join":
            time.sleep(draw.uniform(0.0, 1.0))
            group.start()
    elif done.fault == "stop":
        group.signal(names[0], signal.SIGSTOP)
    elif done.fault == "leave":
        group.signal(names[0], signal.SIGTERM)
    elif done.fault == "corrupt":
        group.flag.write_text(names[0])
        group.wait(lambda _: False, draw.randint(20, 100))
        group.flag.unlink()
        return
    else:
        return
    if group.wait(lambda said: any(s["epoch"] > epoch for s in said)):
        done.recovery_seconds = time.monotonic() - at
    if done.fault == "stop":
        group.signal(names[0], signal.SIGCONT)


def await_end(group: Group, done: Run) -> None:
    """Wait for the processes to end by themselves; what they did otherwise is wrong."""
    group.wait(lambda _: False, sys.maxsize)
    done.moves, done.moved_slots = group.moved
    for name, process in group.processes.items():
        process.join(PATIENCE_SECONDS if not group.serves else 0.1)
        if process.exitcode is None:
            done.wrong.append(f"{name} hangs: {group.status(name)}")
        elif process.exitcode not in (0, -signal.SIGKILL):
            done.wrong.append(f"{name} ended with {process.exitcode}")


def check_answers(group: Group, answers: list[list[int]], done: Run) -> None:
    """Compare every answer with the right one; a wrong or missing one is wrong."""
    seen = set()
    done.requests = group.options.limit or 0
    for path in group.folder.glob("*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                continue  # killed while it wrote: the request is served again
            said = json.loads(line)
            seen.add(said["number"])
            if said["tokens"] != answers[said["number"] % len(answers)]:
                done.wrong.append(f"request {said['number']} was answered otherwise")
    missing = set(range(done.requests)) - seen
    if missing:
        done.wrong.append(f"requests {sorted(missing)} were not answered")


@cache
def references() -> tuple[Prompts, list[list[int]]]:
    """Prompts, and what transformers makes of each in one process, where rounding cannot decide."""
    from tokenizers import Tokenizer

    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    model = Plain()
    text = Path(random.__file__).read_text()  # code and prose that every Python has
    draw, kept, answers = random.Random(0), [], []
    while len(kept) < NUM_PROMPTS:
        starts = [draw.randrange(len(text) - 200) for _ in range(NUM_PROMPTS)]
        texts = [text[start : start + draw.randint(10, 120)] for start in starts]
        prompts = [tuple(tokenizer.encode(one).ids) for one in texts]
        for ids, answer, lead in zip(prompts, *_continue(model, prompts), strict=True):
            if lead > LEAD:
                kept.append(ids)
                answers.append(answer)
    return Prompts(tuple(kept[:NUM_PROMPTS])), answers[:NUM_PROMPTS]


def _continue(
    model: Plain, prompts: Sequence[tuple[int, ...]]
) -> tuple[list[list[int]], list[float]]:
    """The greedy continuations, and the least lead of the best token over the second in each."""
    longest = max(map(len, prompts))
    new = torch.tensor([(0,) * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([(0,) * (longest - len(ids)) + (1,) * len(ids) for ids in prompts])
    tokens, leads, past = [], [], None
    for _ in range(NEW_TOKENS):
        logits, past = model.step(new, mask, past)
        best = logits.topk(2)
        leads.append(best.values[:, 0] - best.values[:, 1])
        new = best.indices[:, :1]
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        tokens.append(new)
    return torch.cat(tokens, dim=1).tolist(), torch.stack(leads).amin(dim=0).tolist()


def forked() -> Any:
    """Starts processes that have imported what takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, "equipoise.runtime.serving.server"])
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context, (prompts, answers) = forked(), references()
    runs = []
    for seed in range(options.seed, options.seed + options.runs):
        runs.append(run(seed, context, prompts, answers))
        last = runs[-1]
        recovery = "" if last.recovery_seconds is None else f"{last.recovery_seconds:.2f}"
        print(f"{seed:4d} {last.fault:10s} {last.about:28s} {last.seconds:6.1f} s  "
              f"{last.moves:3d} moves, {last.moved_slots:5d} slots{' ' if last.hit else '*'} "
              f"{recovery:5s} "
              f"{'; '.join(last.wrong) or 'right'}",
              flush=True)  # fmt: skip
    _tell(runs)
    if options.json:
        options.json.write_text(json.dumps([vars(one) for one in runs]))
    raise SystemExit(any(one.wrong for one in runs))


def _tell(runs: list[Run]) -> None:
    moved = sum(one.moved_slots > 0 for one in runs)
    missed = sum(not one.hit for one in runs)
    print(f"\n{moved} of {len(runs)} runs moved experts; in {missed} (*) nothing to hit came.")
    print("\n| fault | runs | right | moves | recovery, median | longest |")
    print("|---|---:|---:|---:|---:|---:|")
    for fault, count in sorted(Counter(one.fault for one in runs).items()):
        these = [one for one in runs if one.fault == fault]
        took = [one.recovery_seconds for one in these if one.recovery_seconds is not None]
        times = f"{np.median(took):.2f} s | {max(took):.2f} s" if took else "|"
        right = sum(not one.wrong for one in these)
        print(f"| {fault} | {count} | {right} | {sum(o.moves for o in these)} | {times} |")


if __name__ == "__main__":
    main()

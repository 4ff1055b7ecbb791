"""Whether serving for long needs more and more memory.

    python -m tests.runtime.soak [--steps 20000] [--processes 2] [--json FILE]

Processes serve the small model under an advisor that moves experts all the time, every move in the
background, until each has made a number of decode steps. Twenty times in between: resident memory,
threads and open files of every process, and the memory of its planner. Right if from a fifth of the
way on no process has grown by more than 8 MiB, a thread or a file, and if every token of every
answer is that of the plain transformers model in a single process.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from equipoise.control.settings import Settings
from equipoise.runtime.serving.server import Options
from tests.control.advisors import Restless
from tests.runtime.chaos import (
    NEW_TOKENS,
    Group,
    Run,
    await_end,
    check_answers,
    forked,
    references,
)
from tests.runtime.small_model import FOLDER

BATCH = 4
LOOKS = 20
MOST_GROWTH_MIB = 8.0
PATIENCE_SECONDS = 60.0  # without a step


@dataclass(frozen=True)
class Size:
    """What a process takes at a step."""

    step: int
    moves: int
    mib: float
    threads: int
    files: int
    planner_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context, (prompts, answers) = forked(), references()
    with tempfile.TemporaryDirectory() as folder:
        group = Group(context, Path(folder), Options(
            model=FOLDER, source=prompts, processes=options.processes,
            settings=Settings(
                num_redundant=4 * options.processes, window=8, update_interval=8, wait_steps=400,
                warm_up_steps=0, cool_down_steps=8, layers_per_step=5,
            ),
            batch_size=BATCH, new_tokens=NEW_TOKENS, advisor=Restless(0), results=Path(folder),
        ))  # fmt: skip
        began = time.monotonic()
        try:
            sizes = watch(group, options.steps)
            seconds = time.monotonic() - began
            for name in group.processes:
                group.signal(name, signal.SIGTERM)
            done = Run(0, "none", "")
            await_end(group, done)
            check_answers(group, answers, done)
        finally:
            group.end()
        served = sum(len(p.read_text().splitlines()) for p in Path(folder).glob("*.jsonl"))
    wrong = [*done.wrong, *(text for name, of in sizes.items() if (text := grown(name, of)))]
    print(f"{served} requests in {seconds:.0f} s; {'; '.join(wrong) or 'right'}")
    if options.json:
        said = {name: [asdict(size) for size in of] for name, of in sizes.items()}
        options.json.write_text(json.dumps(said))
    raise SystemExit(bool(wrong))


def watch(group: Group, steps: int) -> dict[str, list[Size]]:
    """Sizes by process, until all have made this number of steps."""
    sizes: dict[str, list[Size]] = {name: [] for name in group.processes}
    print("| process | step | moves | MiB | threads | files | planner MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    heard = time.monotonic()
    last = dict.fromkeys(sizes, 0)
    while min(last.values()) < steps:
        time.sleep(0.2)
        for name in sizes:
            status = group.status(name)
            step = status["tokens"] // BATCH if status else 0
            if step > last[name]:
                last[name], heard = step, time.monotonic()
            if step >= steps * (len(sizes[name]) + 1) / LOOKS:
                sizes[name].append(size_of(group.processes[name].pid, step, status["version"]))
                told = map(str, asdict(sizes[name][-1]).values())
                print(f"| {name} | {' | '.join(told)} |", flush=True)
        if time.monotonic() - heard > PATIENCE_SECONDS:
            raise SystemExit(f"No step for {PATIENCE_SECONDS:g} s: {group.statuses()}")
    return sizes


def size_of(pid: int, step: int, moves: int) -> Size:
    folder = Path(f"/proc/{pid}")
    children = [int(c) for path in folder.glob("task/*/children") for c in path.read_text().split()]
    return Size(
        step=step,
        moves=moves,
        mib=mib(pid),
        threads=len(list((folder / "task").iterdir())),
        files=len(list((folder / "fd").iterdir())),
        planner_mib=max(map(mib, children), default=0.0),
    )


def mib(pid: int) -> float:
    """Resident memory that is this process's own."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    return round(
        sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024, 1
    )


def grown(name: str, sizes: list[Size]) -> str:
    """What has grown since a fifth of the way; empty if nothing."""
    first, last = sizes[len(sizes) // 5], sizes[-1]
    growth = max(last.mib - first.mib, last.planner_mib - first.planner_mib)
    if growth > MOST_GROWTH_MIB or last.threads > first.threads + 1 or last.files > first.files + 1:
        return f"{name} has grown: {first} to {last}"
    return ""


if __name__ == "__main__":
    main()

"""Tiny models of every type, served while experts move and a process is killed.

    python -m tests.runtime.served_types

Three processes serve a model with random weights under an advisor that moves experts all the time.
After two complete moves, when the third has begun, one of them is killed; the others go on until
experts have moved again, and until every request is answered. Every token of every answer has to be
the one that transformers generates greedily in a single process. Prompts are such that the best
token leads by more than 1e-3 at every step, so that rounding cannot decide.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from equipoise.control.settings import Settings
from equipoise.runtime.moe.model_types import MODEL_TYPES
from equipoise.runtime.serving.server import Options
from tests.control.advisors import Restless
from tests.engines.transformers.tiny import MODELS
from tests.runtime.chaos import Group, Prompts, Run, await_end, check_answers, forked
from tests.runtime.tiny_models import asked, save

NUM_PROMPTS = 12
NEW_TOKENS = 12
LEAD = 1e-3
SLOTS_PER_RANK = 4


def serve_through_a_death(name: str, folder: Path, model: Any, results: Path) -> Run:
    """Serve a saved model; what came of it."""
    prompts, answers = asked(model, NUM_PROMPTS, NEW_TOKENS, LEAD)
    num_experts = MODELS[name][3]
    settings = Settings(
        num_redundant=3 * SLOTS_PER_RANK - num_experts, window=8, update_interval=8,
        wait_steps=1000, warm_up_steps=0, cool_down_steps=8, layers_per_step=1,
    )  # fmt: skip
    options = Options(
        model=folder, source=Prompts(prompts), limit=sys.maxsize, processes=3, settings=settings,
        batch_size=2, new_tokens=NEW_TOKENS, advisor=Restless(0), results=results,
        timeout_seconds=20.0, silence_seconds=2.0,
    )  # fmt: skip
    done = Run(0, "kill", name)
    group = Group(forked(), results, options)
    try:
        if not group.wait(lambda said: any(status["version"] > 2 for status in said)):
            done.wrong.append("experts did not move")
        epoch, at = group.epoch, time.monotonic()
        group.signal("p1", signal.SIGKILL)
        group.wait(lambda said: any(s["epoch"] > epoch for s in said))
        done.recovery_seconds = time.monotonic() - at
        if not group.wait(lambda said: any(s["epoch"] > epoch and s["moved_slots"] for s in said)):
            done.wrong.append("experts did not move after the death")
        group.close()
        await_end(group, done)
        check_answers(group, answers, done)
    finally:
        group.end()
    return done


def main() -> None:
    print("| type | requests | moves | moved slots | recovery | wrong |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    wrong = 0
    for name in MODEL_TYPES:
        with tempfile.TemporaryDirectory() as folder:
            (results := Path(folder) / "results").mkdir()
            done = serve_through_a_death(name, Path(folder), save(name, Path(folder)), results)
        print(f"| {name} | {done.requests} | {done.moves} | {done.moved_slots} "
              f"| {done.recovery_seconds:.2f} s | {'; '.join(done.wrong) or 'nothing'} |",
              flush=True)  # fmt: skip
        wrong += bool(done.wrong)
    print(
        "3 processes, one of them killed; " + (f"{wrong} rows are wrong" if wrong else "all right")
    )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()

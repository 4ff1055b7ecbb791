"""Requests that cannot be served among others that can.

    python -m tests.runtime.hostile [--requests 1000] [--processes 3] [--share 0.05] [--seed 0]

Processes serve the small model. A share of the requests is hostile, each in one of these ways:

===========  ===================================================================================
at the door  no prompt; a token id that the model does not have, a negative one, one of 4,000
             digits; a prompt longer than the model is made for; numbers that are no ids, text or
             nothing instead of a prompt; something other than a request, or the request of
             another number; a source that raises
in a pass    one whose first token makes the experts of whatever rank has it raise
===========  ===================================================================================

Right if all processes end by themselves, every other request is answered once, token for token as
by the plain transformers model in a single process, and every hostile one is answered once, as
failed and with a reason.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from equipoise.control.settings import Settings
from equipoise.runtime.moe.layer import swiglu
from equipoise.runtime.serving.requests import Request
from equipoise.runtime.serving.server import Options
from tests.control.advisors import Restless
from tests.runtime.chaos import NEW_TOKENS, Group, Run, await_end, forked, references
from tests.runtime.small_model import FOLDER

SECRET = "a secret that these processes share"
SAME = 1e-3  # between the same hidden state in two batches; others are further off by far


def fails(_number: int) -> Request:
    raise KeyError("there is no such prompt")


AT_THE_DOOR: dict[str, Callable[[int], Any]] = {
    "empty": lambda n: Request(n, ()),
    "unknown id": lambda n: Request(n, (5, 2048, 3)),
    "negative id": lambda n: Request(n, (5, -3)),
    "huge id": lambda n: Request(n, (5, 10**4000)),
    "too long": lambda n: Request(n, tuple(range(5, 1005)) * 6),
    "fractions": lambda n: Request(n, (1.0, 2.5)),  # type: ignore[arg-type]
    "text": lambda n: Request(n, "a prompt"),  # type: ignore[arg-type]
    "nothing": lambda n: Request(n, None),  # type: ignore[arg-type]
    "no request": lambda n: {"number": n},
    "another number": lambda n: Request(n + 1, (5,)),
    "raises": fails,
}
IN_A_PASS = "in a pass"
KINDS = (*AT_THE_DOOR, IN_A_PASS)


@dataclass(frozen=True)
class Mixed:
    """The source of requests: hostile ones at the numbers given, others round and round."""

    prompts: tuple[tuple[int, ...], ...]
    hostile: dict[int, str]
    curse: int

    def __call__(self, number: int) -> Any:
        kind = self.hostile.get(number)
        if kind is None:
            return Request(number, self.prompts[number % len(self.prompts)])
        if kind == IN_A_PASS:
            return Request(number, (self.curse, 5, 6, 7))
        return AT_THE_DOOR[kind](number)


@dataclass(frozen=True)
class Cursed:
    """Experts that raise when they are to compute one certain token, known by its hidden state."""

    hidden: tuple[float, ...]

    def __call__(self, rows: torch.Tensor, counts: Any, weights: Any) -> torch.Tensor:
        off = (rows - torch.tensor(self.hidden)).abs().amax(dim=1) if len(rows) else rows
        if (off < SAME).any():
            raise ArithmeticError("this token cannot be computed")
        return swiglu(rows, counts, weights)


def curse_of(prompts: tuple[tuple[int, ...], ...]) -> tuple[int, Cursed]:
    """A token that no prompt begins with, and experts that raise when one does."""
    from transformers import AutoModelForCausalLM

    token = next(t for t in range(100, 2048) if all(ids[0] != t for ids in prompts))
    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(FOLDER, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    model.model.layers[0].mlp.experts.register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    with torch.no_grad():
        model(input_ids=torch.tensor([[token]]))
    return token, Cursed(tuple(seen[0].reshape(-1).tolist()))


@dataclass
class Outcome:
    """What came of the requests."""

    wrong: list[str] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    epochs: int = 0
    moved_slots: int = 0
    seconds: float = 0.0


def run(
    prepared: tuple[Any, Any, list[list[int]]],
    folder: Path,
    *,
    requests: int,
    processes: int,
    share: float,
    seed: int,
) -> Outcome:
    context, prompts, answers = prepared
    token, cursed = curse_of(prompts.ids)
    draw = random.Random(seed)
    numbers = sorted(draw.sample(range(requests), round(share * requests)))
    kinds = draw.sample(KINDS, len(KINDS))  # every kind as often as every other
    hostile = {number: kinds[at % len(kinds)] for at, number in enumerate(numbers)}
    options = Options(
        model=FOLDER, source=Mixed(prompts.ids, hostile, token), limit=requests,
        processes=processes, compute=cursed, batch_size=4, new_tokens=NEW_TOKENS,
        settings=Settings(
            num_redundant=16 + -(32 + 16) % processes, window=8, update_interval=8,
            wait_steps=1000, warm_up_steps=0, cool_down_steps=8, layers_per_step=5,
        ),
        advisor=Restless(seed), results=folder, secret=SECRET, silence_seconds=5.0,
    )  # fmt: skip
    outcome, done, began = Outcome(), Run(seed, "none", ""), time.monotonic()
    group = Group(context, folder, options)
    try:
        await_end(group, done)
        outcome.seconds = time.monotonic() - began
        outcome.moved_slots, outcome.epochs = done.moved_slots, group.epoch
        codes = {name: process.exitcode for name, process in group.processes.items()}
        outcome.wrong = [f"{name} ended with {code}" for name, code in codes.items() if code != 0]
        check(folder, hostile, answers, requests, outcome)
    finally:
        group.end()
    return outcome


def check(
    folder: Path,
    hostile: dict[int, str],
    answers: list[list[int]],
    requests: int,
    outcome: Outcome,
) -> None:
    """Compare every answer with the right one."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    told = [json.loads(line) for line in lines]
    times = Counter(answer["number"] for answer in told)
    for number in range(requests):
        if times[number] != 1:
            outcome.wrong.append(f"request {number} was answered {times[number]} times")
    for answer in told:
        number, kind = answer["number"], hostile.get(answer["number"])
        if kind is not None:
            outcome.failed[kind] += 1
            right = answer["status"] == "failed" and answer["reason"] and answer["tokens"] == []
        else:
            outcome.answered += 1
            right = answer == {
                "number": number,
                "status": "answered",
                "tokens": answers[number % len(answers)],
            }
        if not right:
            outcome.wrong.append(f"request {number} ({kind or 'good'}) was answered with {answer}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prepared = forked(), *references()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(prepared, Path(folder), **vars(options))
    print(f"{outcome.answered} good requests answered, {outcome.failed.total()} hostile ones "
          f"failed, {outcome.seconds:.0f} s, {outcome.epochs} epochs, {outcome.moved_slots} "
          "slots moved")  # fmt: skip
    for kind, number in outcome.failed.items():
        print(f"  {kind}: {number}")
    print("; ".join(outcome.wrong) or "right")
    raise SystemExit(bool(outcome.wrong))


if __name__ == "__main__":
    main()

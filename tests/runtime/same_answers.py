"""Whether balancing changes answers: thousands of decode steps with experts moving all the time.

    python -m tests.runtime.same_answers [--steps 2000] [--json FILE]

Four processes continue prompts of their own, two each, by 100 tokens, then the next two, while a
``Balancer`` moves experts anywhere again and again (an advisor that is never content). For every
dispatcher, blocking and background transfer, with 0 and 16 redundant slots. At every step every
process compares token and logits with what the plain transformers model makes of its prompts in a
single process. Columns: decode steps; moves completed; most steps from one to the next, or from the
last to the end (the first one waits for the planner's start); tokens that differ; the furthest any
logit is from transformers'. The last row serves one slot's weights 10 % off on one rank: it has to
differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from equipoise.control.controller import State
from equipoise.control.settings import Settings
from equipoise.runtime.balancer import Balancer
from equipoise.runtime.serving.decoding import Batch
from equipoise.runtime.serving.requests import Request
from equipoise.topology import Topology
from tests.control.advisors import Restless
from tests.runtime.processes import NUM_PROCESSES, Pool
from tests.runtime.small_model import FOLDER, TOLERANCE, load, random_placement

NEW_TOKENS = 100
BATCH = 2
MOST_STEPS_BETWEEN = 50
DISPATCHERS = ("even", "minmax", "nearest", "fewest")


@cache
def prompts(rank: int, round_: int) -> tuple[Request, ...]:
    """Text of the Python that runs this, other on every rank and in every round."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    text = Path(random.__file__).read_text()
    draw = random.Random(1000 * round_ + rank)
    starts = [draw.randrange(len(text) - 300) for _ in range(BATCH)]
    texts = [text[start : start + draw.randint(10, 200)] for start in starts]
    return tuple(Request(n, tuple(tokenizer.encode(t).ids)) for n, t in enumerate(texts))


class Plain:
    """The transformers model, called as ours is."""

    def __init__(self, folder: Path = FOLDER) -> None:
        from transformers import AutoModelForCausalLM

        loader: Any = AutoModelForCausalLM
        self.model = loader.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def step(self, ids: torch.Tensor, mask: torch.Tensor, past: Any = None) -> Any:
        position = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=position,
            past_key_values=past, use_cache=True,
        )  # fmt: skip
        return out.logits[:, -1], out.past_key_values


class Noted:
    """A model whose logits are kept."""

    def __init__(self, model: Any) -> None:
        self.model, self._of = model.model, model
        self.logits: list[torch.Tensor] = []

    def step(self, *args: Any) -> Any:
        logits, past = self._of.step(*args)
        self.logits.append(logits)
        return logits, past


@cache
def expected(rank: int, round_: int) -> tuple[list[list[int]], torch.Tensor]:
    """Tokens and logits of a single process, ``(steps, B, V)``."""
    model, batch = Noted(Plain()), Batch(prompts(rank, round_), NEW_TOKENS)
    while not batch.done:
        batch.advance(model)
    return batch.tokens, torch.stack(model.logits)


def compare(
    group: Any, dispatch: str, redundant: int, background: bool, steps: int, damage: bool
) -> dict[str, float]:
    """What one process sees of a run."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    topology = Topology(ranks, ranks // 2)
    model = load(group, random_placement(ranks, redundant), dispatch=dispatch, topology=topology)
    if damage and rank == 1:
        model.layers[2].weights["down_proj"][0] *= 1.1
    settings = Settings(
        num_redundant=redundant, window=8, update_interval=8, cool_down_steps=8, wait_steps=200,
        warm_up_steps=0, layers_per_step=5, background=background,
    )  # fmt: skip
    advisor = Restless(seed=redundant)
    balancer = Balancer(model, settings, topology=topology, spare=dist.new_group(), advisor=advisor)
    seen = {"steps": 0, "moves": 0, "between": 0, "differ": 0, "furthest": 0.0}
    last_move, state = None, State.OBSERVE
    for round_ in itertools.count():
        if seen["steps"] >= steps:
            break
        noted, batch = Noted(model), Batch(prompts(rank, round_), NEW_TOKENS)
        while not batch.done:
            batch.advance(noted)
            order = balancer.step(0.01, len(batch.requests))
            seen["steps"] += 1
            if state is State.MOVE and order.state is State.SETTLE:
                seen["moves"] += 1
                if last_move is not None:
                    seen["between"] = max(seen["between"], seen["steps"] - last_move)
                last_move = seen["steps"]
            state = order.state
        tokens, logits = expected(rank, round_)
        seen["differ"] += int((np.array(tokens) != np.array(batch.tokens)).sum())
        off = (torch.stack(noted.logits) - logits).abs().max().item()
        seen["furthest"] = max(seen["furthest"], off)
    if last_move is not None:
        seen["between"] = max(seen["between"], seen["steps"] - last_move)
    balancer.close()
    return seen


def right(seen: dict[str, float]) -> bool:
    """Whether nothing differed, and experts moved as often as they were to."""
    still = seen["differ"] == 0 and seen["furthest"] < TOLERANCE
    return still and 0 < seen["between"] <= MOST_STEPS_BETWEEN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| dispatch | redundant | transfer | steps | moves | most between | differ | furthest |")
    print("|---|---:|---|---:|---:|---:|---:|---:|", flush=True)
    rows, wrong = [], 0
    each = itertools.product(DISPATCHERS, (0, 16), (False, True))
    runs = [(*run, options.steps, False) for run in each]
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(Path(folder))
        for run in [*runs, ("minmax", 16, True, options.steps, True)]:
            dispatch, redundant, background, _, damage = run
            answers = pool.run(compare, *run)
            seen = {name: max(answer[name] for answer in answers) for name in answers[0]}
            wrong += right(seen) == damage
            how = ("background" if background else "blocking") + ", damaged" * damage
            rows.append({"dispatch": dispatch, "redundant": redundant, "how": how, **seen})
            print(f"| {dispatch} | {redundant} | {how} | {seen['steps']} | {seen['moves']} "
                  f"| {seen['between']} | {seen['differ']} | {seen['furthest']:.1e} |",
                  flush=True)  # fmt: skip
        pool.close()
    if options.json:
        options.json.write_text(json.dumps(rows))
    print(f"{NUM_PROCESSES} processes; " + (f"{wrong} rows are wrong" if wrong else "all right"))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()

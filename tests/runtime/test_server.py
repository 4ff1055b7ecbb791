from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from equipoise.control.settings import Settings
from equipoise.runtime.moe.layer import swiglu
from equipoise.runtime.serving.server import Options
from tests.runtime import chaos, rogue
from tests.runtime.small_model import FOLDER


@pytest.fixture(scope="module")
def prepared():
    return chaos.forked(), *chaos.references()


@pytest.mark.parametrize(
    ("fault", "seed"),
    [
        ("kill, join", 5),
        ("stop", 8),
        ("garbage", 2),
        *(
            pytest.param(fault, seed, marks=pytest.mark.long)
            for fault in sorted(set(chaos.FAULTS))
            for seed in range(10, 13)
        ),
    ],
)
def test_whatever_happens_every_request_is_answered_right(prepared, fault, seed):
    done = chaos.run(seed, *prepared, fault=fault)
    assert done.wrong == []
    assert done.hit
    assert done.moved_slots > 0
    if fault in ("kill, join", "stop"):
        assert done.recovery_seconds is not None


@dataclass(frozen=True)
class Dragging:
    """Experts that take long on one process."""

    name: str

    def __call__(self, rows, counts, weights):
        if multiprocessing.current_process().name == self.name:
            time.sleep(2e-4 * len(rows))
        return swiglu(rows, counts, weights)


@pytest.mark.long
def test_a_slow_rank_gets_less_to_do(prepared, tmp_path):
    context, prompts, _ = prepared
    options = Options(
        model=FOLDER, source=prompts, processes=4, batch_size=4, compute=Dragging("p1"),
        settings=Settings(num_redundant=16, window=32, update_interval=64),
    )  # fmt: skip
    group = chaos.Group(context, tmp_path, options)
    shares = []
    try:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and (len(shares) < 40 or min(shares[-20:]) > 0.6):
            time.sleep(0.25)
            status = group.status("p1")
            if status and status["rank_load"]:
                load = status["rank_load"][status["rank"]]
                shares.append(load * 4 / sum(status["rank_load"]))
    finally:
        group.end()
    assert sum(shares[:10]) / 10 > 0.8  # nobody knows yet
    assert min(shares[-20:]) <= 0.6


SECRET = "a secret that these processes share"


@pytest.mark.parametrize("knows", [False, True], ids=["outsider", "insider"])
def test_one_that_sends_objects_runs_nothing_and_costs_no_answer(prepared, tmp_path, knows):
    """Without the secret it does not get in; with it, what it sends is no message."""
    context, prompts, answers = prepared
    options = Options(
        model=FOLDER, source=prompts, limit=sys.maxsize, processes=2, batch_size=2,
        results=tmp_path,
        new_tokens=chaos.NEW_TOKENS, settings=None, secret=SECRET,
        timeout_seconds=60.0, silence_seconds=2.0,
    )  # fmt: skip
    group, done = chaos.Group(context, tmp_path, options), chaos.Run(0, "rogue", "")
    try:
        assert chaos.await_steps(group, 5)
        intruder = context.Process(
            target=rogue.intrude, args=(group.store.port, tmp_path, SECRET if knows else None)
        )
        intruder.start()
        said = tmp_path / ("joined" if knows else "refused")
        assert group.wait(lambda _: said.exists())
        group.wait(lambda _: False, 16)
        group.close()
        chaos.await_end(group, done)
        chaos.check_answers(group, answers, done)
        epochs = {status["epoch"] for status in group.statuses()}
    finally:
        group.end()
        intruder.kill()
        intruder.join()
    assert done.wrong == []
    assert [path.name for path in tmp_path.glob("ran-in-*") if not _is_of(path, intruder)] == []
    if knows:
        assert min(epochs) >= 3  # with it, and without it again
    else:
        assert "is refused: the processes that serve at this store have another" in said.read_text()
        assert epochs == {1}


def test_a_newcomer_with_a_damaged_model_ends_alone(prepared, tmp_path):
    context, prompts, answers = prepared
    damaged = tmp_path / "model"
    shutil.copytree(FOLDER, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    options = Options(
        model=FOLDER, source=prompts, limit=sys.maxsize, processes=2, batch_size=2,
        results=tmp_path, new_tokens=chaos.NEW_TOKENS, settings=None, silence_seconds=2.0,
    )  # fmt: skip
    group, done = chaos.Group(context, tmp_path, options), chaos.Run(0, "damaged", "")
    try:
        assert chaos.await_steps(group, 5)
        group.options = replace(options, model=damaged)
        newcomer = group.processes[group.start()]
        assert group.wait(lambda _: not newcomer.is_alive())
        group.wait(lambda _: False, 16)
        group.close()
        chaos.await_end(group, done)
        chaos.check_answers(group, answers, done)
    finally:
        group.end()
    assert done.wrong == ["p2 ended with 1"]


def _is_of(path: Path, process: Any) -> bool:
    """Whether it ran in the process that sent it, which reads its own message too."""
    return path.name == f"ran-in-{process.pid}"


SERVES_AND_LOOKS = """
import sys
from pathlib import Path
from equipoise.runtime.serving.processes import local_store
from equipoise.runtime.serving.prompts import Prompts, Stream
from equipoise.runtime.serving.server import Options, serve

def threads():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]

class Watched(Stream):
    def __call__(self, number):
        during.update(threads())
        return super().__call__(number)

model, store, during = Path(sys.argv[1]), local_store(), set()
source = Watched(Prompts(0, [(0.0, {"docs": 1.0})]), model / "tokenizer.json")
options = Options(model=model, source=source, limit=4, new_tokens=4)
serve("127.0.0.1", store.port, "p0", options)
print(len(during) > 0, threads())
"""


def test_no_thread_of_a_group_is_left_after_serving():
    done = subprocess.run(
        [sys.executable, "-c", SERVES_AND_LOOKS, FOLDER],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "True []\n", done.stderr

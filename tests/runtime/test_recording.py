"""Real processes that serve and record, each the slots of its own tokens."""

from __future__ import annotations

import signal
import sys
from functools import partial

import numpy as np
import pytest

from equipoise import read_trace
from equipoise.control.settings import Settings
from equipoise.engines.formats import TraceOptions
from equipoise.engines.trtllm.statistic import PATH, RANGE, write_rank
from equipoise.runtime.moe.slot_recorder import SlotRecording
from equipoise.runtime.serving.server import Options
from tests.control.advisors import Restless
from tests.reference.trtllm import load_statistic
from tests.runtime import chaos
from tests.runtime.small_model import FOLDER, E, L, random_placement
from tests.runtime.test_example import refusal, torchrun

PROMPTS = chaos.Prompts(tuple(tuple(range(1, 8 + 5 * n)) for n in range(12)))


@pytest.fixture
def serving(tmp_path):
    """Start processes that record into a folder; what they log is next to it."""
    groups = []

    def start(processes, iterations, **options):
        (tmp_path / "statistic").mkdir()
        recording = SlotRecording(iterations, partial(write_rank, tmp_path / "statistic"))
        shared = Options(
            model=FOLDER, source=PROMPTS, processes=processes, batch_size=2,
            new_tokens=chaos.NEW_TOKENS, recording=recording, silence_seconds=2.0,
            **({"settings": None} | options),
        )  # fmt: skip
        groups.append(chaos.Group(chaos.forked(), tmp_path, shared))
        return groups[0]

    yield start
    for group in groups:
        group.end()


def test_every_process_records_the_slots_of_its_own_tokens(serving, tmp_path):
    placement = random_placement(3, 4)
    done = chaos.Run(0, "none", "")
    chaos.await_end(serving(3, (5, 25), limit=24, placement=placement), done)
    assert done.wrong == []
    trace = read_trace(tmp_path / "statistic")
    assert trace.steps.tolist() == [*range(5, 25)]
    assert (trace.num_experts, trace.num_layers, trace.top_k) == (E + 4, L, 4)
    assert trace.source_counts.sum(axis=(0, 2, 3)).min() > 0
    per_layer = trace.counts.sum(axis=2)
    assert (per_layer == per_layer[:, :1]).all()  # every layer served all tokens
    assert per_layer[-1, 0] <= 3 * 2 * 4  # decoding: a token a request
    meta, total = load_statistic(tmp_path / "statistic")
    assert (meta["ep_size"], len(total)) == (3, 20 * L)
    folded = read_trace(tmp_path / "statistic", TraceOptions(placement=placement))
    np.testing.assert_array_equal(folded.counts.sum(axis=2), per_layer)
    assert folded.num_experts == E


def test_a_recording_ends_when_a_process_is_lost(serving, tmp_path):
    group, done = serving(4, (3, 10**9), limit=sys.maxsize), chaos.Run(0, "kill", "")
    assert chaos.await_steps(group, 30)
    group.signal("p1", signal.SIGKILL)
    assert group.wait(lambda _: group.epoch > 1)
    group.wait(lambda _: False, 16)
    group.close()
    chaos.await_end(group, done)
    assert done.wrong == []
    trace = read_trace(tmp_path / "statistic")
    assert trace.source_counts.shape[1] == 4
    assert "Files of the ranks 1 are missing; they count 0." in trace.provenance.notes
    assert trace.steps[0] == 3
    assert trace.num_steps > 20
    log = (tmp_path / "p0.log").read_text()
    assert "The processes have changed, which ends the recording." in log
    assert "fewer than the 3 to 999999999 asked for" in log


def test_changes_of_the_map_are_recorded(serving, tmp_path):
    settings = Settings(
        num_redundant=chaos.SHAPES[2][0], window=8, update_interval=8, warm_up_steps=0,
        cool_down_steps=8,
    )  # fmt: skip
    advisor = Restless(0, "none")
    group = serving(2, (0, 10**9), limit=sys.maxsize, settings=settings, advisor=advisor)
    assert group.wait(lambda said: any(status["version"] > 1 for status in said))
    group.close()
    done = chaos.Run(0, "none", "")
    chaos.await_end(group, done)
    assert done.wrong == []
    trace = read_trace(tmp_path / "statistic")
    versions = trace.labels["map"].astype(int)
    assert versions[0] == 0
    assert versions[-1] > 1
    assert set(np.diff(versions)) == {0, 1}


def test_a_range_that_is_none_is_refused_before_serving(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(RANGE, "100")
    monkeypatch.setenv(PATH, str(tmp_path / "new"))
    last = refusal(monkeypatch, capsys)
    assert last.startswith(f"serve.py: error: {RANGE} is '100'; expected START-STOP")
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_map_to_keep_without_balancing(monkeypatch, capsys):
    last = refusal(monkeypatch, capsys, "--unbalanced", "--keep", "map.json")
    assert last.endswith("With --unbalanced there is no map to --keep; give one of them.")


@pytest.mark.long
def test_the_example_records_what_the_environment_asks_for(monkeypatch, tmp_path):
    monkeypatch.setenv(RANGE, "5-20")
    monkeypatch.setenv(PATH, str(tmp_path))
    done = torchrun(2, "--requests", 40)
    assert done.returncode == 0, done.stderr
    assert "Experts may move while slots are counted" in done.stderr
    trace = read_trace(tmp_path)
    assert trace.steps.tolist() == [*range(5, 20)]
    assert (trace.source_counts.shape[1], trace.top_k) == (2, 4)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from equipoise import Problem, Topology
from equipoise.engines.formats import LaunchOptions
from equipoise.engines.transformers.config import read_model_config
from equipoise.engines.trtllm.options_file import Capacity
from equipoise.engines.trtllm.target import TrtllmTarget
from equipoise.errors import EquipoiseError
from equipoise.plan.planners.eplb import TrtllmGreedy
from equipoise.trace import Trace

COUNTS = np.array([[[18, 6, 4, 4], [4, 12, 9, 7]]])
RECORDING = Trace(counts=COUNTS, layer_ids=(3, 4), top_k=2)
PROBLEM = Problem(RECORDING, Topology(3), 6)
PLAN = TrtllmGreedy().plan(PROBLEM)

ROWS = """\
initial_global_assignments:
  3: [0, 1, 0, 2, 0, 3]
  4: [3, 0, 1, 2, 1, 2]
"""


@pytest.fixture
def target(tmp_path):
    def make(**options):
        return TrtllmTarget(path=tmp_path / "map.yaml", **options)

    return make


@pytest.mark.parametrize(
    ("options", "golden", "note"),
    [
        ({}, f"{ROWS}layer_updates_per_iter: 0\nnum_slots: 6\n", None),
        (
            {"layer_updates_per_iter": 2},
            f"{ROWS}layer_updates_per_iter: 2\nnum_slots: 6\n",
            "This map is only the start: the engine re-plans while it runs, every layer once in 2 "
            "iterations.",
        ),
        (
            {"mtp_layers": 1},
            f"{ROWS}  5: [0, 1, 1, 2, 2, 3]\nlayer_updates_per_iter: 0\nnum_slots: 6\n",
            "The MTP layer 5 had no recording and got the layout that the engine uses without a "
            "map.",
        ),
        (
            {"mtp_layers": 2},
            f"{ROWS}  5: [0, 1, 1, 2, 2, 3]\n  6: [0, 1, 1, 2, 2, 3]\n"
            "layer_updates_per_iter: 0\nnum_slots: 6\n",
            "The MTP layers 5-6 had no recording and got the layout that the engine uses without a "
            "map.",
        ),
    ],
)
def test_golden_maps(target, tmp_path, options, golden, note):
    made = target(**options)
    made.rehearse(PROBLEM, RECORDING)
    assert list(tmp_path.iterdir()) == []
    written = made.write(PLAN, RECORDING)
    assert (tmp_path / "map.yaml").read_text() == golden
    assert (note is None) or (note == written.launch.notes[0])
    assert list(tmp_path.iterdir()) == [tmp_path / "map.yaml"]


def test_an_mtp_layer_has_the_number_that_the_model_gives_it(target, tmp_path):
    model = read_model_config(Path(__file__).parents[1] / "transformers/configs/deepseek-v3.json")
    made = target(mtp_layers=1, options=LaunchOptions(model=model))
    written = made.write(PLAN, RECORDING)
    assert "\n  61: [0, 1, 1, 2, 2, 3]\n" in (tmp_path / "map.yaml").read_text()
    assert any("61" in note and "has a row for it" in note for note in written.launch.notes)


def test_the_options_file_is_what_the_launch_names(target, tmp_path):
    options = tmp_path / "options.yaml"
    made = target(options_file=options, capacity=Capacity(max_batch_size=8), mtp_layers=1)
    made.rehearse(PROBLEM, RECORDING)
    assert list(tmp_path.iterdir()) == []
    written = made.write(PLAN, RECORDING)
    assert written.files == (options,)
    assert written.launch.command == ("--config", str(options))
    assert written.launch.files == ((str(options), options.read_text()),)
    assert "max_num_tokens: 24\n" in options.read_text()


def test_what_the_options_file_lacks_is_refused_before_the_search(target, tmp_path):
    made = target(options_file=tmp_path / "options.yaml", capacity=Capacity(rank_assignments=8))
    with pytest.raises(EquipoiseError, match="needs the number of choices per token"):
        made.rehearse(PROBLEM, Trace(counts=COUNTS, layer_ids=(3, 4)))
    made = target(options_file=tmp_path / "missing" / "options.yaml")
    with pytest.raises(EquipoiseError, match="there is no folder"):
        made.rehearse(PROBLEM, RECORDING)


def test_a_file_without_assignments(target, tmp_path):
    options = tmp_path / "options.yaml"
    made = target(
        layer_updates_per_iter=2, options_file=options, capacity=Capacity(max_batch_size=256)
    )
    written = made.write_online(256, 288, 36)
    assert (tmp_path / "map.yaml").read_text() == "layer_updates_per_iter: 2\nnum_slots: 288\n"
    assert "max_num_tokens: 9216\n" in options.read_text()
    assert "re-plans 2 layers an iteration" in written.launch.notes[0]
    assert not any("needs a row" in note for note in written.launch.notes)


@pytest.mark.parametrize(
    ("sizes", "options", "said"),
    [
        ((256, 288, 37), {}, "288 slots do not divide over 37 ranks"),
        ((256, 252, 36), {}, "252 slots"),
        ((256, 288, 1), {}, "ignores maps without expert parallelism"),
        ((1056, 1056, 32), {}, "1056 experts in 1056 slots"),
        ((256, 288, 36), {"layer_updates_per_iter": 0}, "nothing would ever be balanced"),
        ((256, 288, 36), {"options": LaunchOptions(backend="TRITON")}, "TRITON does not support"),
    ],
)
def test_an_online_file_that_the_engine_would_refuse(target, tmp_path, sizes, options, said):
    made = target(**{"layer_updates_per_iter": 2} | options)
    with pytest.raises(EquipoiseError, match=said):
        made.write_online(*sizes)
    assert list(tmp_path.iterdir()) == []

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from equipoise.errors import EquipoiseError
from equipoise.migration import diff
from equipoise.runtime.moe.recorder import LoadRecorder, count_experts
from equipoise.runtime.moving.transfer import transfer
from equipoise.topology import Topology
from tests.runtime import small_model
from tests.runtime.small_model import NEW_TOKENS, PROMPTS, random_placement, reference


def record(group, window):
    """Record one run of the small model, a move of its experts, and another run."""
    old, new = random_placement(4, 12), random_placement(4, 12, seed=1)
    model = small_model.load(group, old, dispatch="minmax")
    assert model.layers[0].recorder is None
    small_model.generate(model)
    model.record(window=window)
    small_model.generate(model)
    assert transfer(diff(old, new, Topology(4)), model.layers).failures == ()
    small_model.generate(model)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
        trace = model.recorder.to_trace(group)
    assert all_reduce.call_count == 1
    model.stop_recording()
    small_model.generate(model)
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    return trace, reference(rank, ranks)[2] if PROMPTS[ranks][rank] else None


@pytest.mark.parametrize("window", [100, 7])
def test_records_what_transformers_routes_whatever_moves(pool, window):
    answers = pool.run(record, window)
    once = sum(alone.counts.astype(np.int64) for _, alone in answers if alone is not None)
    wanted = np.concatenate([once, once])[-window:]
    steps = np.arange(2 * NEW_TOKENS)[-window:]
    phases = [("decode" if step % NEW_TOKENS else "prefill") for step in steps]
    for trace, _ in answers:
        np.testing.assert_array_equal(trace.counts, wanted)
        assert trace.steps.tolist() == steps.tolist()
        assert trace.labels["phase"].tolist() == phases
        assert trace.layer_ids == (0, 1, 2, 3, 4)
        assert trace.provenance.notes == ()


def add(recorder, *counts):
    """One iteration of two layers of three experts."""
    recorder.begin("decode")
    for layer, of_layer in zip((3, 5), counts, strict=False):
        recorder.add(layer, torch.tensor(of_layer))


def record_by_hand(group, options, iterations):
    recorder = LoadRecorder([3, 5], 3, **options)
    for counts in iterations:
        add(recorder, *counts)
    try:
        return recorder.to_trace(group)
    except EquipoiseError as error:
        return str(error)


STEPS = [([n, 0, 1], [0, 1, n]) for n in range(10)]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, range(10)),
        ({"window": 4}, range(6, 10)),
        ({"window": 1}, [9]),
        ({"iterations": (2, 5)}, range(2, 5)),
        ({"iterations": (2, 9), "window": 3}, range(6, 9)),
        ({"iterations": (8, 100)}, [8, 9]),
    ],
)
def test_remembers_the_last_iterations_of_its_range(pool, options, kept):
    (trace,) = pool.run(record_by_hand, options, STEPS, ranks=1)
    assert trace.steps.tolist() == list(kept)
    assert trace.counts.tolist() == [list(STEPS[n]) for n in kept]


def test_ranks_are_added_up(pool):
    one, two = pool.run(record_by_hand, {}, STEPS, ranks=2)
    np.testing.assert_array_equal(one.counts, two.counts)
    assert one.counts[3].tolist() == [[6, 0, 2], [0, 2, 6]]


def test_an_iteration_broken_off_is_left_out(pool):
    (trace,) = pool.run(record_by_hand, {}, [STEPS[0], STEPS[1][:1], STEPS[2]], ranks=1)
    assert trace.steps.tolist() == [0, 2]
    assert trace.provenance.notes == (
        "Iteration 1 is left out: its layers saw unequal numbers of tokens.",
    )


@pytest.mark.parametrize(
    ("options", "iterations", "message"),
    [
        ({}, [], "Nothing is recorded after 0 iterations"),
        ({"iterations": (20, 30)}, STEPS, "Nothing is recorded after 10 iterations"),
        ({}, [([0, 0, 0], [0, 0, 0])], "No layer saw a token"),
        ({}, [([1, 0, 0],)], "All iterations recorded were broken off"),
    ],
)
def test_nothing_recorded_is_told(pool, options, iterations, message):
    (text,) = pool.run(record_by_hand, options, iterations, ranks=1)
    assert message in text


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"iterations": (4, 4)}, {"iterations": (-1, 3)}]
)
def test_what_cannot_be_recorded_is_refused(options):
    with pytest.raises(EquipoiseError):
        LoadRecorder([0], 4, **options)


def test_padding_counts_for_nothing():
    ids = torch.tensor([[0, 3], [-1, 3], [4, 99]])
    assert count_experts(ids, 4).tolist() == [1, 0, 0, 2]
    assert count_experts(ids[:0], 4).tolist() == [0, 0, 0, 0]

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch.distributed as dist

from equipoise.errors import EquipoiseError
from equipoise.runtime.moe.slot_recorder import SlotRecorder, SlotRecording
from tests.runtime import small_model
from tests.runtime.small_model import NEW_TOKENS, E, L, random_placement


def recorder(start, stop, write, num_slots=3):
    wanted = SlotRecording((start, stop), write)
    return SlotRecorder(wanted, rank=1, layer_ids=(3, 5), num_slots=num_slots, top_k=2)


def serve(recorder, numbers):
    """Iterations in which the slots of layer 3 get their number, those of layer 5 one each."""
    for number in numbers:
        with recorder.iteration(number, number // 4):
            recorder.add(3, np.array([number, 0, 0]))
            recorder.add(5, np.array([0, 1, 0]))
            recorder.add(5, np.array([0, 0, 1]))  # another chunk


def test_counts_the_iterations_of_its_range_and_writes_once():
    written = []
    counting = recorder(2, 5, written.append)
    serve(counting, range(5))
    (got,) = written  # before iteration 5 begins
    serve(counting, range(5, 8))
    counting.close()
    assert len(written) == 1
    assert (got.rank, got.layer_ids, got.top_k) == (1, (3, 5), 2)
    assert got.iterations.tolist() == [2, 3, 4]
    assert got.counts.tolist() == [[[n, 0, 0], [0, 1, 1]] for n in (2, 3, 4)]
    assert got.map_versions.tolist() == [0, 0, 1]


def test_a_pass_that_is_broken_off_counts_nothing():
    written = []
    counting = recorder(0, 2, written.append)
    serve(counting, [0])
    with suppress(RuntimeError), counting.iteration(1, 0):
        counting.add(3, np.array([7, 7, 7]))
        raise RuntimeError
    serve(counting, [1])
    assert written[0].counts.tolist() == [[[n, 0, 0], [0, 1, 1]] for n in (0, 1)]


@pytest.mark.parametrize(
    ("served", "iterations", "said"),
    [
        (range(4), [2, 3], "Iterations 2 to 3 were recorded, fewer than the 2 to 9 asked for."),
        (range(2), None, "Nothing was recorded: iterations 2 to 9 were asked for, 2 were served."),
        ([], None, "Nothing was recorded: iterations 2 to 9 were asked for, 0 were served."),
    ],
)
def test_a_range_that_was_not_completed_is_told(served, iterations, said, caplog):
    written = []
    counting = recorder(2, 10, written.append)
    serve(counting, served)
    counting.close()
    counting.close()
    assert caplog.messages == [said]
    assert [got.iterations.tolist() for got in written] == ([iterations] if iterations else [])


def test_what_cannot_be_written_costs_no_serving(caplog):
    def fail(_recorded):
        raise OSError("no space left")

    with caplog.at_level(logging.INFO, "equipoise.runtime"):
        serve(recorder(0, 1, fail), range(3))
    assert caplog.messages == ["The recorded iterations could not be written: no space left"]


@pytest.mark.parametrize("iterations", [(4, 4), (5, 4), (-1, 3)])
def test_what_is_no_range_is_refused(iterations):
    with pytest.raises(EquipoiseError, match="are not a range"):
        SlotRecording(iterations, print)


def record(group, placement):
    """One run of the small model: this rank's counts by slot, and the experts' of all ranks."""
    model, written = small_model.load(group, placement, dispatch="minmax"), []
    model.record()
    counting = SlotRecorder(
        SlotRecording((0, 1), written.append),
        rank=dist.get_rank(group),
        layer_ids=placement.layer_ids,
        num_slots=placement.num_slots,
        top_k=4,
    )
    for layer in model.layers:
        layer.tally = partial(counting.add, layer.layer_id)
    with counting.iteration(0, 0):
        small_model.generate(model)
    return written[0].counts[0], model.recorder.to_trace(group)


def test_slots_hold_what_the_experts_of_the_ranks_tokens_got(pool):
    placement = random_placement(4, 12)
    answers = pool.run(record, placement)
    slots = np.sum([counts for counts, _ in answers], axis=0)
    experts = answers[0][1].counts.sum(axis=0, dtype=np.int64)
    for row in range(L):
        folded = np.bincount(placement.slots[row], weights=slots[row], minlength=E)
        assert folded.tolist() == experts[row].tolist()
    assert not answers[2][0].any()  # the rank without prompts
    tokens = [int(counts[0].sum()) for counts, _ in answers]
    assert sum(tokens) == experts[0].sum()
    assert all(count % 4 == 0 for count in tokens)
    assert tokens[1] < tokens[3]  # one prompt, and two longer ones
    assert tokens[1] // 4 >= NEW_TOKENS

"""What people recorded that breaks what is true of routing, with the truth of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.engines.formats import TraceOptions
from equipoise.errors import EquipoiseError

HERE = Path(__file__).parent


def read(name: str, **options) -> eq.Trace:
    return eq.read_trace(HERE / name, TraceOptions(**options))


def notes(trace: eq.Trace) -> str:
    return " ".join(trace.provenance.notes)


def imbalance(trace: eq.Trace, ranks: int) -> float:
    """Mean of max over mean of contiguous ranks, over loaded steps and layers."""
    load = trace.counts.reshape(*trace.counts.shape[:2], ranks, -1).sum(axis=-1)
    return float((load.max(axis=-1) / load.mean(axis=-1)).mean())


@pytest.mark.parametrize("name", ["routed.npz", "routed.npy"])
def test_routing_of_all_hidden_layers_is_that_of_the_moe_layers(name):
    routed, clean = read(f"routed_experts/{name}"), read("routed_experts/clean.npz")
    assert routed.layer_ids == clean.layer_ids == (3, 4, 5, 6, 7)
    np.testing.assert_array_equal(routed.counts, clean.counts)
    np.testing.assert_array_equal(routed.tokens.ids, clean.tokens.ids)
    np.testing.assert_array_equal(routed.tokens.offsets, clean.tokens.offsets)
    assert round(imbalance(routed, 8), 2) == 1.60
    assert "layer_ids 0-7" in notes(routed)


def test_dense_layers_stay_where_the_user_numbers_them():
    routed = read("routed_experts/routed.npz", layer_ids=tuple(range(8)))
    assert routed.layer_ids == tuple(range(8))
    assert not routed.counts[:, :3].any()
    chosen = read("routed_experts/routed.npz", layer_ids=(4, 5))
    assert chosen.layer_ids == (4, 5)


def test_a_kernel_that_captured_nothing():
    with pytest.raises(EquipoiseError, match="Nothing was captured: every choice is 0"):
        read("routed_experts/zeros.npz")


def test_a_completion_is_readable():
    answer, clean = read("unknown_keys/completion.json"), read("routed_experts/clean.npz")
    assert answer.layer_ids == (3, 4, 5, 6, 7)
    np.testing.assert_array_equal(answer.tokens.ids, clean.tokens.ids[:40])


def test_unknown_keys_are_named():
    trace = read("unknown_keys/extra.pt")
    assert "keys not used: dropped_tokens, forward_mode, physical_to_logical_map_history" in notes(
        trace
    )


def test_draft_passes_are_said_with_what_to_do():
    said = notes(read("draft_passes/polluted.pt"))
    assert "Layer 0 carries 2.00 times the assignments" in said
    assert "layer_ids 1-5" in said
    assert "carries" not in notes(read("draft_passes/clean.pt"))


def test_hash_routed_layers_may_be_kept():
    guessed = read("hash_routed_layers/dsv4.pt")
    assert "Without load in the whole recording: decoder layers 0-2." in notes(guessed)
    assert "layer_ids 0-42" in notes(guessed)
    told = read("hash_routed_layers/dsv4.pt", layer_ids=tuple(range(43)))
    assert told.layer_ids == tuple(range(43))
    np.testing.assert_array_equal(told.counts[:, 3:], guessed.counts)


@pytest.mark.parametrize("name", ["expert_distribution_recorder_1.5.pt", "x.json"])
def test_a_first_axis_of_ranks_is_one_window(name):
    trace = read(f"rank_axis/{name}")
    assert trace.counts.shape == (1, 4, 64)
    assert trace.source_counts.shape == (1, 8, 4, 64)
    assert round(imbalance(trace, 8), 2) == 1.16


def test_the_first_axis_of_a_bare_array_is_named_and_can_be_told(tmp_path):
    path = tmp_path / "counts.npy"
    by_rank = read("rank_axis/x.json").source_counts[0]
    np.save(path, by_rank)
    guessed = eq.read_trace(path)
    assert guessed.num_steps == 8
    assert "first_axis rank" in notes(guessed)
    told = eq.read_trace(path, TraceOptions(first_axis="rank"))
    np.testing.assert_array_equal(told.source_counts[0], by_rank)


def test_an_array_that_could_be_two_things_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3, 4, 5), int))
    with pytest.raises(EquipoiseError, match=r"numpy\.savez"):
        eq.read_trace(path)


def test_layers_with_fewer_experts_are_refused_with_what_to_do(capsys):
    path = str(HERE / "uneven_experts/unequal_layers.csv")
    assert main(["report", path, "--ranks", "4"]) == 2
    assert "Layer 4 has rows for the experts 0-11 only" in capsys.readouterr().err
    assert main(["report", path, "--ranks", "4", "--layers", "3,5"]) == 0
    assert main(["report", path, "--ranks", "4", "--experts", "16"]) == 0

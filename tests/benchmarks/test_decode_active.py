from __future__ import annotations

import argparse

import numpy as np
import pytest

from benchmarks.quality import decode_active
from equipoise.cost import rank_cost
from equipoise.dispatch import Even
from equipoise.dispatch.fewest import FewestExperts
from equipoise.placement import Placement
from equipoise.topology import Topology
from tests.conftest import SHARED_DATA

ARGS = argparse.Namespace(tokens=(64, 512), batches=1, proposals=1000)
RING = Placement([[0, 3, 1, 0, 2, 1, 3, 2]], num_ranks=4, num_experts=4)


def test_numbers_of_a_split_by_hand():
    """Every rank has a token for expert 0, and rank 3 ninety more."""
    batch = np.zeros((1, 4, 4), int)
    batch[0, :, 0] = [1, 1, 1, 91]
    topology, cost = Topology(4, 2), rank_cost("h100-deepep-ep8")
    split = Even(topology=topology).split(batch, RING)
    assert split.quotas[0, [0, 3]].tolist() == [47, 47]
    active, microseconds, imbalance, on_node = decode_active.numbers(split, topology, cost)
    assert (active, imbalance) == (1.0, 2.0)
    assert microseconds == pytest.approx(21.3 + 16.04)
    assert on_node == pytest.approx(2 / 94)
    batch[0, 0] = [0, 4, 4, 4]
    fewest = FewestExperts(topology=topology).split(batch, RING)
    assert decode_active.numbers(fewest, topology, cost)[0] == 1.0


@pytest.mark.shared_data
@pytest.mark.parametrize("name", list(decode_active.CONFIGS))
def test_batches_are_whole_held_out_and_the_same_again(name):
    fit, draw = decode_active.study(name, SHARED_DATA)
    batch = draw(np.random.default_rng(0), 64, 8)
    assert batch.shape == (fit.num_layers, 8, fit.num_experts)
    top_k = {"glm52": 8, "esft_tokens": 6, "gptoss": 4}[name]
    assert (batch.sum(axis=2) == 8 * top_k).all()
    assert np.array_equal(batch, draw(np.random.default_rng(0), 64, 8))
    assert not np.array_equal(batch, draw(np.random.default_rng(1), 64, 8))


@pytest.mark.shared_data
def test_rows_are_complete_and_ordered_as_they_must_be():
    fit, draw = decode_active.study("gptoss", SHARED_DATA)
    two = fit.select(layers=fit.layer_ids[:2])
    rows = list(decode_active.measure("gptoss", two, lambda *of: draw(*of)[:2], 8, 8, ARGS))
    names = list(decode_active.dispatchers(Topology(8), rank_cost("h100-deepep-ep8")))
    assert len(rows) == 2 * 2 * len(names)
    for size in ARGS.tokens:
        for placement in ("DeepSeek", "Robust"):
            row = {r.dispatch: r for r in rows if (r.placement, r.tokens) == (placement, size)}
            assert list(row) == names
            assert min(r.active for r in row.values()) == row["fewest"].active
            assert min(r.imbalance for r in row.values()) == row["minmax"].imbalance
            assert min(r.microseconds for r in row.values()) == row["auto"].microseconds
            assert max(r.on_node for r in row.values()) == row["nearest"].on_node
    text = decode_active.markdown(rows)
    assert text.startswith("**gptoss, 8 ranks, 8 redundant**\n")
    first = rows[names.index("fewest")]
    assert f"| DeepSeek | fewest | {first.active:.1f} ({first.microseconds:.0f}) |" in text

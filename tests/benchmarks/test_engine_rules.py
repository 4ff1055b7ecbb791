from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality import engine_rules
from benchmarks.quality.engine_rules import Study
from equipoise.dispatch import dispatcher
from equipoise.placement import Placement
from equipoise.topology import Topology
from equipoise.trace import Trace
from tests.conftest import SHARED_DATA

PLACEMENT = Placement([[0, 1, 2, 0]], num_ranks=2, num_experts=3)
BATCH = [np.array([[[0, 1]], [[0, 2]]]), np.array([[[2, 0]]])]


@pytest.fixture(scope="module")
def study() -> Study:
    """One layer, 3 experts, 2 ranks."""
    fit = Trace(counts=np.array([[[6, 2, 2]], [[5, 3, 2]]]))
    return Study("tiny", fit, {"3": [BATCH]}, 2, Topology(2), 4)


def test_sources_are_told_apart():
    counts = engine_rules.source_counts(BATCH, PLACEMENT)
    assert counts.tolist() == [[[2, 1, 1], [1, 0, 1]]]


def test_rows_are_those_of_a_rank_or_of_the_whole_batch():
    """Row modulo copies: rank 1's token is row 0 there, or row 2 of all."""
    own = engine_rules.slots_of(dispatcher("vllm"), BATCH, PLACEMENT)
    assert [x[:, 0].tolist() for x in own] == [[[0, 1], [3, 2]], [[2, 0]]]
    batch = [BATCH[0][:1], np.concatenate([BATCH[1], BATCH[1]])]
    together = engine_rules.slots_of(dispatcher("sglang-rows"), batch, PLACEMENT)
    assert [x[:, 0].tolist() for x in together] == [[[0, 1]], [[2, 3], [2, 0]]]


def test_score_of_a_rule_by_hand(study):
    """Slots get 2, 1, 2, 1: level. First copies of expert 0 get 2 where 1.5 is fair."""
    assert engine_rules.score_rule(study.rule("vllm"), BATCH, PLACEMENT) == (1.0, 1.0, 2.0, 1.5)
    assert engine_rules.gamma(np.array([[3, 1, 2, 0]]), PLACEMENT) == pytest.approx(4 / 3)


def test_quotas_are_filled_from_the_lowest_slot():
    ids = np.concatenate(BATCH)
    slots = engine_rules.as_they_come(ids, np.array([[1, 1, 2, 2]]), PLACEMENT)
    assert slots[:, 0].tolist() == [[0, 1], [3, 2], [2, 3]]
    assert engine_rules.uncopied(ids, PLACEMENT)[:, 0].tolist() == [[-1, 1], [-1, 2], [2, -1]]


def test_every_row_has_every_column(study, capsys):
    rules = engine_rules.score_rules(study, PLACEMENT)
    assert list(rules) == [*engine_rules.RULES, "even", "min-max", "floor"]
    assert rules["min-max"]["3"]["imbalance"] == 1.0
    ranks = engine_rules.score_ranks(study, PLACEMENT)["3"]
    for prefix in ("", "one source, "):
        assert ranks[f"{prefix}at least"] <= ranks[f"{prefix}together"]
    engine_rules.print_tables("tiny", rules, {"3": ranks})
    printed = capsys.readouterr().out
    assert f"| trtllm | {rules['trtllm']['3']['told']:.3f} |" in printed
    assert all(f"| {way} |" in printed for way in ranks)


@pytest.mark.shared_data
def test_studies_hold_real_tokens_of_every_rank():
    for study, sizes in (
        (engine_rules.esft(SHARED_DATA, (64, 128)), {"64": 64, "128": 128}),
        (engine_rules.gptoss(SHARED_DATA), {"decode": None}),
    ):
        assert list(study.batches) == list(sizes)
        for name, batches in study.batches.items():
            for batch in batches:
                tokens = sum(map(len, batch))
                assert len(batch) == study.topology.num_ranks
                assert tokens == sizes[name] or 8 <= tokens <= 18
                assert batch[0].shape[1:] == (study.fit.num_layers, study.top_k)

"""Ranks leave and come while vLLM balances, with its policy and with ours."""

from __future__ import annotations

import pytest

from tests.integration.vllm.elastic import PER_RANK, STAY, ElasticRank
from tests.integration.vllm.ranks import LAYERS, RANKS, serve

pytestmark = pytest.mark.engines

REBALANCES = 3
NEW = LAYERS * PER_RANK


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return {
        name: serve(
            tmp_path_factory.mktemp(name),
            options=options,
            rebalances=REBALANCES,
            rank_class=ElasticRank,
        )
        for name, options in (("stock", None), ("ours", "{}"))
    }


def test_no_slot_ever_has_the_weights_of_another_expert(served):
    for run in served.values():
        assert run.wrong == 0
        assert len(run.moves) == 3 * REBALANCES


def test_ours_fills_what_is_missing_and_moves_less_than_a_plan_from_scratch(served, capfd):
    with capfd.disabled():  # the table of docs/results/engines.md
        print()
        for name, run in served.items():
            shrunk, grown = run.resized
            after = [f"{run.balancedness[k * (REBALANCES + 1)]:.3f}" for k in (1, 2)]
            print(
                f"{name}: to {STAY} ranks {shrunk} of {STAY * NEW} slots change, to {RANKS} again "
                f"{grown} of {RANKS * NEW}, {NEW} of them new; balance until the next rebalance "
                f"{' and '.join(after)}"
            )
    for stock, ours in zip(served["stock"].resized, served["ours"].resized, strict=True):
        assert ours <= stock
    assert served["ours"].resized[1] >= NEW

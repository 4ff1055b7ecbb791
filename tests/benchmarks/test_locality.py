from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality import locality
from equipoise.plan import Problem


def test_tokens_keep_to_their_best_groups():
    scores = np.random.default_rng(0).gumbel(size=(50, locality.EXPERTS))
    found = locality.route_in_groups(scores)
    size = locality.EXPERTS // locality.GROUPS
    for token, chosen in zip(scores, found.tolist(), strict=True):
        groups = token.reshape(locality.GROUPS, size)
        by_two_best = sorted(range(locality.GROUPS), key=lambda g: -sum(sorted(groups[g])[-2:]))
        allowed = [
            e for e in range(locality.EXPERTS) if e // size in by_two_best[: locality.GROUPS_KEPT]
        ]
        assert sorted(chosen) == sorted(sorted(allowed, key=lambda e: -token[e])[: locality.TOP_K])


@pytest.fixture(scope="module")
def table():
    study = locality.sample(1)
    return study, dict(locality.measure(study, 2000))


def test_every_row_has_every_column(table):
    study, rows = table
    assert len(rows) == 5 + len(locality.SLACKS) + len(locality.PRICES)
    for name, row in rows.items():
        assert tuple(row) == locality.COLUMNS
        assert row["imbalance"] >= 1, name
        assert 1 <= row["nodes"] <= row["ranks"] <= study.fit.top_k, name
        assert row["sends"] == pytest.approx(row["nodes"] * 0.75)
        assert row["ms"] > 0


def test_locality_falls_where_it_may_cost(table):
    _, rows = table
    assert rows["Colocate 10 %"]["nodes"] < rows["Robust"]["nodes"]
    assert rows["Colocate, bytes x 4"]["nodes"] < rows["Robust"]["nodes"]


def test_no_token_is_on_both_sides():
    study = locality.group_limited(1)
    assert study.fit.num_steps == locality.DOMAINS * locality.FIT_WINDOWS
    assert study.test.num_steps == locality.DOMAINS * locality.TEST_WINDOWS
    assert not set(study.fit.steps.tolist()) & set(study.test.steps.tolist())
    assert (study.fit.counts.sum(axis=2) == locality.TOP_K * locality.WINDOW_TOKENS).all()


def test_contiguous_groups_bound_the_nodes_of_a_token():
    study = locality.group_limited(1)
    problem = Problem(study.fit, study.topology, locality.EXPERTS)
    row = locality.score(study, locality.Contiguous().plan(problem))
    assert row["nodes"] <= locality.GROUPS_KEPT


@pytest.mark.shared_data
def test_real_tokens_are_split_by_sequence():
    study = locality.esft(1)
    assert set(study.test.labels["domain"]) == set(study.fit.labels["domain"])
    assert len(study.fit.tokens.ids) > 2 * len(study.test.tokens.ids)

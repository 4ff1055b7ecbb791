"""The planners against published results on real routing data."""

from __future__ import annotations

import json

import numpy as np
import pytest

from equipoise.plan import Contiguous, Greedy, Hierarchical, Problem, evaluate
from equipoise.topology import Topology
from tests.conftest import SHARED_DATA

pytestmark = pytest.mark.shared_data

CONFIGS = [(32, 0), (32, 32), (32, 64), (16, 16), (64, 64)]
TOLERANCE = 0.005  # ties between equal counts move the mean by up to 0.002


@pytest.fixture(scope="module")
def glm52():
    folder = SHARED_DATA / "glm52"
    with np.load(folder / "windows.npz") as archive:
        counts = archive["counts"]
    return counts, json.loads((folder / "baselines.json").read_text())


@pytest.mark.parametrize(("ranks", "redundant"), CONFIGS)
def test_agrees_with_the_published_means(glm52, ranks, redundant):
    counts, baselines = glm52
    fit, held = counts[:, :7].sum(axis=(0, 1)), counts[:, 7]
    (published,) = (
        r["rows"]
        for r in baselines["results"]
        if (r["ranks"], r["redundant"]) == (ranks, redundant)
    )
    topology = Topology(ranks, 8)
    planners = {
        "contiguous": (Contiguous(), 0),
        "deepseek_global_even": (Greedy(allow_same_rank_copies=True), redundant),
        "deepseek_hierarchical_even": (
            Hierarchical(num_expert_groups=8, allow_same_rank_copies=True),
            redundant,
        ),
    }
    for name, (planner, extra) in planners.items():
        plan = planner.plan(Problem(fit, topology, 256 + extra))
        result = evaluate(plan.placement, held)
        assert result.mean_imbalance == pytest.approx(published[name]["mean"], abs=TOLERANCE)
        for domain, value in enumerate(published[name]["per_domain"].values()):
            found = result.imbalance[domain].mean()
            assert found == pytest.approx(value, abs=2 * TOLERANCE), (name, domain)


@pytest.mark.parametrize(("ranks", "redundant"), CONFIGS)
def test_default_is_no_worse_and_wastes_no_slot(glm52, ranks, redundant):
    counts, _ = glm52
    problem = Problem(counts[:, :7].sum(axis=(0, 1)), Topology(ranks, 8), 256 + redundant)
    ours = Greedy().plan(problem)
    eplb = Greedy(allow_same_rank_copies=True).plan(problem)
    assert not ours.placement.duplicates.any()
    assert ours.peak.sum() <= eplb.peak.sum() * 1.001

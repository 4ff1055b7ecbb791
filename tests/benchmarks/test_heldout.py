from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import linprog

from benchmarks.quality import heldout, protocols
from equipoise.errors import EquipoiseError
from equipoise.plan import Contiguous, Problem
from equipoise.topology import Topology
from tests.conftest import SHARED_DATA

PROPOSALS = 1000

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def studies() -> dict[str, list[protocols.Split]]:
    """Every study on two layers; of those that leave domains out, the first split."""
    made = protocols.studies(SHARED_DATA)
    return {name: [heldout.thin(s, 2) for s in make()[:1]] for name, make in made.items()}


@pytest.mark.parametrize(
    ("study", "ranks", "redundant"), [("glm52", 32, 32), ("esft_tokens", 64, 64), ("gptoss", 8, 8)]
)
def test_every_planner_answers_with_a_valid_placement(studies, study, ranks, redundant):
    (split,) = studies[study]
    problem = Problem(split.fit, Topology(ranks, 8), split.fit.num_experts + redundant)
    start = Contiguous().plan(problem).placement
    ran = 0
    for contender in heldout.contenders(None, PROPOSALS):
        if contender.place is None:
            assert contender.why_not
            continue
        if problem.traffic_groups is None and contender.name.endswith("unlabelled"):
            with pytest.raises(EquipoiseError, match="no labels"):
                contender.place(problem, start)
            continue
        placement = contender.place(problem, start)
        assert placement.slots.shape == start.slots.shape
        assert (placement.num_ranks, placement.layer_ids) == (ranks, split.fit.layer_ids)
        assert (placement.copies >= 1).all()
        ran += 1
    assert ran >= 7


@pytest.mark.parametrize("study", list(protocols.studies(SHARED_DATA)))
def test_tables_are_complete_and_consistent(studies, study):
    candidates = heldout.contenders(None, PROPOSALS)
    for table in heldout.measure(study, studies[study], 8, 8, candidates):
        names = ["no balancing", *(c.name for c in candidates), "oracle", "lower bound"]
        assert list(table.rows) == names
        bound = table.rows["lower bound"].numbers()["even_mean"]
        for name, cells in table.rows.items():
            if cells.note:
                assert "not run: --peers not given" in heldout.show(table)
                continue
            even, minmax = np.concatenate(cells.even), np.concatenate(cells.minmax)
            assert (minmax <= even + 1e-9).all(), name
            assert bound <= cells.numbers()["minmax_mean"] + 1e-9, name
            assert cells.numbers()["even_mean"] == pytest.approx(even.mean())
        assert table.rows["contiguous"].numbers()["changed"] == 0
        assert (
            table.rows["oracle"].numbers()["even_mean"]
            < (table.rows["no balancing"].numbers()["even_mean"])
        )


def test_agrees_with_the_published_numbers():
    published = json.loads((SHARED_DATA / "glm52" / "baselines.json").read_text())
    (expected,) = (
        r["rows"] for r in published["results"] if (r["ranks"], r["redundant"]) == (32, 32)
    )
    splits = protocols.studies(SHARED_DATA)["glm52"]()
    splits = [heldout.replace(s, tests={"known": s.tests["known domains"]}) for s in splits]
    chosen = [c for c in heldout.contenders(None, PROPOSALS) if c.name.startswith("DeepSeek")]
    (table,) = heldout.measure("glm52", splits, 32, 32, chosen)
    found = {name: cells.numbers() for name, cells in table.rows.items() if not cells.note}
    pairs = {
        "contiguous": found["no balancing"]["even_mean"],
        "deepseek_global_even": found["DeepSeek global"]["even_mean"],
        "deepseek_global_minmax": found["DeepSeek global"]["minmax_mean"],
        "deepseek_hierarchical_even": found["DeepSeek hierarchical"]["even_mean"],
        "oracle_global_even": found["oracle"]["even_mean"],
    }
    for name, value in pairs.items():
        assert value == pytest.approx(expected[name]["mean"], abs=0.005), name


def test_minmax_column_is_the_linear_program(studies):
    (split,) = studies["esft_tokens"]
    problem = Problem(split.fit, Topology(8), 72)
    placement = heldout.Greedy().plan(problem).placement
    test = split.tests["known domains"].select(steps=[0, 5])
    cells = heldout.Cells()
    heldout._score(placement, test, cells)
    for step, row in enumerate(cells.minmax[0].reshape(2, 2)):
        for layer, value in enumerate(row):
            load = test.counts[step, layer] / test.counts[step, layer].sum()
            expected = _least_peak(load, placement.copies_on_rank[layer] > 0)
            assert value == pytest.approx(8 * expected, rel=1e-6)


def _least_peak(load, hosts_RE):
    """Smallest peak when an expert's load may be cut at will over the ranks that hold it."""
    num_ranks, num_experts = hosts_RE.shape
    flow = np.flatnonzero(hosts_RE.ravel())
    rank, expert = np.divmod(flow, num_experts)
    capacity = np.hstack([np.eye(num_ranks)[:, rank], -np.ones((num_ranks, 1))])
    served = np.hstack([np.eye(num_experts)[:, expert], np.zeros((num_experts, 1))])
    cost = np.append(np.zeros(len(flow)), 1.0)
    solved = linprog(cost, A_ub=capacity, b_ub=np.zeros(num_ranks), A_eq=served, b_eq=load)
    return solved.fun


def test_overview_has_a_column_a_configuration(studies):
    chosen = [
        c for c in heldout.contenders(None, PROPOSALS) if c.name in ("Greedy", "vLLM default")
    ]
    tables = [
        table
        for ranks, redundant in ((8, 0), (8, 8))
        for table in heldout.measure(
            "esft_tokens", studies["esft_tokens"], ranks, redundant, chosen
        )
    ]
    known, mixed = heldout.overview(tables).split("\n\n**")
    assert "mixed batches" in mixed
    lines = known.splitlines()[2:]
    assert lines[0] == "| ranks / redundant | 8 / 0 | 8 / 8 |"
    assert "| vLLM default | not run | not run |" in lines
    greedy = tables[0].rows["Greedy"].numbers()
    assert any(line.startswith(f"| Greedy | {greedy['even_mean']:.2f} / ") for line in lines)

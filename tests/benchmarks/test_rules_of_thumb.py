"""The count behind the table of rules of thumb."""

from __future__ import annotations

import numpy as np

from benchmarks.quality.rules_of_thumb import Case, case_of, verdicts


def case(**values: float) -> Case:
    usual = {
        "recording": "ours", "ranks": 8, "tokens": 1024, "gamma": 1.2, "excess": 0.1,
        "planned_gamma": 1.1, "per_expert": 100, "knee": 150, "best_redundancy": 0.0, "gain": 0.0,
    }  # fmt: skip
    return Case(**(usual | values))


def test_yes_and_no_are_counted_against_what_pays():
    cases = [
        case(),
        case(tokens=8192, best_redundancy=0.125),
        case(tokens=65536, per_expert=200, best_redundancy=0.5),
    ]
    lines = list(verdicts(cases))
    assert lines[0] == "3 cases; copies pay in 2"
    assert "says yes in 3, right in 67% (yes and pays 2, yes and does not 1" in lines[1]
    knee = next(line for line in lines if line.startswith("assignments an expert above the knee"))
    assert "says yes in 1, right in 67% (yes and pays 1, yes and does not 0, no and pays 1" in knee
    assert "best redundancy within 10 to 15 %: 1 of 3, 1 of those that pay" in lines


def test_one_hot_expert_is_worth_copies_in_large_batches_only():
    load = np.full((4, 1, 32), 100)
    load[:, :, 0] = 3000
    few, many = (case_of("ours", load, load, 4, 8, tokens) for tokens in (64, 65536))
    assert not few.pays
    assert many.pays

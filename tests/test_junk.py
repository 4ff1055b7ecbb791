"""Whatever is passed for a public parameter: an answer or our sentence, and no warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise import balance, migration, noise
from equipoise.lab import add_copies
from equipoise.plan import (
    Colocate,
    Robust,
    TrtllmGreedy,
    coverage,
    evaluate_without_balancing,
    failover_maps,
    resize,
)
from equipoise.plan.weigh.failover import refit
from equipoise.topology import NODE_LINK, Link
from equipoise.trace import Provenance, TokenIds


class Odd:
    """An object that fails whatever it is asked for."""

    def __array__(self, *args, **kwargs):
        raise KeyError("no array")

    def __repr__(self):
        raise RuntimeError("no repr")


ARRAYS = [
    np.array(3),
    np.array([]),
    np.array([1, 2]),
    np.array([[1.5, 2], [3, 4]]),
    np.full((2, 2), 1.7e308),
    np.full((2, 2), 5e-324),
    np.full((1, 2), np.nan),
    np.zeros((2, 4)),
    np.ones((0, 2)),
    np.ones((1, 1, 1, 1)),
    np.ones((3, 2, 4), bool),
    np.array([[1, 2]], np.float16),
    np.array([[2**64 - 1, 1]], np.uint64),
    np.array([["a", "b"]]),
    np.array(["2020"], "M8[Y]"),
    np.zeros(2, [("a", int)]),
    np.ma.array([[1, 2]], mask=[[0, 1]]),
]
OTHERS = [
    *(None, True, "", "a", "4", "\0", b"x", object(), Odd(), int, len, range(3), iter(())),
    *(float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, -0.0, 0.5, 4.0, 1j),
    *(np.float16(3), np.int8(3), np.uint8(200), np.float64("nan"), np.str_("x"), np.bool_(True)),
    *([], {}, (), set(), [1], [[1, 2], [3]], [["a"]], [[1j, 1]], [None], {"a": 1}, {1: 2}),
    *(10**5000, -(10**30), 2**64),
]
junk = st.one_of(
    st.sampled_from(ARRAYS),
    st.sampled_from(OTHERS),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63]),
    st.floats(),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=2)), max_size=3),
)

LOAD = np.arange(1.0, 25).reshape(3, 2, 4)
COUNTS = LOAD.astype(int)
TWO = eq.Topology(2)
PROBLEM = eq.Problem(LOAD, TWO, 4)
PLACED = eq.Placement([[0, 1, 2, 3], [3, 2, 1, 0]], num_ranks=2, num_experts=4)
TRACE = eq.Trace(counts=COUNTS)
TOKENS = TokenIds(np.array([[[0, 1], [2, 3]]] * 4), np.array([0, 4]))
COST = eq.RankCost(token_seconds=1e-6)
MOVES = eq.diff(PLACED, PLACED, TWO)
SHORT = {"proposals": 0, "num_threads": 1}


def planned(planner: type) -> Callable[..., eq.Plan]:
    return lambda **options: planner(**options).plan(PROBLEM)


CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Topology": (
        eq.Topology,
        {
            **{"num_ranks": 2, "ranks_per_node": 2, "speed": (1, 2), "room": (4, 4)},
            **{"node_link": NODE_LINK, "network_link": NODE_LINK},
        },
    ),
    "Link": (Link, {"latency_seconds": 1, "bytes_per_second": 1}),
    "Placement": (
        eq.Placement,
        {"slots": [[0, 1]], "num_ranks": 1, "num_experts": 2, "layer_ids": (3,)},
    ),
    "Problem": (
        eq.Problem,
        {
            **{"load": LOAD, "topology": TWO, "num_slots": 4, "layer_ids": (0, 1)},
            "traffic_groups": ["a", "b", "c"],
        },
    ),
    "Trace": (
        eq.Trace,
        {
            **{"counts": COUNTS, "layer_ids": (0, 1), "step_ids": [0, 1, 2], "top_k": 2},
            **{"source_counts": None, "tokens": None, "labels": {}},
            "provenance": Provenance("a", "b"),
        },
    ),
    "Trace.from_tokens": (
        eq.Trace.from_tokens,
        {"ids": TOKENS.ids, "offsets": TOKENS.offsets, "num_experts": 4, "labels": None},
    ),
    "Trace.merge": (eq.Trace.merge, {"traces": [TRACE]}),
    "Trace.select": (TRACE.select, {"layers": [0], "steps": [0]}),
    "Trace.split": (TRACE.split, {"at": 0.5, "within": "domain"}),
    "Trace.windows": (TRACE.windows, {"size": 2}),
    "TokenIds": (TokenIds, {"ids": TOKENS.ids, "offsets": TOKENS.offsets}),
    "RankCost": (
        eq.RankCost,
        {
            **{"fixed_seconds": 1, "expert_seconds": 1, "token_seconds": 1, "token_block": 1},
            "source": "",
        },
    ),
    "rank_cost": (eq.rank_cost, {"name": "h100-deepep-ep8"}),
    "RankCost.slot_seconds": (COST.slot_seconds, {"load": [1]}),
    "RankCost.rank_seconds": (COST.rank_seconds, {"slot_load": [1, 2], "num_ranks": 2}),
    "expert_loads": (eq.expert_loads, {"topk_ids": [[0]], "num_experts": 2}),
    "imbalance": (eq.imbalance, {"loads": [1, 2], "axis": 0}),
    "average_over_barriers": (balance.average_over_barriers, {"loads": [1, 2]}),
    "ep_step_time": (eq.ep_step_time, {"loads": [1, 2], "num_devices": 2, "placement": [0, 1]}),
    "dropped_tokens": (eq.dropped_tokens, {"loads": [1, 2], "capacity_factor": 1}),
    "rank_loads": (balance.rank_loads, {"load": LOAD, "placement": PLACED}),
    "active_experts": (balance.active_experts, {"load": LOAD, "placement": PLACED}),
    "noise_floor": (
        eq.noise_floor,
        {"num_tokens": 3, "num_experts": 4, "top_k": 2, "num_ranks": 2},
    ),
    "simulate_noise_floor": (
        noise.simulate_noise_floor,
        {
            **{"num_tokens": 3, "num_experts": 4, "top_k": 2, "num_ranks": 2},
            **{"num_draws": 3, "seed": 0},
        },
    ),
    "excess": (noise.excess, {"observed": [1], "floor": noise.NoiseFloor(1, 0)}),
    "diff": (eq.diff, {"old": PLACED, "new": PLACED, "topology": TWO, "dead_ranks": (0,)}),
    "match_ranks": (migration.match_ranks, {"old": PLACED, "new": PLACED, "topology": TWO}),
    "keep_slots": (migration.keep_slots, {"old": PLACED, "new": PLACED}),
    "Migration.bytes_by_link": (MOVES.bytes_by_link, {"expert_bytes": 3}),
    "Migration.seconds": (MOVES.seconds, {"expert_bytes": 3}),
    "best_placement": (eq.best_placement, {"loads": [1, 2], "num_devices": 2}),
    "add_copies": (add_copies, {"loads": [1, 2], "num_copies": 2}),
    "evaluate_without_balancing": (evaluate_without_balancing, {"load": LOAD, "topology": TWO}),
    "Greedy": (planned(eq.Greedy), {"allow_same_rank_copies": False}),
    "Hierarchical": (
        planned(eq.Hierarchical),
        {"num_expert_groups": 2, "allow_same_rank_copies": False},
    ),
    "Robust": (
        planned(Robust),
        {
            **{"cost": COST, "step_assignments": 10.0, "tail": 1.0, "traffic_weights": None},
            **{"seed": 0, "time_budget_seconds": None, **SHORT},
        },
    ),
    "Colocate": (
        planned(Colocate),
        {"tokens": TOKENS, "start": eq.Greedy(), "price": 0.01, "seed": 0, **SHORT},
    ),
    **{
        f"{type(planner).__name__}.plan": (planner.plan, {"problem": PROBLEM})
        for planner in (
            *(eq.Greedy(), eq.Hierarchical(num_expert_groups=2), eq.Contiguous(), eq.RoundRobin()),
            *(TrtllmGreedy(), Robust(**SHORT), eq.Survivable(**SHORT)),
            eq.Repair(current=PLACED, proposals=0, num_threads=1),
        )
    },
    "failover_maps": (
        failover_maps,
        {"placement": PLACED, "problem": PROBLEM, "failure_domain": "rank"},
    ),
    "resize": (resize, {"placement": PLACED, "problem": PROBLEM, "num_ranks": 3}),
    "refit": (refit, {"before_LRC": [[[0, 1], [2, 3]]] * 2, "problem": PROBLEM}),
    "coverage": (coverage, {"placement": PLACED, "topology": TWO, "failure_domain": "rank"}),
}
SLOW = {  # what takes the time or the memory that its number says
    *(("simulate_noise_floor", "num_tokens"), ("add_copies", "num_copies")),
    *(("Robust", "proposals"), ("Robust", "num_threads"), ("Robust", "time_budget_seconds")),
    *(("Colocate", "proposals"), ("Colocate", "num_threads"), ("resize", "num_ranks")),
}
PLACES = [(name, key) for name, (_, good) in CALLS.items() for key in good]


@pytest.mark.parametrize(("name", "key"), [p for p in PLACES if p not in SLOW])
@given(value=junk)
@settings(max_examples=20)
def test_any_value_is_answered_or_refused_in_a_sentence(name, key, value):
    call, good = CALLS[name]
    said = ""
    try:
        call(**{**good, key: value})
    except eq.EquipoiseError as error:
        said = str(error)
    assert len(said) < 400
    assert "\n" not in said


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_that_junk_is_passed_to_are_right_themselves(name):
    call, good = CALLS[name]
    call(**good)

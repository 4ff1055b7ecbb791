from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field, replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import equipoise as eq
from equipoise import dispatch, plan
from equipoise.noise import trace_noise_floor
from equipoise.report import attention, drift, ranks, summary
from equipoise.showing import differing, heat_html, in_short, short_name
from equipoise.simulate.routers import lognormal, sample_topk
from equipoise.trace import Provenance

EXPERTS, SLOTS = 16, 20
TOPOLOGY = eq.Topology(4, ranks_per_node=2, speed=(1.0, 0.5, 1.0, 1.25))
COST = eq.rank_cost("h100-deepep-ep8")


def recorded() -> eq.Trace:
    """Twelve steps of 40 tokens through two layers, of two domains, from two ranks."""
    popularity = lognormal(EXPERTS, sigma=1.0, num_layers=2, seed=1)
    ids = [sample_topk(row, num_tokens=480, top_k=2, seed=i) for i, row in enumerate(popularity)]
    trace = eq.Trace.from_tokens(
        np.stack(ids, axis=1),
        np.arange(13) * 40,
        num_experts=EXPERTS,
        labels={"domain": np.repeat(["code", "prose"], 6)},
        provenance=Provenance("array", "a recording"),
    )
    return replace(trace, source_counts=np.stack([trace.counts, trace.counts * 0], axis=1))


TRACE = recorded()
PROBLEM = eq.Problem(TRACE, TOPOLOGY, SLOTS)
PLAN = eq.Greedy().plan(PROBLEM)
PLACED = PLAN.placement
OTHER = eq.RoundRobin().plan(PROBLEM).placement
STUDY = plan.study(TRACE, TOPOLOGY, num_slots=SLOTS, planner=eq.Greedy())
SUMMARY = eq.summarise(TRACE, num_ranks=4)
GATE = plan.Gate(
    cost=COST, expert_bytes=44_040_192, dwell_steps=1e4, stall_seconds=0.1, interference=0.5,
    delay_steps=100, dispatch="minmax",
)  # fmt: skip
SITUATION = plan.Situation(load=TRACE.total, num_slots=SLOTS, num_ranks=4, slots=PLACED.slots)
REPAIR = eq.Repair(current=OTHER, max_moves=4, proposals=256, num_threads=1)
COVERAGE = plan.coverage(PLACED, TOPOLOGY)
STEP_TIME = plan.StepTime(cost=COST, step_tokens=4096, token_bytes=21_728)

NOUNS = [
    TRACE, TRACE.tokens, TRACE.provenance, PROBLEM, PLAN, PLACED, TOPOLOGY, TOPOLOGY.node_link,
    eq.diff(PLACED, OTHER, TOPOLOGY), COST,
    eq.MapContext(num_ranks=4, num_experts=EXPERTS, layer_ids=tuple(range(58)), planner="Greedy()"),
    eq.TraceOptions(num_experts=EXPERTS, layer_ids=tuple(range(58)), placement=PLACED),
    eq.noise_floor(100, EXPERTS, 2, 4), trace_noise_floor(TRACE, 4),
    # Dispatchers and what they answer.
    eq.Even(), eq.MinMax(topology=TOPOLOGY), eq.Nearest(topology=TOPOLOGY), eq.Auto(cost=COST),
    eq.FewestExperts(cost=COST, topology=TOPOLOGY),
    eq.MinMax().split(TRACE.total, PLACED),
    # Planners and what they answer.
    eq.Contiguous(), eq.Greedy(), eq.Hierarchical(num_expert_groups=4), eq.RoundRobin(),
    eq.Robust(dispatch="minmax", tail=0.2, seed=3), REPAIR, plan.TrtllmGreedy(),
    plan.FixedGraph(graph="ring"),
    eq.Survivable(losses=2, failure_domain="node"), plan.Colocate(tokens=TRACE.tokens),
    STUDY, STUDY.scores, STUDY.verdict, STUDY.verdict.compared, eq.evaluate(PLACED, TRACE),
    PLAN.binding[0], REPAIR.curve(PROBLEM), plan.Progress(done=0.5, stage="s", best=1, seconds=2),
    plan.budget(TRACE, TRACE, eq.Topology(4), up_to=8, planner=eq.Greedy()),
    COVERAGE, COVERAGE.survival(2), plan.measure_traffic(PLACED, TRACE.tokens, TOPOLOGY),
    plan.measure_reach(PLACED, TRACE, TOPOLOGY), plan.failover_maps(PLACED, PROBLEM)[0], STEP_TIME,
    GATE, GATE.decide(eq.diff(OTHER, PLACED, TOPOLOGY), TRACE), SITUATION,
    plan.replan(SITUATION, proposals=16, num_threads=1),
    # A summary and its parts.
    SUMMARY, SUMMARY.balance, SUMMARY.layers[0], SUMMARY.hottest_experts[0], SUMMARY.drift,
    SUMMARY.drift.labels["domain"], SUMMARY.attention, SUMMARY.labels[0], SUMMARY.expert_curves,
    SUMMARY.plot, eq.summarise(TRACE),
]  # fmt: skip


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: type(noun).__name__)
def test_a_noun_says_what_it_is_in_a_line(noun):
    line = repr(noun)
    assert line.startswith(type(noun).__name__)
    assert "\n" not in line
    assert len(line) < 200


def test_no_public_noun_is_left_out():
    public = {
        value
        for module in (eq, plan, dispatch)
        for value in (getattr(module, name) for name in module.__all__)
        if isinstance(value, type) and not issubclass(value, (Exception, enum.Enum))
    }
    for module in (attention, drift, ranks, summary):  # a summary's parts
        own = (x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__)
        public |= {x for x in own if isinstance(x, type)}
    protocols = {plan.Planner, dispatch.Dispatcher, ranks.RankView}
    assert public - protocols <= {type(noun) for noun in NOUNS}


def test_lines_that_are_worth_reading():
    assert repr(PROBLEM) == (
        "Problem(12 steps, 2 layers, 16 experts in 20 slots on 4 ranks, 2 traffic groups)"
    )
    assert repr(PLAN) == "Plan(2 layers, 16 experts in 20 slots on 4 ranks, by Greedy for even)"
    assert repr(TOPOLOGY) == "Topology(4 ranks on 2 nodes, speed 0.5 to 1.25)"
    assert repr(eq.Topology(1, room=(3,))) == "Topology(1 rank on 1 node, room 3 to 3)"
    assert repr(eq.Robust()) == "Robust()"
    assert repr(eq.Robust(seed=3, tail=0.2)) == "Robust(tail=0.2, seed=3)"


def test_a_trace_takes_its_counts_without_their_name():
    assert eq.Trace([[[1, 2]]]).total.tolist() == [[1, 2]]
    with pytest.raises(TypeError):
        eq.Trace([[[1, 2]]], (0,))


@dataclass(frozen=True, eq=False)
class Thing:
    """One field of each kind."""

    table: object
    share: float = 0.5
    ids: tuple[int, ...] = ()
    hidden: int = field(default=0, repr=False)


def test_only_what_is_not_a_default_is_said():
    assert differing(Thing(1)) == "Thing(table=1)"
    assert differing(Thing(1, share=0.1 + 0.2)) == "Thing(table=1, share=0.30000000000000004)"
    assert differing(Thing(1, share=1)) == "Thing(table=1, share=1)"


def test_arrays_and_long_rows_are_said_by_their_size():
    thing = Thing(np.zeros((2, 3)), share=1 / 3, ids=tuple(range(9)), hidden=4)
    assert in_short(thing) == "Thing(table=2 x 3 numbers, share=0.3333, ids=9 values)"
    assert in_short(Thing("x" * 500)).startswith("Thing(table='xxx")
    assert len(in_short(Thing("x" * 500))) < 120


@given(st.text())
def test_a_name_stays_on_its_line(name):
    assert len(short_name(name)) <= 90
    assert "\n" not in short_name(name)


def test_a_long_name_keeps_both_ends():
    assert short_name("a b") == "a b"
    assert short_name("start" + "x" * 200 + "end.json") == (
        "start" + "x" * 38 + "..." + "x" * 35 + "end.json"
    )


# --- heat maps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "noun", [TRACE, PLACED, PLAN, eq.evaluate(PLACED, TRACE), SUMMARY, eq.summarise(TRACE)],
    ids=repr,
)  # fmt: skip
def test_notebooks_get_the_line_and_a_small_picture(noun):
    page = noun._repr_html_()
    ElementTree.fromstring(f"<div>{page.replace('<br>', '<br/>')}</div>")
    assert repr(noun) in page
    assert "<svg" in page
    assert len(page) < 30_000


def test_names_from_files_are_text_not_markup():
    trace = eq.Trace([[[1, 2]]], provenance=Provenance("csv", "<script>alert(1)</script>"))
    for noun in (trace, eq.summarise(trace), eq.summarise(trace, num_ranks=2)):
        assert "<script" not in noun._repr_html_()
        assert "&lt;script" in noun._repr_html_()


def test_a_layer_without_load_is_drawn():
    assert "<svg" in eq.Trace([[[0, 0], [1, 3]]])._repr_html_()


@given(arrays(np.float64, st.tuples(st.integers(1, 70), st.integers(1, 130)),
              elements=st.floats(0, 1e6)))  # fmt: skip
def test_every_cell_is_drawn_once_in_at_most_32_rows_of_64(matrix):
    page = heat_html("line", matrix, "What it is.")
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', page)
    assert box is not None
    columns, rows = int(box[1]), int(box[2])
    assert rows <= 32
    assert columns <= 64
    squares = re.findall(r"M(\d+) (\d+)h1v1h-1z", page)
    assert len(squares) == len(set(squares)) == rows * columns


def test_the_largest_of_joined_cells_gives_the_colour():
    matrix = np.zeros((1, 128))
    matrix[0, 127] = 5
    page = heat_html("line", matrix, "Load.")
    assert page.count('<path fill="#7d3124" d="M63 0h1v1h-1z"/>') == 1
    assert "Load. From 0 (light) to 5 (dark)." in page

"""One registry: what is in it can be named wherever a dispatcher is wanted."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.cli.options.planner import dispatch_help
from equipoise.control.advisor import GatedRepair
from equipoise.cost import RankCost, rank_cost
from equipoise.dispatch import DISPATCHERS, Auto, Even, MinMax, Shares, dispatcher
from equipoise.dispatch.base import checked_batch, checked_load
from equipoise.dispatch.minmax import bottleneck_ranks
from equipoise.dispatch.quotas import whole_shares
from equipoise.dispatch.registry import Entry, check_serving
from equipoise.errors import EquipoiseError
from equipoise.plan import Gate, Problem, Progress, Repair, Robust, Survivable, evaluate
from equipoise.topology import Topology

GENERATE = Path(__file__).parents[2] / "docs" / "generate.py"
LOAD = np.random.default_rng(0).integers(0, 90, (3, 2, 8))
COST = RankCost(token_seconds=1.0)


@dataclass(frozen=True, kw_only=True)
class First:
    """The first copy of an expert takes all of its load."""

    name: ClassVar[str] = "first"
    cost: ClassVar[None] = None
    shares: ClassVar[Shares] = Shares.OTHER
    scale_free: ClassVar[bool] = True

    topology: eq.Topology | None = None

    def split(self, load, placement):
        batch = checked_batch(load, placement)
        shares = np.zeros(placement.slots.shape)
        first = placement.slots_of_experts()[:, :, 0]
        np.put_along_axis(shares, first, batch.load, axis=1)
        return eq.dispatch.Split(
            placement=placement,
            load=batch.load,
            shares=shares,
            bottleneck_ranks=bottleneck_ranks(batch.load, placement, self.topology),
            dispatch=self.name,
            rounding=whole_shares,
            topology=self.topology,
            source_load=batch.source_load,
        )

    def peaks(self, load, placement):
        steps = checked_load(load, placement, steps=True)
        return np.stack([self.split(step, placement).peak for step in steps])


@pytest.fixture
def first(monkeypatch):
    entry = Entry(where="tests.dispatch.test_registry:First", summary="all, if it is the first")
    monkeypatch.setitem(DISPATCHERS, "first", entry)


def test_a_class_and_an_entry_are_all_it_takes(first, tmp_path, capsys):
    problem = Problem(LOAD, Topology(4), 12)
    plan = Robust(dispatch="first", proposals=2000).plan(problem)
    assert plan.dispatch == "first"
    found = evaluate(plan.placement, LOAD, dispatch="first")
    alone = eq.Placement(plan.placement.slots, num_ranks=4, num_experts=8)
    assert found.peak.tolist() == First().peaks(LOAD, alone).tolist()
    assert Repair(current=plan.placement, dispatch="first", proposals=600).plan(problem)
    trace = tmp_path / "run.trace.safetensors"
    eq.write_trace(eq.Trace(counts=LOAD), trace)
    command = ["plan", str(trace), "--ranks", "4", "--redundant", "4", "--planner", "greedy"]
    assert main([*command, "--dispatch", "first", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["dispatch"] == "first"
    assert ", first." in dispatch_help()
    table = runpy.run_path(str(GENERATE))["dispatchers_table"]()
    assert "| `first` | all, if it is the first |" in table


def test_the_contract_tests_take_all_of_it():
    from tests.dispatch import test_dispatchers

    assert [*DISPATCHERS] == test_dispatchers.NAMES


@pytest.mark.parametrize("name", DISPATCHERS)
def test_all_are_named_alike_everywhere(name):
    cost = COST if DISPATCHERS[name].needs_cost else None
    kind = DISPATCHERS[name].kind
    assert kind.name == name
    assert type(dispatcher(name, cost=cost)) is kind
    for planner in (Robust, Survivable):
        assert planner(dispatch=name, cost=cost).dispatch == name
    gate = Gate(
        cost=COST, expert_bytes=1, dwell_steps=1, stall_seconds=1, interference=0, delay_steps=0,
        dispatch=name,
    )  # fmt: skip
    assert GatedRepair(topology=Topology(2), gate=gate).gate.dispatch == name
    if cost is None:
        once = eq.plan.Contiguous().plan(Problem(LOAD, Topology(4), 8)).placement
        assert evaluate(once, LOAD, dispatch=name).dispatch == name
        assert Repair(current=once, dispatch=name).dispatch == name
    assert name in dispatch_help()


def test_names_are_told_of_the_machines_the_router_and_the_cost():
    machines = Topology(4, 2)
    vllm = dispatcher("vllm", machines, top_k=3)
    assert (vllm.topology, vllm.top_k, vllm.cost) == (machines, 3, None)
    assert dispatcher("vllm").top_k == 8
    assert dispatcher("even", top_k=3) == Even()
    assert dispatcher("auto", machines, cost=COST) == Auto(topology=machines, cost=COST)
    assert dispatcher(Even(topology=machines), Topology(4), cost=COST) == Even(
        topology=machines, cost=COST
    )


def test_a_recording_says_how_many_choices_a_token_makes():
    once = eq.plan.RoundRobin().plan(Problem(LOAD, Topology(4), 12)).placement
    trace = eq.Trace(counts=LOAD, top_k=3)
    found = evaluate(once, trace, dispatch="vllm")
    assert found.peak.tolist() == dispatcher("vllm", top_k=3).peaks(LOAD, once).tolist()


def test_what_is_refused():
    with pytest.raises(EquipoiseError, match=r"no dispatcher 'lp'; use one of even, .* lplb"):
        dispatcher("lp")
    for needs in (lambda: dispatcher("auto"), lambda: Robust(dispatch="auto")):
        with pytest.raises(EquipoiseError, match=r"auto needs a cost .*; give cost, or use m"):
            needs()
    for knows in (lambda: dispatcher("vllm", cost=COST), lambda: Robust(dispatch="vllm", cost=COST),
                  lambda: dispatcher(dispatcher("ascend"), cost=COST)):  # fmt: skip
        with pytest.raises(EquipoiseError, match="knows no times; leave cost out, or use one"):
            knows()


@pytest.mark.parametrize("name", ["auto", "vllm", "best"])
def test_the_runtime_serves_by_ours_that_need_nothing_else(name):
    with pytest.raises(EquipoiseError, match="to serve by; use one of even, minmax, nearest, few"):
        check_serving(name)
    check_serving("fewest")


@pytest.mark.parametrize("door", [
    dispatcher,
    lambda x: evaluate(eq.Placement([[0, 1]], num_ranks=2, num_experts=2), [[1, 2]], dispatch=x),
    lambda x: Robust(dispatch=x),
    lambda x: Repair(current=eq.Placement([[0, 1]], num_ranks=2, num_experts=2), dispatch=x),
])  # fmt: skip
def test_a_class_of_ones_own_declares_all_of_it(door):
    class Half:
        name = "half"
        topology = cost = None

        def split(self, load, placement): ...

        def __repr__(self):
            return "Half()"

    with pytest.raises(
        EquipoiseError, match=r"is Half\(\), which declares no shares, scale_free, peaks; give the"
    ):
        door(Half())
    with pytest.raises(EquipoiseError, match="is the class MinMax; give an instance"):
        door(MinMax)
    with pytest.raises(EquipoiseError, match="The dispatcher is None, which declares no name"):
        door(None)


def test_engines_are_loaded_when_named():
    code = (
        "import sys; from equipoise.dispatch import dispatcher; dispatcher('minmax')\n"
        "loaded = [name for name in sys.modules if name.startswith('equipoise.engines')]\n"
        "dispatcher('ascend'); now = 'equipoise.engines.ascend.rules' in sys.modules\n"
        "sys.exit(bool(loaded) or not now)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["auto", "lplb"])
def test_what_follows_the_load_is_searched_so(name):
    """With chance added to the windows, and for the split: other stages than for an even one."""
    cost = rank_cost("h100-deepep-ep8") if name == "auto" else None
    told: list[Progress] = []
    problem = Problem(LOAD[0, :1], Topology(4), 8)
    Robust(dispatch=name, cost=cost, proposals=1 << 15, progress=told.append).plan(problem)
    assert "splits of windows" in {progress.stage for progress in told}

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem, evaluate
from equipoise.plan.search.scenarios import group_scenarios, read_history
from equipoise.plan.weigh.failover import Content, failover_maps, refit, resize
from equipoise.topology import Topology
from tests.reference.failover import power_after
from tests.reference.robust import even_objective


def solved(topology, num_slots, num_experts, seed=0, layers=2, steps=3):
    load = np.random.default_rng(seed).lognormal(0, 1, (steps, layers, num_experts))
    problem = Problem(load, topology, num_slots)
    return Greedy().plan(problem).placement, problem


@st.composite
def placements(draw):
    """A small placement and its problem: four or six ranks in nodes of two."""
    num_ranks, size = draw(st.sampled_from([4, 6])), draw(st.integers(2, 4))
    num_experts = draw(st.integers(size, num_ranks * size))
    return solved(Topology(num_ranks, 2), num_ranks * size, num_experts, draw(st.integers(0, 999)))


def check(refit):
    """What holds for every refit; the constructor of ``Placement`` has checked the rest."""
    old, new = refit.old.by_rank, refit.placement.by_rank
    assert not refit.placement.duplicates.any()
    content = refit.content.reshape(new.shape)
    for rank, before in enumerate(refit.old_rank):
        for layer, at in np.ndindex(len(new), new.shape[2]):
            had = (
                before >= 0 and at < old.shape[2] and old[layer, before, at] == new[layer, rank, at]
            )
            assert (content[layer, rank, at] == Content.KEPT) == had
    assert (refit.counts.sum(axis=1) == refit.placement.num_slots).all()


@given(placements(), st.sampled_from(["rank", "node"]))
def test_survivors_change_no_more_than_they_must(case, domain):
    placement, problem = case
    maps = failover_maps(placement, problem, failure_domain=domain)
    num_lost = 1 if domain == "rank" else 2
    assert len(maps) == placement.num_ranks // num_lost
    for number, change in enumerate(maps):
        check(change)
        gone = list(range(number * num_lost, (number + 1) * num_lost))
        assert change.gone.tolist() == gone
        survivors = np.delete(placement.by_rank, gone, axis=1)
        for layer, row in enumerate(survivors):
            lost = placement.num_experts - len(np.unique(row))
            assert change.counts[layer, Content.RELOADED] == lost
            if change.placement.slots_per_rank == placement.slots_per_rank:
                assert change.counts[layer, Content.COPIED] == 0


def test_the_slot_is_the_one_whose_loss_harms_least():
    placement = Placement([[0, 1, 2, 1, 3, 2, 4, 3, 0]], num_ranks=3, num_experts=5)
    load = np.random.default_rng(0).lognormal(0, 1, (6, 1, 5))
    problem = Problem(load, Topology(3), 9, traffic_groups=list("aaabbb"))
    last = failover_maps(placement, problem)[2]
    assert last.status == (
        "3 ranks become 2: 5 slots keep their expert, 0 copy one from a rank that is alive, "
        "1 reload one that no rank has."
    )
    scenarios = group_scenarios(read_history(problem, None), np.random.default_rng(0))
    start = placement.slots[0, :6]

    def objective(slots):
        arrays = scenarios.load[0], scenarios.risk[0], scenarios.weight[0]
        return even_objective(*arrays, slots, 2, 1.0, 4)

    best = min(
        objective(np.where(np.arange(6) == s, 4, start))
        for s in range(6)
        if (start == start[s]).sum() > 1
    )
    assert objective(last.placement.slots[0]) == pytest.approx(best)


def test_more_slots_where_the_survivors_have_too_few():
    placement, problem = solved(Topology(4), 8, 8)
    refit = failover_maps(placement, problem)[1]
    check(refit)
    assert refit.placement.slots_per_rank == 3
    assert refit.counts.tolist() == [[6, 1, 2]] * 2
    assert refit.status.endswith("3 ranks of 2 slots do not hold all 8 experts, so each needs 3.")


def test_room_limits_the_survivors():
    placement, problem = solved(Topology(4), 8, 8)
    tight = Problem(problem.load, Topology(4, room=(3, 3, 3, 2)), 8)
    refits = failover_maps(placement, tight)
    for change in refits:
        distinct = (change.placement.copies_on_rank > 0).sum(axis=2)
        assert (distinct <= np.array([3, 3, 3, 2])[change.old_rank]).all()
    with pytest.raises(EquipoiseError, match="Without rank 0 there is room for 7 experts of a lay"):
        failover_maps(placement, Problem(problem.load, Topology(4, room=(3, 2, 2, 3)), 8))
    uneven = Problem(problem.load, Topology(4, room=(2, 2, 5, 5)), 8)
    assert [r.placement.slots_per_rank for r in failover_maps(placement, uneven)] == [3, 3, 4, 4]


def test_slots_that_repeat_an_expert_are_used_first():
    placement = Placement([[0, 0, 1, 1, 2, 2, 3, 3]], num_ranks=4, num_experts=4)
    refit = failover_maps(placement, Problem([[1, 2, 3, 4]], Topology(4), 8))[3]
    assert refit.placement.slots.tolist() == [[0, 3, 1, 1, 2, 2]]
    assert refit.counts.tolist() == [[5, 0, 1]]


def test_slow_ranks_get_less():
    placement = Placement([[0, 1, 0, 2, 1, 2, 3, 0]], num_ranks=4, num_experts=4)
    load = [[10, 1, 1, 10]]
    for slow in (0, 1):
        speed = np.ones(4)
        speed[slow] = 0.5
        refit = failover_maps(placement, Problem(load, Topology(4, speed=tuple(speed)), 8))[3]
        rank = np.flatnonzero(refit.placement.copies_on_rank[0, :, 3])
        assert rank != slow


@given(placements(), st.integers(1, 9))
def test_resizing_keeps_what_stays(case, num_ranks):
    placement, problem = case
    refit = resize(placement, problem, num_ranks)
    check(refit)
    assert refit.placement.num_ranks == num_ranks
    assert refit.counts[:, Content.RELOADED].sum() == 0
    again = resize(placement, problem, num_ranks)
    assert again.placement == refit.placement
    if num_ranks == placement.num_ranks:
        assert refit.placement == placement
    elif num_ranks > placement.num_ranks:
        new_slots = (num_ranks - placement.num_ranks) * placement.slots_per_rank
        assert (refit.counts[:, Content.COPIED] == new_slots).all()


@st.composite
def holdings(draw):
    """What ranks hold, some of it unknown, a rank perhaps nothing; and a problem."""
    num_ranks, size, num_experts = (draw(st.integers(1, n)) for n in (5, 4, 8))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    held = rng.integers(0, num_experts, (2, num_ranks, size))
    held[rng.random(held.shape) < draw(st.sampled_from([0, 0.3, 1]))] = -1
    held[:, rng.integers(num_ranks)] = -1
    wanted = -(-num_experts // num_ranks) + draw(st.integers(0, 2))
    room = [draw(st.integers(-(-num_experts // num_ranks), 9)) for _ in range(num_ranks)]
    topology = Topology(num_ranks, room=draw(st.sampled_from([None, tuple(room)])))
    load = rng.lognormal(0, 1, (2, num_experts))
    return held, Problem(load, topology, wanted * num_ranks, layer_ids=(3, 4))


@given(holdings())
def test_a_refit_keeps_what_is_known_and_reloads_what_nobody_has(case):
    held, problem = case
    placement, content = refit(held, problem)
    assert placement.layer_ids == (3, 4)
    assert placement.num_slots == problem.num_slots
    stays = min(placement.slots_per_rank, held.shape[2])
    before = np.full(placement.by_rank.shape, -1)
    before[:, :, :stays] = held[:, :, :stays]
    assert ((content == Content.KEPT) == (before.reshape(content.shape) == placement.slots)).all()
    for layer in range(2):
        lost = np.setdiff1d(np.arange(placement.num_experts), held[layer])
        reloaded = placement.slots[layer, content[layer] == Content.RELOADED]
        assert sorted(reloaded) == lost.tolist()
    again, content = refit(placement.by_rank, problem)
    assert again == placement
    assert (content == Content.KEPT).all()


def test_a_refit_is_the_failover_map_of_what_survives():
    placement, problem = solved(Topology(4), 16, 12)
    for gone, known in enumerate(failover_maps(placement, problem)):
        survivors = np.delete(placement.by_rank, gone, axis=1)
        fewer = Problem(problem.load, Topology(3), 12)
        again, content = refit(survivors, fewer)
        assert again == known.placement
        assert (content == known.content).all()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (np.zeros((2, 3, 2), dtype=int), "expected 2 layers, 4 ranks, and the slots"),
        (np.zeros((8, 2), dtype=int), "has shape .8, 2.; expected"),
        (np.full((2, 4, 2), 8), "hold experts 8 to 8; expected ids from 0 to 7, or -1"),
        (np.full((2, 4, 2), -2), "hold experts -2 to -2"),
    ],
)
def test_holdings_that_do_not_fit_are_refused(held, message):
    with pytest.raises(EquipoiseError, match=message):
        refit(held, Problem(np.ones((2, 8)), Topology(4), 8))


def test_a_refit_without_room_is_refused():
    problem = Problem(np.ones((1, 8)), Topology(4, room=(1, 2, 2, 2)), 8)
    with pytest.raises(EquipoiseError, match="room for 7 experts of a layer, the model has 8"):
        refit(np.full((1, 4, 2), -1), problem)


def test_new_ranks_take_load_off_the_others():
    placement, problem = solved(Topology(4), 16, 12, layers=4)
    grown = resize(placement, problem, 6).placement
    before, after = (evaluate(p, problem.total).peak.sum() for p in (placement, grown))
    assert after < 0.8 * before


def test_layers_without_load():
    load = np.zeros((1, 2, 6))
    load[0, 1] = 1
    problem = Problem(load, Topology(4), 8)
    placement = Greedy().plan(problem).placement
    check(resize(placement, problem, 3))
    check(resize(placement, problem, 5))
    for change in failover_maps(placement, problem):
        check(change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: failover_maps(a, b, failure_domain="rack"), "failure_domain is 'rack'"),
        (
            lambda a, b: failover_maps(a, b, failure_domain="node"),
            "a single node: nothing survives",
        ),
        (lambda a, b: resize(a, b, 0), "num_ranks is 0; expected 1"),
        (lambda a, b: resize(a, b, 60000), "The number of slots is 120000; expected 1 to"),
        (lambda a, b: resize(a, solved(Topology(2), 8, 8)[1], 3), "differ in ranks; give the"),
        (lambda a, b: resize(a, solved(Topology(4), 12, 8)[1], 3), "differ in slots; give the"),
        (lambda a, b: resize(a, solved(Topology(4), 8, 7)[1], 3), "differ in experts"),
        (lambda a, b: resize(a, solved(Topology(4), 8, 8, layers=3)[1], 3), "differ in layers"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(EquipoiseError, match=message):
        call(*solved(Topology(4), 8, 8))


def digest(refits):
    content = "".join(r.placement.checksum + r.content.tobytes().hex() for r in refits)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def test_maps_stay_what_they_were():
    load = np.random.default_rng(0).lognormal(0, 1, (6, 3, 24))
    topology = Topology(8, 2, speed=(1, 1, 1, 1, 1, 2, 2, 2))
    problem = Problem(load, topology, 32, traffic_groups=["a", "b"] * 3)
    placement = Greedy().plan(problem).placement
    assert digest(failover_maps(placement, problem)) == "f0f4ae07acafe958"
    assert digest(failover_maps(placement, problem, failure_domain="node")) == "39649153baf61bb6"
    sizes = [resize(placement, problem, n) for n in (3, 5, 7, 9, 12)]
    assert digest(sizes) == "60fbefcdc5f1fdf5"


@given(st.integers(0, 10**6))
def test_moves_are_weighed_like_the_reference(seed):
    from equipoise.plan.search._packing_kernels import powers_after

    rng = np.random.default_rng(seed)
    R, E, T = rng.integers(1, 5), rng.integers(1, 6), rng.integers(1, 4)
    load, risk, slow = rng.random((E, T)), rng.random((E, T)), rng.uniform(0.5, 2, R)
    held = rng.random((R, E)) < 0.5
    moves, none = [], E  # an expert numbered E stands for none
    for at in range(R):
        for arriving in np.flatnonzero(~held[at]):
            moves += [(at, leaving, arriving) for leaving in [*np.flatnonzero(held[at]), none]]
    if not moves:
        return
    padded = np.pad(held, ((0, 0), (0, 1))).astype(float)
    rows = [np.vstack([x, np.zeros(T)]) for x in (load, risk)]
    copies = padded.sum(axis=0).astype(np.int64)
    share = (1 / np.maximum(copies, 1))[:, None]
    sums = slow[:, None] * (padded @ ((rows[0] + rows[1] * share) * share))
    found = powers_after(*rows, slow, sums, padded, copies, np.array(moves))
    experts = [set(np.flatnonzero(row).tolist()) for row in held]
    for (at, leaving, arriving), row in zip(moves, found, strict=True):
        gone = None if leaving == none else int(leaving)
        expected = power_after(
            load.tolist(), risk.tolist(), slow, experts, (at, gone, int(arriving))
        )
        assert row == pytest.approx(expected, rel=1e-9)

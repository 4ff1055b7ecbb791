"""Water-filling against bisection and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.dispatch import MinMax
from equipoise.dispatch.shared import pour, pour_whole
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from tests.reference import dispatch as reference

bases = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e6)), min_size=1, max_size=6)


@st.composite
def vessels(draw, base, amount):
    """Loads, an amount, speeds and candidates, of which there is at least one."""
    load = draw(base)
    n = len(load)
    speed = draw(st.lists(st.sampled_from([0.5, 1.0, 1.5, 3.0]), min_size=n, max_size=n))
    allowed = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    allowed[draw(st.integers(0, n - 1))] = True
    return np.array(load), draw(amount), np.array(speed), allowed


def test_known_answer():
    assert pour([5, 1, 3], 4).tolist() == [0.0, 3.0, 1.0]
    assert pour_whole([5, 1, 3], 4).tolist() == [0, 3, 1]


def test_speeds_and_candidates():
    assert pour([5, 1, 3], 4, [1, 2, 1]).tolist() == [0.0, 4.0, 0.0]
    assert pour([5, 1, 3], 4, candidates=[True, False, True]).tolist() == [1.0, 0.0, 3.0]
    assert pour_whole([0, 0, 0], 4).tolist() == [2, 1, 1]


@given(case=vessels(bases, st.floats(0, 1e6)))
def test_level_is_that_of_bisection(case):
    load, amount, speed, allowed = case
    poured = pour(load, amount, speed, candidates=allowed)
    wanted = reference.water_fill(amount, load[allowed], speed[allowed])
    assert poured[allowed] == pytest.approx(wanted, rel=1e-9, abs=1e-9 * (1 + load.max()))
    assert not poured[~allowed].any()
    assert poured.sum() == pytest.approx(amount, rel=1e-15)


@given(case=vessels(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 9)))
def test_whole_peaks_are_the_least(case):
    load, amount, speed, allowed = case
    poured = pour_whole(load, amount, speed, candidates=allowed)
    assert poured.dtype == np.int64
    assert poured.sum() == amount
    assert (poured >= 0).all()
    assert not poured[~allowed].any()
    best = min(
        max((load + parts) / speed)
        for parts in reference.partitions(amount, len(load))
        if not np.array(parts)[~allowed].any()
    )
    assert ((load + poured) / speed).max() == best


def test_rows_are_poured_each_for_itself():
    rng = np.random.default_rng(0)
    load, amount = rng.integers(0, 99, (3, 4, 8)), rng.integers(0, 300, (3, 4))
    for function in (pour, pour_whole):
        together = function(load, amount)
        for i in np.ndindex(3, 4):
            assert np.array_equal(function(load[i], amount[i]), together[i])
        assert np.array_equal(function(load, 7)[1, 2], function(load[1, 2], 7))


def test_no_amount_is_lost_beside_loads_that_dwarf_it():
    assert pour([1e15, 1e15], 1e-6).sum() == 1e-6
    assert pour_whole([2.0**52, 2.0**52], 3).sum() == 3
    assert pour_whole([0, 0, 0], 2**53 - 1).sum() == 2**53 - 1


def test_after_a_min_max_split_it_is_as_good_as_together():
    """The amount as one more expert with a copy on every rank, in one problem or after it."""
    rng = np.random.default_rng(1)
    slots = rng.permutation(np.concatenate([np.arange(12), rng.integers(0, 12, 12)])).reshape(8, 3)
    alone = Placement(slots.reshape(1, -1), num_ranks=8, num_experts=12)
    extra = np.hstack([slots, np.full((8, 1), 12)]).reshape(1, -1)
    together = Placement(extra, num_ranks=8, num_experts=13)
    for amount in (0, 50, 500, 5000):
        load = rng.lognormal(4, 1, (1, 12))
        carried = MinMax().split(load, alone).rank_loads
        joint = MinMax().split(np.append(load, [[amount]], axis=1), together)
        assert (carried + pour(carried, amount)).max() == pytest.approx(joint.peak[0])


@pytest.mark.parametrize("function", [pour, pour_whole])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, np.nan], 1), "is nan; expected finite"),
        (([1, 2], -1), "is -1.0; expected finite"),
        (([1, 2], np.inf), "is inf; expected finite"),
        (([[1, 2], [3]], 1), "rows of equal length"),
        (([1, 2], [[1, 2], [3]]), "rows of equal length"),
        (([1, 2], [1, 2]), r"Amounts of shape \(2,\) .* do not fit loads of shape \(2,\)"),
        (([1, 2], 1, [1, 0]), "expected 2 numbers above 0"),
        (([1, 2], 1, [1, 1, 1]), "expected 2 numbers above 0"),
        (([], 1), "expected at least one number"),
    ],
)
def test_what_is_refused(function, arguments, message):
    with pytest.raises(EquipoiseError, match=message):
        function(*arguments)


@pytest.mark.parametrize("function", [pour, pour_whole])
@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([False, False], "An amount has no candidate"),
        ([True], None),
        ([True, False, True], "do not fit"),
        ([1, 0], "expected true or false"),
        ([[True, False], [True]], "do not fit"),
    ],
)
def test_candidates_that_are_refused(function, candidates, message):
    if message is None:
        assert function([1, 2], 2, candidates=candidates).sum() == 2
        return
    with pytest.raises(EquipoiseError, match=message):
        function([1, 2], 1, candidates=candidates)


@pytest.mark.parametrize("amount", [1.5, 2**53])
def test_amounts_that_cannot_be_whole(amount):
    with pytest.raises(EquipoiseError, match="expected whole numbers below"):
        pour_whole([1, 2], amount)

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from equipoise.control.measured import SECONDS, Histogram, Recent, mean, quantile

VALUES = st.lists(st.floats(0, 100), max_size=30)


@given(VALUES)
def test_a_bucket_has_all_values_up_to_its_bound(values):
    seen = Histogram()
    for value in values:
        seen.add(value)
    rows = seen.buckets()
    assert rows[-1] == ("+Inf", len(values))
    assert rows[:-1] == [(str(b), sum(value <= b for value in values)) for b in SECONDS]
    assert seen.sum == sum(values)


@given(VALUES, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_the_least_value_that_enough_do_not_exceed(values, share):
    found = quantile(values, share)
    if not values:
        assert found is None
        return
    enough = [v for v in values if sum(other <= v for other in values) >= share * len(values)]
    assert found == min(enough)


def test_the_last_values_of_late():
    recent = Recent(3)
    for time in range(5):
        recent.add(time, 10 * time)
    assert recent.since(0) == [(2, 20), (3, 30), (4, 40)]
    assert recent.since(3.5) == [(4, 40)]


def test_the_mean_of_nothing_is_nothing():
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5

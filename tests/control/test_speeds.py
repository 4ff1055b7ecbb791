"""Speeds of ranks, from what they did and how long it took."""

from __future__ import annotations

from equipoise.control.speeds import in_steps


def test_tells_a_slow_rank_from_noise():
    assert in_steps([(100, 10, 1.0), (110, 9, 1.0), (95, 11, 1.0), (40, 4, 1.0)]) == (
        1, 1, 1, 1.25**-4,
    )  # fmt: skip
    assert in_steps([(100, 10, 1.0), (100, 10, 1.2)]) == (1, 1)
    assert in_steps([(100, 10, 1.0), (0, 0, 0.0), (100, 10, 1.0)]) == (1, 1, 1)
    assert in_steps([(0, 0, 0.0)]) == (1,)


def test_few_rows_on_many_experts_are_not_slow():
    """Three ranks of the same speed, for which an expert takes time and a row hardly any."""
    work = [(rows, experts, experts * 1.0) for rows, experts in ((90, 3), (30, 12), (60, 6))]
    assert in_steps(work) == (1, 1, 1)

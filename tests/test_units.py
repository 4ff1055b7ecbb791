from __future__ import annotations

import pytest

from equipoise.units import clock, duration, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (8.1e-5, "81 us"), (0.06, "60 ms"), (0.0312, "31.2 ms"), (7.0, "7 s"),
     (-8e-5, "-80 us"), (600, "10 min"), (7e5, "194 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_sizes_and_clocks():
    assert [size(x) for x in (8.1e6, 5e4, 2e10, 3e13)] == ["8.1 MB", "50 kB", "20 GB", "30 TB"]
    assert [clock(x) for x in (65, 7261)] == ["1:05", "2:01:01"]

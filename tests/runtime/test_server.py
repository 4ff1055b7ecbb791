from __future__ import annotations

import pytest

from tests.runtime import chaos


@pytest.fixture(scope="module")
def prepared():
    return chaos.forked(), *chaos.references()


@pytest.mark.parametrize(
    ("fault", "seed"),
    [
        ("kill, join", 3),
        ("stop", 1),
        ("garbage", 2),
        *(
            pytest.param(fault, seed, marks=pytest.mark.long)
            for fault in sorted(set(chaos.FAULTS))
            for seed in range(10, 13)
        ),
    ],
)
def test_whatever_happens_every_request_is_answered_right(prepared, fault, seed):
    done = chaos.run(seed, *prepared, fault=fault)
    assert done.wrong == []
    if fault in ("kill, join", "stop"):
        assert done.recovery_seconds is not None

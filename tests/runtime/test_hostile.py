from __future__ import annotations

import pytest

from tests.runtime import chaos, hostile


@pytest.mark.parametrize(
    ("requests", "share"),
    [(72, 1 / 6), pytest.param(1000, 0.05, marks=pytest.mark.long)],
)
def test_each_request_is_answered_by_itself(tmp_path, requests, share):
    prepared = chaos.forked(), *chaos.references()
    outcome = hostile.run(prepared, tmp_path, requests=requests, processes=3, share=share, seed=0)
    assert outcome.wrong == []
    assert outcome.failed.keys() == set(hostile.KINDS)
    assert outcome.answered == requests - outcome.failed.total()

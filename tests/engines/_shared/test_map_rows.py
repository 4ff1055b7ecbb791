from __future__ import annotations

import pytest

from equipoise.engines._shared.map_rows import build, default_row
from equipoise.engines.formats import MapContext, RawMap
from equipoise.errors import EquipoiseError
from tests.engines._shared.small_map import GOOD


def test_default_row():
    assert default_row(6, 4).tolist() == [0, 1, 2, 3, 0, 1]


def test_build_needs_the_ranks():
    with pytest.raises(EquipoiseError, match="num_ranks"):
        build(GOOD.rows, [3, 4], GOOD, MapContext())


def test_build_refuses_sizes_beyond_any_deployment():
    width = 40_000
    raw = RawMap(rows=[list(range(width))], layer_keys=[0])
    with pytest.raises(EquipoiseError, match="more than any deployment"):
        build(raw.rows, [0], raw, MapContext(num_ranks=width))

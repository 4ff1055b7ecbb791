"""A small map without a fault, and what is found in others like it."""

from __future__ import annotations

from dataclasses import replace

from equipoise.engines._shared.map_slots import Rules, check_rows
from equipoise.engines.formats import MapContext, RawMap

RULES = Rules(
    ids="ids",
    missing="missing",
    width="width",
    slots="slots",
    stated="stated",
    redundancy="redundancy",
    duplicates="duplicates",
)
KNOWN = MapContext(num_ranks=2, num_experts=4, num_redundant=2)
GOOD = RawMap(rows=[[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]], layer_keys=[3, 4])


def found(rows, context=KNOWN, **changes):
    keys = list(range(3, 3 + len(rows)))
    raw = replace(GOOD, rows=rows, layer_keys=keys, **changes)
    return check_rows(raw, context, RULES)

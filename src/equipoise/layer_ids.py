"""The numbers a model gives its MoE layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

from equipoise.checks import brief, check_collection, check_whole
from equipoise.errors import EquipoiseError

MAX_LAYER = 999_999
"""Largest accepted layer number; no model has more layers."""


def check_layer_ids(layer_ids: Collection[int], num_layers: int) -> tuple[int, ...]:
    """Return the ids as ints; raise ``EquipoiseError`` unless ascending, >= 0, one per layer."""
    given = check_collection("layer_ids", layer_ids)
    if len(given) != num_layers:
        raise EquipoiseError(f"{len(given)} layer ids for {num_layers} layers; expected one each.")
    ids = tuple(check_whole("A layer id", i, low=-MAX_LAYER, high=MAX_LAYER) for i in given)
    if any(b <= a for a, b in pairwise(ids)) or ids[0] < 0:
        raise EquipoiseError(
            f"Layer ids {brief(ids)} are not ascending, non-negative and distinct."
        )
    return ids


def format_ids(ids: Sequence[int]) -> str:
    """Write ascending ids as ranges: ``3-60, 62``."""
    runs: list[list[int]] = []
    for i in ids:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_ids(text: str) -> tuple[int, ...]:
    """Read layer numbers from ranges as ``format_ids`` writes them: ``3-60`` or ``3, 5, 7-9``."""
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})(?:-([0-9]{1,6}))?\s*", part)
        if match is None:
            raise EquipoiseError(
                f"Cannot read layers from {text!r}; expected numbers like 3-60,62."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise EquipoiseError(f"The layers {part.strip()} run backwards; write {last}-{first}.")
        ids.extend(range(first, last + 1))
    return check_layer_ids(ids, len(ids))

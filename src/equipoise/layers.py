"""The numbers a model gives its MoE layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from equipoise.errors import EquipoiseError


def check_layer_ids(layer_ids: tuple[int, ...], num_layers: int) -> None:
    """Raise ``EquipoiseError`` unless there is one ascending, non-negative id a layer."""
    if len(layer_ids) != num_layers:
        raise EquipoiseError(
            f"{len(layer_ids)} layer ids for {num_layers} layers; expected as many."
        )
    if any(b <= a for a, b in pairwise(layer_ids)) or layer_ids[0] < 0:
        raise EquipoiseError(
            f"Layer ids {format_ids(layer_ids)} are not ascending, non-negative and distinct."
        )


def format_ids(ids: Sequence[int]) -> str:
    """Ascending ids as ranges: ``3-60, 62``."""
    runs: list[list[int]] = []
    for i in ids:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def parse_ids(text: str) -> tuple[int, ...]:
    """Layer numbers from ranges as ``format_ids`` prints them: ``3-60`` or ``3, 5, 7-9``."""
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
    check_layer_ids(tuple(ids), len(ids))
    return tuple(ids)

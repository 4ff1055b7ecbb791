"""Traces built from rows of (layer, expert, tokens), whatever file they come from."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb

import numpy as np
from numpy.typing import NDArray

from equipoise.engines._shared.arrays import (
    agreed_num_experts,
    refuse_long_labels,
    refuse_oversize,
)
from equipoise.engines.formats import TraceOptions
from equipoise.errors import EquipoiseError, argument
from equipoise.trace import MAP_LABEL, Provenance, Trace

LABELS = ("phase", "domain", MAP_LABEL)
_NO_LABELS = ("",) * len(LABELS)
_NO_CHANCE = 1000
MAX_NUMBER = 1 << 48
"""Limit of the numbers in a table: far above any real count, and sums of them fit in 64 bits."""


@dataclass(eq=False)
class Records:
    """The rows of a table, stored by column: ``array("q")`` takes 8 bytes for each cell.

    A row is one (step, layer, expert, source rank) count; ``labels`` numbers the row's values of
    ``LABELS`` by the order in which they first occurred.
    """

    step: array[int] = field(default_factory=lambda: array("q"))
    layer: array[int] = field(default_factory=lambda: array("q"))
    expert: array[int] = field(default_factory=lambda: array("q"))
    source: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("q"))
    label_values: dict[tuple[str, ...], int] = field(default_factory=dict)

    def add(
        self,
        *,
        step: int,
        layer: int,
        expert: int,
        source: int,
        tokens: int,
        labels: tuple[str, ...],
    ) -> None:
        """Append a row.

        Raises
        ------
        EquipoiseError
            A number is negative or implausibly large, or a label is too long; the table is not
            changed then.
        """
        numbers = (step, layer, expert, source, tokens)
        if min(numbers) < 0 or max(numbers) >= MAX_NUMBER:
            raise EquipoiseError(
                f"step {step}, layer {layer}, expert {expert}, source_rank {source}, "
                f"tokens {tokens}: expected whole numbers from 0 to 2^48."
            )
        label = self._label(labels)
        self.step.append(step)
        self.layer.append(layer)
        self.expert.append(expert)
        self.source.append(source)
        self.tokens.append(tokens)
        self.labels.append(label)

    def add_layer(self, *, step: int, layer: int, source: int, tokens: Sequence[int]) -> None:
        """Append a row for each expert of a layer, from expert 0; raises what ``add`` raises."""
        if not tokens or not 0 <= min(tokens) <= max(tokens) < MAX_NUMBER:
            raise EquipoiseError(f"Layer {layer}: expected counts from 0 to 2^48, one an expert.")
        first, *others = tokens
        self.add(step=step, layer=layer, expert=0, source=source, tokens=first, labels=_NO_LABELS)
        for column, value in (
            (self.step, step),
            (self.layer, layer),
            (self.source, source),
            (self.labels, self.labels[-1]),
        ):
            column.extend([value] * len(others))
        self.expert.extend(range(1, len(tokens)))
        self.tokens.extend(others)

    def _label(self, labels: tuple[str, ...]) -> int:
        code = self.label_values.get(labels)
        if code is None:
            refuse_long_labels(labels, 1, 1)
            code = self.label_values[labels] = len(self.label_values)
        return code

    def trace(
        self,
        options: TraceOptions,
        provenance: Provenance,
        columns: frozenset[str],
        file_bytes: int,
    ) -> Trace:
        """Build the trace; absent (layer, expert) pairs count 0, repeated ones are added.

        Steps are ordered by step number, then by the first occurrence of their labels.

        Parameters
        ----------
        columns
            Optional columns that the file has, out of ``source_rank`` and ``LABELS``.
        file_bytes
            Size of the file; a trace that is far larger is refused.

        Raises
        ------
        EquipoiseError
            There is no row, the trace would be oversized, or a layer has fewer experts.
        """
        if not self.tokens:
            raise EquipoiseError("There is no row of counts; expected at least one.")
        expert, source, tokens = (np.asarray(c) for c in (self.expert, self.source, self.tokens))
        step_ids, step_labels, step_row = self._steps()
        layers, layer_row = np.unique(self.layer, return_inverse=True)
        known = None if options.drop_experts else options.num_experts
        E, notes = agreed_num_experts(int(expert.max()), known)
        R = int(source.max()) + 1
        shape = (len(step_ids), R, len(layers), E)
        refuse_oversize(shape, 8, "A table of (steps, source ranks, layers, experts)", file_bytes)
        refuse_long_labels(
            [text for labels in self.label_values for text in labels], len(step_ids), file_bytes
        )
        if options.num_experts is None:
            _refuse_smaller_layers(layers, layer_row, expert, options.layer_ids)
        cell = np.ravel_multi_index((step_row, source, layer_row, expert), shape)
        cube = np.zeros(shape, dtype=np.int64)
        np.add.at(cube.reshape(-1), cell, tokens)
        repeated = len(cell) - len(np.unique(cell))
        if repeated:
            notes += (f"{repeated} rows repeat an earlier (step, layer, expert); they were added.",)
        values = np.array(list(self.label_values))[step_labels]
        return Trace(
            counts=cube.sum(axis=1),
            layer_ids=tuple(layers.tolist()),
            step_ids=step_ids,
            source_counts=cube if "source_rank" in columns else None,
            labels={name: values[:, i] for i, name in enumerate(LABELS) if name in columns},
            provenance=provenance,
        ).with_notes(*notes)

    def _steps(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return step id and label code of each distinct pair, and each row's position there."""
        ids, id_row = np.unique(self.step, return_inverse=True)
        width = len(self.label_values)
        pairs, step_row = np.unique(id_row * width + self.labels, return_inverse=True)
        return ids[pairs // width], pairs % width, step_row


def _refuse_smaller_layers(
    layers: NDArray[np.int64],
    layer_row: NDArray[np.intp],
    expert: NDArray[np.int64],
    wanted: tuple[int, ...] | None,
) -> None:
    """Refuse a table in which a layer lacks exactly the last experts of the others.

    Layers that are not ``wanted`` will be left out, so they do not matter.

    An expert without a row got no token, or does not exist. That the experts without one are by
    chance the last ``k`` of ``E`` has one chance in ``E`` over ``k``.
    """
    E = int(expert.max()) + 1
    listed = np.zeros((len(layers), E), dtype=bool)
    listed[layer_row, expert] = True
    if wanted is not None:
        listed, layers = listed[np.isin(layers, wanted)], layers[np.isin(layers, wanted)]
    numbers = listed.sum(axis=1)
    for row in np.flatnonzero(numbers < E) if (numbers == E).any() else ():
        n = int(numbers[row])
        if listed[row, :n].all() and comb(E, n) >= _NO_CHANCE:
            raise EquipoiseError(
                f"Layer {layers[row]} has rows for the experts 0-{n - 1} only, other layers for "
                f"0-{E - 1}: layers with different numbers of experts cannot be planned together. "
                f"Leave them out with {argument('layer_ids')}, or give {argument('num_experts')} "
                f"{E} if the experts were merely never chosen."
            )


def whole_number(text: str) -> int:
    """Read a whole number as tables write it, ``12`` or ``12.0``; raises ``ValueError``."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(text) from None
        return int(number)

"""Building a trace from rows of (layer, expert, tokens), whatever file they came in."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from equipoise.engines.arrays import agreed_num_experts, refuse_oversize
from equipoise.engines.formats import TraceOptions
from equipoise.errors import EquipoiseError
from equipoise.trace import Provenance, Trace

LABELS = ("phase", "domain")
MAX_NUMBER = 1 << 48
"""Numbers in a table stay below this: far above any real count, and sums of them fit in 64 bits."""


@dataclass(eq=False)
class Records:
    """Rows of a table, one column each: ``array("q")`` keeps a long table at 8 bytes a cell.

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
            A number that is negative or implausibly large; the table stays as it was.
        """
        numbers = (step, layer, expert, source, tokens)
        if min(numbers) < 0 or max(numbers) >= MAX_NUMBER:
            raise EquipoiseError(
                f"step {step}, layer {layer}, expert {expert}, source_rank {source}, "
                f"tokens {tokens}: expected whole numbers from 0 to 2^48."
            )
        self.step.append(step)
        self.layer.append(layer)
        self.expert.append(expert)
        self.source.append(source)
        self.tokens.append(tokens)
        self.labels.append(self.label_values.setdefault(labels, len(self.label_values)))

    def trace(
        self, options: TraceOptions, provenance: Provenance, columns: frozenset[str]
    ) -> Trace:
        """The trace of the rows; absent (layer, expert) pairs count 0, repeated ones are added.

        Steps are ordered by step number, then by the first occurrence of their labels.

        Parameters
        ----------
        columns
            The optional columns the file has: of ``source_rank`` and ``LABELS``.

        Raises
        ------
        EquipoiseError
            No row, or numbers that would make an oversized trace.
        """
        if not self.tokens:
            raise EquipoiseError("There is no row of counts; expected at least one.")
        expert, source, tokens = (np.asarray(c) for c in (self.expert, self.source, self.tokens))
        step_ids, step_labels, step_row = self._steps()
        layers, layer_row = np.unique(self.layer, return_inverse=True)
        E, notes = agreed_num_experts(int(expert.max()), options.num_experts)
        R = int(source.max()) + 1
        shape = (len(step_ids), R, len(layers), E)
        refuse_oversize(shape, 8, "A table of (steps, source ranks, layers, experts)")
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
        """Step id and label code of each distinct pair of them, and every row's position there."""
        ids, id_row = np.unique(self.step, return_inverse=True)
        width = len(self.label_values)
        pairs, step_row = np.unique(id_row * width + self.labels, return_inverse=True)
        return ids[pairs // width], pairs % width, step_row


def whole_number(text: str) -> int:
    """A whole number as tables write it: ``12``, also ``12.0``; else ``ValueError``."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(text) from None
        return int(number)

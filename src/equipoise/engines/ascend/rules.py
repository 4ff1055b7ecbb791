"""vllm-ascend: the rules by which it chooses the copy for a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import check_count
from equipoise.engines._shared.rules import RowRule, TableRule, with_remainder
from equipoise.placement import Placement

_TABLE_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Ascend(TableRule):
    """vllm-ascend, Model Runner V1: one copy for each pair of source rank and expert.

    The copy has number ``rank mod copies``, or with tensor parallelism ``(tp_rank + dp_rank +
    expert) mod copies``. If the copies do not divide the ranks, shares differ: three copies serve
    11, 11 and 10 of 32 ranks.

    Parameters
    ----------
    tensor_parallel
        Ranks of a tensor-parallel group: ``tp_rank = rank % tensor_parallel``, ``dp_rank`` the
        rest.
    """

    name: ClassVar[str] = "ascend"
    version: ClassVar[str] = "vllm-ascend of August 2026, Model Runner V1"

    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        check_count("tensor_parallel", self.tensor_parallel)

    def table(self, placement: Placement) -> NDArray[np.int64]:
        """Return the slot that each rank uses for each expert, ``(R, L, E)``."""
        rank = np.arange(placement.num_ranks)[:, None, None]
        layer, expert = np.arange(placement.num_layers)[:, None], np.arange(placement.num_experts)
        turn = rank
        if self.tensor_parallel > 1:
            dp_rank, tp_rank = np.divmod(rank, self.tensor_parallel)
            turn = tp_rank + dp_rank + expert
        return np.asarray(placement.slots_of_experts()[layer, expert, turn % placement.copies])


def copies_by_table(
    load_LE: NDArray[np.float64], num_slots: int, num_ranks: int
) -> NDArray[np.int64]:
    """Return how many copies of each expert suit the tables of ``Ascend``, ``(L, E)``.

    Of ``n`` copies the busiest serves ``ceil(R / n)`` of the ``R`` ranks: with 4 ranks a third copy
    takes nothing off it. So each expert gets only copies that do, the one with the busiest copy
    first, and other copies only where slots are left over.

    Parameters
    ----------
    load_LE
        Loads, ``(L, E)``; not changed.
    num_slots
        Slots of a layer.
    num_ranks
        Ranks, each of which sends the same share of every expert's tokens.
    """
    assert load_LE.shape[1] <= num_slots <= load_LE.shape[1] * num_ranks
    copies_LE = np.ones(load_LE.shape, dtype=np.int64)
    for load, copies in zip(load_LE, copies_LE, strict=True):
        left = num_slots - len(load)
        while left:
            served = -(-num_ranks // copies)  # ranks of the busiest copy
            wanted = -(-num_ranks // np.maximum(served - 1, 1))  # copies that make it one fewer
            step = np.where(served > 1, wanted - copies, left + 1)
            if (step > left).all():
                step = np.where(copies < num_ranks, 1, left + 1)
            expert = int(np.where(step <= left, load * served, -1.0).argmax())
            copies[expert] += step[expert]
            left -= int(step[expert])
    return copies_LE


@dataclass(frozen=True, kw_only=True)
class AscendMrv2(RowRule):
    """vllm-ascend, Model Runner V2: copies take turns by row, from a table of 1,024 rows.

    The copy has number ``(row + rank + expert) mod copies``; the table repeats after 1,024 rows.
    """

    name: ClassVar[str] = "ascend-mrv2"
    version: ClassVar[str] = "vllm-ascend of August 2026, Model Runner V2"

    @staticmethod
    def code(row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row within its table."""
        return row % _TABLE_ROWS

    @staticmethod
    def times(
        rows: NDArray[np.int64], copies: NDArray[np.int64], value: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Count the rows: they take turns within each table."""
        tables, rest = np.divmod(rows, _TABLE_ROWS)
        in_table = with_remainder(_TABLE_ROWS, copies, value)
        return np.asarray(tables * in_table + with_remainder(rest, copies, value))

    def offset(self, rank: ArrayLike, expert: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sum of rank and expert."""
        return np.asarray(rank) + expert

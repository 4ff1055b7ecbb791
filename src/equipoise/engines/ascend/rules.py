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

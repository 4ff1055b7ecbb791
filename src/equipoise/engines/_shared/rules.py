"""Base classes of the engines' rules for choosing a copy.

A rule looks at a token's row, at its rank or at how often its expert was chosen before. Except for
LPLB, it never looks at the loads of ranks. ``slots`` does exactly what the engine does with tokens.
``split`` and ``peaks`` say what to expect if only counts are known, so that a rule can be used as a
dispatcher.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import check_count
from equipoise.dispatch.base import Batch, Shares, checked_batch, checked_load
from equipoise.dispatch.minmax import bottleneck_ranks
from equipoise.dispatch.split import Split
from equipoise.dispatch.times import rank_times
from equipoise.dispatch.tokens import checked_ids
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.topology import Topology


@dataclass(frozen=True, eq=False, kw_only=True)
class RuleSplit(Split):
    """A batch as an engine's rule is expected to share it, by source rank.

    Parameters
    ----------
    source_shares
        Assignments from each source rank to each slot, fractional, ``(L, R, S)``.
    """

    source_shares: NDArray[np.float64]

    @cached_property
    def source_quotas(self) -> NDArray[np.int64]:
        """Whole assignments from each source rank to each slot, ``(L, R, S)`` int64.

        Shares are rounded down; the rest goes to the largest remainders.

        Raises
        ------
        EquipoiseError
            Loads that are not whole numbers, or that were not given by source rank.
        """
        if self.source_load is None:
            raise EquipoiseError(
                "The batch was split without its source ranks; give loads (layers, source ranks, "
                "experts) for quotas of each source."
            )
        _ = self.quotas  # refuses fractions
        return self._whole

    @cached_property
    def _whole(self) -> NDArray[np.int64]:
        """Compute whole assignments by source rank, or from one source for all if unknown."""
        if self.source_load is None:
            return _largest_remainder(self.shares[:, None], self.load[:, None], self.placement)
        return _largest_remainder(self.source_shares, self.source_load, self.placement)


@dataclass(frozen=True, kw_only=True)
class EngineRule(ABC):
    """The rule by which an engine chooses a copy; it is also a ``Dispatcher``.

    Parameters
    ----------
    topology
        Nodes of the ranks, if the rule uses them, and speeds, which turn peaks into times.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    """Release of the engine that behaves like this."""
    cost: ClassVar[None] = None
    shares: ClassVar[Shares] = Shares.OTHER
    scale_free: ClassVar[bool] = False

    topology: Topology | None = None

    @abstractmethod
    def slot_shares(
        self, load_LRE: NDArray[np.float64], placement: Placement
    ) -> NDArray[np.float64]:
        """Compute the expected share of each slot in its expert's assignments, by source rank.

        Parameters
        ----------
        load_LRE
            Assignments by the rank that their token is on; not changed.

        Returns
        -------
        Shares ``(L, R, S)``, which sum to 1 over the slots of an expert; undefined without load.
        """

    def split(self, load: ArrayLike | Batch, placement: Placement) -> RuleSplit:
        """Compute what to expect of the rule for a batch.

        Parameters
        ----------
        load
            Assignments ``(L, E)``, assumed to come from all ranks equally, or by source rank
            ``(L, R, E)``; not changed.

        Raises
        ------
        EquipoiseError
            Loads that are NaN, infinite, negative or not of the placement's shape, or whose sum in
            a layer reaches ``2**53``; a topology of another number of ranks.
        """
        batch = checked_batch(load, placement)
        load_LE, source_LRE = batch.load, batch.source_load
        by_source = _from_all_ranks(load_LE, placement) if source_LRE is None else source_LRE
        shares_LRS = self._source_shares(by_source, placement)
        return RuleSplit(
            placement=placement,
            load=load_LE,
            shares=shares_LRS.sum(axis=1),
            bottleneck_ranks=bottleneck_ranks(load_LE, placement, self.topology),
            dispatch=self.name,
            rounding=_quotas,
            topology=self.topology,
            source_load=source_LRE,
            source_shares=shares_LRS,
        )

    def peaks(self, load: ArrayLike, placement: Placement) -> NDArray[np.float64]:
        """Compute the expected peaks, ``(T, L)``, of batches ``(T, L, E)`` from all ranks equally.

        Raises
        ------
        EquipoiseError
            See ``split``.
        """
        load_TLE = checked_load(load, placement, steps=True)
        peaks = np.empty(load_TLE.shape[:2])
        for step, load_LE in enumerate(load_TLE):
            shares_LRS = self._source_shares(_from_all_ranks(load_LE, placement), placement)
            times_LR = rank_times(shares_LRS.sum(axis=1), placement.num_ranks, self.topology)
            peaks[step] = times_LR.max(axis=1)
        return peaks

    def _source_shares(
        self, load_LRE: NDArray[np.float64], placement: Placement
    ) -> NDArray[np.float64]:
        of_slot = np.take_along_axis(load_LRE, placement.slots[:, None], axis=2)
        return np.asarray(of_slot * self.slot_shares(load_LRE, placement))


@dataclass(frozen=True, kw_only=True)
class TokenRule(EngineRule):
    """A rule by which a rank chooses slots for its own tokens, without knowing those of others."""

    @abstractmethod
    def pick(
        self, ids_DLK: NDArray[np.int64], placement: Placement, rank: int
    ) -> NDArray[np.int64]:
        """Choose the slot of each choice, ``(D, L, K)``; all ids are in ``[0, E)``."""

    def slots(
        self, topk_ids: ArrayLike, placement: Placement, *, rank: int = 0
    ) -> NDArray[np.int64]:
        """Choose the slot of each choice of one rank's tokens.

        Parameters
        ----------
        topk_ids
            Expert ids, ``(D, L, K)``, or ``(D, K)`` for a placement of one layer: all tokens of the
            rank in this batch, in order.
        rank
            Rank that the tokens are on.

        Returns
        -------
        Slots in the shape of ``topk_ids``; -1 where the id is outside ``[0, E)``.
        """
        ids_DLK, known = known_ids(topk_ids, placement, rank)
        slots = np.where(known, self.pick(ids_DLK, placement, rank), -1)
        return slots.reshape(np.shape(topk_ids))


@dataclass(frozen=True, kw_only=True)
class TableRule(TokenRule):
    """A rule with one copy for each source rank and expert, whatever the token."""

    @abstractmethod
    def table(self, placement: Placement) -> NDArray[np.int64]:
        """Return the slot that each rank uses for each expert, ``(R, L, E)``."""

    def pick(
        self, ids_DLK: NDArray[np.int64], placement: Placement, rank: int
    ) -> NDArray[np.int64]:
        """Choose the copy in the rank's row of the table."""
        layer = np.arange(placement.num_layers)[:, None]
        return np.asarray(self.table(placement)[rank][layer, ids_DLK])

    def slot_shares(
        self, load_LRE: NDArray[np.float64], placement: Placement
    ) -> NDArray[np.float64]:
        """Return shares that are 0 or 1."""
        del load_LRE
        chosen_RLS = np.take_along_axis(self.table(placement), placement.slots[None], axis=2)
        is_chosen = chosen_RLS == np.arange(placement.num_slots)
        return np.moveaxis(np.asarray(is_chosen, dtype=np.float64), 0, 1)


@dataclass(frozen=True, kw_only=True)
class RowRule(TokenRule):
    """A rule that chooses copy ``(code(row) + offset(rank, expert)) mod copies``.

    Rows are the tokens of a rank, counted from 0 in every batch. Copies are ascending slots.

    Parameters
    ----------
    top_k
        Number of choices per token, ``K``, needed to compute the number of rows from counts.
    """

    top_k: int = 8

    def __post_init__(self) -> None:
        check_count("top_k", self.top_k)

    @staticmethod
    @abstractmethod
    def code(row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the contribution of the row, a number >= 0."""

    @staticmethod
    @abstractmethod
    def times(
        rows: NDArray[np.int64], copies: NDArray[np.int64], value: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Count the rows among the first ``rows`` for which ``code mod copies`` is ``value``.

        The arrays broadcast. The count is a formula, because there may be billions of rows.
        """

    def offset(self, rank: ArrayLike, expert: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the contribution of source rank and expert, of their broadcast shape."""
        return np.zeros(np.broadcast(rank, expert).shape, np.int64)

    def pick(
        self, ids_DLK: NDArray[np.int64], placement: Placement, rank: int
    ) -> NDArray[np.int64]:
        """Choose the copy by row, rank and expert."""
        layer = np.arange(placement.num_layers)[:, None]
        code = self.code(np.arange(len(ids_DLK)))[:, None, None]
        copy = (code + self.offset(rank, ids_DLK)) % placement.copies[layer, ids_DLK]
        return np.asarray(placement.slots_of_experts()[layer, ids_DLK, copy])

    def slot_shares(
        self, load_LRE: NDArray[np.float64], placement: Placement
    ) -> NDArray[np.float64]:
        """Assume that an expert's assignments are spread evenly over the rows."""
        copies_LS = copies_of_slots(placement)
        rank, slots_L1S = np.arange(placement.num_ranks)[:, None], placement.slots[:, None]
        code_LRS = nth_copy(placement)[:, None] - self.offset(rank, slots_L1S)
        code_LRS = code_LRS % copies_LS[:, None]
        rows_LR1 = self._rows(load_LRE)[:, :, None]
        return np.asarray(self.times(rows_LR1, copies_LS[:, None], code_LRS) / rows_LR1)

    def _rows(self, load_LRE: NDArray[np.float64]) -> NDArray[np.int64]:
        """Compute the tokens on each rank, ``(L, R)``, but at least 1."""
        rows = np.ceil(load_LRE.sum(axis=2) / self.top_k).astype(np.int64)
        return np.asarray(np.maximum(rows, 1))


def known_ids(
    topk_ids: ArrayLike, placement: Placement, rank: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Replace ids outside ``[0, E)`` by 0, and return a mask of those inside, ``(D, L, K)`` each.

    Raises
    ------
    EquipoiseError
        Ids that are not integers or do not fit the placement's layers, or an unknown rank.
    """
    if not isinstance(rank, (int, np.integer)) or not 0 <= rank < placement.num_ranks:
        raise EquipoiseError(
            f"Rank {rank!r} holds no tokens; "
            f"the placement has ranks 0 to {placement.num_ranks - 1}."
        )
    ids_DLK = checked_ids(topk_ids, placement)
    known = (ids_DLK >= 0) & (ids_DLK < placement.num_experts)
    return np.where(known, ids_DLK, 0), known


def nth_copy(placement: Placement) -> NDArray[np.int64]:
    """Number each slot among its expert's slots, ascending from 0, ``(L, S)``."""
    table = placement.slots_of_experts()
    layer, expert, ordinal = np.nonzero(table >= 0)
    nth = np.empty_like(placement.slots)
    nth[layer, table[layer, expert, ordinal]] = ordinal
    return nth


def copies_of_slots(placement: Placement) -> NDArray[np.int64]:
    """Count the copies of the expert that each slot holds, ``(L, S)``."""
    return np.take_along_axis(placement.copies, placement.slots, axis=1)


def with_remainder(
    numbers: ArrayLike, divisor: NDArray[np.int64], value: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count the whole numbers below ``numbers`` with the remainder ``value``."""
    rounds, rest = np.divmod(numbers, divisor)
    return np.asarray(rounds + (value < rest))


def _from_all_ranks(load_LE: NDArray[np.float64], placement: Placement) -> NDArray[np.float64]:
    L, E, R = placement.num_layers, placement.num_experts, placement.num_ranks
    return np.broadcast_to(load_LE[:, None] / R, (L, R, E))


def _quotas(split: Split) -> NDArray[np.int64]:
    assert isinstance(split, RuleSplit)
    return np.asarray(split._whole.sum(axis=1))


def _largest_remainder(
    shares_LRS: NDArray[np.float64], load_LRE: NDArray[np.float64], placement: Placement
) -> NDArray[np.int64]:
    """Round shares so that they sum to the loads; of equal remainders the lowest slot is first."""
    slots_LRS = np.broadcast_to(placement.slots[:, None], shares_LRS.shape)
    whole_LRS = np.floor(shares_LRS).astype(np.int64)
    missing_LRE = load_LRE.astype(np.int64)
    L, R, S = shares_LRS.shape
    layer, source = np.arange(L)[:, None, None], np.arange(R)[:, None]
    np.subtract.at(missing_LRE, (layer, source, slots_LRS), whole_LRS)
    order = np.argsort(whole_LRS - shares_LRS, axis=2, kind="stable")
    by_expert = np.argsort(np.take_along_axis(slots_LRS, order, axis=2), axis=2, kind="stable")
    order = np.take_along_axis(order, by_expert, axis=2)
    expert = np.take_along_axis(slots_LRS, order, axis=2)
    first_LE = np.cumsum(placement.copies, axis=1) - placement.copies
    position = np.arange(S) - first_LE[layer, expert]
    whole_LRS[layer, source, order] += position < missing_LRE[layer, source, expert]
    return whole_LRS

"""The slot that serves each choice of each token, made from quotas."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

AHEAD = 4
"""Number of assignments that a slot may be ahead of its share, to keep tokens on fewer ranks.

At 1 the copies take turns. Measured on real tokens 4 saves nearly the same ranks as no limit at all
(``equipoise explain tokens``), under which a batch that is cut short may be far from its quotas.
"""

_MOST_ASSIGNMENTS = 2**31  # limit of a layer, so that products with quotas are below 2**63


def assign_tokens(
    topk_ids: ArrayLike, quotas: ArrayLike, placement: Placement
) -> NDArray[np.int64]:
    """Choose a slot for every choice of every token, so that each slot gets exactly its quota.

    A rank needs only its own tokens and its own quotas (``split.source_quotas[:, rank]``); there
    are no random numbers and no communication. The quotas also hold approximately for the first
    part of the tokens: no slot is ever more than ``AHEAD`` assignments ahead of its share of what
    its expert has received. Within these limits, the choices of a token go to the same ranks where
    possible, because a token is sent to a rank once, however many of its experts are there.

    Parameters
    ----------
    topk_ids
        Expert ids, ``(D, L, K)`` integers, or ``(D, K)`` for a placement of one layer. Ids outside
        ``[0, E)`` (padding) are served by no slot.
    quotas
        Assignments of these tokens to each slot, ``(L, S)`` integers, or ``(S,)`` for one layer.

    Returns
    -------
    Slots, of the shape of ``topk_ids``; -1 for padding.

    Raises
    ------
    EquipoiseError
        Shapes that do not fit the placement, or quotas that do not sum to an expert's assignments.
    """
    from equipoise.dispatch import _token_kernels  # numba takes long to import

    ids_DLK = checked_ids(topk_ids, placement)
    quota_LS = _checked_quotas(quotas, ids_DLK, placement)
    slots_DLK = _token_kernels.assign(
        ids_DLK, quota_LS, placement.slots, placement.num_experts, placement.num_ranks, AHEAD
    )
    return slots_DLK.reshape(np.shape(topk_ids))


def ranks_per_token(slots: ArrayLike, placement: Placement) -> NDArray[np.int64]:
    """Count the ranks that each token is sent to, its own included if it is one of them.

    Parameters
    ----------
    slots
        Slots from ``assign_tokens``, ``(D, L, K)`` or ``(D, K)``; -1 marks padding.

    Returns
    -------
    ``(D, L)`` or ``(D,)``.
    """
    array = as_integers(slots, "Slots")
    if array.ndim not in (2, 3):
        raise EquipoiseError(
            f"Slots have shape {array.shape}; expected (tokens, layers, top_k) or (tokens, top_k)."
        )
    if array.size and not -1 <= array.min() <= array.max() < placement.num_slots:
        raise EquipoiseError(
            f"Slots go from {array.min()} to {array.max()}; the placement has slots 0 to "
            f"{placement.num_slots - 1}, and -1 stands for none."
        )
    rank = np.sort(array // placement.slots_per_rank, axis=-1)  # -1 stays -1
    another = np.diff(rank, axis=-1, prepend=-1) > 0
    return np.asarray(another.sum(axis=-1))


def expected_ranks_per_token(topk_ids: ArrayLike, placement: Placement) -> NDArray[np.float64]:
    """Compute the mean number of ranks of each token if each choice goes to a random copy.

    The difference to ``ranks_per_token`` is what a dispatcher saves by looking at tokens.

    Parameters
    ----------
    topk_ids
        Expert ids ``(D, L, K)``, or ``(D, K)`` for a placement of one layer.

    Returns
    -------
    ``(D, L)`` or ``(D,)``.
    """
    ids_DLK = checked_ids(topk_ids, placement)
    known = (ids_DLK >= 0) & (ids_DLK < placement.num_experts)
    share_LRE = placement.copies_on_rank / placement.copies[:, None]
    missed_DLR = np.ones((*ids_DLK.shape[:2], placement.num_ranks))
    layer = np.arange(placement.num_layers)
    for choice, is_known in zip(np.moveaxis(ids_DLK, 2, 0), np.moveaxis(known, 2, 0), strict=True):
        share_DLR = share_LRE[layer, :, np.where(is_known, choice, 0)]
        missed_DLR *= np.where(is_known[..., None], 1 - share_DLR, 1)
    return np.asarray((1 - missed_DLR).sum(axis=2).reshape(np.shape(topk_ids)[:-1]))


def checked_ids(topk_ids: ArrayLike, placement: Placement) -> NDArray[np.int64]:
    """Return expert ids as ``(D, L, K)`` int64; one layer may be given as ``(D, K)``.

    Raises
    ------
    EquipoiseError
        Ids that are not integers, or do not fit the placement's layers.
    """
    ids = as_integers(topk_ids, "Expert ids")
    L, shape = placement.num_layers, ids.shape
    if ids.ndim == 2 and L == 1:
        ids = ids[:, None]
    if ids.ndim != 3 or ids.shape[1] != L:
        raise EquipoiseError(
            f"Expert ids have shape {shape}; the placement of {L} layers needs (tokens, {L}, top_k)"
            + (" or (tokens, top_k)." if L == 1 else "; select one layer to give (tokens, top_k).")
        )
    return np.ascontiguousarray(ids, dtype=np.int64)


def expert_counts(ids_DLK: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    """Count the assignments of each expert in each layer, ``(L, E)``, from ids ``(D, L, K)``."""
    L = ids_DLK.shape[1]
    cell = ids_DLK + np.arange(L)[:, None] * num_experts
    known = (ids_DLK >= 0) & (ids_DLK < num_experts)
    return np.bincount(cell[known], minlength=L * num_experts).reshape(L, num_experts)


def as_integers(values: ArrayLike, what: str) -> NDArray[np.integer]:
    """Return integers as an array; raise ``EquipoiseError`` for anything else."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise EquipoiseError(f"{what} do not form an array; give rows of equal length.") from error
    if not np.issubdtype(array.dtype, np.integer):
        raise EquipoiseError(f"{what} have type {array.dtype}; expected integers.")
    return array


def earlier_equal(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count, for each entry of a flat array, the earlier entries that are equal."""
    order = np.argsort(keys, kind="stable")
    arranged = keys[order]
    earlier = np.empty_like(keys)
    earlier[order] = np.arange(len(keys)) - np.searchsorted(arranged, arranged)
    return earlier


def _checked_quotas(
    quotas: ArrayLike, ids_DLK: NDArray[np.int64], placement: Placement
) -> NDArray[np.int64]:
    given = as_integers(quotas, "Quotas")
    wanted = (placement.num_layers, placement.num_slots)
    if given.shape == wanted[1:] and wanted[0] == 1:
        given = given[None]
    if given.shape != wanted:
        raise EquipoiseError(
            f"Quotas have shape {given.shape}; the placement needs (layers, slots) = {wanted}, "
            "those of the rank the tokens are on."
        )
    if given.min() < 0:
        raise EquipoiseError(f"A quota is {given.min()}; expected numbers >= 0.")
    if given.max() >= _MOST_ASSIGNMENTS:
        raise EquipoiseError(f"A quota is {given.max()}; expected fewer than 2**31.")
    quota_LS = np.ascontiguousarray(given, dtype=np.int64)
    counts_LE = expert_counts(ids_DLK, placement.num_experts)
    if counts_LE.sum(axis=1).max() >= _MOST_ASSIGNMENTS:
        raise EquipoiseError("A layer has 2**31 assignments or more; give the tokens of one batch.")
    quota_LE = np.zeros_like(counts_LE)
    np.add.at(quota_LE, (np.arange(wanted[0])[:, None], placement.slots), quota_LS)
    wrong = np.argwhere(quota_LE != counts_LE)
    if len(wrong):
        row, expert = wrong[0]
        raise EquipoiseError(
            f"Layer {placement.layer_ids[row]}, expert {expert}: quotas of {quota_LE[row, expert]} "
            f"for {counts_LE[row, expert]} assignments; split the counts of exactly these tokens."
        )
    return quota_LS

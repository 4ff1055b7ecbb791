"""Chunks: a step's tokens sent in several waves, so that each rank's buffers suffice."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import check_count, check_number
from equipoise.dispatch.base import Dispatcher, checked_load
from equipoise.dispatch.even import Even
from equipoise.dispatch.tokens import as_integers
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

_EVEN = Even()
_MOST_CHUNKS = 65_536
_MOST_TOKENS = 2**40  # largest number of tokens of a rank; sums fit in 64 bits


def num_chunks(tokens_per_rank: ArrayLike, max_num_tokens: int) -> int:
    """Compute the number of chunks of a step: its tokens over ``max_num_tokens``, rounded up.

    This is the rule of TensorRT-LLM (``moe_max_num_tokens``). All ranks use the same number.

    Parameters
    ----------
    tokens_per_rank
        Number of tokens of each rank, ``(R,)`` whole numbers.
    max_num_tokens
        Largest number of tokens in one chunk, all ranks together.

    Returns
    -------
    Number of chunks; 0 for a step without tokens.
    """
    tokens = _checked_tokens(tokens_per_rank)
    whole = isinstance(max_num_tokens, (int, np.integer)) and not isinstance(max_num_tokens, bool)
    if not whole or max_num_tokens < 1:
        raise EquipoiseError(f"max_num_tokens is {max_num_tokens!r}; expected 1 or more.")
    return -(-int(tokens.sum()) // int(max_num_tokens))


def chunk_tokens(tokens_per_rank: ArrayLike, max_num_tokens: int) -> NDArray[np.int64]:
    """Divide each rank's tokens into chunks, ``(R, num_chunks)``: equal parts, the first larger.

    Every rank rounds by itself, so a chunk may exceed ``max_num_tokens`` by one token per rank.
    Parameters are those of ``num_chunks``.

    Raises
    ------
    EquipoiseError
        Whatever ``num_chunks`` refuses, or more than 65,536 chunks.
    """
    tokens = _checked_tokens(tokens_per_rank)
    chunks = num_chunks(tokens, max_num_tokens)
    if chunks > _MOST_CHUNKS:
        raise EquipoiseError(f"{chunks} chunks are taken for a mistake; raise max_num_tokens.")
    part, rest = np.divmod(tokens[:, None], max(chunks, 1))
    return np.asarray(part + (np.arange(chunks) < rest))


def busiest_shares(
    load: ArrayLike, placement: Placement, *, dispatch: Dispatcher = _EVEN
) -> NDArray[np.float64]:
    """Compute the share of a layer's assignments that its busiest rank gets, in each batch.

    Parameters
    ----------
    load
        Recorded batches, assignments ``(T, L, E)``; not changed.
    dispatch
        Sharing of the load between copies.

    Returns
    -------
    ``(T, L)``, 0 where a layer has no load.

    Raises
    ------
    EquipoiseError
        Loads that do not fit the placement or are all zero.
    """
    x = checked_load(load, placement, steps=True)
    total = x.sum(axis=2)
    if not total.any():
        raise EquipoiseError("The load is zero everywhere; record some traffic first.")
    peak = dispatch.peaks(x, placement)
    shares: NDArray[np.float64] = np.zeros_like(peak)
    np.divide(peak, total, out=shares, where=total > 0)
    return shares


def advised_max_tokens(
    load: ArrayLike,
    placement: Placement,
    *,
    top_k: int,
    rank_assignments: int,
    dispatch: Dispatcher = _EVEN,
) -> int:
    """Compute the largest chunk for which no rank receives more than its buffers hold.

    It follows from the recorded batch and layer whose busiest rank has the largest share of the
    assignments. A chunk is assumed to be like the batch that it is from. A step with no more tokens
    than this is not divided.

    Parameters
    ----------
    load
        Recorded batches, assignments ``(T, L, E)``; not changed.
    top_k
        Number of choices per token, ``K``.
    rank_assignments
        Number of assignments that a rank's buffers hold. A token that chose two experts of one rank
        counts twice.
    dispatch
        Dispatcher that shares the load over the copies.

    Raises
    ------
    EquipoiseError
        Loads that do not fit the placement or are all zero, counts below 1, or buffers that cannot
        hold one token of the worst batch.
    """
    check_count("top_k", top_k)
    check_number("rank_assignments", rank_assignments, low=1, high=np.inf)
    worst = float(busiest_shares(load, placement, dispatch=dispatch).max())
    advised = int(np.floor(round(rank_assignments / (worst * top_k), 9)))
    if advised < 1:
        raise EquipoiseError(
            f"Buffers for {rank_assignments} assignments do not hold one token's part on the "
            f"busiest rank, {worst * top_k:.3g}; give the ranks more room."
        )
    return advised


def _checked_tokens(tokens_per_rank: ArrayLike) -> NDArray[np.int64]:
    tokens = as_integers(tokens_per_rank, "Tokens per rank")
    if tokens.ndim != 1 or not tokens.size:
        raise EquipoiseError(
            f"Tokens per rank have shape {tokens.shape}; expected one number for each rank."
        )
    if not 0 <= tokens.min() <= tokens.max() < _MOST_TOKENS:
        raise EquipoiseError(
            f"Ranks have {tokens.min()} to {tokens.max()} tokens; expected 0 to 2**40."
        )
    return tokens.astype(np.int64)

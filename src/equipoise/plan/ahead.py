"""Re-planning for the loads to come: forecast them, adapt the copies, then exchange experts.

The copies are adapted first, to those that ``Greedy`` would make, for two reasons. A search that
starts from the slots in force tends to keep their copies, because changing a copy pays only after
other experts have moved too. And of the placements that balance one window equally well, those with
more copies of the hottest experts do better on the next window: the loads of hot experts change
most, and copies spread that change over ranks.

Then the busiest rank exchanges an expert with another rank, again and again. Annealing is no better
here, and a hundred times slower: what is left to do is a few exchanges on a few ranks, which random
proposals take long to hit, and the next loads differ from the forecast by more than it could gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_array, as_ids, as_loads, check_number, check_whole
from equipoise.errors import EquipoiseError
from equipoise.migration import keep_slots, ordinal_on_rank, with_slots
from equipoise.placement import Placement
from equipoise.plan.evaluate import evaluate
from equipoise.plan.replan import Answer, Outcome, Situation, replan

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Copies = Callable[[Floats, int, int], Ints]
"""Function from loads ``(L, E)``, slots and ranks to the wanted number of copies, ``(L, E)``."""

_MOVE_GAIN = 5e-4  # as ``Repair`` has it

_KEPT = (1.0, 0.9, 0.8, 0.65, 0.5)
"""Smoothing factors that a forecast chooses from: a window's weight over the next one's."""


def plan_ahead(
    situation: Situation,
    *,
    least_gain: float = 0.0,
    move_gain: float = _MOVE_GAIN,
    copies: Copies | None = None,
    num_threads: int | None = None,
) -> Answer:
    """Find new slots for the expected loads under an even split, a few moves from those in force.

    It is plain ``replan`` where nothing is in force, experts are missing, or ranks have come or
    gone. Otherwise it takes milliseconds, and answers the same on every machine.

    Parameters
    ----------
    situation
        Loads, slots and limits as an engine knows them; windows ``(T, L, E)`` in order of time.
    least_gain
        Smallest drop of the layers' mean peak, in mean rank loads, for which anything moves.
    move_gain
        Gain of a layer that an exchange has to bring for each of its moves, in mean rank loads.
    copies
        Function for the copies that are wanted; by default those that ``Greedy`` makes.
    num_threads
        Parameter of ``replan``.

    Raises
    ------
    EquipoiseError
        Whatever ``replan`` refuses.
    """
    check_number("least_gain", least_gain, low=0, high=np.inf)
    check_number("move_gain", move_gain, low=0, high=np.inf)
    expected = forecast(situation.load)
    situation = replace(situation, load=expected)
    old = _complete(situation, expected)
    if old is None or not expected.any():
        return replan(situation, num_threads=num_threads)
    most = old.slots.size
    if situation.max_moves is not None:
        most = check_whole("max_moves", situation.max_moves)
    copied = with_copies_by_load(old, expected, most_moves=most // 2, copies=copies)
    new = _with_exchanges(copied, old, expected, most, move_gain)
    return _worth_it(old, new, expected, least_gain)


def forecast(loads: ArrayLike) -> Floats:
    """Forecast the loads of the next window by exponential smoothing.

    The smoothing factor is the one that best predicts each recorded window from those before it. If
    all factors do equally well, all windows weigh the same. A window without load in a layer is
    ignored for that layer.

    Parameters
    ----------
    loads
        Loads by window, ``(T, L, E)``, in order of time; not changed. A sum ``(L, E)`` is returned
        as it is.

    Returns
    -------
    Expected loads, ``(L, E)`` float64. Only their ratios within a layer have a meaning.

    Raises
    ------
    EquipoiseError
        Loads of another shape, or that are not finite numbers >= 0.
    """
    windows = as_loads(loads)
    if windows.ndim == 2:
        return windows
    if windows.ndim != 3:
        raise EquipoiseError(f"Loads have shape {windows.shape}; expected (L, E) or (T, L, E).")
    _, expected = min((_smoothed(windows, kept) for kept in _KEPT), key=itemgetter(0))
    return expected


def _smoothed(windows_TLE: Floats, kept: float) -> tuple[float, Floats]:
    """Compute the error of predicting each window from those before it, and the smoothed loads."""
    sums, error = np.zeros(windows_TLE.shape[1:]), 0.0
    for window in windows_TLE:
        size, known = window.sum(axis=1, keepdims=True), sums.sum(axis=1, keepdims=True)
        told = (size > 0) & (known > 0)
        expected = np.divide(sums * size, known, out=np.zeros_like(sums), where=told)
        miss = np.where(told, (window - expected) ** 2, 0)
        error += float(np.divide(miss, size, out=np.zeros_like(miss), where=told).sum())
        sums = kept * sums + window
    return error, sums


def with_copies_by_load(
    placement: Placement,
    load: Floats,
    *,
    most_moves: int | None = None,
    copies: Copies | None = None,
) -> Placement:
    """Change a placement so that each expert has as near as possible the copies that are wanted.

    Each change takes one move: a surplus copy gives its slot to the expert that lacks a copy and
    has the most load per copy, on the rank where this balances the loads best. Changes that would
    raise the load per copy are left out.

    Parameters
    ----------
    placement
        Placement to start from; not changed.
    load
        Loads, ``(L, E)``; layers without load stay as they are.
    most_moves
        Largest number of slots to change, all layers together, counted from the first layer;
        ``None`` for no limit.
    copies
        Function for the copies that are wanted; by default those that ``Greedy`` makes.
    """
    from equipoise.plan.search import _packing_kernels as kernels  # numba takes long to import

    ranks, size = placement.num_ranks, placement.slots_per_rank
    wanted = (copies or kernels.adams_counts)(
        np.ascontiguousarray(load), placement.num_slots, ranks
    )
    by_rank = placement.by_rank.copy()
    left = by_rank.size if most_moves is None else most_moves
    for row, load_E, wanted_E in zip(by_rank, load, wanted, strict=True):
        if load_E.any():
            left -= _give_copies(row, load_E, wanted_E, left)
    slots = by_rank.reshape(-1, ranks * size)
    return Placement(
        slots,
        num_ranks=ranks,
        num_experts=placement.num_experts,
        layer_ids=placement.layer_ids,
    )


def _give_copies(row_RC: Ints, load: Floats, wanted: Ints, left: int) -> int:
    """Change a layer's slots in place; return the number of changes."""
    copies = np.bincount(row_RC.ravel(), minlength=len(load))
    held = np.zeros((len(row_RC), len(load)), dtype=np.bool_)
    held[np.arange(len(row_RC))[:, None], row_RC] = True
    needy = {int(e) for e in np.flatnonzero(copies < wanted)}
    moves = 0
    while needy and moves < left:
        gets = max(needy, key=lambda e: (load[e] / copies[e], -e))
        spare = np.flatnonzero(copies > wanted)
        gives = int(spare[np.argmin(load[spare] / (copies[spare] - 1))])
        share, lost = load[gets] / (copies[gets] + 1), load[gives] / (copies[gives] - 1)
        ranks = np.flatnonzero(held[:, gives] & ~held[:, gets])
        if not len(ranks) or lost >= load[gets] / copies[gets]:
            needy.discard(gets)
            continue
        rank_loads = (load / copies)[row_RC].sum(axis=1)[ranks]
        rank = int(ranks[rank_loads.argmin() if share > lost else rank_loads.argmax()])
        row_RC[rank, np.flatnonzero(row_RC[rank] == gives)[0]] = gets
        held[rank, gets] = True
        held[rank, gives] = (row_RC[rank] == gives).any()
        copies[gives] -= 1
        copies[gets] += 1
        moves += 1
        if copies[gets] >= wanted[gets]:
            needy.discard(gets)
    return moves


def _with_exchanges(
    copied: Placement, old: Placement, load: Floats, most_moves: int, move_gain: float
) -> Placement:
    """Exchange experts between ranks, with the fewest possible moves from the old placement.

    Parameters
    ----------
    copied
        Placement to start from, with the copies that are wanted.
    most_moves
        Slots that may differ from the old placement, all layers together.
    move_gain
        Gain that each move has to bring, in mean rank loads.
    """
    from equipoise.plan.search import _exchange_kernels as kernels  # numba takes long to import

    total = load.sum(axis=1, keepdims=True)
    mean = np.where(total > 0, total / old.num_ranks, 1)
    share = load / copied.copies_on_rank.sum(axis=1) / mean
    by_rank = copied.by_rank.copy()
    left = most_moves - int((copied.slots != old.slots).sum())
    kernels.exchange_experts(by_rank, old.copies_on_rank > 0, share, move_gain, left)
    return keep_slots(old, with_slots(old, by_rank.reshape(old.slots.shape)))


def _complete(situation: Situation, load: Floats) -> Placement | None:
    """Return the slots in force if they are complete and all ranks serve, else ``None``."""
    if situation.slots is None or not _all_serve(situation):
        return None
    slots = as_ids(situation.slots, "The slots in force").astype(np.int64)
    try:
        return _placement(slots, situation, load)
    except EquipoiseError:
        return None  # ``replan`` completes them or refuses them


def _all_serve(situation: Situation) -> bool:
    return situation.alive is None or bool(as_array(situation.alive, "alive").all())


def _placement(slots: Ints, situation: Situation, load: Floats) -> Placement:
    if slots.shape != (len(load), situation.num_slots):
        raise EquipoiseError(f"Slots have shape {slots.shape}.")
    placement = Placement(slots, num_ranks=situation.num_ranks, num_experts=load.shape[1])
    if ordinal_on_rank(placement.by_rank).any():
        raise EquipoiseError("A rank holds an expert twice.")
    return placement


def _worth_it(old: Placement, new: Placement, load: Floats, least_gain: float) -> Answer:
    moves = int((new.slots != old.slots).sum())
    before, after = (evaluate(placement, load[None]).mean_imbalance for placement in (old, new))
    peaks = f"the mean peak goes from {before:.3f} to {after:.3f} mean rank loads."
    if moves and before - after <= least_gain:
        return Answer(
            slots=old.slots,
            moves=0,
            outcome=Outcome.KEPT,
            reason=f"No slot changes, though {moves} might: on the loads to expect, {peaks}",
        )
    return Answer(
        slots=new.slots,
        moves=moves,
        outcome=Outcome.REPAIRED if moves else Outcome.KEPT,
        reason=f"{moves} of {new.slots.size} slots change. On the loads to expect, {peaks}",
    )

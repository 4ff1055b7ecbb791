"""What SGLang gets when it asks for new slots: decisions from arrays, without SGLang itself.

SGLang records every forward pass, so a plan has the time axis. Rows of its tables are decoder
layers: those without experts have no load, and their slots stay as they are.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import as_array, as_ids
from equipoise.engines._shared.gated import everybody_serves, worth_its_moves
from equipoise.engines._shared.hook import Decision, Hook, Planner
from equipoise.engines._shared.plugin_log import balancing_words, log_decision, make_ready
from equipoise.engines.sglang.plugin_options import PluginOptions
from equipoise.plan import Answer, Situation, replan

Ints = NDArray[np.int64]

_log = logging.getLogger("sglang.equipoise")

_WINDOWS = 4
"""Windows that the passes are summed to: more make plans that last a little better, but a search
with a time budget gets less far with them."""


class Policy:
    """Decides on slots for SGLang, within the options.

    Parameters
    ----------
    options
        What the user set.
    planner
        What plans from the slots in force, for the rows with load; by default ``replan`` for an
        even split over the copies, on one thread, since the engine has use for the others.
    """

    def __init__(self, options: PluginOptions, planner: Planner | None = None) -> None:
        self._options = options
        planner = planner or partial(replan, dispatch="even", num_threads=1)
        self._hook = Hook(partial(_plan, planner=planner, options=options))

    @property
    def words(self) -> str:
        """What the options ask for."""
        return (
            f"{balancing_words(self._options)} Below a gain of {self._options.min_gain:.1%} the "
            "slots stay."
        )

    def make_ready(self, situation: Situation) -> None:
        """Compile for the sizes of a situation."""
        make_ready(_log, self._hook, situation)

    def decide(self, situation: Situation, *, with_clock: bool) -> Decision:
        """Slots for a situation, logged; raises nothing.

        Parameters
        ----------
        situation
            Situation with the loads of single passes, ``(T, L, E)``, or their sum.
        with_clock
            Whether the search may end by the clock. Where several ranks decide and do not tell one
            another, it must not.
        """
        num_rows = 0 if situation.slots is None else len(as_array(situation.slots, "Slots"))
        decision = self._hook(
            replace(
                situation,
                max_moves=self._options.max_moves(num_rows * situation.num_slots),
                time_budget_seconds=self._options.time_budget_seconds if with_clock else None,
            )
        )
        log_decision(_log, decision)
        return decision


class Tables(NamedTuple):
    """Slots as SGLang keeps them.

    Parameters
    ----------
    experts
        Expert of each slot, ``(L, S)``; 0 on ranks that are not alive, as SGLang has it.
    slots
        Slots of each expert on ranks that are alive, ascending, then -1, ``(L, E, X)``.
    copies
        Their number, ``(L, E)``.
    """

    experts: Ints
    slots: Ints
    copies: Ints


def tables(slots: Ints, num_experts: int) -> Tables:
    """SGLang's tables of slots ``(L, S)``, which are -1 on ranks that are not alive."""
    copies = np.stack([np.bincount(row[row >= 0], minlength=num_experts) for row in slots])
    slots_of = np.full((*copies.shape, copies.max()), -1, dtype=np.int64)
    for layer, row in enumerate(slots):
        next_copy = [0] * num_experts
        for slot, expert in enumerate(row.tolist()):
            if expert >= 0:
                slots_of[layer, expert, next_copy[expert]] = slot
                next_copy[expert] += 1
    return Tables(np.maximum(slots, 0), slots_of, copies)


def windows(passes: NDArray[Any]) -> NDArray[Any]:
    """At most ``_WINDOWS`` sums of consecutive passes ``(T, L, E)``, those without load left out.

    There is always one window, even without load or a time axis.
    """
    if passes.ndim == 2:
        return passes[None]
    busy = passes[passes.any(axis=(1, 2))]
    if not len(busy):
        return np.zeros((1, *passes.shape[1:]), dtype=np.int64)
    starts = np.unique(np.linspace(0, len(busy), _WINDOWS, endpoint=False).astype(np.int64))
    return np.add.reduceat(busy, starts, axis=0, dtype=np.int64)


def _plan(situation: Situation, *, planner: Planner, options: PluginOptions) -> Answer:
    """Plan for the rows with load; the slots of the others stay as they are."""
    load = windows(as_array(situation.load, "Loads"))
    if situation.slots is None:
        return planner(replace(situation, load=load.sum(axis=0)))  # at start-up: in little time
    held = as_ids(situation.slots, "The slots in force").astype(np.int64)
    rows = _rows_to_plan(load, held, situation)
    max_moves = options.max_moves(int(rows.sum()) * situation.num_slots)
    inner = replace(situation, load=load[:, rows], slots=held[rows], max_moves=max_moves)
    answer = worth_its_moves(planner(inner), inner, options.min_gain)
    if rows.all():
        return answer
    slots = held.copy()
    slots[rows] = answer.slots
    return replace(answer, slots=slots)


def _rows_to_plan(load: NDArray[Any], held: Ints, situation: Situation) -> NDArray[np.bool_]:
    """The rows with load; all of them where there is none, or where slots or ranks are missing.

    A layer may have experts and record nothing, and must not lose them with a rank.
    """
    loaded: NDArray[np.bool_] = np.asarray(load.any(axis=(0, 2)))
    complete = held.shape[1] == situation.num_slots and (held >= 0).all()
    if loaded.any() and complete and everybody_serves(situation):
        return loaded
    return np.ones_like(loaded)

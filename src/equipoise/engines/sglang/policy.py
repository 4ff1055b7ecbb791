"""The decisions on new slots for SGLang, made from arrays and without SGLang itself.

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

from equipoise.checks import as_array
from equipoise.engines._shared.hook import Decision, Hook, Planner
from equipoise.engines._shared.plugin_log import balancing_words, log_decision, make_ready
from equipoise.engines._shared.plugin_options import PluginOptions
from equipoise.plan import Answer, Situation

Ints = NDArray[np.int64]

_log = logging.getLogger("sglang.equipoise")

_WINDOWS = 16
"""Windows that the passes are summed to: enough to see a drift."""


class Policy:
    """Decides on slots for SGLang, within the options.

    Parameters
    ----------
    options
        Options that the user set.
    planner
        Planner that starts from the slots in force; by default that of the options.
    """

    def __init__(self, options: PluginOptions, planner: Planner | None = None) -> None:
        self._options = options
        self._hook = Hook(partial(_plan, planner=planner or options.planner()))

    @property
    def words(self) -> str:
        """The request of the options, in words."""
        return balancing_words(self._options)

    def make_ready(self, situation: Situation) -> None:
        """Compile for the sizes of a situation."""
        make_ready(_log, self._hook, situation)

    def decide(self, situation: Situation, *, with_clock: bool) -> Decision:
        """Decide on slots for a situation, and log the decision; raises nothing.

        Parameters
        ----------
        situation
            Situation with the loads of single passes, ``(T, L, E)``, or their sum.
        with_clock
            True if the search may end by the clock. It must not if several ranks decide without
            telling one another.
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
    """Slots in the form in which SGLang keeps them.

    Parameters
    ----------
    experts
        Expert of each slot, ``(L, S)``; 0 on ranks that are not alive, as SGLang has it.
    slots
        Slots of each expert on ranks that are alive, ascending, then -1, ``(L, E, X)``.
    copies
        Number of copies of each expert, ``(L, E)``.
    """

    experts: Ints
    slots: Ints
    copies: Ints


def tables(slots: Ints, num_experts: int) -> Tables:
    """Return SGLang's tables of slots ``(L, S)``, which are -1 on ranks that are not alive."""
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
    """Return at most ``_WINDOWS`` sums of consecutive passes, ``(T, L, E)``, without empty ones.

    There is always one window, even without load. Loads without a time axis stay as they are.
    """
    if passes.ndim != 3:
        return passes
    busy = passes[passes.any(axis=(1, 2))]
    if not len(busy):
        return np.zeros((1, *passes.shape[1:]), dtype=np.int64)
    starts = np.unique(np.linspace(0, len(busy), _WINDOWS, endpoint=False).astype(np.int64))
    return np.add.reduceat(busy, starts, axis=0, dtype=np.int64)


def _plan(situation: Situation, *, planner: Planner) -> Answer:
    """Plan from sums of passes."""
    return planner(replace(situation, load=windows(as_array(situation.load, "Loads"))))

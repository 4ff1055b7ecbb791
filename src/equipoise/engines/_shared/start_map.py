"""A stored placement to start from, for plug-ins of engines that cannot read one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from equipoise.checks import as_array, brief
from equipoise.engines._shared import plugin_options as shared
from equipoise.engines._shared.plugin_log import balancing_words
from equipoise.engines.map_io import read_map
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan import Answer, Outcome, Situation


class Then(Enum):
    """The behaviour after the first change, which is the given map or else the first plan."""

    HOLD = "hold"
    BALANCE = "balance"


@dataclass(frozen=True, eq=False, kw_only=True)
class StartOptions(shared.PluginOptions):
    """The options of every plug-in, and those for the start.

    Parameters
    ----------
    map
        Placement to start from; ``None`` for the engine's own.
    then
        Action after the first change.
    """

    map: Placement | None = None
    then: Then = Then.BALANCE


def read_start_options(
    value: str, variable: str, readers: Mapping[str, shared.Reader]
) -> dict[str, Any]:
    """Read the options in the environment variable by name, like ``read_given``.

    Raises
    ------
    EquipoiseError
        Whatever ``read_given`` refuses, or options without effect.
    """
    given = shared.read_given(value, variable, readers)
    if "map" in given:
        given.setdefault("then", Then.HOLD)
    unread = {"max_moves_share", "gate"} & set(given)
    if unread and "map" in given and given["then"] is Then.HOLD:
        raise EquipoiseError(
            f"{variable} holds the slots of a map, so {min(unread)} has no effect; leave it out, "
            'or set then to "balance".'
        )
    return given


class StartMap:
    """A planner that returns a stored placement.

    Parameters
    ----------
    placement
        Placement whose layers are the model's MoE layers, in order.
    log
        Log for a warning if the placement does not fit.
    """

    def __init__(self, placement: Placement, log: logging.Logger) -> None:
        self._placement, self._log = placement, log
        self._was_in_force = False

    def is_next(self, situation: Situation) -> bool:
        """Tell whether the placement fits, is not in force yet, and there is traffic."""
        load, slots = as_array(situation.load, "Loads"), situation.slots
        if slots is None or not load.any() or self._was_in_force:
            return False
        held = as_array(slots, "The slots in force")
        own = self._placement
        if held.shape != own.slots.shape or (load.shape[-1], situation.num_ranks) != (
            own.num_experts,
            own.num_ranks,
        ):
            self._log.warning(
                "equipoise leaves the map out: it is for %d layers of %d experts in %d slots on %d "
                "ranks, the model has %d layers of %d experts in %d slots on %d ranks.",
                *(own.num_layers, own.num_experts, own.num_slots, own.num_ranks),
                *(len(held), load.shape[-1], situation.num_slots, situation.num_ranks),
            )
            return False
        self._was_in_force = bool((held == own.slots).all())
        return not self._was_in_force

    def __call__(self, situation: Situation) -> Answer:
        """Return the placement, however many slots change; ``is_next`` has checked that it fits."""
        assert situation.slots is not None
        slots = self._placement.slots
        moves = int((slots != as_array(situation.slots, "The slots in force")).sum())
        return Answer(
            slots=slots,
            moves=moves,
            outcome=Outcome.REPAIRED,
            reason=f"The map comes into force: {moves} of {slots.size} slots change.",
        )


def words(options: StartOptions) -> str:
    """Describe what the options ask for."""
    balancing = balancing_words(options)
    if options.map is None:
        once = " The slots of the first plan then stay." if options.then is Then.HOLD else ""
        return balancing + once
    if options.then is Then.HOLD:
        return "the map that was given comes into force and stays."
    return f"the map that was given comes into force; then {balancing}"


def _map(name: str, value: Any) -> Placement:
    if not isinstance(value, str):
        raise EquipoiseError(f"{name} is {brief(value)}; expected the path of a file.")
    return read_map(value)


def _then(name: str, value: Any) -> Then:
    for known in Then:
        if value == known.value:
            return known
    choices = " or ".join(f'"{known.value}"' for known in Then)
    raise EquipoiseError(f"{name} is {brief(value)}; expected {choices}.")


READERS: Mapping[str, shared.Reader] = {**shared.READERS, "map": _map, "then": _then}
"""Readers of the options of every plug-in and of those for the start."""

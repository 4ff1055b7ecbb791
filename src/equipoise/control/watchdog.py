"""The watchdog: it notices faults that would stay silent, and raises alarms."""

from __future__ import annotations

import logging

from equipoise.control.controller import Follower, Order, Outcome, State
from equipoise.control.settings import Settings

STOPPED, NOTHING_COUNTED, MAPS_DISAGREE = "balancing_stopped", "nothing_counted", "maps_disagree"
UNKEPT, UNWRITTEN = "map_not_kept", "answers_not_written"
ALARMS = (STOPPED, NOTHING_COUNTED, MAPS_DISAGREE, UNKEPT, UNWRITTEN)

logger = logging.getLogger("equipoise.runtime")


class Alarms:
    """The alarms that are on. Each writes a line to the log when it begins and when it ends."""

    def __init__(self) -> None:
        self._on: set[str] = set()

    @property
    def names(self) -> frozenset[str]:
        """Names of the alarms that are on, of those in ``ALARMS``."""
        return frozenset(self._on)

    def say(self, alarm: str, wrong: bool, text: str = "") -> None:
        """Turn an alarm on or off, with a text for the log."""
        if wrong and alarm not in self._on:
            self._on.add(alarm)
            logger.warning("%s: %s", alarm, text)
        elif not wrong and alarm in self._on:
            self._on.remove(alarm)
            logger.info("%s: no longer.", alarm)


class Watchdog:
    """A watchdog on every rank. It raises an alarm when a fault begins and clears it when it ends.

    ====================  ==========================================================
    ``balancing_stopped`` No look at the loads was answered and no layer has moved for
                          twice the time that may pass between them.
    ``nothing_counted``   Tokens were served, and the recorder has counted none.
    ``maps_disagree``     This rank serves another placement than rank 0 expects.
    ====================  ==========================================================

    Parameters
    ----------
    settings
        Settings, which determine how long may pass.
    alarms
        Alarms to turn on and off; its own if ``None``.
    """

    def __init__(self, settings: Settings, alarms: Alarms | None = None) -> None:
        self._longest = max(settings.update_interval, settings.settle_steps)  # between two looks
        self._last = 0  # the step in which something went on
        self._order: Order | None = None
        self._alarms = alarms or Alarms()

    @property
    def alarms(self) -> frozenset[str]:
        """Names of the alarms that are on."""
        return self._alarms.names

    def see_order(self, order: Order, follower: Follower) -> None:
        """Check the state after an order has been followed."""
        if self._goes_on(order):
            self._last = order.number
        self._order = order
        self._alarms.say(
            STOPPED,
            order.number - self._last > 2 * (self._longest + order.wait_steps),
            f"Balancing has made no progress since step {self._last} (now {order.number}, state "
            f"{order.state.value}).",
        )
        self._alarms.say(
            MAPS_DISAGREE,
            not follower.agrees(order),
            f"This rank serves placement {follower.placement.checksum[:12]}, but rank 0 expects "
            f"{order.serving[:12]} (step {order.number}, version {order.version}).",
        )

    def see_counts(self, counted: int, served: int) -> None:
        """Check the assignments counted in a window against the tokens served meanwhile."""
        self._alarms.say(
            NOTHING_COUNTED,
            served > 0 and counted == 0,
            f"The recorder has counted nothing, but {served} tokens were served.",
        )

    def _goes_on(self, order: Order) -> bool:
        """Tell whether balancing makes progress: a warm-up, a moved layer, or an answered question.

        The warm-up takes longer than set if the planner is still rehearsing.
        """
        last = self._order
        if last is None or order.state is State.WARM_UP:
            return order.state is State.WARM_UP
        answered = last.state in (State.PLAN, State.SETTLE) and order.state is not last.state
        failed = order.outcome is Outcome.FAILED
        return order.serving != last.serving or (answered and not failed)

"""How long the planner is waited for: as it was set, or as planning has been seen to take."""

from __future__ import annotations

from equipoise.control.settings import Settings

_MARGIN = 2  # times what planning took, since other work on the machine makes it slower at times
_MOST_INTERVALS = 64  # update intervals that a planner without an answer may take


class Wait:
    """Steps that the planner may take. Serving goes on meanwhile.

    A plan is of use until the next look at the loads is due, an update interval after the last. So
    it may take that long, or ``wait_steps`` if that is longer, or twice as long as planning was
    seen to take. After a plan was given up the next may take twice as long as that one, up to 64
    update intervals: the machine may be slower than it was.

    Parameters
    ----------
    settings
        Settings with the wait that was asked for, and the update interval.
    """

    def __init__(self, settings: Settings) -> None:
        self._asked_for, self._interval = settings.wait_steps, settings.update_interval
        self._taken = 0  # steps of the longest plan
        self._given_up = 0  # steps after which the last plan was; 0: it has come

    @property
    def usual(self) -> int:
        """Steps after which a plan is overdue."""
        return max(self._asked_for, self._interval, _MARGIN * self._taken)

    @property
    def steps(self) -> int:
        """Steps after which the next plan is given up."""
        longer = min(2 * self._given_up, _MOST_INTERVALS * self._interval)
        return max(self.usual, longer)

    def see(self, steps: int) -> None:
        """Take note that a plan has taken this number of steps."""
        self._taken = max(self._taken, steps)
        self._given_up = 0

    def give_up(self) -> str:
        """Take note that a plan was given up; returns what to say of it."""
        before = self._given_up = self.steps
        text = f"The planner has not answered in {before} steps."
        return text if self.steps == before else f"{text} Next time it may take {self.steps}."

    def explained(self) -> str:
        """What planning was seen to take, and what follows from it, in a sentence."""
        if self._taken <= self._asked_for:
            return f"The planner is ready: a plan takes {self._taken} steps."
        return (
            f"A plan takes {self._taken} steps, longer than the wait of {self._asked_for} that was "
            f"set; it is used if it comes within {self.usual} steps."
        )

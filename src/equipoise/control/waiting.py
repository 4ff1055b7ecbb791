"""The time that the planner may take: as set, or longer if planning was seen to take longer."""

from __future__ import annotations

from equipoise.control.settings import Settings

_MARGIN = 2  # times the seen planning time, because other work on the machine may slow it down
_MOST_INTERVALS = 64  # largest number of update intervals that a planner may take


class Wait:
    """The number of steps that the planner may take while serving continues.

    A plan is useful until the next look at the loads, one update interval after the last. So the
    planner may take an update interval, or ``wait_steps``, or twice the time that planning was seen
    to take, whichever is longest. After a plan was given up, the next may take twice its time, up
    to 64 update intervals, because the machine may have become slower.

    Parameters
    ----------
    settings
        Settings with ``wait_steps`` and ``update_interval``.
    """

    def __init__(self, settings: Settings) -> None:
        self._asked_for, self._interval = settings.wait_steps, settings.update_interval
        self._taken = 0  # steps that the longest plan took
        self._given_up = 0  # steps after which the last plan was given up; 0 if it came

    @property
    def usual(self) -> int:
        """Number of steps after which a plan is overdue."""
        return max(self._asked_for, self._interval, _MARGIN * self._taken)

    @property
    def steps(self) -> int:
        """Number of steps after which the next plan is given up."""
        longer = min(2 * self._given_up, _MOST_INTERVALS * self._interval)
        return max(self.usual, longer)

    def see(self, steps: int) -> None:
        """Record that a plan took this number of steps."""
        self._taken = max(self._taken, steps)
        self._given_up = 0

    def give_up(self) -> str:
        """Record that a plan was given up; return a sentence for the log."""
        before = self._given_up = self.steps
        text = f"The planner has not answered in {before} steps."
        return text if self.steps == before else f"{text} Next time it may take {self.steps}."

    def explained(self) -> str:
        """Write the time that planning was seen to take, and what follows from it."""
        if self._taken <= self._asked_for:
            return f"The planner is ready: a plan takes {self._taken} steps."
        return (
            f"A plan takes {self._taken} steps, longer than the wait of {self._asked_for} that was "
            f"set; it is used if it comes within {self.usual} steps."
        )

"""Whether a new placement is worth moving to: what it saves, against what moving costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import check_number
from equipoise.cost import RankCost
from equipoise.dispatch import Dispatcher, dispatcher
from equipoise.dispatch.registry import needs_cost
from equipoise.dispatch.times import rank_times
from equipoise.errors import EquipoiseError
from equipoise.layer_ids import format_ids
from equipoise.migration import Migration
from equipoise.placement import Placement
from equipoise.plan.weigh.resample import block_length, resampled_means
from equipoise.showing import in_short
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]

_DRAWS = 4000  # the ends of a 95 % interval then lie within a percent of where more would put them


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Move or stay, with the numbers behind it.

    Parameters
    ----------
    move
        The answer.
    gain_seconds, gain_low, gain_high
        What a step gets shorter by, mean and both ends of the confidence interval; all layers.
    gain_assignments
        Assignments that the busiest ranks lose in a step, summed over layers.
    moves, moved_bytes, move_seconds
        Slots that change, bytes on wires and the time they take, from the migration.
    pay_seconds
        Serving time lost to moving: the stall and what transfers slow down.
    break_even_steps
        Steps after which the mean gain has paid that back, those before the plan is live included;
        infinite if there is no gain.
    sure_after_steps
        The same with the low end of the gain.
    dwell_steps
        Steps the loads are expected to stay as they are.
    confidence
        Confidence level of the interval.
    """

    move: bool
    gain_seconds: float
    gain_low: float
    gain_high: float
    gain_assignments: float
    moves: int
    moved_bytes: int
    move_seconds: float
    pay_seconds: float
    break_even_steps: float
    sure_after_steps: float
    dwell_steps: float
    confidence: float

    def __repr__(self) -> str:
        return (
            f"Decision({'move' if self.move else 'stay'}: {self.moves} moves take "
            f"{self.gain_seconds:.3g} s off a step, {self.gain_low:.3g} to {self.gain_high:.3g} at "
            f"{self.confidence:.0%} confidence)"
        )

    @property
    def text(self) -> str:
        """The answer in a sentence."""
        if not self.moves:
            return "Stay: the placements are the same."
        size = f"{self.moves} slots, {self.moved_bytes / 1e9:.3g} GB"
        if self.gain_low <= 0:
            return (
                f"Stay: moving {size} takes {self.gain_seconds:.3g} s off a step not planned on, "
                f"at {self.confidence:.0%} confidence {self.gain_low:.3g} to "
                f"{self.gain_high:.3g} s."
            )
        return (
            f"{'Move' if self.move else 'Stay'}: moving {size} costs {self.pay_seconds:.3g} s and "
            f"saves {self.gain_seconds:.3g} s a step, surely paid back after "
            f"{np.ceil(self.sure_after_steps):.0f} steps; the loads last {self.dwell_steps:g}."
        )


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Moves if even the low end of the gain pays the move back before the loads drift away.

    The gain is the difference in time of the slowest rank, summed over layers, on steps that the
    new placement was not planned on. Its interval is from resampling circular blocks of steps
    (``resampled_means``). All costs are the caller's: none of them has a value that fits every
    system.

    Parameters
    ----------
    cost
        Cost of a rank's share of a layer.
    expert_bytes
        All tensors of one expert in one layer, scales included.
    dwell_steps
        Steps until the loads have drifted away from what the plan was made for.
    stall_seconds
        Seconds for which serving stands still.
    interference
        Serving seconds lost for each second of transfers: 0 where they cost it nothing, 1 where
        serving waits for them.
    delay_steps
        Steps from now until the new placement is in force.
    dispatch
        Dispatcher that runs.
    confidence
        Confidence level of the interval, in (0, 1).
    block_steps
        Length of the blocks; the cube root of the number of steps if ``None``.
    seed
        Random seed of the resampling.
    """

    cost: RankCost
    expert_bytes: int
    dwell_steps: float
    stall_seconds: float
    interference: float
    delay_steps: float
    dispatch: str | Dispatcher
    confidence: float = 0.95
    block_steps: int | None = None
    seed: int = 0

    __repr__ = in_short

    def __post_init__(self) -> None:
        self.runs(None)
        for name in ("expert_bytes", "dwell_steps", "stall_seconds", "interference", "delay_steps"):
            check_number(name, getattr(self, name), low=0, high=np.inf)
        if not 0 < self.confidence < 1:
            raise EquipoiseError(
                f"confidence is {self.confidence}; expected a share between 0 and 1."
            )
        if self.block_steps is not None:
            check_number("block_steps", self.block_steps, low=1, high=np.inf)

    def decide(self, migration: Migration, steps: Trace | ArrayLike) -> Decision:
        """Weigh a migration on steps that were not planned on.

        Parameters
        ----------
        steps
            A trace or assignments ``(T, L, E)``, in order, each row what one step routes; sums of
            several steps would be taken for large ones.

        Raises
        ------
        EquipoiseError
            Fewer than two steps, layers or experts that are not the placement's, loads that are
            not finite numbers >= 0.
        """
        load = step_loads(steps, migration.new)
        old, new = (self._peaks(p, load, migration) for p in (migration.old, migration.new))
        return self.weigh(migration, old[0] - new[0], float((old[1] - new[1]).mean()))

    def weigh(self, migration: Migration, gain: Floats, gain_assignments: float) -> Decision:
        """Weigh a migration whose gain is known.

        Parameters
        ----------
        gain
            Seconds that each step gets shorter by, ``(T,)``, in order.
        gain_assignments
            Assignments that the busiest ranks lose in a step, summed over layers.
        """
        low, high = self._interval(gain)
        move_seconds = migration.seconds(self.expert_bytes)
        pay = self.stall_seconds + self.interference * move_seconds
        sure = self._break_even(pay, low)
        move = migration.moves > 0 and sure < self.dwell_steps
        return Decision(
            move=move,
            gain_seconds=float(gain.mean()),
            gain_low=low,
            gain_high=high,
            gain_assignments=gain_assignments,
            moves=migration.moves,
            moved_bytes=migration.bytes(self.expert_bytes),
            move_seconds=move_seconds,
            pay_seconds=pay,
            break_even_steps=self._break_even(pay, float(gain.mean())),
            sure_after_steps=sure,
            dwell_steps=self.dwell_steps,
            confidence=self.confidence,
        )

    def _peaks(self, placement: Placement, load: Floats, migration: Migration) -> Floats:
        """Seconds and assignments of the slowest and busiest ranks, layers summed, ``(2, T)``."""
        runs = self.runs(migration.topology)
        peaks = np.empty((2, len(load)))
        for t, step in enumerate(load):
            split = runs.split(step, placement)
            times = rank_times(split.shares, placement.num_ranks, migration.topology, self.cost)
            peaks[:, t] = times.max(axis=1).sum(), split.rank_loads.max(axis=1).sum()
        return peaks

    def runs(self, topology: Topology | None) -> Dispatcher:
        """The dispatcher on these machines; told of the cost only if it cannot do without."""
        cost = self.cost if needs_cost(self.dispatch) else None
        return dispatcher(self.dispatch, topology, cost=cost)

    def _interval(self, gain: Floats) -> tuple[float, float]:
        """Both ends of the confidence interval of the mean gain."""
        block = int(self.block_steps or block_length(len(gain)))
        means = resampled_means(gain, block_steps=block, num_draws=_DRAWS, seed=self.seed)
        low, high = np.quantile(means, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return float(low), float(high)

    def _break_even(self, pay: float, gain: float) -> float:
        return self.delay_steps + pay / gain if gain > 0 else np.inf


def step_loads(steps: Trace | ArrayLike, placement: Placement) -> Floats:
    """Assignments of the steps to weigh, ``(T, L, E)``; see ``Gate.decide``."""
    if isinstance(steps, Trace):
        if steps.layer_ids != placement.layer_ids:
            raise EquipoiseError(
                f"The trace has layers {format_ids(steps.layer_ids)}, the placement "
                f"{format_ids(placement.layer_ids)}; select the same layers of both."
            )
        steps = steps.counts
    load = np.asarray(steps, dtype=np.float64)
    if load.ndim != 3 or len(load) < 2:
        raise EquipoiseError(
            f"Steps have shape {load.shape}; expected (steps, layers, experts) with two steps or "
            "more: a single one says nothing of chance."
        )
    return load

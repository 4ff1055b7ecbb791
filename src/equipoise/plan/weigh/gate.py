"""The decision whether to move to a new placement: the time it saves against the time it costs."""

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
from equipoise.units import duration, size

Floats = NDArray[np.float64]

_DRAWS = 4000  # more draws would change the ends of a 95 % interval by less than 1 %


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision to move or to stay, with the numbers behind it.

    Parameters
    ----------
    move
        Flag to move.
    gain_seconds, gain_low, gain_high
        Seconds saved in a step, all layers: mean and both ends of the confidence interval.
    gain_assignments
        Assignments that the busiest ranks have less in a step, summed over layers.
    moves, moved_bytes, move_seconds
        Number of slots that change, bytes transferred between ranks, and seconds that takes.
    pay_seconds
        Serving time lost by moving: the stall, and the slowdown during transfers.
    break_even_steps
        Steps from now after which the mean gain has paid for the move; infinite without a gain.
    sure_after_steps
        Steps from now after which the low end of the gain has paid for the move.
    dwell_steps
        Steps for which the loads are expected to stay as they are.
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
            f"{duration(self.gain_seconds)} off a step, {self._interval} at "
            f"{self.confidence:.0%} confidence)"
        )

    @property
    def effect(self) -> str:
        """Mean effect on a step in words, for example ``saves 81 us a step``.

        It counts assignments if the gate knows no times.
        """
        if self.knows_times:
            if self.gain_seconds < 0:
                return f"makes a step {duration(-self.gain_seconds)} slower"
            return f"saves {duration(self.gain_seconds)} a step"
        number = f"{abs(self.gain_assignments):,.1f} assignments a step"
        if self.gain_assignments < 0:
            return f"puts {number} more on the busiest ranks"
        return f"takes {number} off the busiest ranks"

    @property
    def text(self) -> str:
        """Decision and numbers in a sentence."""
        if not self.moves:
            return "Stay: the placements are the same."
        moved = f"{self.moves} slots"
        if self.moved_bytes:
            moved += f" ({size(self.moved_bytes)})"
        if self.gain_low <= 0:
            doubt = ", which may be chance" if self.gain_high > 0 else ""
            if self.knows_times:
                doubt += f"; at {self.confidence:.0%} confidence the gain is {self._interval}"
            return f"Stay: moving {moved} {self.effect}{doubt}."
        decided = "Move" if self.move else "Stay"
        if not self.pay_seconds:
            return f"{decided}: moving {moved} {self.effect}."
        return (
            f"{decided}: moving {moved} costs {duration(self.pay_seconds)} and {self.effect}. "
            f"The low end of that gain, {duration(self.gain_low)}, pays for the move after "
            f"{np.ceil(self.sure_after_steps):,.0f} steps; the loads are expected to last "
            f"{self.dwell_steps:,.0f}."
        )

    @property
    def knows_times(self) -> bool:
        """Whether the gate knows times: its moves have bytes or a cost."""
        return bool(self.moved_bytes or self.pay_seconds)

    @property
    def _interval(self) -> str:
        return f"{duration(self.gain_low)} to {duration(self.gain_high)}"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A rule that moves if even the low end of the gain pays for the move before loads drift away.

    The gain is the time that the slowest ranks save, summed over layers, on steps that the new
    placement was not planned on. Its confidence interval comes from resampling circular blocks of
    steps (``resampled_means``). The caller gives all costs, because none has a value that fits
    every system.

    Parameters
    ----------
    cost
        Cost of a rank's share of a layer.
    expert_bytes
        Size of all tensors of one expert in one layer, scales included.
    dwell_steps
        Number of steps until the loads have drifted away from those that the plan was made for.
    stall_seconds
        Time for which serving stops.
    interference
        Serving time lost per second of transfers: 0 if transfers do not slow serving, 1 if serving
        waits for them.
    delay_steps
        Number of steps from now until the new placement is in force.
    dispatch
        Dispatcher that will run, by name or as an object.
    confidence
        Confidence level of the interval, in (0, 1).
    block_steps
        Length of the resampled blocks; the cube root of the number of steps if ``None``.
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
        """Decide on a migration by its gain on steps that were not planned on.

        Parameters
        ----------
        migration
            Moves to the new placement.
        steps
            Trace, or assignments ``(T, L, E)``, in order of time. Each row must be a single step:
            a sum of several steps would count as one large step.

        Raises
        ------
        EquipoiseError
            Fewer than two steps, layers or experts other than the placement's, or loads that are
            not finite numbers >= 0.
        """
        load = step_loads(steps, migration.new)
        old, new = (self._peaks(p, load, migration) for p in (migration.old, migration.new))
        return self.weigh(migration, old[0] - new[0], float((old[1] - new[1]).mean()))

    def weigh(self, migration: Migration, gain: Floats, gain_assignments: float) -> Decision:
        """Decide on a migration whose gain was computed elsewhere.

        Parameters
        ----------
        migration
            Moves to the new placement.
        gain
            Seconds saved in each step, ``(T,)``, in order of time.
        gain_assignments
            Assignments that the busiest ranks have less in a step, summed over layers.
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
        """Compute seconds and assignments of the slowest ranks, summed over layers, ``(2, T)``."""
        runs = self.runs(migration.topology)
        peaks = np.empty((2, len(load)))
        for t, step in enumerate(load):
            split = runs.split(step, placement)
            times = rank_times(split.shares, placement.num_ranks, migration.topology, self.cost)
            peaks[:, t] = times.max(axis=1).sum(), split.rank_loads.max(axis=1).sum()
        return peaks

    def runs(self, topology: Topology | None) -> Dispatcher:
        """Make the dispatcher for these ranks; it is given the cost only if it needs one."""
        cost = self.cost if needs_cost(self.dispatch) else None
        return dispatcher(self.dispatch, topology, cost=cost)

    def _interval(self, gain: Floats) -> tuple[float, float]:
        """Compute both ends of the confidence interval of the mean gain."""
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
            "more: a single one does not show what chance does."
        )
    return load

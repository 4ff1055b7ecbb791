"""The time of a serving engine's step: the protocol, and simple models.

The serving simulator knows nothing else about the hardware. A better model of a step is any object
with a method ``seconds`` like those here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import MAX_COUNT, as_array, brief, check_number, check_type, check_whole
from equipoise.errors import EquipoiseError

Ints = NDArray[np.int64]

_LONGEST_SECONDS = 1e6  # largest term of a step's time: twelve days
_NUM_DRAWS = 1 << 16


class StepTime(Protocol):
    """The protocol of step times. Equal arguments give equal times, so simulations are repeatable.

    All ranks of a pool step together, so a step lasts as long as its slowest rank.
    """

    def seconds(
        self, step: int, prefill_tokens: Ints, sequences: Ints, context_tokens: Ints
    ) -> float:
        """Compute the seconds of one step, at least a microsecond.

        The arrays belong to the simulator: do not change them, or keep them after the call.

        Parameters
        ----------
        step
            Number of earlier steps of the pool.
        prefill_tokens
            Number of prompt tokens that each rank computes, ``(R,)``.
        sequences
            Number of sequences of each rank that get their next token, ``(R,)``.
        context_tokens
            Number of tokens of each rank whose keys and values are read from its cache, ``(R,)``:
            all before the new token of a sequence, and all before the chunk of a prompt.
        """


@dataclass(frozen=True, kw_only=True)
class LinearStepTime:
    """A linear model: a fixed time, plus times per token, sequence and context token.

    Parameters
    ----------
    fixed_seconds
        Time of every step.
    token_seconds
        Time per token, of a prompt or of a sequence.
    sequence_seconds
        Time per sequence, in addition to its token.
    context_token_seconds
        Time to read the keys and values of one token.
    """

    fixed_seconds: float
    token_seconds: float = 0.0
    sequence_seconds: float = 0.0
    context_token_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fixed", "token", "sequence", "context_token"):
            _check_seconds(self, f"{name}_seconds")

    def seconds(
        self, step: int, prefill_tokens: Ints, sequences: Ints, context_tokens: Ints
    ) -> float:
        """Compute the seconds of one step; its number does not matter."""
        del step
        by_rank = self.token_seconds * prefill_tokens
        by_rank += (self.token_seconds + self.sequence_seconds) * sequences
        by_rank += self.context_token_seconds * context_tokens
        return self.fixed_seconds + float(by_rank.max())


@dataclass(frozen=True, eq=False, kw_only=True)
class ImbalanceSeries:
    """The measured imbalance (peak over mean) of steps, in order or drawn at random.

    Each layer is a barrier and all layers have the same mean load, so the imbalance of a step is
    the mean over its layers. After the last step the series starts again.

    Parameters
    ----------
    by_tokens
        Imbalance of steps and layers, ``(T, L)``, such as ``Evaluation.imbalance``. Or several of
        these by the number of tokens in a step, all ranks together, because small batches are less
        balanced: a step then uses the series with the nearest number of tokens, by ratio.
    seed
        Random seed to draw 65,536 steps of each series with replacement; ``None`` for the recorded
        order.
    """

    by_tokens: ArrayLike | Mapping[int, ArrayLike]
    seed: int | None = None
    _bounds: list[float] = field(init=False, repr=False)
    _factors: list[list[float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given = self.by_tokens if isinstance(self.by_tokens, Mapping) else {1: self.by_tokens}
        if not given:
            raise EquipoiseError("by_tokens is empty; expected an imbalance series at least.")
        tokens = sorted(check_whole("tokens", n, low=1) for n in given)
        rows = [_of_steps(given[n]) for n in tokens]
        if self.seed is not None:
            rng = np.random.default_rng(check_whole("seed", self.seed))
            rows = [row[rng.integers(len(row), size=_NUM_DRAWS)] for row in rows]
        between = np.sqrt(np.multiply(tokens[:-1], tokens[1:], dtype=np.float64))
        object.__setattr__(self, "_bounds", between.tolist())
        object.__setattr__(self, "_factors", [row.tolist() for row in rows])

    def at(self, step: int, num_tokens: int) -> float:
        """Return the imbalance of a step with this number of tokens."""
        factors = self._factors[bisect_right(self._bounds, num_tokens)]
        return factors[step % len(factors)]


@dataclass(frozen=True, eq=False, kw_only=True)
class MoeStepTime:
    """A model with experts: their time under perfect balance times the imbalance, plus the rest.

    Parameters
    ----------
    rest
        Time of everything except the experts: attention, communication, fixed costs.
    expert_token_seconds
        Time of all experts of all layers per token of a rank. With 32 ranks and 64 tokens on each,
        a balanced step takes 64 times this.
    expert_fixed_seconds
        Time of the experts that does not depend on tokens, such as reading weights. The imbalance
        multiplies it too, which is right if it was measured in time (by a dispatcher with a cost).
        If it was measured in assignments, add this time to ``rest`` instead.
    imbalance
        Imbalance of the steps.
    """

    rest: StepTime
    expert_token_seconds: float
    expert_fixed_seconds: float = 0.0
    imbalance: ImbalanceSeries

    def __post_init__(self) -> None:
        for name in ("expert_token_seconds", "expert_fixed_seconds"):
            _check_seconds(self, name)

    def seconds(
        self, step: int, prefill_tokens: Ints, sequences: Ints, context_tokens: Ints
    ) -> float:
        """Compute the seconds of one step, with its imbalance."""
        num_tokens = int(prefill_tokens.sum() + sequences.sum())
        tokens_of_mean_rank = num_tokens / len(sequences)
        balanced = self.expert_fixed_seconds + self.expert_token_seconds * tokens_of_mean_rank
        rest = self.rest.seconds(step, prefill_tokens, sequences, context_tokens)
        return rest + self.imbalance.at(step, num_tokens) * balanced


@dataclass(frozen=True, eq=False, kw_only=True)
class TabulatedStepTime:
    """A table of step times for several sizes, computed in advance, plus the rest.

    Times between two sizes are interpolated linearly; see ``step_table``.

    Parameters
    ----------
    by_tokens
        Seconds of ``T`` steps of each size, by the number of tokens, all ranks together. Entry
        ``t`` comes from the same part of a recording for all sizes. After the last entry the first
        one follows.
    rest
        Further time of a step.
    """

    by_tokens: Mapping[int, ArrayLike]
    rest: StepTime
    _sizes: list[int] = field(init=False, repr=False)
    _rows: list[list[float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = sorted(check_whole("tokens", n, low=1) for n in self.by_tokens)
        columns = [_as_seconds(self.by_tokens[n]) for n in sizes]
        if len({len(column) for column in columns}) != 1:
            raise EquipoiseError(
                "by_tokens has no sizes, or other numbers of steps for some; expected the same "
                "number of each size."
            )
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "_rows", np.stack(columns, axis=1).tolist())

    def seconds(
        self, step: int, prefill_tokens: Ints, sequences: Ints, context_tokens: Ints
    ) -> float:
        """Compute the seconds of one step; raise ``EquipoiseError`` beyond the largest size."""
        num_tokens = int(prefill_tokens.sum() + sequences.sum())
        rest = self.rest.seconds(step, prefill_tokens, sequences, context_tokens)
        return rest + self.at(step, num_tokens)

    def at(self, step: int, num_tokens: int) -> float:
        """Look up the time of a step with this number of tokens."""
        row = self._rows[step % len(self._rows)]
        i = bisect_left(self._sizes, num_tokens)
        if i == len(self._sizes):
            raise EquipoiseError(
                f"A step has {num_tokens:,} tokens and the table of step times ends at "
                f"{self._sizes[-1]:,}; add larger sizes."
            )
        if i == 0:
            return row[0]
        low, high = self._sizes[i - 1 : i + 1]
        return row[i - 1] + (num_tokens - low) / (high - low) * (row[i] - row[i - 1])


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the step time at a step, such as a new placement or other traffic.

    Parameters
    ----------
    step
        First step with the new time.
    step_time
        Step time from then on.
    moving_steps
        Number of steps before it in which experts move.
    slow_down
        Factor on the time of those steps: 1.1 if transfers make them 10 % longer.
    stall_seconds
        Time for which serving stops at the change, added to its first step.
    """

    step: int
    step_time: StepTime
    moving_steps: int = 0
    slow_down: float = 1.0
    stall_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_whole("step", self.step, low=1)
        check_whole("moving_steps", self.moving_steps, low=0, high=self.step)
        check_number("slow_down", self.slow_down, low=1, high=1000)
        _check_seconds(self, "stall_seconds")


@dataclass(frozen=True, eq=False, kw_only=True)
class ScheduledStepTime:
    """A step time that changes at given steps, as rebalancing does.

    Parameters
    ----------
    first
        Step time before the first change.
    changes
        Changes in order of their steps; the moves of each begin after the change before it.
    """

    first: StepTime
    changes: Sequence[Change]
    _starts: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = [check_type("changes", change, Change).step for change in self.changes]
        moves = [change.step - change.moving_steps for change in self.changes]
        if any(begun < changed for changed, begun in zip(starts, moves[1:], strict=False)):
            raise EquipoiseError(
                f"Changes are at the steps {brief(starts)}, and their moves begin at "
                f"{brief(moves)}; expected each to begin after the one before it is done."
            )
        if len(set(starts)) < len(starts):
            raise EquipoiseError(f"Two changes are at the same step, of {brief(starts)}.")
        object.__setattr__(self, "_starts", starts)

    def seconds(
        self, step: int, prefill_tokens: Ints, sequences: Ints, context_tokens: Ints
    ) -> float:
        """Compute the seconds of one step, which is longer while experts move."""
        done = bisect_right(self._starts, step)
        model = self.changes[done - 1].step_time if done else self.first
        seconds = model.seconds(step, prefill_tokens, sequences, context_tokens)
        if done < len(self.changes):
            following = self.changes[done]
            if step >= following.step - following.moving_steps:
                seconds *= following.slow_down
        if done and step == self._starts[done - 1]:
            seconds += self.changes[done - 1].stall_seconds
        return seconds


def _of_steps(imbalance: ArrayLike) -> NDArray[np.float64]:
    """Average over the layers of each step, ``(T,)``."""
    x = as_array(imbalance, "Imbalances")
    if x.ndim != 2 or not x.size:
        raise EquipoiseError(f"Imbalances have shape {x.shape}; expected (steps, layers).")
    if not (x.min() >= 1 and x.max() <= MAX_COUNT):  # also false for NaN
        raise EquipoiseError(
            f"Imbalances are from {brief(x.min())} to {brief(x.max())}; expected 1 to "
            f"{MAX_COUNT:,}, peak over mean."
        )
    return np.asarray(x.mean(axis=1, dtype=np.float64))


def _as_seconds(seconds: ArrayLike) -> NDArray[np.float64]:
    x = as_array(seconds, "Seconds").astype(np.float64)
    if x.ndim != 1 or not x.size:
        raise EquipoiseError(f"Seconds of steps have shape {x.shape}; expected (steps,).")
    if not (x.min() >= 0 and x.max() <= _LONGEST_SECONDS):  # also false for NaN
        raise EquipoiseError(
            f"Seconds of steps are from {brief(x.min())} to {brief(x.max())}; expected 0 to "
            f"{_LONGEST_SECONDS:,.0f}."
        )
    return x


def _check_seconds(model: object, name: str) -> None:
    seconds = check_number(name, getattr(model, name), low=0, high=_LONGEST_SECONDS)
    object.__setattr__(model, name, seconds)

"""What a step of a serving engine takes, in seconds: the protocol, and two plain models of it.

The serving simulator knows nothing else of the hardware. Whoever has a better model of a step
gives it a method ``seconds`` like the ones here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import MAX_COUNT, as_array, brief, check_number, check_whole
from equipoise.errors import EquipoiseError

Ints = NDArray[np.int64]

_LONGEST_SECONDS = 1e6  # of one term of a step; nobody waits twelve days for it
_NUM_DRAWS = 1 << 16


class StepTime(Protocol):
    """What a step takes. Equal arguments give equal seconds, so that a simulation can be repeated.

    All ranks of a pool take their steps together, so a step lasts as long as its slowest rank.
    """

    def seconds(
        self, step: int, prefill_tokens: Ints, sequences: Ints, context_tokens: Ints
    ) -> float:
        """Seconds of one step, a microsecond or more.

        The arrays are the simulator's own: they are not to be changed, nor kept after the call.

        Parameters
        ----------
        step
            Number of steps that the pool has taken before.
        prefill_tokens
            Prompt tokens that each rank computes, ``(R,)``.
        sequences
            Sequences of each rank that get their next token, ``(R,)``.
        context_tokens
            Tokens of each rank whose keys and values are read from its cache, ``(R,)``: all before
            the new token of a sequence, and all before the chunk of a prompt.
        """


@dataclass(frozen=True, kw_only=True)
class LinearStepTime:
    """A fixed time, and on the slowest rank a time for each token, sequence and context token.

    Parameters
    ----------
    fixed_seconds
        Seconds of every step.
    token_seconds
        Seconds of each token, of a prompt or of a sequence.
    sequence_seconds
        Seconds that each sequence takes in addition to its token.
    context_token_seconds
        Seconds of reading the keys and values of one token.
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
        """Seconds of one step, whatever its number."""
        del step
        by_rank = self.token_seconds * prefill_tokens
        by_rank += (self.token_seconds + self.sequence_seconds) * sequences
        by_rank += self.context_token_seconds * context_tokens
        return self.fixed_seconds + float(by_rank.max())


@dataclass(frozen=True, eq=False, kw_only=True)
class ImbalanceSeries:
    """The imbalance of each step, peak over mean, as it was measured: in order, or drawn.

    A layer is a barrier and all layers have the same mean load, so a step takes the mean of its
    layers' imbalances. After the last step the series begins again.

    Parameters
    ----------
    by_tokens
        Imbalance of steps and layers, ``(T, L)``, such as ``Evaluation.imbalance``; or several of
        these by the tokens in a step of all ranks together, as small batches are less balanced: a
        step then takes the one whose number of tokens is the nearest by ratio.
    seed
        Random seed for drawing steps with replacement, 65,536 of each series; ``None``: the steps
        in their recorded order.
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
        """The imbalance of a step with that number of tokens."""
        factors = self._factors[bisect_right(self._bounds, num_tokens)]
        return factors[step % len(factors)]


@dataclass(frozen=True, eq=False, kw_only=True)
class MoeStepTime:
    """What experts take if perfectly balanced, times the imbalance, and what all else takes.

    Parameters
    ----------
    rest
        Time of all but the experts: attention, communication, what is fixed.
    expert_token_seconds
        Seconds of all experts of all layers for each token, divided over the ranks evenly: with 32
        ranks and 64 tokens on each, 64 times this.
    expert_fixed_seconds
        Seconds of the experts of a step whatever its tokens, such as reading weights. The imbalance
        multiplies them too, which is right where it was measured in time (by a dispatcher with a
        cost); where it was measured in assignments, give them to ``rest``.
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
        """Seconds of one step with the imbalance of that step."""
        num_tokens = int(prefill_tokens.sum() + sequences.sum())
        tokens_of_mean_rank = num_tokens / len(sequences)
        balanced = self.expert_fixed_seconds + self.expert_token_seconds * tokens_of_mean_rank
        rest = self.rest.seconds(step, prefill_tokens, sequences, context_tokens)
        return rest + self.imbalance.at(step, num_tokens) * balanced


def _of_steps(imbalance: ArrayLike) -> NDArray[np.float64]:
    """The mean over layers of each step, ``(T,)``."""
    x = as_array(imbalance, "Imbalances")
    if x.ndim != 2 or not x.size:
        raise EquipoiseError(f"Imbalances have shape {x.shape}; expected (steps, layers).")
    if not (x.min() >= 1 and x.max() <= MAX_COUNT):  # also false for NaN
        raise EquipoiseError(
            f"Imbalances are from {brief(x.min())} to {brief(x.max())}; expected 1 to "
            f"{MAX_COUNT:,}, peak over mean."
        )
    return np.asarray(x.mean(axis=1, dtype=np.float64))


def _check_seconds(model: object, name: str) -> None:
    seconds = check_number(name, getattr(model, name), low=0, high=_LONGEST_SECONDS)
    object.__setattr__(model, name, seconds)

"""The noise floor: the imbalance a perfectly fair router shows, because batches are finite.

A fair router sends every token to ``K`` of ``E`` experts picked evenly and without replacement.
Even so some rank is busiest in every step. What an observed imbalance has above this floor is
skew; the rest is no placement's fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.balance import imbalance
from equipoise.checks import as_loads, brief, check_count, check_type, check_whole
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement
from equipoise.showing import in_short
from equipoise.trace import Trace

FORMULA_FROM = 8.0
"""Mean assignments per rank from which the formula is used; below it a simulation.

Measured against 1,000 simulated steps for 10 combinations of 8 to 256 experts, top-1 to top-8 and
2 to 256 ranks: from 8 the formula's mean is within 0.01 (at 4: 0.04, at 1: 0.3).
"""

ALARM_STDS = 4.0
"""How far above the floor an imbalance must be before it is called more than chance."""

_TABLE_WORK = 10**8  # array elements touched for one table of small steps: about a second
_MAX_TABLE = 2**18  # experts x ranks
_MAX_CHOICES = 2 * 10**10  # random numbers: some minutes
_BLOCK_TOKENS = 4096


@dataclass(frozen=True)
class NoiseFloor:
    """Mean and standard deviation of the imbalance (max/mean over ranks) of a fair router."""

    mean: float
    std: float

    __repr__ = in_short

    @property
    def alarm_level(self) -> float:
        """The imbalance a fair router exceeds in fewer than 1 % of steps."""
        return self.mean + ALARM_STDS * self.std


@dataclass(frozen=True, eq=False)
class TraceNoiseFloor:
    """The noise floor of every step and layer of a trace, each ``(T, L)``.

    Steps without load have mean 1 and standard deviation 0.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    __repr__ = in_short

    @property
    def alarm_level(self) -> NDArray[np.float64]:
        """The imbalance a fair router exceeds in fewer than 1 % of steps, ``(T, L)``."""
        return self.mean + ALARM_STDS * self.std


def noise_floor(num_tokens: int, num_experts: int, top_k: int, num_ranks: int) -> NoiseFloor:
    """The imbalance that chance alone gives a step of this size.

    From ``FORMULA_FROM`` mean assignments per rank by formula (``equipoise explain concepts``),
    below it
    by simulating 50 to 2,000 steps with a fixed seed (by formula throughout where experts x ranks
    exceed 2^18). Ranks are taken to have equal expected load, whether or not they divide ``E``;
    where they outnumber the experts, as if each had an expert of its own.

    Parameters
    ----------
    num_tokens
        Tokens in the step, all ranks together; 0 gives a floor of 1.
    num_experts, top_k, num_ranks
        ``E``, ``K`` and ``R``.

    Raises
    ------
    EquipoiseError
        Numbers that are not positive, or more choices per token than experts.
    """
    num_tokens, num_experts, top_k, num_ranks = _checked_router(
        num_tokens, num_experts, top_k, num_ranks
    )
    mean, std = _floors(np.array([num_tokens], np.float64), num_experts, top_k, num_ranks)
    return NoiseFloor(float(mean[0]), float(std[0]))


def trace_noise_floor(trace: Trace, num_ranks: int) -> TraceNoiseFloor:
    """The floor of each step and layer of a trace on ``num_ranks`` ranks.

    Tokens per step are its assignments over ``trace.top_k``. A trace that does not know its
    ``top_k`` is read as independent assignments, which puts the floor slightly too high: the
    choices of one token cannot fall on the same expert.
    """
    top_k = check_type("trace", trace, Trace).top_k or 1
    *_, num_ranks = _checked_router(0, trace.num_experts, top_k, num_ranks)
    tokens = trace.counts.sum(axis=-1, dtype=np.float64) / top_k
    mean, std = _floors(tokens.ravel(), trace.num_experts, top_k, num_ranks)
    return TraceNoiseFloor(mean.reshape(tokens.shape), std.reshape(tokens.shape))


def simulate_noise_floor(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    num_ranks: int | None = None,
    *,
    placement: Placement | None = None,
    num_draws: int = 400,
    seed: int = 0,
) -> NoiseFloor:
    """The floor from ``num_draws`` simulated steps of a fair router.

    Parameters
    ----------
    num_ranks
        Puts the experts in equal contiguous stretches on this many ranks; where the ranks do not
        divide them, assignments to an expert on a border fall on either side by chance.
    placement
        Instead of ``num_ranks``: ranks and copies as placed, every copy taking an equal share. The
        floor then includes what the placement itself adds under fair routing. The mean and
        standard deviation are over steps and layers.
    seed
        Equal arguments give equal results on every machine.

    Raises
    ------
    EquipoiseError
        Numbers that are not positive, a placement of other experts, both or neither of
        ``num_ranks`` and ``placement``, or a simulation of more than some minutes.
    """
    if (num_ranks is None) == (placement is None):
        raise EquipoiseError(
            f"Give either {argument('num_ranks')} or {argument('placement')}, and not both."
        )
    num_tokens, num_experts, top_k, ranks = _checked_router(
        num_tokens, num_experts, top_k, 1 if num_ranks is None else num_ranks
    )
    num_ranks = None if num_ranks is None else ranks
    num_draws = _checked_draws(num_tokens, num_experts, num_draws)
    if num_tokens == 0:
        return NoiseFloor(1.0, 0.0)
    share = None if placement is None else _placed_shares(placement, num_experts)
    rng = np.random.default_rng(check_whole("seed", seed))
    gamma = []
    for _ in range(num_draws):
        on_expert = np.zeros(num_experts)
        on_rank = np.zeros(num_ranks or 0)
        for block in _blocks(num_tokens):
            chosen = _fair_choices(rng, block, num_experts, top_k)
            if num_ranks is None:
                on_expert += np.bincount(chosen.ravel(), minlength=num_experts)
            else:
                rank = _contiguous_rank(rng, chosen, num_experts, num_ranks)
                on_rank += np.bincount(rank.ravel(), minlength=num_ranks)
        gamma.append(imbalance(on_rank if share is None else share @ on_expert))
    return NoiseFloor(float(np.mean(gamma)), float(np.std(gamma)))


def excess(observed: ArrayLike, floor: NoiseFloor | TraceNoiseFloor) -> NDArray[np.float64]:
    """Observed imbalance above the floor; around 0, either sign, for a fair router.

    Trigger on this and not on the imbalance: call it more than chance where ``observed`` exceeds
    ``floor.alarm_level``.
    """
    if not isinstance(floor, (NoiseFloor, TraceNoiseFloor)):
        raise EquipoiseError(f"floor is {brief(floor)}; expected the answer of noise_floor.")
    row: Any = [observed]  # one axis more, so that a single number passes as well
    above: NDArray[np.float64] = as_loads(row)[0] - floor.mean
    return above


@lru_cache(maxsize=256)
def expected_maximum(num_ranks: int) -> tuple[float, float]:
    """Mean and standard deviation of the largest of ``R`` standard normal numbers."""
    m1, m2, _, _ = _maximum_moments(num_ranks)
    return m1, max(m2 - m1 * m1, 0.0) ** 0.5


@lru_cache(maxsize=256)
def _maximum_moments(num_ranks: int) -> tuple[float, float, float, float]:
    """First four raw moments of the largest of ``R`` standard normals, by numerical integration."""
    from scipy.integrate import quad
    from scipy.special import log_ndtr

    def moment(power: int) -> float:
        def integrand(z: float) -> float:
            density = num_ranks * np.exp((num_ranks - 1) * log_ndtr(z) - z * z / 2)
            return float(z**power * density / np.sqrt(2 * np.pi))

        # Beyond 12 standard deviations nothing is left; the peak lies between 0 and 5.
        return float(quad(integrand, -12, 12, points=[0, 2.5, 5], limit=200)[0])

    return moment(1), moment(2), moment(3), moment(4)


def _floors(
    num_tokens: NDArray[np.float64], num_experts: int, top_k: int, num_ranks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation for each number of tokens, by formula or simulation."""
    num_experts = max(num_experts, num_ranks)  # ranks in excess share experts
    tokens = np.maximum(num_tokens, 1)
    mean, std = _formula(tokens, num_experts, top_k, num_ranks)
    small = tokens * top_k < FORMULA_FROM * num_ranks
    if small.any() and num_experts * num_ranks <= _MAX_TABLE:
        table = _small_step_table(num_experts, top_k, num_ranks)
        at = np.arange(1, len(table[0]) + 1)
        mean = np.where(small, np.interp(tokens, at, table[0]), mean)
        std = np.where(small, np.interp(tokens, at, table[1]), std)
    return np.where(num_tokens > 0, mean, 1.0), np.where(num_tokens > 0, std, 0.0)


def _formula(
    num_tokens: NDArray[np.float64], num_experts: int, top_k: int, num_ranks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The floor from the largest of ``R`` normals with the variance and skewness of rank loads.

    A token's choices on a rank are hypergeometric. Loads of ranks add up to a constant, so they
    are ``R`` independent numbers less their mean; that is worth ``R / (R - 1)`` in variance before
    the subtraction and ``1 / R`` in the variance of the maximum. Skewness enters to first order,
    as Cornish and Fisher (1938) do: a normal ``z`` becomes ``z + skew / 6 (z^2 - 1)``.
    """
    E, K, R, D = num_experts, top_k, num_ranks, num_tokens
    if R == 1 or K == E:
        return np.ones_like(D), np.zeros_like(D)
    p = 1 / R
    variance = K * p * (1 - p) * (E - K) / (E - 1)  # of one token's assignments to a rank
    lopsided = (E - 2 * K) / (E - 2) if K > 1 else 1.0
    a = lopsided * (1 - 2 * p) * np.sqrt((E - 1) / (K * p * (1 - p) * (E - K)) / D) / 6
    relative_std = np.sqrt(variance / (1 - p) / D) / (K * p)
    m1, m2, m3, m4 = _maximum_moments(R)
    spread = (m2 - m1**2) + 2 * a * (m3 - m1 * m2) + a**2 * (m4 - m2**2) - p
    return 1 + relative_std * (m1 + a * (m2 - 1)), relative_std * np.sqrt(np.maximum(spread, 0))


@lru_cache(maxsize=64)
def _small_step_table(
    num_experts: int, top_k: int, num_ranks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Simulated mean and standard deviation for 1, 2, ... tokens, up to ``FORMULA_FROM``.

    One simulated sequence of tokens serves all sizes: its first ``d`` tokens are a step of ``d``.
    """
    num_tokens = int(np.ceil(FORMULA_FROM * num_ranks / top_k))
    work = num_tokens * (num_experts + top_k * num_ranks)
    num_draws = min(max(_TABLE_WORK // work, 50), 2000)
    rng = np.random.default_rng(0)
    fair_load = np.arange(1, num_tokens + 1) * top_k / num_ranks
    gamma = np.empty((num_draws, num_tokens))
    for draw in range(num_draws):
        chosen = _fair_choices(rng, num_tokens, num_experts, top_k)
        rank = _contiguous_rank(rng, chosen, num_experts, num_ranks)
        of_token = np.zeros((num_tokens, num_ranks))
        np.add.at(of_token, (np.arange(num_tokens)[:, None], rank), 1)
        gamma[draw] = of_token.cumsum(axis=0).max(axis=1) / fair_load
    return gamma.mean(axis=0), gamma.std(axis=0)


def _fair_choices(
    rng: np.random.Generator, num_tokens: int, num_experts: int, top_k: int
) -> NDArray[np.int64]:
    """``K`` different experts for each token, evenly, ``(D, K)``."""
    keys = rng.random((num_tokens, num_experts), dtype=np.float32)
    return np.argpartition(keys, top_k - 1, axis=1)[:, :top_k]


def _blocks(num_tokens: int) -> list[int]:
    """Sizes of blocks of tokens that keep the random keys in memory small."""
    full, rest = divmod(num_tokens, _BLOCK_TOKENS)
    return [_BLOCK_TOKENS] * full + [rest] * (rest > 0)


def _contiguous_rank(
    rng: np.random.Generator, expert: NDArray[np.int64], num_experts: int, num_ranks: int
) -> NDArray[np.int64]:
    """The rank of each choice: equal stretches of experts, borders within an expert by chance."""
    if num_experts % num_ranks == 0:
        return expert // (num_experts // num_ranks)
    position = (expert + rng.random(expert.shape)) * (num_ranks / num_experts)
    return np.minimum(position.astype(np.int64), num_ranks - 1)


def _placed_shares(placement: Placement, num_experts: int) -> NDArray[np.float64]:
    """The share of each expert that falls to each rank, ``(L, R, E)``: even over its copies."""
    if check_type("placement", placement, Placement).num_experts != num_experts:
        raise EquipoiseError(
            f"The placement is for {placement.num_experts} experts; the router has {num_experts}."
        )
    return placement.copies_on_rank / placement.copies[:, None, :]


def _checked_router(
    num_tokens: int, num_experts: int, top_k: int, num_ranks: int
) -> tuple[int, int, int, int]:
    """The same numbers as plain ints, which do not wrap as numpy's do."""
    num_experts = check_count("num_experts", num_experts)
    top_k = check_count("top_k", top_k)
    num_ranks = check_count("num_ranks", num_ranks)
    if top_k > num_experts:
        raise EquipoiseError(
            f"A token cannot choose {top_k} different experts of {num_experts}; lower top_k."
        )
    return check_whole("num_tokens", num_tokens), num_experts, top_k, num_ranks


def _checked_draws(num_tokens: int, num_experts: int, num_draws: int) -> int:
    num_draws = check_count("num_draws", num_draws)
    if num_draws < 2:
        raise EquipoiseError("One draw has no standard deviation; use a num_draws of 2 or more.")
    if num_draws * num_tokens * num_experts > _MAX_CHOICES:
        raise EquipoiseError(
            f"{num_draws} steps of {num_tokens} tokens would take minutes; use fewer of either, "
            "or noise_floor, whose formula is accurate for large steps."
        )
    return num_draws

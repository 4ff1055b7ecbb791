"""The noise floor: the imbalance that even a perfectly fair router shows on finite batches.

A fair router sends every token to ``K`` of ``E`` experts, drawn uniformly without replacement. In
every step some rank still gets more than the others, by chance. Only the imbalance above this floor
is skew that a placement can remove.
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
"""Mean assignments per rank from which the formula is used; smaller steps are simulated.

The formula was compared with 1,000 simulated steps for 10 combinations of 8 to 256 experts, top-1
to top-8 and 2 to 256 ranks. From 8 assignments per rank its mean is within 0.01 (at 4: within 0.04,
at 1: within 0.3).
"""

ALARM_STDS = 4.0
"""Standard deviations above the floor's mean from which an imbalance is more than chance."""

_TABLE_WORK = 10**8  # array elements processed for one table of small steps: about a second
_MAX_TABLE = 2**18  # experts x ranks
_MAX_CHOICES = 2 * 10**10  # random numbers that one simulation may draw: a few minutes
_BLOCK_TOKENS = 4096


@dataclass(frozen=True)
class NoiseFloor:
    """Mean and standard deviation of a fair router's imbalance (max/mean over ranks)."""

    mean: float
    std: float

    __repr__ = in_short

    @property
    def alarm_level(self) -> float:
        """Imbalance that a fair router exceeds in fewer than 1 % of steps."""
        return self.mean + ALARM_STDS * self.std


@dataclass(frozen=True, eq=False)
class TraceNoiseFloor:
    """Noise floor of every step and layer of a trace; both arrays are ``(T, L)``.

    A step without load has mean 1 and standard deviation 0.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    __repr__ = in_short

    @property
    def alarm_level(self) -> NDArray[np.float64]:
        """Imbalance that a fair router exceeds in fewer than 1 % of steps, ``(T, L)``."""
        return self.mean + ALARM_STDS * self.std


def noise_floor(num_tokens: int, num_experts: int, top_k: int, num_ranks: int) -> NoiseFloor:
    """Compute the imbalance that chance alone causes in a step of this size.

    A formula (``equipoise explain concepts``) is used where ranks have at least ``FORMULA_FROM``
    assignments on average.
    Smaller steps are simulated 50 to 2,000 times with a fixed seed, unless experts x ranks exceed
    2^18. All ranks are assumed to have the same expected load, also where ``R`` does not divide
    ``E``. If there are more ranks than experts, each rank counts as having one expert.

    Parameters
    ----------
    num_tokens
        Number of tokens in the step, all ranks together; 0 gives a floor of 1.
    num_experts, top_k, num_ranks
        Numbers of experts ``E``, choices per token ``K`` and ranks ``R``.

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
    """Compute the noise floor of each step and layer of a trace on ``num_ranks`` ranks.

    The number of tokens of a step is its assignments over ``trace.top_k``. If the trace has no
    ``top_k``, its assignments count as independent. The floor is then slightly too high, because
    the choices of one token never fall on the same expert.
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
    """Estimate the noise floor from simulated steps of a fair router.

    Give either ``num_ranks`` or ``placement``. Equal arguments give equal results on every machine.

    Parameters
    ----------
    num_tokens
        Number of tokens in a step, all ranks together.
    num_experts, top_k
        Numbers of experts ``E`` and choices per token ``K``.
    num_ranks
        Number of ranks, each with an equal contiguous share of the experts. If it does not divide
        ``E``, each assignment to an expert on a border goes to one of the two ranks by chance.
    placement
        Placement whose copies take equal shares. The floor then includes the imbalance of the
        placement itself under fair routing. Mean and standard deviation are over steps and layers.
    num_draws
        Number of simulated steps, 2 or more.
    seed
        Random seed.

    Raises
    ------
    EquipoiseError
        Numbers that are not positive, a placement with another number of experts, both or neither
        of ``num_ranks`` and ``placement``, or a simulation that would take more than minutes.
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
    """Subtract the floor's mean from an observed imbalance; for a fair router this is about 0.

    Use this, not the imbalance itself, to decide whether balancing can help. An imbalance above
    ``floor.alarm_level`` is more than chance.

    Parameters
    ----------
    observed
        Imbalance (max/mean over ranks), a number or an array; not changed.
    floor
        Noise floor of the same steps.
    """
    if not isinstance(floor, (NoiseFloor, TraceNoiseFloor)):
        raise EquipoiseError(f"floor is {brief(floor)}; expected what noise_floor returns.")
    row: Any = [observed]  # adds an axis, because as_loads takes no single number
    above: NDArray[np.float64] = as_loads(row)[0] - floor.mean
    return above


@lru_cache(maxsize=256)
def expected_maximum(num_ranks: int) -> tuple[float, float]:
    """Compute mean and standard deviation of the largest of ``R`` standard normal numbers."""
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

        # The density is 0 beyond 12 standard deviations; its peak lies between 0 and 5.
        return float(quad(integrand, -12, 12, points=[0, 2.5, 5], limit=200)[0])

    return moment(1), moment(2), moment(3), moment(4)


def _floors(
    num_tokens: NDArray[np.float64], num_experts: int, top_k: int, num_ranks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation for each number of tokens, by formula or simulation."""
    num_experts = max(num_experts, num_ranks)  # as if every rank had an expert
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
    """Compute the floor as the largest of ``R`` normals with the variance and skew of rank loads.

    The number of a token's choices on one rank is hypergeometric. The rank loads add up to a
    constant, so they are modelled as ``R`` independent numbers minus their mean. This raises the
    variance by ``R / (R - 1)`` before the subtraction, and lowers that of the maximum by ``1 / R``.
    Skewness enters to first order (Cornish and Fisher, 1938): a normal ``z`` becomes
    ``z + skew / 6 (z^2 - 1)``.
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
    """Simulate mean and standard deviation for 1, 2, ... tokens, up to ``FORMULA_FROM``.

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
    """Draw ``K`` different experts for each token uniformly, ``(D, K)``."""
    keys = rng.random((num_tokens, num_experts), dtype=np.float32)
    return np.argpartition(keys, top_k - 1, axis=1)[:, :top_k]


def _blocks(num_tokens: int) -> list[int]:
    """Divide tokens into blocks whose random keys fit in memory; return their sizes."""
    full, rest = divmod(num_tokens, _BLOCK_TOKENS)
    return [_BLOCK_TOKENS] * full + [rest] * (rest > 0)


def _contiguous_rank(
    rng: np.random.Generator, expert: NDArray[np.int64], num_experts: int, num_ranks: int
) -> NDArray[np.int64]:
    """Find the rank of each choice; an expert that two ranks share goes to either by chance."""
    if num_experts % num_ranks == 0:
        return expert // (num_experts // num_ranks)
    position = (expert + rng.random(expert.shape)) * (num_ranks / num_experts)
    return np.minimum(position.astype(np.int64), num_ranks - 1)


def _placed_shares(placement: Placement, num_experts: int) -> NDArray[np.float64]:
    """Compute each rank's share of each expert, ``(L, R, E)``: equal over the expert's copies."""
    if check_type("placement", placement, Placement).num_experts != num_experts:
        raise EquipoiseError(
            f"The placement is for {placement.num_experts} experts; the router has {num_experts}."
        )
    return placement.copies_on_rank / placement.copies[:, None, :]


def _checked_router(
    num_tokens: int, num_experts: int, top_k: int, num_ranks: int
) -> tuple[int, int, int, int]:
    """Check the numbers and return them as Python ints, which do not overflow."""
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

"""The scenarios that ``Robust`` plans for, made from recorded windows and adjusted for risk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import brief, check_number
from equipoise.errors import EquipoiseError
from equipoise.plan.problem import Problem

Floats = NDArray[np.float64]

MAX_WINDOWS = 64
"""Largest number of windows in a search; longer histories are summed within traffic groups."""

_HELD_SHARE = 0.2  # held-out share of each traffic group's windows, the latest
MIX_SHARE = 0.2
"""Weight of the mix of all traffic groups; the single traffic groups have the rest."""

_MOST_WEIGHT = 1e100  # largest weight of a traffic group, so that sums are finite

_DRAWS, _NOISE = 4, 0.7  # scenarios drawn from a window; standard deviations of noise added
_LEAST_DRAWN = 32  # least number of scenarios drawn from all windows together

DEVIATION = 0.3
"""Assumed variance of an expert's load between windows over its load, for a single window.

Both are in mean loads of an expert. Seven domains of GLM-5.2 have 0.01 to 0.68, 0.2 on average.
"""

MOST_DEVIATION = 1e6
"""Largest accepted deviation; at this value any expert may already have all the load."""


@dataclass(frozen=True)
class History:
    """The windows of one or several traffic groups, in units of the mean rank's load.

    In this file, ``group`` means traffic group.

    Parameters
    ----------
    load
        Loads ``(T, L, E)``. The unit is the mean rank load of the same window, so that all windows
        weigh the same; if ``sized``, it is that of the mean window, so that sizes are kept.
    volume
        Load of the mean rank as recorded, ``(T, L)``, over ``2 ** exponent``.
    group
        Traffic group of each window, 0 to ``G - 1``, ``(T,)``; in time order within each.
    group_weight
        Weight of each traffic group, ``(G,)``; they add up to 1.
    num_ranks
        Number of ranks, ``R``.
    exponent
        Exponent of the unit of volume.
    sized
        Flag that each window is a step whose size matters, as it does for times.
    deviation
        Variance of an expert's load between windows over its load, both in mean loads of an
        expert; used if no traffic group has two windows to estimate it from.
    """

    load: Floats
    volume: Floats
    group: NDArray[np.int64]
    group_weight: Floats
    num_ranks: int
    exponent: int
    sized: bool = False
    deviation: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether a single window is taken to be exactly what will come."""
        return len(self.load) == 1 and not self.deviation

    @property
    def mean_volume(self) -> Floats:
        """Assignments of the mean rank in a window with load, ``(L,)``; 0 if there is none."""
        num = np.maximum((self.volume > 0).sum(axis=0), 1)
        mean: Floats = np.ldexp(self.volume.sum(axis=0) / num, self.exponent)
        return mean

    @property
    def mix(self) -> Floats:
        """Loads of all windows together, as recorded, ``(L, E)``, in the unit of ``load``."""
        size = 1.0 if self.sized else self.volume[:, :, None]
        return _per_mean_rank((self.load * size).sum(axis=0), self.num_ranks)

    @property
    def window_weight(self) -> Floats:
        """Weight of each window, ``(T,)``: an equal share of its traffic group's weight."""
        windows = np.bincount(self.group, minlength=len(self.group_weight))
        share = (self.group_weight / np.maximum(windows, 1))[self.group]
        weight: Floats = share / share.sum()
        return weight

    def group_means(self, values: Floats) -> Floats:
        """Average ``(T, L)`` over the windows of each traffic group, ``(G, L)``; 0 without any."""
        windows = np.bincount(self.group, minlength=len(self.group_weight))
        sums = np.zeros((len(self.group_weight), values.shape[1]))
        np.add.at(sums, self.group, values)
        means: Floats = sums / np.maximum(windows, 1)[:, None]
        return means

    def held_out(self) -> tuple[History, History] | None:
        """Split traffic groups with two or more windows into earlier and latest windows, if any."""
        late = np.zeros(len(self.group), dtype=bool)
        for g in range(len(self.group_weight)):
            index = np.flatnonzero(self.group == g)
            if len(index) > 1:
                late[index[-max(1, round(_HELD_SHARE * len(index))) :]] = True
        if not late.any():
            return None
        return self._take(~late), self._take(late)

    def _take(self, keep: NDArray[np.bool_]) -> History:
        return replace(self, load=self.load[keep], volume=self.volume[keep], group=self.group[keep])

    def of_layers(self, rows: NDArray[np.int64]) -> History:
        """Return the same windows for some layers, chosen by row."""
        return replace(self, load=self.load[:, rows], volume=self.volume[:, rows])


@dataclass(frozen=True)
class Scenarios:
    """The loads that the search balances, by layer, in units of the mean rank's load.

    Parameters
    ----------
    load
        Loads ``(L, E, T)``, contiguous.
    risk
        Price of variance, ``(L, E, T)``; times the square of its share it adds to a slot's load.
    weight
        Weight of each scenario, ``(L, T)``; 0 where the layer has no load.
    """

    load: Floats
    risk: Floats
    weight: Floats


def read_history(
    problem: Problem,
    traffic_weights: Mapping[str, float] | None,
    *,
    sized: bool = False,
    deviation: float = DEVIATION,
) -> History:
    """Read the windows of a problem by traffic group.

    Each window is normalised, so that a long one does not weigh more. If times matter (``sized``),
    each window is a step and keeps its size.  If there are too many windows, neighbours are summed.
    Steps are not summed, because a sum has more active experts than any step; instead some steps
    are taken at equal distances.

    Raises
    ------
    EquipoiseError
        Weights for traffic groups that the problem does not have, or that are negative or all zero.
    """
    names, group = _groups(problem)
    weight = _weights(names, traffic_weights)
    exponent = _exponent(problem.load)
    shorten = _take_some if sized else _merge_long
    raw, group = shorten(np.ldexp(problem.load, -exponent), group)
    num_ranks = problem.topology.num_ranks
    volume = raw.sum(axis=-1) / num_ranks
    unit = volume
    if sized:
        num_loaded = np.maximum((volume > 0).sum(axis=0), 1)
        unit = np.broadcast_to(volume.sum(axis=0) / num_loaded, volume.shape)
    load = np.divide(raw, unit[:, :, None], out=np.zeros_like(raw), where=unit[:, :, None] > 0)
    return History(
        load=load if sized else _per_mean_rank(raw, num_ranks),
        volume=volume,
        group=group,
        group_weight=weight,
        num_ranks=num_ranks,
        exponent=exponent,
        sized=sized,
        deviation=deviation,
    )


def single_scenario(history: History, _chance: np.random.Generator) -> Scenarios:
    """Make one scenario: the mix of all windows, without a price on variance."""
    return _by_layer(history.mix[None], np.zeros((1, *history.mix.shape)), np.ones(1))


def group_scenarios(history: History, _chance: np.random.Generator) -> Scenarios:
    """Make one scenario per traffic group: its mean window, with a price on variance.

    Correlations between experts are ignored, because few windows do not show them.
    """
    mean, variance = _moments(history)
    risk = variance * _price(variance, history.num_ranks)
    return _with_mix(mean, risk, history.group_weight, history)


def window_scenarios(history: History, _chance: np.random.Generator) -> Scenarios:
    """Make one scenario per window, at half the price of variance: it contains its deviation."""
    _, variance = _moments(history)
    risk = 0.5 * variance * _price(variance, history.num_ranks)
    return _with_mix(history.load, risk[history.group], history.window_weight, history)


def enough_draws(history: History, draws: int) -> int:
    """Return the number of draws from each window: ``draws``, or more if there are few windows."""
    return 1 if history.is_exact else max(draws, -(-_LEAST_DRAWN // len(history.load)))


def noisy_scenarios(history: History, chance: np.random.Generator) -> Scenarios:
    """Make several scenarios per window, with noise added to each expert, and no price on variance.

    They are for a dispatcher that follows the load. It evens most deviations out, so the cost of a
    deviation shows only after dispatching.
    """
    noisy = with_noise(history, chance, enough_draws(history, _DRAWS))
    return _with_mix(noisy.load, np.zeros_like(noisy.load), noisy.window_weight, history)


def with_noise(history: History, chance: np.random.Generator, draws: int) -> History:
    """Repeat every window ``draws`` times, with noise as experts deviate in its traffic group."""
    load = np.tile(history.load, (draws, 1, 1))
    volume, group = np.tile(history.volume, (draws, 1)), np.tile(history.group, draws)
    deviation = np.sqrt(_moments(history)[1])[group]
    noisy = np.maximum(load + _NOISE * deviation * chance.standard_normal(load.shape), 0)
    if history.sized:
        noisy[load == 0] = 0  # idle experts stay idle
        size = load.sum(axis=-1, keepdims=True) / history.num_ranks
        noisy = _per_mean_rank(noisy, history.num_ranks) * size
    else:
        noisy = _per_mean_rank(noisy, history.num_ranks)
    return replace(history, load=noisy, volume=volume, group=group)


def _groups(problem: Problem) -> tuple[list[str], NDArray[np.int64]]:
    if problem.traffic_groups is None:
        return [""], np.zeros(len(problem.load), dtype=np.int64)
    names, group = np.unique(problem.traffic_groups, return_inverse=True)
    return names.tolist(), group.astype(np.int64)


def _weights(names: list[str], given: Mapping[str, float] | None) -> Floats:
    if given is None:
        return np.full(len(names), 1 / len(names))
    if not isinstance(given, Mapping):
        raise EquipoiseError(
            f"traffic_weights is {brief(given)}; expected a number for each traffic "
            "group, by its name."
        )
    unknown = [name for name in given if name not in names]
    if unknown:
        have = ", ".join(names) if names != [""] else "no traffic group"
        raise EquipoiseError(
            f"There is a weight for traffic group {brief(unknown[0])}; the load has {have}."
        )
    weight = np.array(
        [
            check_number(
                f"The weight of traffic group {name!r}",
                given.get(name, 1.0),
                low=0,
                high=_MOST_WEIGHT,
            )
            for name in names
        ]
    )
    if not weight.any():
        raise EquipoiseError("The weight of every traffic group is 0; expected one above 0.")
    normalised: Floats = weight / weight.sum()
    return normalised


def _exponent(load: Floats) -> int:
    """Return the power of two above the largest load; scaling by it is exact."""
    return int(np.frexp(load.max())[1])


def _take_some(load: Floats, group: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Take up to ``MAX_WINDOWS`` windows at equal distances, the same number per traffic group."""
    G = int(group.max()) + 1
    limit = max(MAX_WINDOWS // G, 2)
    kept = []
    for g in range(G):
        members = np.flatnonzero(group == g)
        kept.append(members[np.linspace(0, len(members) - 1, min(limit, len(members))).astype(int)])
    index = np.concatenate(kept)
    return load[index], group[index]


def _merge_long(load: Floats, group: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Sum neighbouring windows of a traffic group until at most ``MAX_WINDOWS`` are left."""
    G = int(group.max()) + 1
    limit = max(MAX_WINDOWS // G, 2)
    loads, groups = [], []
    for g in range(G):
        members = load[group == g]
        parts = np.array_split(members, min(limit, len(members)))
        loads += [part.sum(axis=0) for part in parts]
        groups += [g] * len(parts)
    return np.stack(loads), np.array(groups, dtype=np.int64)


def _per_mean_rank(load: Floats, num_ranks: int) -> Floats:
    total = load.sum(axis=-1, keepdims=True)
    scaled: Floats = np.divide(load * num_ranks, total, out=np.zeros_like(load), where=total > 0)
    return scaled


def _moments(history: History) -> tuple[Floats, Floats]:
    """Compute the mean window of each traffic group and its expected variance, ``(G, L, E)``.

    A traffic group with a single window shows no variance.  Its variance is assumed proportional to
    the load, as for counts, at the rate of the traffic groups with several windows.
    """
    G = len(history.group_weight)
    mean = np.zeros((G, *history.load.shape[1:]))
    variance = np.zeros_like(mean)
    windows = np.bincount(history.group, minlength=G)
    for g in np.flatnonzero(windows):
        members = history.load[history.group == g]
        mean[g] = members.mean(axis=0)
        if windows[g] > 1:
            variance[g] = members.var(axis=0, ddof=1)
    counted = mean * mean.mean(axis=-1, keepdims=True)  # variance at a rate of 1
    known = counted[windows > 1].sum()
    rate = variance.sum() / known if known > 0 else history.deviation
    variance[windows == 1] = rate * counted[windows == 1]
    return mean, variance * (1 + 1 / np.maximum(windows, 1))[:, None, None]


def _price(variance: Floats, num_ranks: int) -> Floats:
    """Compute the price of a unit of variance on a rank, ``(G, L, 1)``.

    The largest of ``R`` ranks with standard deviation ``s`` is about ``z s`` above the mean, with
    ``z = sqrt(2 ln R)``. The derivative by the variance is ``z / 2s``.  Half of that is charged,
    because busy and idle ranks contribute equally to ``s``.
    """
    deviation = np.sqrt(variance.sum(axis=-1, keepdims=True) / num_ranks)
    z = np.sqrt(2 * np.log(num_ranks))
    price: Floats = np.divide(z / 4, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return price


def _with_mix(load: Floats, risk: Floats, weight: Floats, history: History) -> Scenarios:
    """Add the mix of all traffic groups to the scenarios, because batches may mix them."""
    mix = history.mix[None]
    return _by_layer(
        np.concatenate([load, mix]),
        np.concatenate([risk, np.zeros_like(mix)]),
        np.append((1 - MIX_SHARE) * weight, MIX_SHARE),
    )


def _by_layer(load_TLE: Floats, risk_TLE: Floats, weight: Floats) -> Scenarios:
    load = np.ascontiguousarray(load_TLE.transpose(1, 2, 0))
    risk = np.ascontiguousarray(risk_TLE.transpose(1, 2, 0))
    present = load.sum(axis=1) > 0
    return Scenarios(load, risk, present * weight)

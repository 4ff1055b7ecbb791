"""From recorded windows to the few risk-adjusted scenarios that ``Robust`` plans against."""

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
"""Windows a search looks at; of longer histories neighbours within a traffic group are summed."""

_HELD_SHARE = 0.2  # of each traffic group's windows, the latest
MIX_SHARE = 0.2
"""Weight of the mix of all traffic groups, next to the traffic groups one by one."""

_MOST_WEIGHT = 1e100  # of a traffic group: their sum is a number too

_DRAWS, _NOISE = 4, 0.7  # scenarios drawn from a window, standard deviations of chance added
_LEAST_DRAWN = 32  # scenarios drawn from all windows together

DEVIATION = 0.3
"""Variance of an expert's load between windows, over its load, that is assumed of a single window.

Both in mean loads of an expert. Seven domains of GLM-5.2 have 0.01 to 0.68, 0.2 on average.
"""

MOST_DEVIATION = 1e6
"""More says nothing more: any expert may have all the load."""


@dataclass(frozen=True)
class History:
    """Windows of one or several traffic groups, in units of the mean rank's load.

    A ``group`` is a traffic group here, and in the names of this file.

    Parameters
    ----------
    load
        Loads ``(T, L, E)``; a layer without load in a window is zero there. In units of the
        window's own mean rank's load, so that all windows count the same; if ``sized``, of that of
        the mean window with load, so that each counts as it is.
    volume
        Load of the mean rank as recorded, ``(T, L)``, over ``2 ** exponent``.
    group
        Traffic group of each window, 0 to ``G - 1``, ``(T,)``; in time order within one.
    group_weight
        Weight of each traffic group, ``(G,)``, 1 in sum.
    num_ranks
        ``R``.
    exponent
        Exponent of the unit of volume.
    sized
        Whether each window is a step of its own size: where time counts, sizes do.
    deviation
        Variance of an expert's load between windows over its load, both in mean loads of an
        expert, where no traffic group has two windows to tell it.
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
        """Whether a single window is all there is and taken for what will come."""
        return len(self.load) == 1 and not self.deviation

    @property
    def mean_volume(self) -> Floats:
        """Assignments of a window with load on the mean rank, ``(L,)``; 0 without any."""
        num = np.maximum((self.volume > 0).sum(axis=0), 1)
        mean: Floats = np.ldexp(self.volume.sum(axis=0) / num, self.exponent)
        return mean

    @property
    def mix(self) -> Floats:
        """All windows' loads together, as recorded, ``(L, E)``; same unit as ``load``."""
        size = 1.0 if self.sized else self.volume[:, :, None]
        return _per_mean_rank((self.load * size).sum(axis=0), self.num_ranks)

    @property
    def window_weight(self) -> Floats:
        """The weight of a traffic group, shared by its windows, ``(T,)``, 1 in sum."""
        windows = np.bincount(self.group, minlength=len(self.group_weight))
        share = (self.group_weight / np.maximum(windows, 1))[self.group]
        weight: Floats = share / share.sum()
        return weight

    def group_means(self, values: Floats) -> Floats:
        """Mean over each traffic group's windows, ``(G, L)`` of ``(T, L)``; 0 without any."""
        windows = np.bincount(self.group, minlength=len(self.group_weight))
        sums = np.zeros((len(self.group_weight), values.shape[1]))
        np.add.at(sums, self.group, values)
        means: Floats = sums / np.maximum(windows, 1)[:, None]
        return means

    def held_out(self) -> tuple[History, History] | None:
        """Earlier and latest windows of every traffic group that has two; ``None`` if none has."""
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
        """The same windows of some layers."""
        return replace(self, load=self.load[:, rows], volume=self.volume[:, rows])


@dataclass(frozen=True)
class Scenarios:
    """What the search balances, per layer; units of the mean rank's load.

    Parameters
    ----------
    load
        Loads ``(L, E, T)``, contiguous.
    risk
        Price of variance, ``(L, E, T)``: added to a slot's load, times the square of its share.
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
    """The windows of a problem, by traffic group.

    Normalised one by one, so that a long window counts no more; or, where time counts, each a step
    of its own ``sized``.  Of more windows than a search looks at neighbours are summed; steps are
    not, since a sum has more active experts than any of them: some are taken, at equal distances.

    Raises
    ------
    EquipoiseError
        Weights for traffic groups the problem does not have, negative ones or all zero.
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
    """The mix as it is, without a price on variance."""
    return _by_layer(history.mix[None], np.zeros((1, *history.mix.shape)), np.ones(1))


def group_scenarios(history: History, _chance: np.random.Generator) -> Scenarios:
    """One scenario a traffic group, its mean window; variance has its price.

    Which experts of a traffic group deviate together is forgotten: few windows do not tell.
    """
    mean, variance = _moments(history)
    risk = variance * _price(variance, history.num_ranks)
    return _with_mix(mean, risk, history.group_weight, history)


def window_scenarios(history: History, _chance: np.random.Generator) -> Scenarios:
    """One scenario a window, at half the price: its own deviation is in it already."""
    _, variance = _moments(history)
    risk = 0.5 * variance * _price(variance, history.num_ranks)
    return _with_mix(history.load, risk[history.group], history.window_weight, history)


def enough_draws(history: History, draws: int) -> int:
    """How often to draw from each window, ``draws`` or more where the windows are few."""
    return 1 if history.is_exact else max(draws, -(-_LEAST_DRAWN // len(history.load)))


def noisy_scenarios(history: History, chance: np.random.Generator) -> Scenarios:
    """Several scenarios a window, with chance added expert by expert; no price.

    For a dispatcher that follows the load: it evens most deviations out, so what a deviation costs
    shows only once it is dispatched.
    """
    noisy = with_noise(history, chance, enough_draws(history, _DRAWS))
    return _with_mix(noisy.load, np.zeros_like(noisy.load), noisy.window_weight, history)


def with_noise(history: History, chance: np.random.Generator, draws: int) -> History:
    """Every window ``draws`` times, with chance added as experts deviate in its traffic group."""
    load = np.tile(history.load, (draws, 1, 1))
    volume, group = np.tile(history.volume, (draws, 1)), np.tile(history.group, draws)
    deviation = np.sqrt(_moments(history)[1])[group]
    noisy = np.maximum(load + _NOISE * deviation * chance.standard_normal(load.shape), 0)
    if history.sized:
        noisy[load == 0] = 0  # an expert that is idle stays so
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
    """The power of two above the largest load: scaling by it loses no bit and no range."""
    return int(np.frexp(load.max())[1])


def _take_some(load: Floats, group: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Up to ``MAX_WINDOWS`` windows, the same number of each traffic group, at equal distances."""
    G = int(group.max()) + 1
    limit = max(MAX_WINDOWS // G, 2)
    kept = []
    for g in range(G):
        members = np.flatnonzero(group == g)
        kept.append(members[np.linspace(0, len(members) - 1, min(limit, len(members))).astype(int)])
    index = np.concatenate(kept)
    return load[index], group[index]


def _merge_long(load: Floats, group: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Neighbouring windows of a traffic group summed until at most ``MAX_WINDOWS`` are left."""
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
    """Mean window of each traffic group, and the variance of another to expect, ``(G, L, E)``.

    A single window says nothing of variance.  It is taken to be proportional to the load, as that
    of counts is, by the rate of the traffic groups with several windows.
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
    """What a unit of variance on a rank costs, ``(G, L, 1)``.

    The largest of ``R`` ranks that deviate by ``s`` is some ``z s`` above the mean, with
    ``z = sqrt(2 ln R)``; its derivative by the variance is ``z / 2s``.  Half of that is charged, as
    deviations of busy and idle ranks weigh the same in ``s``.
    """
    deviation = np.sqrt(variance.sum(axis=-1, keepdims=True) / num_ranks)
    z = np.sqrt(2 * np.log(num_ranks))
    price: Floats = np.divide(z / 4, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return price


def _with_mix(load: Floats, risk: Floats, weight: Floats, history: History) -> Scenarios:
    """The scenarios, and what all traffic groups are together: batches may mix them."""
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

"""A machine's costs from runs of one's own: what a step takes, explained by what it routed.

Tables of kernel times exist for few machines. Whoever can serve can time steps instead, at several
batch sizes: ``step + token * tokens + sum over layers of the slowest rank's experts``, where a
rank's experts take ``sum over slots with load of max(expert, assignment * load)`` as in
``RankCost``. The constants are fitted to all steps together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_array, check_whole
from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError
from equipoise.simulate.expert_time import Layout
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]

FEWEST_RUNS = 3
_FEWEST_STEPS = 16  # of a run: its spread has to show
_LEAST_RANGE = 2.0  # of the batch sizes: else what a token takes cannot be told from what a step does
_KNEES = (0.0, *(2.0 ** np.arange(-1, 11)))  # assignments of an expert
_ROBUST_STEPS = 8  # of reweighting
_HUBER = 1.345  # standard deviations from which on a step counts less
_BLOCKS = 8  # of a run, resampled as wholes since the machine's speed drifts
_NUM_FITS = 64
_LEAST_SHARE = 1e-3  # of a step that experts take, else their cost cannot be told


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """Steps that were served and timed.

    Parameters
    ----------
    name
        What it is called in messages.
    trace
        What every step routed, one row a step.
    layout
        Where the copies were, and who shared batches over them.
    topology
        The ranks.
    step_seconds
        What every step took, ``(T,)``.
    """

    name: str
    trace: Trace
    layout: Layout
    topology: Topology
    step_seconds: ArrayLike
    seconds: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        seconds = np.asarray(as_array(self.step_seconds, "step_seconds"), dtype=np.float64)
        steps = self.trace.num_steps
        if seconds.shape != (steps,):
            raise EquipoiseError(
                f"{self.name} has {steps} steps and step times of shape {seconds.shape}; expected "
                "a time for each step."
            )
        if steps < _FEWEST_STEPS:
            raise EquipoiseError(
                f"{self.name} has {steps} steps; expected {_FEWEST_STEPS} or more, to tell what a "
                "step takes from chance."
            )
        if not (seconds > 0).all() or not np.isfinite(seconds).all():
            raise EquipoiseError(
                f"{self.name} has a step time that is not above 0 and finite; expected seconds."
            )
        object.__setattr__(self, "seconds", seconds)

    @property
    def step_assignments(self) -> Floats:
        """Assignments of every step in a layer, ``(T,)``."""
        return np.asarray(self.trace.counts.sum(axis=-1).mean(axis=-1), dtype=np.float64)

    def expert_loads(self, knee: float) -> Floats:
        """What the experts of every step take, ``(T,)``, in times of one assignment."""
        unit = RankCost(expert_seconds=knee, token_seconds=1.0)
        slots = self.layout.slot_loads(np.asarray(self.trace.counts, dtype=np.float64))
        ranks = unit.rank_seconds(slots, self.topology.num_ranks)
        speed = 1.0 if self.topology.speed is None else np.array(self.topology.speed)
        return np.asarray((ranks / speed).max(axis=-1).sum(axis=-1))


@dataclass(frozen=True, kw_only=True)
class OwnCost:
    """What steps take on one's own machine.

    Parameters
    ----------
    experts
        What a rank's share of a layer takes.
    step_seconds
        What every step takes besides, whatever it routes.
    assignment_seconds
        What each of its assignments in a layer takes besides, all ranks together.
    """

    experts: RankCost
    step_seconds: float
    assignment_seconds: float

    def other_seconds(self, step_assignments: ArrayLike) -> Floats:
        """What steps take besides the experts, from their assignments in a layer."""
        return self.step_seconds + self.assignment_seconds * np.asarray(step_assignments)

    def seconds(self, layout: Layout, topology: Topology, load_TLE: Floats) -> Floats:
        """What steps take, ``(T,)``."""
        slots = layout.slot_loads(load_TLE)
        ranks = self.experts.rank_seconds(slots, topology.num_ranks)
        speed = 1.0 if topology.speed is None else np.array(topology.speed)
        experts = (ranks / speed).max(axis=-1).sum(axis=-1)
        return np.asarray(experts + self.other_seconds(load_TLE.sum(axis=-1).mean(axis=-1)))


@dataclass(frozen=True, kw_only=True)
class OwnFit:
    """The costs, and others that fit the same runs about as well.

    Parameters
    ----------
    cost
        The best fit.
    draws
        Fits to the runs with blocks of their steps drawn again: how surely the cost is known.
    error
        Standard deviation of a run's mean step from the fit, relative.
    """

    cost: OwnCost
    draws: tuple[OwnCost, ...]
    error: float


def fit_runs(runs: Sequence[Run], *, num_draws: int = _NUM_FITS, seed: int = 0) -> OwnFit:
    """Fit a machine's costs to three timed runs or more, of different batch sizes.

    Steps that took far longer than others like them, as when the machine did something else, do
    not bend the slopes; they count in what every step takes.

    Raises
    ------
    EquipoiseError
        Too few runs, or batch sizes too close to each other to tell the terms apart.
    """
    _check_range(runs)
    check_whole("num_draws", num_draws, low=0, high=1 << 12)
    sizes = [run.step_assignments for run in runs]
    expert_loads = {knee: [run.expert_loads(knee) for run in runs] for knee in _KNEES}
    seconds = [run.seconds for run in runs]

    def fit(chosen: Sequence[NDArray[np.int64]]) -> tuple[OwnCost, bool]:
        def picked(columns: Sequence[Floats]) -> Floats:
            return np.concatenate([column[i] for column, i in zip(columns, chosen, strict=True)])

        size, time = picked(sizes), picked(seconds)
        tries = [(*_fit(size, picked(expert_loads[k]), time), k) for k in _KNEES]
        _, terms, knee = min(tries, key=lambda one: one[0])
        least = _LEAST_SHARE * float(time.mean() / picked(expert_loads[knee]).mean())
        return _cost(terms, knee, least), bool(terms[2] > least)

    best, is_told = fit([np.arange(len(one)) for one in seconds])
    if not is_told:
        raise EquipoiseError(
            "Steps of these runs take no longer when a rank has more to compute, so its cost "
            "cannot be told; time runs with larger batches, or without other work on the machine."
        )
    rng = np.random.default_rng(seed)
    drawn = [[_drawn_again(len(one), rng) for one in seconds] for _ in range(num_draws)]
    draws = tuple(fit(chosen)[0] for chosen in drawn)
    return OwnFit(cost=best, draws=draws, error=_error(best, runs))


def _cost(terms: Floats, knee: float, least: float) -> OwnCost:
    step, assignment, expert = terms.tolist()
    expert = max(expert, least)
    cost = RankCost(
        expert_seconds=knee * expert, token_seconds=expert, source="timed runs of one's own"
    )
    return OwnCost(experts=cost, step_seconds=step, assignment_seconds=assignment)


def _fit(size: Floats, expert_load: Floats, seconds: Floats) -> tuple[float, Floats]:
    """Robust non-negative least squares of relative errors: its loss, and the three terms."""
    from scipy.optimize import nnls

    columns = np.stack([np.ones_like(size), size, expert_load], axis=1) / seconds[:, None]
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    weight = np.ones_like(seconds)
    for _ in range(_ROBUST_STEPS):
        root = np.sqrt(weight)
        terms = nnls(columns / scale * root[:, None], root)[0] / scale
        apart = np.abs(columns @ terms - 1)
        spread = max(1.4826 * float(np.median(apart)), 1e-9)
        weight = np.minimum(1.0, _HUBER * spread / np.maximum(apart, 1e-12))
    loss = float(np.minimum(apart**2, 2 * _HUBER * spread * apart).sum())
    by_size = terms[1] * size + terms[2] * expert_load
    terms[0] = max(0.0, float((seconds - by_size).mean()))  # the rare long steps are steps too
    return loss, terms


def _drawn_again(num_steps: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Steps of a run, in blocks drawn with replacement."""
    length = max(1, num_steps // _BLOCKS)
    starts = rng.integers(num_steps, size=-(-num_steps // length))
    return np.asarray((starts[:, None] + np.arange(length)).reshape(-1)[:num_steps] % num_steps)


def _error(cost: OwnCost, runs: Sequence[Run]) -> float:
    ratios = [
        run.seconds.mean()
        / cost.seconds(run.layout, run.topology, np.asarray(run.trace.counts, np.float64)).mean()
        for run in runs
    ]
    return float(np.sqrt(np.mean(np.square(np.log(ratios)))))


def _check_range(runs: Sequence[Run]) -> None:
    if len(runs) < FEWEST_RUNS:
        raise EquipoiseError(
            f"There {'is' if len(runs) == 1 else 'are'} {len(runs)} timed "
            f"run{'s' * (len(runs) != 1)}; expected {FEWEST_RUNS} or more, of different batch sizes."
        )
    means = [float(run.step_assignments.mean()) for run in runs]
    if max(means) < _LEAST_RANGE * min(means):
        raise EquipoiseError(
            f"The runs have {min(means):.0f} to {max(means):.0f} assignments a step in a layer; "
            f"expected the largest to have {_LEAST_RANGE:g} times the smallest or more, to tell "
            "what a token takes from what every step takes."
        )

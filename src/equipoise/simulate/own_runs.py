"""The costs of a machine from timed runs on it: the time of a step, explained by its routing.

Tables of kernel times exist for few machines. Anybody who can serve can time steps instead, at
several batch sizes. A step takes
``step + token * tokens + sum over layers of the slowest rank's experts``. A rank's experts take
``sum over slots with load of max(expert, assignment * load)``, as in ``RankCost``, and vary by
chance from rank to rank. The constants are fitted to all steps together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import (
    as_array,
    brief,
    check_fields,
    check_keys,
    check_number,
    check_type,
    check_whole,
)
from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError, FormatError
from equipoise.json_text import head_keys, read_json
from equipoise.simulate.expert_time import Layout, speeds
from equipoise.simulate.jitter import expected_slowest
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]

FEWEST_RUNS = 3
_FEWEST_STEPS = 16  # least number of steps of a run, so that its spread shows
_LEAST_RANGE = 2.0  # largest batch over smallest; tells the time of a token from that of a step
_KNEES = (0.0, *(2.0 ** np.arange(-1, 11)))  # knees that are tried, in assignments of an expert
_JITTERS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)  # jitters that are tried
_ROBUST_STEPS = 8  # rounds of reweighting
_HUBER = 1.345  # larger deviations, in standard deviations, count less
_BLOCKS = 8  # blocks of a run that are resampled whole, because the machine's speed drifts
_NUM_FITS = 64
_MOST_DRAWS = 1 << 12
_MAX_BYTES = 4 << 20
_KIND = "timed_runs"
_LEAST_SHARE = 1e-3  # least share of a step that experts must take for their cost to be known


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """Steps that were served and timed.

    Parameters
    ----------
    name
        Name of the run in messages.
    trace
        Recording of the run, one row for each step.
    layout
        Places of the copies, and the dispatcher that shared batches over them.
    topology
        The ranks.
    step_seconds
        Seconds of every step, ``(T,)``.
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

    @cached_property
    def slot_load(self) -> Floats:
        """Assignments of every slot, ``(T, L, S)``."""
        return self.layout.slot_loads(np.asarray(self.trace.counts, dtype=np.float64))


@dataclass(frozen=True, kw_only=True)
class OwnCost:
    """Cost of steps on the machine that was timed.

    Parameters
    ----------
    experts
        Cost of a rank's share of a layer.
    step_seconds
        Seconds of every step that do not depend on its routing.
    assignment_seconds
        Seconds per assignment of a layer, all ranks together, in addition to the experts' time.
    jitter
        Standard deviation of a rank's time for its share of a layer, relative to its mean: how much
        ranks differ by chance, independently of each other. See ``expected_slowest``.
    """

    experts: RankCost
    step_seconds: float
    assignment_seconds: float
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_type("experts", self.experts, RankCost)
        check_number("step_seconds", self.step_seconds, low=0, high=1e6)
        check_number("assignment_seconds", self.assignment_seconds, low=0, high=1e6)
        check_number("jitter", self.jitter, low=0, high=1)

    def slower(self, factor: float) -> OwnCost:
        """Return the cost with every time multiplied by a factor."""
        e = self.experts
        return replace(
            self,
            experts=replace(
                e,
                fixed_seconds=e.fixed_seconds * factor,
                expert_seconds=e.expert_seconds * factor,
                token_seconds=e.token_seconds * factor,
            ),
            step_seconds=self.step_seconds * factor,
            assignment_seconds=self.assignment_seconds * factor,
        )

    def seconds(self, slot_load: Floats, topology: Topology) -> Floats:
        """Return the seconds of steps, ``(T,)``, from the load of each slot, ``(T, L, S)``."""
        assignments = slot_load.sum(axis=-1).mean(axis=-1)
        others = self.step_seconds + self.assignment_seconds * assignments
        experts = _experts_seconds(self.experts, self.jitter, slot_load, topology)
        return np.asarray(others + experts)


def _experts_seconds(
    cost: RankCost, jitter: float, slot_load: Floats, topology: Topology
) -> Floats:
    """Return the seconds of the slowest rank's experts, summed over layers, ``(T,)``."""
    ranks = cost.rank_seconds(slot_load, topology.num_ranks) / speeds(topology)
    return np.asarray(expected_slowest(ranks, jitter).sum(axis=-1))


@dataclass(frozen=True, kw_only=True)
class OwnMachine:
    """A machine measured by timed runs: a ``ComputeModel`` of whole steps.

    Parameters
    ----------
    name
        Name of the machine in results.
    cost
        Best fit.
    likely
        Fits to the runs with blocks of their steps drawn again, which show how certain the cost is.
    error
        Standard deviation of a run's mean step from the fit, relative.
    """

    name: str
    cost: OwnCost
    likely: tuple[OwnCost, ...]
    error: float

    def __post_init__(self) -> None:
        check_type("name", self.name, str)
        check_type("cost", self.cost, OwnCost)
        for one in self.likely:
            check_type("likely", one, OwnCost)
        check_number("error", self.error, low=0, high=10)

    @property
    def planning_cost(self) -> RankCost:
        """The cost that planners and dispatchers use."""
        return self.cost.experts

    @property
    def counts(self) -> str:
        """The part of a step that it counts, in words: all, since whole steps were timed."""
        return "counting whole steps"

    def rank_seconds(self, slot_load: Floats, num_ranks: int) -> Floats:
        """Return the experts' time of each rank at speed 1, ``(..., R)``."""
        return self.cost.experts.rank_seconds(slot_load, num_ranks)

    def step_seconds(self, slot_load: Floats, topology: Topology) -> Floats:
        """Return the seconds of steps, ``(T,)``, from the load of each slot, ``(T, L, S)``."""
        return self.cost.seconds(slot_load, topology)

    def parts(self, slot_load: Floats, topology: Topology) -> None:
        """Return nothing: the parts of a step were not timed."""
        del slot_load, topology

    def draws(self, number: int, seed: int) -> Sequence[OwnMachine]:
        """Draw machines that may be the true one: a likely cost, and all times scaled together."""
        if not self.likely:
            return ()
        rng = np.random.default_rng(seed)
        chosen = rng.integers(len(self.likely), size=number)
        factors = np.exp(self.error * rng.standard_normal(number))
        return tuple(
            OwnMachine(name=self.name, cost=self.likely[i].slower(f), likely=(), error=0.0)
            for i, f in zip(chosen.tolist(), factors.tolist(), strict=True)
        )

    def to_json(self) -> str:
        """Write the document that ``read_own_machine`` reads."""
        return json.dumps({_KIND: asdict(self)}, indent=1) + "\n"


def is_own_machine(path: Path) -> bool:
    """Tell whether a file states that it is such a machine."""
    return path.is_file() and _KIND in head_keys(path)


def read_own_machine(path: Path) -> OwnMachine:
    """Read a machine that ``equipoise calibrate`` wrote.

    Raises
    ------
    FormatError
        A damaged file, or one of another kind.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise FormatError(f"{path}: has more than {_MAX_BYTES:,} bytes; expected timed costs.")
    document = read_json(path)
    try:
        root = check_keys("the document", document, [_KIND])
        body = check_fields(_KIND, root[_KIND], OwnMachine)
        if not isinstance(body["likely"], list) or len(body["likely"]) > _MOST_DRAWS:
            raise EquipoiseError(f"likely is {brief(body['likely'])}; expected a list of costs.")
        return OwnMachine(
            name=body["name"],
            cost=_read_cost(body["cost"]),
            likely=tuple(map(_read_cost, body["likely"])),
            error=body["error"],
        )
    except EquipoiseError as error:
        raise FormatError(f"{path}: {error}") from error


def _read_cost(entry: Any) -> OwnCost:
    body = check_fields("a cost", entry, OwnCost)
    experts = check_fields("experts", body["experts"], RankCost)
    return OwnCost(**{**body, "experts": RankCost(**experts)})


def fit_runs(
    runs: Sequence[Run], *, name: str = "timed runs", num_draws: int = _NUM_FITS, seed: int = 0
) -> OwnMachine:
    """Fit a machine's costs to timed runs, at least three, of different batch sizes.

    Steps that took far longer than similar ones, for instance because the machine did something
    else, do not change the slopes. They count in the time that every step takes.

    Raises
    ------
    EquipoiseError
        Too few runs, or batch sizes too close to each other to tell the terms apart.
    """
    _check_range(runs)
    check_whole("num_draws", num_draws, low=0, high=_MOST_DRAWS)
    steps = _Steps(runs)
    rng = np.random.default_rng(seed)
    drawn = [steps.fit(steps.drawn_again(rng)) for _ in range(num_draws)]
    # One set of steps hardly tells how much ranks vary; the middle of many does.
    middle = sorted(one.jitter for one in drawn)[len(drawn) // 2 : len(drawn) // 2 + 1]
    best = steps.fit(steps.all, middle or _JITTERS)
    if best.experts.token_seconds <= steps.least_seconds:
        raise EquipoiseError(
            "Steps of these runs take no longer when a rank has more to compute, so its cost "
            "cannot be told; time runs with larger batches, or without other work on the machine."
        )
    return OwnMachine(name=name, cost=best, likely=tuple(drawn), error=_error(best, runs))


class _Steps:
    """The steps of all runs, as columns for the terms of a step's time."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._columns: dict[tuple[float, float], Floats] = {}
        self._size = np.concatenate([run.step_assignments for run in runs])
        self._seconds = np.concatenate([run.seconds for run in runs])
        self.least_seconds = _LEAST_SHARE * float(
            self._seconds.mean() / self._expert_load(0.0, 0.0).mean()
        )

    @property
    def all(self) -> NDArray[np.int64]:
        """Return every step once."""
        return np.arange(len(self._seconds))

    def drawn_again(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw blocks of steps of every run with replacement."""
        first, parts = 0, []
        for run in self._runs:
            number = len(run.seconds)
            parts.append(first + _drawn_again(number, rng))
            first += number
        return np.concatenate(parts)

    def fit(self, steps: NDArray[np.int64], jitters: Sequence[float] = _JITTERS) -> OwnCost:
        """Fit the cost: first the knee, then how much ranks vary."""
        size, seconds = self._size[steps], self._seconds[steps]

        def tried(knee: float, jitter: float) -> tuple[float, Floats]:
            return _fit(size, self._expert_load(knee, jitter)[steps], seconds)

        knee = min(_KNEES, key=lambda one: tried(one, jitters[0])[0])
        jitter = min(jitters, key=lambda one: tried(knee, one)[0])
        step, assignment, expert = tried(knee, jitter)[1].tolist()
        expert = max(expert, self.least_seconds)
        return OwnCost(
            experts=RankCost(
                expert_seconds=knee * expert,
                token_seconds=expert,
                source="timed runs of one's own",
            ),
            step_seconds=step,
            assignment_seconds=assignment,
            jitter=jitter,
        )

    def _expert_load(self, knee: float, jitter: float) -> Floats:
        """Return the experts' time of every step, ``(T,)``, in times of one assignment."""
        if (knee, jitter) not in self._columns:
            unit = RankCost(expert_seconds=knee, token_seconds=1.0)
            self._columns[knee, jitter] = np.concatenate([
                _experts_seconds(unit, jitter, run.slot_load, run.topology) for run in self._runs
            ])  # fmt: skip
        return self._columns[knee, jitter]


def _fit(size: Floats, expert_load: Floats, seconds: Floats) -> tuple[float, Floats]:
    """Fit relative errors by robust non-negative least squares; return loss and three terms."""
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
    """Draw blocks of a run's steps with replacement."""
    length = max(1, num_steps // _BLOCKS)
    starts = rng.integers(num_steps, size=-(-num_steps // length))
    return np.asarray((starts[:, None] + np.arange(length)).reshape(-1)[:num_steps] % num_steps)


def _error(cost: OwnCost, runs: Sequence[Run]) -> float:
    ratios = [run.seconds.mean() / cost.seconds(run.slot_load, run.topology).mean() for run in runs]
    return float(np.sqrt(np.mean(np.square(np.log(ratios)))))


def _check_range(runs: Sequence[Run]) -> None:
    if len(runs) < FEWEST_RUNS:
        raise EquipoiseError(
            f"{len(runs)} timed run{'s' * (len(runs) != 1)} cannot tell what a step, a token and "
            f"an expert take; expected {FEWEST_RUNS} or more, of different batch sizes."
        )
    means = [float(run.step_assignments.mean()) for run in runs]
    if max(means) < _LEAST_RANGE * min(means):
        raise EquipoiseError(
            f"The runs have {min(means):.0f} to {max(means):.0f} assignments a step in a layer; "
            f"expected the largest to have {_LEAST_RANGE:g} times the smallest or more, to tell "
            "what a token takes from what every step takes."
        )

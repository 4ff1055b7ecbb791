"""Tuning: the settings of balancing are replayed on steps that no plan has seen.

    study = Study(fit=fit, held=held, conditions=conditions)
    with ThreadPoolExecutor(1) as executor:
        found = tune(study, cases(study, dispatch=["even"]), executor=executor, path="tune.jsonl")
    found.best, found.front

A case is plain data, so ``sweep`` can run it anywhere, and runs it only once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_count, check_number, check_type
from equipoise.control.settings import Settings
from equipoise.errors import EquipoiseError, argument
from equipoise.placement import Placement
from equipoise.plan.planners.robust import Robust
from equipoise.plan.result import Planner
from equipoise.plan.weigh.budget import LEAST_GAIN
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.gain import chances_above, gain, gain_interval
from equipoise.simulate.online import (
    Conditions,
    Policy,
    Replan,
    Stay,
    controlled,
    replay,
)
from equipoise.simulate.sweep import Case, sweep
from equipoise.simulate.trial import Plans, judge_of
from equipoise.trace import Trace

Floats = NDArray[np.float64]
Kind = Literal["none", "static", "engine", "online"]

NONE, STATIC, ENGINE, ONLINE = "none", "static", "engine", "online"
KINDS = {
    NONE: "every expert once, in order",
    STATIC: "the plan from the earlier steps, kept",
    ENGINE: "that plan, and the whole map again at every interval, as engines do",
    ONLINE: "that plan, and our controller",
}
"""Kinds of balancing over time."""

LEAST_STEPS = 32
"""Least number of steps to replay; fewer cannot distinguish a gain from chance."""

_BLOCKS = 16
_SURE = 0.05  # probability of chance below which a gain counts, as for a forecast


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """The traffic and the conditions of a tuning study.

    Parameters
    ----------
    fit
        Trace that the first map is planned on.
    held
        Trace that is replayed, in order of time.
    conditions
        Conditions of serving, and the costs of moving.
    proposals
        Number of proposals per layer of the searches.
    plan_seconds
        Time that a plan takes while serving.
    dwell_steps
        Number of steps for which traffic stays as it is, for the gate; ``None`` for all replayed.
    least_gain
        Share of a step's time that a setting, and each further slot on every rank, must save.
    seed
        Random seed of the searches and intervals.
    """

    fit: Trace
    held: Trace
    conditions: Conditions
    proposals: int = 1 << 14
    plan_seconds: float = 1.0
    dwell_steps: float | None = None
    least_gain: float = LEAST_GAIN
    seed: int = 0

    def __post_init__(self) -> None:
        check_type("conditions", self.conditions, Conditions)
        check_count("proposals", self.proposals)
        check_number("plan_seconds", self.plan_seconds, low=0, high=1e6)
        check_number(argument("least_gain"), self.least_gain, low=0, high=1)
        if self.held.num_steps < LEAST_STEPS:
            raise EquipoiseError(
                f"{self.held.num_steps} steps to replay cannot tell a gain from chance, it takes "
                f"{LEAST_STEPS} or more; record more steps, or draw steps of the size you serve "
                f"({argument('step_tokens')})."
            )

    @cached_property
    def digest(self) -> str:
        """Checksum of the study, so that results of another study are not mistaken for its own."""
        sha = hashlib.sha256()
        for part in (self.fit, self.held):
            sha.update(repr(part.counts.shape).encode())
            sha.update(np.ascontiguousarray(part.counts, np.int64).tobytes())
        numbers = (self.proposals, self.plan_seconds, self.dwell_steps, self.least_gain, self.seed)
        sha.update(repr((self.conditions, numbers)).encode())
        return sha.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting, and its result on the replayed steps.

    Parameters
    ----------
    kind
        Kind of balancing over time: a key of ``KINDS``.
    redundant, dispatch
        Number of redundant slots of a layer, and name of the dispatcher.
    window, interval, excess
        Steps looked at, steps between looks, and excess that raises the alarm; 0 if unused.
    step_seconds
        Time of the mean step, including moves and stalls.
    gain
        Share of the time without balancing that is saved; negative if steps take longer.
    low, high
        Ends of the confidence interval of the gain, see ``gain_interval``.
    needed
        Share that must be saved to be worth it; it rises with the number of slots.
    bytes_per_rank
        Memory of the slots beyond the fewest.
    moves, moved_bytes, changes
        Numbers of slots that changed, of bytes transferred, and of changes of the map.
    imbalance
        Mean imbalance of the steps.
    blocks
        Mean seconds of consecutive blocks of steps.
    """

    kind: Kind
    redundant: int
    dispatch: str
    window: int
    interval: int
    excess: float
    step_seconds: float
    gain: float
    low: float
    high: float
    needed: float
    bytes_per_rank: int
    moves: int
    moved_bytes: int
    changes: int
    imbalance: float
    blocks: tuple[float, ...]

    @property
    def price(self) -> tuple[float, int, int]:
        """Quantities that should be small: step time, memory, moves."""
        return self.step_seconds, self.bytes_per_rank, self.moves

    @property
    def name(self) -> str:
        """Name of the setting in words."""
        if self.kind == NONE:
            return "no balancing"
        text = f"{self.kind}, {self.redundant} redundant, {self.dispatch}"
        if self.kind == STATIC:
            return text
        more = f", alarm at {self.excess:g}" if self.kind == ONLINE else ""
        return f"{text}, window {self.window}, interval {self.interval}{more}"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """All settings that were replayed; the first does not balance."""

    settings: tuple[Setting, ...]

    @property
    def none(self) -> Setting:
        """Setting without balancing."""
        return self.settings[0]

    @cached_property
    def front(self) -> tuple[Setting, ...]:
        """Pareto front of step time, memory and moves, fastest first.

        Of settings with equal values it has the first. A setting that is slower than no balancing
        is never on the front, because no balancing takes no memory and moves nothing.
        """
        first = {s.price: s for s in reversed(self.settings)}.values()
        kept = [s for s in first if not any(_beats(other, s) for other in first)]
        return tuple(sorted(kept, key=lambda s: s.price))

    @cached_property
    def best(self) -> Setting:
        """Setting that saves the most beyond what its slots need, if that is certain; else none.

        It is certain if the whole interval is above what is needed, and if the best of all settings
        would seldom look this good by chance.
        """
        tried = self.settings[1:]
        if not tried:
            return self.none
        best = max(tried, key=lambda s: s.gain - s.needed)
        old = np.array(self.none.blocks)
        above = np.stack([old * (1 - s.needed) - s.blocks for s in tried])
        chance = float(chances_above(above)[tried.index(best)])
        return best if best.low > best.needed and chance < _SURE else self.none

    @property
    def text(self) -> str:
        """Result in a sentence."""
        best = self.best
        if best is self.none:
            return (
                f"Leave balancing off: none of the {len(self.settings) - 1} settings surely saves "
                "enough to pay for its slots."
            )
        return (
            f"{best.name}: a step takes {1e3 * best.step_seconds:.3f} ms instead of "
            f"{1e3 * self.none.step_seconds:.3f} ms, {best.gain:.1%} less ({best.low:.1%} to "
            f"{best.high:.1%}), with {best.moves} slots moved."
        )


def cases(
    study: Study,
    *,
    dispatch: Sequence[str],
    redundant: Sequence[int] | None = None,
    window: Sequence[int] | None = None,
    interval: Sequence[int] | None = None,
    excess: Sequence[float] = (0.05,),
    kinds: Sequence[str] = (STATIC, ENGINE, ONLINE),
) -> list[Case]:
    """List every useful combination of settings; the first does not balance.

    Parameters
    ----------
    redundant
        Numbers of redundant slots of a layer; ``None`` for the fewest, and 1 and 2 more per rank.
    window, interval
        Numbers of steps; ``None`` for an eighth and a thirty-second of the replayed steps. A window
        is never longer than its interval.
    excess
        Imbalance above the noise floor that raises our controller's alarm.
    kinds
        Keys of ``KINDS``.

    Raises
    ------
    EquipoiseError
        An empty list, numbers out of range, or an unknown kind.
    """
    T = study.held.num_steps
    some = sorted({max(8, T // 32), max(8, T // 8)})
    windows, intervals = list(window or some), list(interval or some)
    _check_kinds(kinds, dispatch)
    pairs = [(w, i) for i in intervals for w in windows if w <= i]
    if not pairs and set(kinds) & {ENGINE, ONLINE}:
        raise EquipoiseError(
            f"No window of {windows} fits into an interval of {intervals} steps; give a shorter "
            "window, or a longer interval."
        )
    found: list[dict[str, Any]] = [_case(study, NONE, 0, "even")]
    for number in _redundancies(study, redundant):
        for name in dispatch:
            if STATIC in kinds:
                found.append(_case(study, STATIC, number, name))
            for w, i in pairs:
                if ENGINE in kinds:
                    found.append(_case(study, ENGINE, number, name, w, i))
                if ONLINE in kinds:
                    found += [_case(study, ONLINE, number, name, w, i, x) for x in excess]
    return list(found)


def tune(
    study: Study,
    chosen: Sequence[Case],
    *,
    executor: Executor,
    path: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> Tuning:
    """Replay every case, and save the results in a file, as ``sweep`` does.

    Raises
    ------
    EquipoiseError
        Whatever planners and dispatchers refuse, or a file that is not from a sweep.
    """
    found = sweep(chosen, partial(run, study), executor=executor, path=path, progress=progress)
    return Tuning(settings=tuple(_setting(result) for result in found))


def run(study: Study, case: Case) -> dict[str, Any]:
    """Replay a case; a module-level function, so that other processes can import it."""
    held, conditions = study.held, study.conditions
    plain = Layout.unbalanced(held, conditions.topology.num_ranks)
    old = replay(held, plain, Stay(), conditions).seconds
    layout, policy = plain, cast(Policy, Stay())
    if case["kind"] != NONE:
        layout = Layout(
            placement=first_map(study, case["redundant"], case["dispatch"]),
            dispatch=judge_of(
                case["dispatch"],
                conditions.topology,
                conditions.model.planning_cost,
                held.top_k,
            ),
        )
        policy = _policy(study, case, layout)
    result = replay(held, layout, policy, conditions)
    ends = gain_interval(
        old[None],
        result.seconds[None],
        strata=np.zeros(len(old), np.int64),
        further_steps=len(old),
        spread=0.0,
        seed=study.seed,
    )
    assert ends is not None  # of several steps
    added = layout.placement.slots_per_rank - plain.placement.slots_per_rank
    setting = Setting(
        **{name: case[name] for name in _SETTINGS},
        step_seconds=float(result.seconds.mean()),
        gain=gain(old, result.seconds),
        low=ends[0],
        high=ends[1],
        needed=0.0 if case["kind"] == NONE else study.least_gain * max(added, 1),
        bytes_per_rank=added * conditions.expert_bytes * held.num_layers,
        moves=result.moves,
        moved_bytes=result.moved_bytes,
        changes=len(result.changes),
        imbalance=float(result.imbalance.mean()),
        blocks=tuple(float(b.mean()) for b in np.array_split(result.seconds, _BLOCKS)),
    )
    return asdict(setting)


_SETTINGS = ("kind", "redundant", "dispatch", "window", "interval", "excess")


def first_map(study: Study, redundant: int, dispatch: str) -> Placement:
    """Make the map that a case starts with, planned on the earlier steps."""
    return _first_map(_Same(study), redundant, dispatch)


@dataclass(frozen=True, eq=False)
class _Same:
    """A study that equals others with the same digest, for use as a cache key."""

    study: Study

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.study.digest == other.study.digest

    def __hash__(self) -> int:
        return hash(self.study.digest)


@lru_cache(maxsize=64)
def _first_map(same: _Same, redundant: int, dispatch: str) -> Placement:
    study = same.study
    size = float(study.held.counts.sum(axis=-1).mean())

    def planner(name: str) -> Planner:
        return Robust(
            dispatch=name,
            cost=study.conditions.model.planning_cost,
            step_assignments=size,
            proposals=study.proposals,
            seed=study.seed,
            num_threads=1,
        )

    return Plans(study.fit, study.conditions.topology, planner).plan(redundant, dispatch)


def _policy(study: Study, case: Case, layout: Layout) -> Policy:
    if case["kind"] == ENGINE:
        return Replan(  # in the foreground, which short intervals require
            interval=case["interval"],
            window=case["window"],
            layers_per_step=None,
            background=False,
        )
    if case["kind"] == STATIC:
        return Stay()
    assert layout.dispatch is not None
    excess = case["excess"]
    settings = Settings(
        window=case["window"],
        update_interval=case["interval"],
        warm_up_steps=0,
        excess_on=excess,
        excess_off=min(Settings.excess_off, excess / 2),
    )
    return controlled(
        study.conditions,
        layout.dispatch,
        settings,
        dwell_steps=study.dwell_steps or study.held.num_steps,
        plan_seconds=study.plan_seconds,
        repair={"proposals": study.proposals, "num_threads": 1, "seed": study.seed},
        top_k=study.held.top_k,
    )


def _case(
    study: Study,
    kind: str,
    redundant: int,
    dispatch: str,
    window: int = 0,
    interval: int = 0,
    excess: float = 0.0,
) -> dict[str, Any]:
    values = (kind, redundant, dispatch, window, interval, excess)
    return {"study": study.digest, **dict(zip(_SETTINGS, values, strict=True))}


def _redundancies(study: Study, redundant: Sequence[int] | None) -> Iterator[int]:
    E, R = study.held.num_experts, study.conditions.topology.num_ranks
    fewest, most = -E % R, E * (R - 1)
    for number in redundant or [n for n in (fewest, fewest + R, fewest + 2 * R) if n <= most]:
        if not 0 <= number <= most or (E + number) % R:
            raise EquipoiseError(
                f"{argument('redundant')} is {number}; expected what {R} ranks share equally "
                f"next to {E} experts, such as {fewest + R}."
            )
        yield number


def _check_kinds(kinds: Sequence[str], dispatch: Sequence[str]) -> None:
    unknown = sorted(set(kinds) - KINDS.keys())
    if unknown or not kinds:
        raise EquipoiseError(
            f"{', '.join(unknown) or 'Nothing'} is not a way to balance; use some of "
            f"{', '.join(KINDS)}."
        )
    if not dispatch:
        raise EquipoiseError("No dispatcher to try; give at least one.")


def _setting(result: dict[str, Any]) -> Setting:
    return Setting(**{**result, "blocks": tuple(result["blocks"])})


def _beats(one: Setting, other: Setting) -> bool:
    return one.price != other.price and all(
        a <= b for a, b in zip(one.price, other.price, strict=True)
    )

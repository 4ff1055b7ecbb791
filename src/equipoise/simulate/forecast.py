"""A forecast: whether balancing would help a deployment, by how much, and how certain that is.

The time model includes either the experts' computation or whole steps. The method:
``equipoise explain forecast``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number, check_type, check_whole
from equipoise.cost import RankCost
from equipoise.dispatch import Dispatcher
from equipoise.errors import EquipoiseError, argument
from equipoise.migration import diff
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.result import Planner
from equipoise.plan.study import hold_out_steps
from equipoise.plan.weigh.budget import LEAST_GAIN, LEAST_WINDOWS
from equipoise.plan.weigh.gate import Decision, Gate
from equipoise.simulate.expert_time import ComputeModel, Layout
from equipoise.simulate.fair import fair_steps
from equipoise.simulate.familiar import familiar_steps
from equipoise.simulate.gain import (
    CONFIDENCE,
    chances_above,
    gain,
    gain_intervals,
    planning_spread,
)
from equipoise.simulate.kinds import kind_names, loaded_steps, step_kinds
from equipoise.simulate.lasting import lasting_steps
from equipoise.simulate.online_trial import InTime, Online
from equipoise.simulate.prior import ASSUMED, is_assumed
from equipoise.simulate.step import split_steps
from equipoise.simulate.trial import (
    Bench,
    Plans,
    Trial,
    attempt,
    judge_of,
    robust_for,
    some_steps,
    step_loads,
)
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]
Kind = Literal["recommend", "not now", "insufficient evidence"]

_SURE = 0.05  # probability of chance below which a gain counts, as for a budget
_MODELS = 32  # number of drawn models that may be the true one


@dataclass(frozen=True, kw_only=True)
class Idle:
    """The time that ranks wait for the slowest, as a share of the experts' time.

    Parameters
    ----------
    steps
        Name of the steps: those of a phase, or all.
    share
        Share in the recorded steps.
    chance
        Share with a fair router in steps of the same sizes.
    """

    steps: str
    share: float
    chance: float

    @property
    def text(self) -> str:
        """Both shares in a sentence."""
        return (
            f"Today ranks wait {self.share:.1%} of the experts' time ({self.steps}); chance alone "
            f"makes it {self.chance:.1%}."
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Option:
    """One option: a number of redundant slots and a dispatcher, with the result on unseen steps.

    Parameters
    ----------
    redundant
        Number of redundant slots of a layer, ``S - E``.
    dispatch
        Name of the dispatcher.
    can_run
        Flag that the given engine can run this dispatcher.
    step_seconds
        Time of the mean unseen step.
    plain_seconds
        Time of the mean unseen step without balancing.
    gain
        Share of the step's time that is saved; negative if steps take longer.
    interval
        Interval of the gain for this plan, at ``CONFIDENCE``; ``None`` for a single step.
    replanned
        Confidence interval for a plan made again from other steps of similar traffic.
    needed
        Share that must be saved to be worth it; it rises with the number of slots.
    bytes_per_rank, kv_tokens
        Memory of the slots beyond the fewest on each rank, and the tokens of KV cache that would
        fit there; ``None`` if not known.
    placement
        Plan, made from the earlier steps.
    above_needed
        Time saved in each unseen step beyond what is needed, ``(T,)`` seconds.
    moves
        Number of slots that our controller moved after the plan; ``None`` if the plan stays.
    over_static
        Confidence interval of the controller's gain over the best plan that stays.
    """

    redundant: int
    dispatch: str
    can_run: bool
    step_seconds: float
    plain_seconds: float
    gain: float
    interval: tuple[float, float] | None
    replanned: tuple[float, float] | None
    needed: float
    bytes_per_rank: int | None
    kv_tokens: int | None
    placement: Placement
    above_needed: Floats
    moves: int | None = None
    over_static: tuple[float, float] | None = None

    @property
    def is_online(self) -> bool:
        """Whether our controller keeps balancing after the plan."""
        return self.moves is not None

    @property
    def throughput(self) -> float:
        """Relative gain in throughput, if the step's time determines it."""
        return self.gain / (1 - self.gain)

    @property
    def name(self) -> str:
        """Name of the option in words."""
        text = f"{self.redundant} redundant slots a layer with {self.dispatch} split"
        return f"{text}, kept balanced by our controller" if self.is_online else text

    @property
    def change(self) -> str:
        """Change of a step's time, with the interval, in words."""
        text = f"a step gets {_shorter(self.gain)}"
        if self.interval is None:
            return text
        ends = " to ".join(map(_shorter, self.interval))
        return f"{text} ({CONFIDENCE:.0%} interval {ends})"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict, with the reason in a sentence."""

    kind: Kind
    why: str

    @property
    def text(self) -> str:
        """Verdict and reason in a sentence."""
        return f"{self.kind}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Moving:
    """The cost of moving from the map in force; see ``Gate``.

    Parameters
    ----------
    expert_bytes, dwell_steps, stall_seconds, interference, delay_steps
        Fields of ``Gate``.
    """

    expert_bytes: int
    dwell_steps: float
    stall_seconds: float
    interference: float
    delay_steps: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Forecast:
    """The result of a forecast: the effect of balancing on steps like the recorded ones.

    Parameters
    ----------
    model
        Name of the compute model.
    planned_steps, unseen_steps
        Number of steps planned on, and of steps that everything is measured on.
    against
        Layout that gains are measured against: no balancing, or the map in force.
    counts
        Parts of a step that the model includes.
    other_seconds
        Time of a step that the model does not include.
    least_gain
        Share of a step's time that a change must save to be worth it.
    today
        Idle shares of the current layout, for each phase if the steps have phases.
    parts, planned_parts
        Seconds of a mean unseen step by part, with the current layout and with the plan of the best
        option, kept; ``None`` if the model does not divide steps. Drift is the wait beyond that in
        steps with the loads of those planned on.
    options
        Options that were tried: plans that stay, then each with our controller if asked for.
    in_time
        Conditions of serving for the controller; ``None`` if it was not asked for.
    assumed
        Flag that the routing is assumed, not recorded.
    decision
        Decision on moving from the map in force. ``None`` without such a map or without costs of
        moving, or if the best option has another number of slots.
    """

    model: str
    planned_steps: int
    unseen_steps: int
    against: str
    counts: str
    other_seconds: float
    least_gain: float
    today: tuple[Idle, ...]
    parts: Mapping[str, float] | None
    planned_parts: Mapping[str, float] | None
    options: tuple[Option, ...]
    in_time: InTime | None
    assumed: bool
    decision: Decision | None

    @cached_property
    def best(self) -> Option:
        """Best option that can run: the one that saves the most beyond what its slots need.

        An option with our controller counts only if its gain over the best plan that stays is
        surely large enough.
        """
        return best_option(self.options, self.least_gain)

    @property
    def online(self) -> Option | None:
        """Best option with our controller, worth it or not; ``None`` if not asked for."""
        tried = [o for o in self.options if o.is_online]
        return max(tried, key=_beyond_needed) if tried else None

    @cached_property
    def verdict(self) -> Verdict:
        """Verdict whether to balance."""
        found = self._of_steps
        if not self.assumed:
            return found
        return Verdict(
            kind="insufficient evidence",
            why=f"{ASSUMED}; record your own steps. If yours were like these, it would be: "
            f"{found.text}",
        )

    @property
    def _of_steps(self) -> Verdict:
        """Judge by the steps, whether they are recorded or assumed."""
        if self.unseen_steps < LEAST_WINDOWS:
            return Verdict(
                kind="insufficient evidence",
                why=f"{self.unseen_steps} unseen step{'s' * (self.unseen_steps > 1)} cannot tell "
                f"a gain from chance; record more steps or hold out more of them, {LEAST_WINDOWS} "
                "at least.",
            )
        best = self.best
        kind, why = self._judged(best)
        return Verdict(
            kind=kind,
            why=f"{best.name}, the best on {self.unseen_steps} unseen steps: {best.change} than "
            f"{self._than}; {why}.",
        )

    def _judged(self, best: Option) -> tuple[Kind, str]:
        """Return the kind of verdict on the best option, and the reason."""
        assert best.interval is not None  # of several steps
        low, high = best.interval
        pays = f"the {best.needed:.1%} that would pay"
        if best.step_seconds >= best.plain_seconds:
            return "not now", "no plan saves enough over no balancing to pay for its slots"
        if best.gain <= 0:
            return "not now", f"no plan saves enough over {self.against} to pay for its slots"
        if high < best.needed:
            return "not now", f"that is surely less than {pays}"
        if low < best.needed:
            return "insufficient evidence", (
                f"these steps do not show whether that reaches {pays}; record more steps"
            )
        if self._chance >= _SURE:
            return "insufficient evidence", (
                f"it is the best of {len(self._rivals)} options, and with a probability of "
                f"{self._chance:.0%} the best would look as good if none paid; record more steps"
            )
        if self.decision is not None and not self.decision.move:
            return "not now", (
                "it is not certain that the move pays for itself within "
                f"{self.decision.dwell_steps:,.0f} steps"
            )
        return "recommend", f"throughput {best.throughput:+.1%}"

    @property
    def _than(self) -> str:
        """Say what changes are measured against, and what is included."""
        return f"with {self.against}{'' if self.other_seconds else f', {self.counts}'}"

    @property
    def _rivals(self) -> list[Option]:
        return [option for option in self.options if option.can_run]

    @cached_property
    def _chance(self) -> float:
        """Compute the probability that an option just not worth it looks as good as the best."""
        above = np.stack([option.above_needed for option in self._rivals])
        return float(chances_above(above)[self._rivals.index(self.best)])


def forecast(
    trace: Trace,
    topology: Topology,
    model: ComputeModel,
    *,
    redundant: Sequence[int] | None = None,
    dispatch: Sequence[str] = ("even", "minmax"),
    engine_dispatch: str | None = None,
    planner: Callable[[str], Planner] | None = None,
    hold_out: float = 0.2,
    step_assignments: float | None = None,
    other_seconds: float = 0.0,
    least_gain: float = LEAST_GAIN,
    further_steps: int | None = None,
    current: Placement | None = None,
    moving: Moving | None = None,
    online: Online | None = None,
    slot_bytes: int | None = None,
    kv_bytes_per_token: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Forecast:
    """Plan on the earlier steps with several redundancies, and time the later ones.

    Parameters
    ----------
    redundant
        Numbers of redundant slots to try, all ranks together; ``None`` for the fewest, and one and
        two more per rank.
    dispatch
        Names of the dispatchers to try.
    engine_dispatch
        Dispatcher of the engine, the only one that can be recommended; ``None`` for any.
    planner
        Function that makes the planner for a dispatcher, by name; ``Robust`` if ``None``.
    hold_out
        Share of the steps to measure on, the latest of each domain.
    step_assignments
        Number of assignments of a mean step in a layer. Every row then becomes a step of about that
        size, drawn at random from the row. ``None`` takes the rows as they are.
    other_seconds
        Time of a step that the model does not include.
    least_gain
        Share of a step's time that a change, and each further slot on every rank, must save.
    further_steps
        Number of steps of the run that is forecast; a shorter run varies more by chance. ``None``
        for the number of steps measured on.
    current
        Map in force, against which gains are measured.
    moving
        Costs of moving from the map in force.
    online
        Costs of planning and moving for our controller, which is then tried on every plan too.
    slot_bytes
        Bytes of a rank's memory for one slot in every layer.
    kv_bytes_per_token
        Bytes of a rank's memory for the KV cache of one token.
    progress
        Function that is called before each plan with the number of plans made and of all.

    Raises
    ------
    EquipoiseError
        Values out of range, numbers of slots that do not fit, or what a planner refuses.
    """
    _check(step_assignments, other_seconds, least_gain, further_steps)
    fit, held = _parts(trace, hold_out)
    unseen, cost = step_loads(held, step_assignments, seed), model.planning_cost
    judges = {name: judge_of(name, topology, cost, trace.top_k) for name in dispatch}
    _check_can_run(engine_dispatch, judges)
    bench = Bench(
        load=unseen,
        topology=topology,
        models=(model, *model.draws(_MODELS, seed)),
        other_seconds=other_seconds,
    )
    plain = Layout.unbalanced(trace, topology.num_ranks)
    old = {
        name: plain if current is None else Layout(placement=current, dispatch=judge)
        for name, judge in judges.items()
    }
    of_plain = bench.time(plain)
    before = {n: of_plain if o is plain else bench.time(o) for n, o in old.items()}
    plans = Plans(fit, topology, planner or robust_for(cost, step_assignments))
    counts = _redundancies(trace, topology.num_ranks, redundant, current)
    trials = []
    for number, (more, name) in enumerate((n, d) for n in counts for d in judges):
        if progress is not None:
            progress(number, len(counts) * len(judges))
        trials.append(
            attempt(bench, plans, judges[name], before[name], redundant=more, dispatch=name)
        )
    terms = _Terms(
        plain_seconds=float(of_plain[0].mean()),
        fewest_slots=plain.placement.slots_per_rank,
        spread={name: _spread(name, trials) for name in judges},
        strata=step_kinds(held),
        lasting=_lasting(trace),
        further_steps=further_steps or len(unseen),
        least_gain=least_gain,
        slot_bytes=slot_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
        seed=seed,
    )
    options = tuple(terms.option(t, engine_dispatch in (None, t.dispatch)) for t in trials)
    in_time = None
    if online is not None:
        in_time = InTime.of(
            held,
            step_assignments,
            seed,
            topology=topology,
            models=bench.models,
            other_seconds=other_seconds,
            online=online,
        )
        options += _online_options(in_time, terms, options, old, judges, plain)
    best = best_option(options, least_gain)
    now = old[next(iter(judges))]
    planned = Layout(placement=best.placement, dispatch=judges[best.dispatch])
    now_parts, planned_parts = _spent(
        (now, planned), fit, held, unseen, topology, model, trace.top_k, step_assignments, seed
    )
    return Forecast(
        model=model.name,
        planned_steps=fit.num_steps,
        unseen_steps=len(unseen),
        against="no balancing" if current is None else "the map in force",
        counts=model.counts,
        other_seconds=other_seconds,
        least_gain=least_gain,
        today=_today(trace, now, topology, model, step_assignments, seed),
        parts=now_parts,
        planned_parts=planned_parts,
        options=options,
        in_time=in_time,
        assumed=is_assumed(trace),
        decision=_decide(
            trials[options.index(best) % len(trials)],
            bench,
            current,
            moving,
            judges[best.dispatch],
            cost,
        ),
    )


def quickest(dispatch: str) -> Planner:
    """Return the fastest planner for any dispatcher, on which it does not depend."""
    del dispatch
    return Greedy()


def best_option(options: Sequence[Option], least_gain: float) -> Option:
    """Choose the option that can run and saves the most beyond what its slots need.

    An option with our controller counts only if it surely gains ``least_gain`` over the best plan
    that stays.
    """
    worth = (o for o in options if o.over_static is None or o.over_static[0] >= least_gain)
    return max((o for o in worth if o.can_run), key=_beyond_needed)


def _beyond_needed(option: Option) -> float:
    return option.gain - option.needed


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """The quantities that turn the times of a trial into an option."""

    plain_seconds: float
    fewest_slots: int
    spread: Mapping[str, float]
    strata: NDArray[np.int64]
    lasting: int
    further_steps: int
    least_gain: float
    slot_bytes: int | None
    kv_bytes_per_token: int | None
    seed: int

    def option(self, trial: Trial, can_run: bool) -> Option:
        """Make the option of a trial."""
        old, new = trial.old[0], trial.new[0]
        added = trial.placement.slots_per_rank - self.fewest_slots
        needed = self.least_gain * max(added, 1)
        size = None if self.slot_bytes is None else added * self.slot_bytes
        kv_bytes = self.kv_bytes_per_token
        spreads = (0.0, self.spread.get(trial.dispatch, 0.0))
        interval, replanned = self.intervals(trial.old, trial.new, spreads=spreads)
        return Option(
            redundant=trial.redundant,
            dispatch=trial.dispatch,
            can_run=can_run,
            step_seconds=float(new.mean()),
            plain_seconds=self.plain_seconds,
            gain=gain(old, new),
            interval=interval,
            replanned=replanned,
            needed=needed,
            bytes_per_rank=size,
            kv_tokens=None if size is None or not kv_bytes else size // kv_bytes,
            placement=trial.placement,
            above_needed=np.asarray(old * (1 - needed) - new),
        )

    def intervals(
        self, old: Floats, new: Floats, *, spreads: Sequence[float]
    ) -> list[tuple[float, float] | None]:
        """Compute confidence intervals of a gain from times ``(M, T)`` before and after."""
        return gain_intervals(
            old,
            new,
            strata=self.strata,
            further_steps=self.further_steps,
            lasting=self.lasting,
            spreads=spreads,
            seed=self.seed,
        )


def _spread(dispatch: str, trials: Sequence[Trial]) -> float:
    """Estimate how much plans differ with a dispatcher, from all redundancies together.

    Dispatchers are kept apart: a split by times shows more of how a plan happens to come out.
    """
    return planning_spread(
        [pair for trial in trials if trial.dispatch == dispatch for pair in trial.twin_gains]
    )


def _online_options(
    in_time: InTime,
    terms: _Terms,
    static: Sequence[Option],
    old: Mapping[str, Layout],
    judges: Mapping[str, Dispatcher],
    plain: Layout,
) -> tuple[Option, ...]:
    """Try each plan with our controller, against the best plan that stays, on equal steps."""
    best = best_option(static, terms.least_gain)
    of_plain = float(in_time.static(plain)[0].mean())
    best_stays = in_time.static(Layout(placement=best.placement, dispatch=judges[best.dispatch]))
    found = []
    for option in static:
        start = Layout(placement=option.placement, dispatch=judges[option.dispatch])
        new, moves = in_time.controlled(start, terms.seed)
        trial = Trial(
            redundant=option.redundant,
            dispatch=option.dispatch,
            placement=option.placement,
            old=in_time.static(old[option.dispatch]),
            new=new,
            twin_gains=(),
        )
        served = replace(terms, plain_seconds=of_plain, spread={})
        found.append(
            replace(
                served.option(trial, option.can_run),
                moves=moves,
                over_static=served.intervals(best_stays, new, spreads=(0.0,))[0],
            )
        )
    return tuple(found)


def _lasting(trace: Trace) -> int:
    """Estimate the number of recorded steps for which loads stay similar."""
    return lasting_steps(trace.counts[loaded_steps(trace)].astype(np.float64), step_kinds(trace))


def _today(
    trace: Trace,
    layout: Layout,
    topology: Topology,
    model: ComputeModel,
    step_assignments: float | None,
    seed: int,
) -> tuple[Idle, ...]:
    """Compute the idle shares of each phase, or of all steps if they have no phases."""
    phases = trace.labels.get("phase")
    names = [] if phases is None else list(dict.fromkeys(phases.tolist()))
    parts = {name: trace.select(phase=name) for name in names} or {"all steps": trace}
    rows = []
    for name, part in parts.items():
        load = step_loads(part, step_assignments, seed)
        sizes = load[some_steps(len(load))].sum(axis=-1)
        top_k = min(trace.top_k or 1, trace.num_experts)
        fair = fair_steps(sizes, trace.num_experts, top_k, seed)
        rows.append(
            Idle(
                steps=name,
                share=layout.idle_share(load, topology, model),
                chance=layout.idle_share(fair, topology, model),
            )
        )
    return tuple(rows)


def _spent(
    layouts: Sequence[Layout],
    fit: Trace,
    held: Trace,
    unseen: Floats,
    topology: Topology,
    model: ComputeModel,
    top_k: int | None,
    step_assignments: float | None,
    seed: int,
) -> list[Mapping[str, float] | None]:
    """Divide the mean time of some of the unseen steps into parts, for each layout."""
    some = some_steps(len(unseen))
    load = unseen[some]
    familiar = familiar_steps(
        fit,
        kind_names(held)[some],
        load.sum(axis=-1),
        of_rows=step_assignments is not None,
        seed=seed,
    )
    top_k = min(top_k or 1, load.shape[-1])
    parts = (
        split_steps(load, layout, topology, model, top_k=top_k, familiar=familiar, seed=seed)
        for layout in layouts
    )
    return [None if part is None else part.means for part in parts]


def _decide(
    trial: Trial,
    bench: Bench,
    current: Placement | None,
    moving: Moving | None,
    judge: Dispatcher,
    cost: RankCost,
) -> Decision | None:
    """Decide whether the move to a trial's plan is worth it, by the times of the first model."""
    if current is None or moving is None or len(bench.load) < 2:
        return None
    if trial.placement.num_slots != current.num_slots:
        return None
    gate = Gate(cost=cost, dispatch=judge, **asdict(moving))
    layouts = (Layout(placement=p, dispatch=judge) for p in (current, trial.placement))
    before, after = (layout.busiest(bench.load) for layout in layouts)
    return gate.weigh(
        diff(current, trial.placement, bench.topology), trial.old[0] - trial.new[0], before - after
    )


def _parts(trace: Trace, hold_out: float) -> tuple[Trace, Trace]:
    """Split into the earlier steps and the steps to measure on."""
    if check_type("trace", trace, Trace).num_steps == 1:
        raise EquipoiseError(
            "The recording has one step, and a forecast takes some to plan on and others to "
            "measure on; record more steps."
        )
    fit, held = hold_out_steps(trace, hold_out)
    if held is None:
        raise EquipoiseError(
            f"{argument('hold_out')} is 0, so there is nothing to forecast on; expected a share "
            "above 0."
        )
    return fit, held


def _check_can_run(engine_dispatch: str | None, judges: Collection[str]) -> None:
    if not judges:
        raise EquipoiseError("No dispatcher to try; give at least one.")
    if engine_dispatch is not None and engine_dispatch not in judges:
        raise EquipoiseError(
            f"The engine shares batches by its own rule, {engine_dispatch}, which is not among the "
            f"dispatchers to try; give {','.join([*judges, engine_dispatch])}."
        )


def _redundancies(
    trace: Trace, num_ranks: int, redundant: Sequence[int] | None, current: Placement | None
) -> list[int]:
    """List the numbers of redundant slots to try, ascending, with that of the map in force."""
    fewest = -trace.num_experts % num_ranks
    most = trace.num_experts * (num_ranks - 1)
    if redundant is None:
        tried = [n for n in (fewest, fewest + num_ranks, fewest + 2 * num_ranks) if n <= most]
    else:
        tried = [check_whole(argument("redundant"), n, low=0, high=most) for n in redundant]
        if not tried:
            raise EquipoiseError("No number of redundant slots to try; give at least one.")
    if current is not None:
        tried.append(current.num_redundant)
    return sorted(set(tried))


def _check(
    step_assignments: float | None,
    other_seconds: float,
    least_gain: float,
    further_steps: int | None,
) -> None:
    if step_assignments is not None:
        check_number(argument("step_assignments"), step_assignments, low=1, high=1 << 40)
    check_number(argument("other_seconds"), other_seconds, low=0, high=1e6)
    check_number(argument("least_gain"), least_gain, low=0, high=1)
    if further_steps is not None:
        check_whole("further_steps", further_steps, low=1)


def _shorter(gain: float) -> str:
    return f"{abs(gain):.1%} {'shorter' if gain >= 0 else 'longer'}"

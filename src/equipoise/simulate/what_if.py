"""What would happen with other traffic, ranks, copies or hardware: answered while one watches.

    what_if = WhatIf(models)
    what_if.answer(Question(skew=1.0, step_tokens=4096, num_ranks=32)).headline

Every answer is computed by the planners, dispatchers and the cost model that the other commands
use: EPLB's greedy planner, since it takes milliseconds, and LPLB's ring where it fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import brief, check_number, check_type, check_whole
from equipoise.dispatch import DISPATCHERS, Dispatcher, dispatcher
from equipoise.errors import EquipoiseError, argument
from equipoise.noise import noise_floor
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.planners.lplb import FixedGraph
from equipoise.plan.problem import Problem
from equipoise.plan.study import hold_out_steps
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.machine import Machine, machine
from equipoise.simulate.own_work import OwnWork, Phase
from equipoise.simulate.profiles import hardware, link, names
from equipoise.simulate.routed import Routed
from equipoise.simulate.routers import choice_shares, drift, lognormal
from equipoise.simulate.step import StepParts
from equipoise.simulate.step_table import drawn_steps
from equipoise.topology import Topology
from equipoise.trace import Provenance, Trace

Floats = NDArray[np.float64]
Routing = Literal["generated", "recorded"]

NUM_BATCHES = 12
"""Unseen batches that an answer is the mean of."""

NUM_WINDOWS = 6
"""Windows of generated traffic after the one that is planned on."""

CONTEXT_TOKENS = 4096
"""Tokens before the new one, on average."""

FAR_LINK = "infiniband-400g"
"""The link between nodes."""

_HOLD_OUT = 0.2  # share of a recording's steps, the latest, that batches are drawn from
_WINDOW_ASSIGNMENTS = 1 << 26  # of generated traffic: far more than of a batch, so without noise
_MOST_STEPS = 128  # of a recording that batches are drawn from
_MOST_CELLS = 24_576  # layers times experts that are computed
_CURVE_TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 4096)  # of one rank
_HOTTEST = 64  # experts of the layer that is shown


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What an answer needs to know of a model.

    Parameters
    ----------
    name
        What it is called.
    shape
        A routed expert, how many there are, and how many a token chooses.
    num_layers
        MoE layers.
    own_work
        Attention and what else a rank does for its own tokens; ``None``: not known, left out.
    """

    name: str
    shape: ExpertShape
    num_layers: int
    own_work: OwnWork | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """A deployment and its traffic.

    Parameters
    ----------
    routing
        ``generated``, or the recording that was given.
    skew
        Generated routing: standard deviation of the logarithm of an expert's popularity, 0 for a
        fair router; 1 if ``None``.
    drift
        Generated routing: standard deviation of what that logarithm changes by from window to
        window; 0.05 if ``None``.
    step_tokens
        Tokens of a step, all ranks together.
    num_ranks
        Expert-parallel ranks.
    redundant_per_rank
        Slots of a rank and layer beyond the fewest that hold all experts.
    dispatch
        The dispatcher by name, one of ``DISPATCH``.
    gpu
        Name of a hardware profile.
    model
        Name of a model.
    phase
        What steps do.
    layer
        Number of the layer to show; the least balanced one if ``None``.
    seed
        Random seed of the routing and of the batches.
    """

    routing: Routing = "generated"
    skew: float | None = None
    drift: float | None = None
    step_tokens: int = 4096
    num_ranks: int = 32
    redundant_per_rank: int = 1
    dispatch: str = "even"
    gpu: str = "h100"
    model: str = "deepseek-v3"
    phase: Phase = "decode"
    layer: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_one_of("routing", self.routing, get_args(Routing))
        _check_one_of("phase", self.phase, get_args(Phase))
        _check_one_of("dispatch", self.dispatch, DISPATCH)
        _check_one_of("gpu", self.gpu, names("hardware"))
        check_type(argument("model"), self.model, str)
        for name, high in (("skew", 3), ("drift", 1)):
            given = getattr(self, name)
            if given is None:
                continue
            check_number(argument(name), given, low=0, high=high)
            if self.routing == "recorded":
                raise EquipoiseError(
                    f"{argument(name)} is of generated routing; leave it out with a recording."
                )
        check_whole(argument("step_tokens"), self.step_tokens, low=1, high=1 << 20)
        check_whole(argument("num_ranks"), self.num_ranks, low=2, high=256)
        check_whole(argument("redundant_per_rank"), self.redundant_per_rank, high=32)
        check_whole(argument("seed"), self.seed, high=1 << 32)
        if self.layer is not None:
            check_whole(argument("layer"), self.layer)

    @classmethod
    def of(cls, document: Any) -> Question:
        """The question that a JSON object asks; what it leaves out has its default.

        Raises
        ------
        EquipoiseError
            No object, a key that no question has, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(document, dict):
            raise EquipoiseError(f"The question is {brief(document)}; expected an object.")
        unknown = sorted(set(document) - set(known))
        if unknown:
            raise EquipoiseError(
                f"There is nothing called {brief(unknown[0])} to ask for; expected some of "
                f"{', '.join(known)}."
            )
        return cls(**document)


DISPATCH = tuple(
    name for name, entry in DISPATCHERS.items() if not entry.engine and not entry.needs_cost
)
"""Names of the dispatchers that a question can be about."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number before and after, and what it means in a sentence.

    Parameters
    ----------
    before
        The number without balancing; ``None`` where there is only one.
    unit
        What follows the number, such as ``×`` or ``ms``.
    """

    key: str
    name: str
    before: float | None
    after: float
    unit: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Imbalance of each unseen batch, mean over layers, ``NUM_BATCHES`` numbers each.

    Parameters
    ----------
    eplb, chosen
        The greedy copies, shared evenly and by the dispatcher that was asked for.
    lplb
        Copies on LPLB's ring, split by every batch; ``None`` where the ring does not fit.
    lplb_reason
        Why it does not fit.
    """

    without: list[float]
    eplb: list[float]
    chosen: list[float]
    lplb: list[float] | None
    lplb_reason: str
    floor: float


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One layer: its ranks and its hottest experts.

    Parameters
    ----------
    ranks_before, ranks_after
        Load of each rank over the mean, mean over the batches.
    shared_after
        The part of ``ranks_after`` that is of experts with several copies.
    experts, loads, copies
        The hottest experts of the traffic that was planned on: ids, load over the mean, copies.
    """

    layer: int
    ranks_before: list[float]
    ranks_after: list[float]
    shared_after: list[float]
    experts: list[int]
    loads: list[float]
    copies: list[int]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Time of a step against its tokens, all ranks together.

    Parameters
    ----------
    knee_tokens
        Tokens from which on an expert's products take longer than reading its weights, if all are
        equally popular.
    """

    tokens: list[int]
    before_seconds: list[float]
    after_seconds: list[float]
    knee_tokens: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a question's deployment does without balancing, and with it.

    Parameters
    ----------
    parts_before, parts_after
        Seconds of a mean step, by what they are spent on.
    layers
        Numbers of the layers that a question can show.
    notes
        What was assumed or left out, in sentences.
    facts
        Where the times come from, by part.
    """

    question: Question
    headline: str
    figures: list[Figure]
    batches: Batches
    layer: LayerView
    curve: Curve
    parts_before: dict[str, float]
    parts_after: dict[str, float]
    layers: list[int]
    notes: list[str]
    facts: dict[str, str]


class WhatIf:
    """Answers questions about some models, on generated routing or on a recording.

    Parameters
    ----------
    models
        Models by name.
    recording
        A recording to ask about as well; its later steps are held out of planning.
    name
        What the recording is called.

    Raises
    ------
    EquipoiseError
        A recording without a layer that has load.
    """

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        recording: Trace | None = None,
        *,
        name: str = "recording",
    ) -> None:
        self._models, self._name = dict(models), name
        self._recorded = None if recording is None else _recorded(recording)

    @property
    def choices(self) -> dict[str, Any]:
        """What there is to choose from, and how large it is; no recording is ``None``."""
        recorded = self._recorded
        return {
            "model": {
                name: {"experts": model.shape.num_experts, "layers": model.num_layers}
                for name, model in self._models.items()
            },
            "gpu": {name: hardware(name).name for name in names("hardware")},
            "dispatch": {name: DISPATCHERS[name].summary for name in DISPATCH},
            "phase": list(get_args(Phase)),
            "recording": None
            if recorded is None
            else {"name": self._name, "experts": recorded.held.num_experts},
        }

    def answer(self, question: Question) -> Answer:
        """Plan on the traffic before, and put the plan to the test of later batches.

        Raises
        ------
        EquipoiseError
            An unknown model, no recording to ask about, a layer it has not, ranks or slots that do
            not fit the experts.
        """
        case = self._case(question)
        greedy = _greedy(case)
        plain = Layout.unbalanced(case.traffic.held, question.num_ranks)
        even = Layout(placement=greedy, dispatch=dispatcher("even", case.topology))
        chosen = Layout(placement=greedy, dispatch=case.dispatcher)
        without, after = case.run(plain), case.run(chosen)
        eplb = after if question.dispatch == "even" else case.run(even)
        lplb, reason = _lplb(case)
        floor = noise_floor(
            question.step_tokens, case.num_experts, case.machine.top_k, question.num_ranks
        ).mean
        figures = _figures(case, greedy, without, after, floor)
        return Answer(
            question=question,
            headline=_headline(question, without, after, floor),
            figures=figures,
            batches=Batches(
                without=without.by_batch,
                eplb=eplb.by_batch,
                chosen=after.by_batch,
                lplb=None if lplb is None else case.run(lplb).by_batch,
                lplb_reason=reason,
                floor=floor,
            ),
            layer=_layer_view(case, greedy, without, after),
            curve=_curve(case, plain, chosen),
            parts_before=_spent(without.parts),
            parts_after=_spent(after.parts),
            layers=list(case.traffic.held.layer_ids),
            notes=[*case.traffic.notes, *case.notes],
            facts=dict(case.machine.facts),
        )

    def _case(self, question: Question) -> _Case:
        model = self._models.get(question.model)
        if model is None:
            raise EquipoiseError(
                f"There is no model {brief(question.model)}; use one of {', '.join(self._models)}."
            )
        if question.routing == "generated":
            skew, change = question.skew, question.drift
            traffic = _generated(
                1.0 if skew is None else float(skew),
                0.05 if change is None else float(change),
                model.shape.num_experts,
                model.shape.top_k,
                model.num_layers,
                question.seed,
            )
        elif self._recorded is None:
            raise EquipoiseError("There is no recording to ask about; give one, or generate it.")
        else:
            traffic = self._recorded
        return _Case.of(question, model, traffic)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Traffic:
    """What was planned on, ``(L, E)``, and later steps to draw batches from."""

    fit_LE: NDArray[np.integer]
    held: Trace
    num_layers: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class _Run:
    """Batches on a layout.

    Parameters
    ----------
    slot_load
        Load of each slot, ``(T, L, S)``.
    rank_load
        Load of each rank, ``(T, L, R)``.
    parts
        What the steps are spent on, all layers of the model.
    """

    slot_load: Floats
    rank_load: Floats
    parts: StepParts

    @property
    def imbalance(self) -> Floats:
        """Busiest rank over the mean, ``(T, L)``; 1 without load."""
        peak, mean = self.rank_load.max(axis=-1), self.rank_load.mean(axis=-1)
        return np.asarray(np.divide(peak, mean, out=np.ones_like(mean), where=mean > 0))

    @property
    def by_batch(self) -> list[float]:
        """The same, mean over the layers, ``(T,)``."""
        means: list[float] = self.imbalance.mean(axis=1).tolist()
        return means

    @property
    def mean_imbalance(self) -> float:
        """The mean of all."""
        return float(self.imbalance.mean())

    @property
    def seconds(self) -> float:
        """Time of a mean step."""
        return float(self.parts.total.mean())

    @property
    def waiting(self) -> float:
        """Share of the experts' time in which the mean rank waits for the slowest."""
        return float(1 - (1 / self.parts.imbalance).mean())


@dataclass(frozen=True, eq=False, kw_only=True)
class _Case:
    """A question with all that is computed once for it."""

    question: Question
    model: ServedModel
    traffic: _Traffic
    topology: Topology
    machine: Machine
    loads: Floats
    notes: tuple[str, ...]

    @classmethod
    def of(cls, question: Question, model: ServedModel, traffic: _Traffic) -> _Case:
        held, gpu, R = traffic.held, hardware(question.gpu), question.num_ranks
        if held.num_experts < R:
            raise EquipoiseError(
                f"{R} ranks share {held.num_experts} experts; give at most one rank an expert "
                f"({argument('num_ranks')})."
            )
        size = round(gpu.ranks_per_node.value)
        topology = Topology(R, None if size >= R else size)
        shape = replace(
            model.shape,
            num_experts=held.num_experts,
            top_k=held.top_k or model.shape.top_k,
        )
        made = machine(
            gpu,
            shape,
            phase=question.phase,
            num_nodes=topology.num_nodes,
            link=link(FAR_LINK) if topology.num_nodes > 1 else None,
            own_work=model.own_work,
            context_tokens=CONTEXT_TOKENS,
        )
        loads = _batches(traffic, (question.step_tokens,), NUM_BATCHES, shape.top_k, question.seed)
        return cls(
            question=question,
            model=model,
            traffic=traffic,
            topology=topology,
            machine=made,
            loads=loads,
            notes=tuple(_model_notes(model, traffic, shape)),
        )

    @property
    def num_experts(self) -> int:
        return self.traffic.held.num_experts

    @property
    def num_slots(self) -> int:
        """The fewest slots that hold all experts, and the redundant ones."""
        R = self.question.num_ranks
        return R * (-(-self.num_experts // R) + self.question.redundant_per_rank)

    @property
    def dispatcher(self) -> Dispatcher:
        return dispatcher(self.question.dispatch, self.topology, top_k=self.machine.top_k)

    @property
    def problem(self) -> Problem:
        held = self.traffic.held
        return Problem(self.traffic.fit_LE, self.topology, self.num_slots, layer_ids=held.layer_ids)

    @property
    def layers_factor(self) -> float:
        """Layers of the model over those computed, which stand for all."""
        return self.model.num_layers / self.traffic.held.num_layers

    def run(self, layout: Layout) -> _Run:
        slots = layout.slot_loads(self.loads)
        ranks = slots.reshape(*slots.shape[:2], self.question.num_ranks, -1).sum(axis=-1)
        return _Run(slot_load=slots, rank_load=ranks, parts=self.time(slots))

    def time(self, slot_load: Floats) -> StepParts:
        """What steps are spent on, all layers of the model."""
        routed = Routed.expected(slot_load, self.machine.top_k, self.topology)
        parts = self.machine.step(routed, self.topology)
        scaled = {f.name: self.layers_factor * getattr(parts, f.name) for f in fields(parts)}
        return StepParts(**scaled)


def _greedy(case: _Case) -> Placement:
    return Greedy().plan(case.problem).placement


def _lplb(case: _Case) -> tuple[Layout | None, str]:
    """Copies on LPLB's ring with a split of every batch; or why there is none."""
    try:
        plan = FixedGraph(graph="ring", across_nodes="price").plan(case.problem)
    except EquipoiseError as error:
        return None, str(error)
    return Layout(placement=plan.placement, dispatch=dispatcher("minmax", case.topology)), ""


@lru_cache(maxsize=16)
def _generated(
    skew: float, change: float, num_experts: int, top_k: int, num_layers: int, seed: int
) -> _Traffic:
    """Routing without noise, a window to plan on and later ones: chance comes with the batches."""
    rows = max(1, min(num_layers, _MOST_CELLS // num_experts))
    start = lognormal(num_experts, sigma=skew, num_layers=rows, seed=seed)
    popularity = drift(start, num_steps=1 + NUM_WINDOWS, std_per_step=change, seed=seed + 1)
    shares = choice_shares(popularity, top_k=top_k)
    counts = np.rint(shares * _WINDOW_ASSIGNMENTS).astype(np.int64)
    held = Trace(
        counts=counts[1:], top_k=top_k, provenance=Provenance("synthetic", "generated routing")
    )
    return _Traffic(
        fit_LE=counts[0],
        held=held,
        num_layers=num_layers,
        notes=_some_layers(rows, num_layers),
    )


def _recorded(recording: Trace) -> _Traffic:
    """The earlier steps of a recording, summed, and the later ones; not more than is quick."""
    check_type("recording", recording, Trace)
    notes: list[str] = []
    if recording.num_steps == 1:
        fit = held = recording
        notes.append("The recording has one step, which is planned on and drawn from as well.")
    else:
        fit, unseen = hold_out_steps(recording, _HOLD_OUT)
        assert unseen is not None  # a share is held out
        held = unseen
    loaded = fit.total.any(axis=1) & held.total.any(axis=1)
    rows = np.flatnonzero(loaded)
    if not len(rows):
        raise EquipoiseError("No layer of the recording has load in all parts; record more.")
    if len(rows) < recording.num_layers:
        notes.append(f"{recording.num_layers - len(rows)} layers without load are left out.")
    most = max(1, _MOST_CELLS // recording.num_experts)
    notes += _some_layers(min(most, len(rows)), len(rows))
    rows = rows[_evenly(len(rows), most)]
    steps = _evenly(held.num_steps, _MOST_STEPS)
    if len(steps) < held.num_steps:
        notes.append(f"Batches are drawn from {len(steps)} of {held.num_steps} unseen steps.")
    layers = [recording.layer_ids[row] for row in rows.tolist()]
    return _Traffic(
        fit_LE=fit.total[rows],
        held=replace(held, tokens=None, source_counts=None).select(layers=layers, steps=steps),
        num_layers=recording.num_layers,
        notes=tuple(notes),
    )


@lru_cache(maxsize=16)
def _batches(
    traffic: _Traffic, sizes: tuple[int, ...], number: int, top_k: int, seed: int
) -> Floats:
    """Batches of each size from the later steps, ``(sizes x number, L, E)``; read-only."""
    draws = [
        drawn_steps(traffic.held, size, top_k=top_k, number=number, seed=seed) for size in sizes
    ]
    loads = np.concatenate(draws)
    loads.flags.writeable = False
    return loads


def _some_layers(rows: int, num_layers: int) -> tuple[str, ...]:
    if rows == num_layers:
        return ()
    return (
        f"{rows} of {num_layers} layers are computed, at equal distances, and stand for all: so "
        "that the answer comes at once.",
    )


def _evenly(number: int, most: int) -> NDArray[np.int64]:
    """Positions at equal distances; all if there are no more than ``most``."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).astype(np.int64))


def _model_notes(model: ServedModel, traffic: _Traffic, shape: ExpertShape) -> list[str]:
    """Where the recording and the model differ, and what of a step is not known."""
    notes = []
    if (shape.num_experts, shape.top_k) != (model.shape.num_experts, model.shape.top_k):
        notes.append(
            f"The recording has {shape.num_experts} experts, {shape.top_k} a token, where "
            f"{model.name} has {model.shape.num_experts} and {model.shape.top_k}: times are of "
            "that number of the model's experts."
        )
    if traffic.held.top_k is None:
        notes.append(
            f"The recording does not say how many experts a token chooses; {shape.top_k} is taken, "
            f"as in {model.name}."
        )
    if traffic.num_layers != model.num_layers:
        notes.append(
            f"{traffic.num_layers} recorded layers stand for the {model.num_layers} of "
            f"{model.name}."
        )
    if model.own_work is None:
        notes.append(f"Attention of {model.name} is not known: times are without it.")
    return notes


def _figures(
    case: _Case, greedy: Placement, without: _Run, after: _Run, floor: float
) -> list[Figure]:
    question, copies = case.question, greedy.copies
    expert_bytes = case.model.shape.expert_bytes * case.model.num_layers
    return [
        Figure(
            key="imbalance",
            name="Busiest rank",
            before=without.mean_imbalance,
            after=after.mean_imbalance,
            unit="×",
            meaning="Load of the busiest rank over the mean, mean over layers and unseen batches: "
            "every layer waits for that rank.",
        ),
        Figure(
            key="floor",
            name="Noise floor",
            before=None,
            after=floor,
            unit="×",
            meaning="What the busiest rank would carry if the router were perfectly fair: copies "
            "that share evenly cannot go below it, a split of every batch can.",
        ),
        Figure(
            key="waiting",
            name="Waiting",
            before=100 * without.waiting,
            after=100 * after.waiting,
            unit="%",
            meaning="Share of the experts' time in which the mean rank waits for the slowest.",
        ),
        Figure(
            key="step",
            name="Step time",
            before=1e3 * without.seconds,
            after=1e3 * after.seconds,
            unit="ms",
            meaning=f"A {question.phase} step of all layers, with exchanges and attention, by the "
            "cost model.",
        ),
        Figure(
            key="copied",
            name="Copied experts",
            before=0.0,
            after=float((copies > 1).sum(axis=1).mean()),
            unit="",
            meaning="Experts of a layer that have more than one copy, mean over layers; the "
            f"hottest of all has {copies.max()} copies.",
        ),
        Figure(
            key="memory",
            name="Memory for copies",
            before=0.0,
            after=question.redundant_per_rank * expert_bytes / 1e9,
            unit="GB",
            meaning="What the redundant slots take on every rank, all layers: the price, paid from "
            "the room for KV cache.",
        ),
    ]


def _headline(question: Question, without: _Run, after: _Run, floor: float) -> str:
    change = after.seconds / without.seconds - 1
    effect = (
        f"{-change:.1%} less"
        if change < 0
        else f"{change:.1%} more, so this balancing does not pay here"
    )
    return (
        f"With {question.redundant_per_rank * question.num_ranks} redundant slots a layer the "
        f"busiest rank carries {after.mean_imbalance:.2f}× its share instead of "
        f"{without.mean_imbalance:.2f}×; chance alone would make it {floor:.2f}×. A step takes "
        f"{1e3 * after.seconds:.1f} ms instead of {1e3 * without.seconds:.1f} ms: {effect}."
    )


def _layer_view(case: _Case, greedy: Placement, without: _Run, after: _Run) -> LayerView:
    layers, wanted = case.traffic.held.layer_ids, case.question.layer
    if wanted is not None and wanted not in layers:
        raise EquipoiseError(
            f"There is no layer {wanted} in this answer; expected one from {layers[0]} to "
            f"{layers[-1]}, or leave {argument('layer')} out."
        )
    row = int(without.imbalance.mean(axis=0).argmax()) if wanted is None else layers.index(wanted)
    load_E = case.traffic.fit_LE[row] / case.traffic.fit_LE[row].mean()
    hottest = np.argsort(-load_E, kind="stable")[:_HOTTEST]
    has_copies = greedy.copies[row][greedy.slots[row]] > 1
    shared = (after.slot_load[:, row] * has_copies).reshape(NUM_BATCHES, greedy.num_ranks, -1)
    mean = after.rank_load[:, row].mean() or 1.0
    return LayerView(
        layer=layers[row],
        ranks_before=(without.rank_load[:, row].mean(axis=0) / mean).tolist(),
        ranks_after=(after.rank_load[:, row].mean(axis=0) / mean).tolist(),
        shared_after=(shared.sum(axis=-1).mean(axis=0) / mean).tolist(),
        experts=hottest.tolist(),
        loads=load_E[hottest].tolist(),
        copies=greedy.copies[row][hottest].tolist(),
    )


def _curve(case: _Case, plain: Layout, chosen: Layout) -> Curve:
    """One batch of each size on both layouts."""
    tokens = [case.question.num_ranks * size for size in _CURVE_TOKENS]
    top_k = case.machine.top_k
    loads = _batches(case.traffic, tuple(tokens), 1, top_k, case.question.seed)
    before, after = (case.time(layout.slot_loads(loads)).total for layout in (plain, chosen))
    time = case.machine.time
    knee = time.expert_seconds / time.product_seconds
    return Curve(
        tokens=tokens,
        before_seconds=before.tolist(),
        after_seconds=after.tolist(),
        knee_tokens=knee * case.num_experts / top_k,
    )


def _spent(parts: StepParts) -> dict[str, float]:
    """Seconds of a mean step, by what they are spent on."""
    mean = parts.means
    return {
        "experts": mean["experts"] + mean["rereading"],
        "waiting": mean["chance"] + mean["skew"],
        "attention and the rest": mean["own"] + mean["own_wait"],
        "exchanges": mean["exposed"],
    }


def _check_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise EquipoiseError(
            f"{argument(name)} is {brief(value)}; expected one of {', '.join(known)}."
        )

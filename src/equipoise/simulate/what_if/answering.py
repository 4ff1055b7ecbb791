"""Answering a question: plan, share later batches, time them, and describe the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from equipoise.checks import brief
from equipoise.dispatch import DISPATCHERS, dispatcher
from equipoise.errors import EquipoiseError, argument
from equipoise.noise import noise_floor
from equipoise.placement import Placement
from equipoise.plan.planners.eplb import Greedy
from equipoise.plan.planners.lplb import FixedGraph
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.own_work import Phase
from equipoise.simulate.profiles import hardware, names
from equipoise.simulate.step import StepParts
from equipoise.simulate.what_if.answer import Answer, Batches, Curve, Figure, LayerView
from equipoise.simulate.what_if.case import NUM_BATCHES, Case, Run
from equipoise.simulate.what_if.question import DISPATCH, Question, ServedModel
from equipoise.simulate.what_if.traffic import batches, generated, recorded
from equipoise.trace import Trace

_CURVE_TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 4096)  # tokens of one rank
_HOTTEST = 64  # number of experts shown of a layer


class WhatIf:
    """A service that answers questions about models, on generated routing or on a recording.

    Parameters
    ----------
    models
        Models by name.
    recording
        Recording that questions may also be about; its later steps are held out of planning.
    name
        Name of the recording.

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
        self._recorded = None if recording is None else recorded(recording)

    @property
    def choices(self) -> dict[str, Any]:
        """Return the possible choices with their sizes; ``recording`` may be ``None``."""
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
        """Plan on earlier traffic, and test the plan on later batches.

        Raises
        ------
        EquipoiseError
            An unknown model or layer, a missing recording, or ranks or slots that do not fit the
            experts.
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

    def _case(self, question: Question) -> Case:
        model = self._models.get(question.model)
        if model is None:
            raise EquipoiseError(
                f"There is no model {brief(question.model)}; use one of {', '.join(self._models)}."
            )
        if question.routing == "generated":
            skew, change = question.skew, question.drift
            traffic = generated(
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
        return Case.of(question, model, traffic)


def _greedy(case: Case) -> Placement:
    return Greedy().plan(case.problem).placement


def _lplb(case: Case) -> tuple[Layout | None, str]:
    """Plan copies on LPLB's ring, or say why it does not fit."""
    try:
        plan = FixedGraph(graph="ring", across_nodes="price").plan(case.problem)
    except EquipoiseError as error:
        return None, str(error)
    return Layout(placement=plan.placement, dispatch=dispatcher("minmax", case.topology)), ""


def _figures(case: Case, greedy: Placement, without: Run, after: Run, floor: float) -> list[Figure]:
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


def _headline(question: Question, without: Run, after: Run, floor: float) -> str:
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


def _layer_view(case: Case, greedy: Placement, without: Run, after: Run) -> LayerView:
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


def _curve(case: Case, plain: Layout, chosen: Layout) -> Curve:
    """Time one batch of each size on both layouts."""
    tokens = [case.question.num_ranks * size for size in _CURVE_TOKENS]
    top_k = case.machine.top_k
    loads = batches(case.traffic, tuple(tokens), 1, top_k, case.question.seed)
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
    """Return the seconds of a mean step, by part."""
    mean = parts.means
    return {
        "experts": mean["experts"] + mean["rereading"],
        "waiting": float(parts.wait.mean()),
        "attention and the rest": mean["own"] + mean["own_wait"],
        "exchanges": mean["exposed"],
    }

"""The page of a plan: its scores on unseen steps, and the moves that it takes."""

from __future__ import annotations

from equipoise.plan.scores import LAYOUTS, Verdict
from equipoise.plan.study import Study
from equipoise.report.drift import measure_drift
from equipoise.report.measured import Layout, unbalanced
from equipoise.report.page import ageing
from equipoise.report.page.laid import lay
from equipoise.report.page.story import Band, Number, Origin, Story, in_order
from equipoise.report.page.tables import Table
from equipoise.report.summary import summarise
from equipoise.trace import Trace


def plan_story(
    recording: Trace,
    study: Study,
    origin: Origin,
    *,
    current: Layout | None = None,
    expert_bytes: int | None = None,
) -> Story:
    """Make the story of ``equipoise plan``, on the held-out steps, or on all if there are none.

    Parameters
    ----------
    current
        Map in force.
    expert_bytes
        Bytes of one expert in one layer, if known, to state memory and bytes moved.
    """
    held, placement = study.held, study.plan.placement
    shown = recording if held is None else held
    layouts: dict[str, Layout] = {LAYOUTS["plain"]: unbalanced(shown, placement.num_ranks)}
    if current is not None:
        layouts[LAYOUTS["current"]] = current
    layouts[LAYOUTS["plan"]] = placement
    load = study.scores.fit if study.scores.held is None else study.scores.held
    summary = summarise(shown, num_ranks=placement.num_ranks)
    return Story(
        title=f"A plan for {recording.provenance.source}",
        trace=shown,
        summary=summary,
        laid=lay(load, layouts, study.scores.dispatcher),
        band=_band(study, expert_bytes),
        notes=in_order([_what_is_shown(study), *summary.notes]),
        origin=origin,
        drift=tuple(
            ageing.figures(
                recording,
                measure_drift(recording).window_steps,
                placement.num_ranks,
                placement.num_slots,
            )
        ),
        tables=(_scores(study), _bounds(study)),
    )


def _what_is_shown(study: Study) -> str:
    if study.held is None:
        return (
            "The plan was made from these steps, none was held out: the numbers show how well it "
            "fits those, and new traffic gains less."
        )
    return (
        f"All figures are of {study.held.num_steps} steps that the plan was not made from, the "
        f"latest of each domain; copies share their load by the dispatcher {study.plan.dispatch}."
    )


def _band(study: Study, expert_bytes: int | None) -> Band:
    verdict, scores = study.verdict, study.scores
    steps = scores.unseen or scores.seen
    is_worse = steps["plan"].mean_peak > steps["plain"].mean_peak
    if verdict.whole is not None and verdict.against == "plain":
        is_worse = verdict.whole.compared.gain < 0
    if is_worse:
        tone, answer = "bad", "Do not apply: this plan is worse than no balancing."
    elif verdict.is_gain:
        tone, answer = "good", "Apply this plan."
        if not verdict.unseen:
            answer = "This plan fits the steps it was made from; nothing was verified."
            tone = "open"
    else:
        tone, answer = (
            "open",
            "Do not apply: no gain beyond chance over leaving things as they are.",
        )
    before, after = steps[verdict.against], steps["plan"]
    noise = verdict.compared.noise
    chance = "" if noise is None else f" ± {noise / verdict.compared.before:.1%} by chance"
    floor = "not known" if scores.chance_held is None else f"{scores.chance_held:.3f}"
    return Band(
        tone=tone,
        answer=answer,
        why=(verdict.text, study.plan.status),
        numbers=(
            Number(
                name="Before",
                value=f"{before.mean_imbalance:.3f}",
                means=f"imbalance, {LAYOUTS[verdict.against]}",
            ),
            Number(name="After", value=f"{after.mean_imbalance:.3f}", means="with this plan"),
            Number(name="Floor", value=floor, means="by chance alone, of a fair router"),
            Number(
                name="Expert time won",
                value=f"{verdict.compared.gain:+.1%}",
                means=f"of the busiest rank's{chance}",
            ),
            *_whole(verdict),
            _memory(study, expert_bytes),
            _moves(study, expert_bytes),
        ),
    )


def _whole(verdict: Verdict) -> list[Number]:
    """Return the numbers of whole steps, if they were timed."""
    if verdict.whole is None:
        return []
    x = verdict.whole.compared
    means = f"{1e3 * x.after:.3f} ms instead of {1e3 * x.before:.3f}, {verdict.whole.counts}"
    return [Number(name="Step time won", value=f"{x.gain:+.1%}", means=means)]


def _memory(study: Study, expert_bytes: int | None) -> Number:
    """State the memory of the redundant slots on every rank."""
    placement = study.plan.placement
    added = placement.slots_per_rank - -(-placement.num_experts // placement.num_ranks)
    if expert_bytes is None:
        means = "redundant slots a rank in every layer; bytes of an expert are not known"
        return Number(name="Memory", value=f"+{added}", means=means)
    size = added * placement.num_layers * expert_bytes
    return Number(name="Memory", value=f"{size / 1e9:+.2f} GB", means="on every rank, for copies")


def _moves(study: Study, expert_bytes: int | None) -> Number:
    """State the moves from the map in force."""
    migration = study.migration
    if migration is None:
        return Number(name="Moves", value="–", means="no map in force was given")
    means = "slots change their expert"
    if expert_bytes is not None:
        means += f"; {migration.bytes(expert_bytes) / 1e9:.2f} GB are sent between ranks"
    return Number(name="Moves", value=f"{migration.moves:,}", means=means)


def _scores(study: Study) -> Table:
    parts = {"planned": study.scores.seen, "unseen": study.scores.unseen}
    rows = [
        (
            part,
            LAYOUTS[name],
            x.mean_imbalance,
            x.p95_imbalance,
            x.worst_imbalance,
            x.relative_step_time,
        )
        for part, evaluations in parts.items()
        for name, x in evaluations.items()
    ]
    return Table(
        name="score-table",
        title="Scores",
        says="Imbalance on the steps that the plan was made from and on unseen ones; what counts "
        "is the unseen part.",
        head=("steps", "layout", "mean", "95th percentile", "worst", "relative step time"),
        rows=tuple(rows),
    )


def _bounds(study: Study) -> Table:
    plan = study.plan
    return Table(
        name="bound-table",
        title="Why not better",
        says=f"{plan.planner}: the peak of each layer on the loads it was made for, the least that "
        "any placement with these slots could have, and the constraint behind that bound.",
        head=("layer", "peak", "bound", "what binds", "why"),
        rows=tuple(
            (binding.layer, float(peak), float(bound), binding.kind, binding.text)
            for binding, peak, bound in zip(
                plan.binding, plan.peak.tolist(), plan.bound.tolist(), strict=True
            )
        ),
    )

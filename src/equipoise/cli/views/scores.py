"""What a plan does on seen and unseen steps, as a table and as a document."""

from __future__ import annotations

from rich.table import Table

from equipoise.plan import Evaluation
from equipoise.plan.scores import LAYOUTS, Scores, Verdict, WholeSteps


def scores_document(scores: Scores) -> dict[str, object]:
    """The rows of the table by name."""
    parts = {"fit": scores.seen, "held_out": scores.unseen}
    return {
        f"{row}_{part}": _numbers(evaluations[row]) if row in evaluations else None
        for part, evaluations in parts.items()
        for row in LAYOUTS
    }


def verdict_document(verdict: Verdict) -> dict[str, object]:
    """The verdict, its two figures and their unit."""
    return {
        "is_gain": verdict.is_gain,
        "text": verdict.text,
        "against": LAYOUTS[verdict.against],
        "held_out": verdict.unseen,
        "steps": verdict.compared.num_steps,
        "unit": "seconds" if verdict.in_seconds else "assignments",
        "dispatch": verdict.dispatch,
        "before": verdict.compared.before,
        "after": verdict.compared.after,
        "chance": verdict.compared.noise,
        "whole_steps": whole_document(verdict.whole),
    }


def whole_document(whole: WholeSteps | None) -> dict[str, object] | None:
    """Seconds of a whole step before and after, and what the experts take of it."""
    if whole is None:
        return None
    x = whole.compared
    return {
        "counts": whole.counts,
        "before_seconds": x.before,
        "after_seconds": x.after,
        "chance_seconds": x.noise,
        "experts_before_seconds": float(whole.before[1].mean()),
        "experts_after_seconds": float(whole.after[1].mean()),
    }


def scores_table(scores: Scores) -> Table:
    """The scores for a terminal."""
    what, unit = ("time", "max us") if scores.of_times else ("load", "max load")
    title = f"max/mean rank {what}, {scores.dispatcher.name} split"
    table = Table(title, "mean", "p95", "worst", "step time", unit, box=None)
    for part, evaluations in (("planned", scores.seen), ("unseen", scores.unseen)):
        for row, evaluation in evaluations.items():
            ratios = (f"{x:.3f}" for x in _numbers(evaluation).values())
            peak = evaluation.mean_peak * (1e6 if scores.of_times else 1)
            table.add_row(f"{part} steps, {LAYOUTS[row]}", *ratios, f"{peak:,.1f}")
    if scores.chance_held is not None:
        table.add_row("unseen steps, chance alone", f"{scores.chance_held:.3f}")
    return table


def _numbers(evaluation: Evaluation) -> dict[str, float]:
    return {
        "mean_imbalance": evaluation.mean_imbalance,
        "p95_imbalance": evaluation.p95_imbalance,
        "worst_imbalance": evaluation.worst_imbalance,
        "relative_step_time": evaluation.relative_step_time,
    }

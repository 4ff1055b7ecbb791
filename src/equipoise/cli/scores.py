"""What a plan does on the steps it was made from, and on steps it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from equipoise.dispatch import Dispatcher
from equipoise.noise import trace_noise_floor
from equipoise.plan import Evaluation, Plan, evaluate, without_balancing
from equipoise.trace import Trace


@dataclass(frozen=True)
class Scores:
    """Imbalance without balancing and with the plan, on steps planned from and on unseen ones.

    Of rank loads, or of the times they take.

    ``chance_held`` is the noise floor of the unseen steps, what is left of a perfect even split:
    known for loads of ranks that are alike.
    """

    plain_fit: Evaluation
    plan_fit: Evaluation
    plain_held: Evaluation | None
    plan_held: Evaluation | None
    chance_held: float | None
    of_times: bool


def score(
    result: Plan,
    fit: Trace,
    held: Trace | None,
    dispatch: Dispatcher,
    step_assignments: float | None,
) -> Scores:
    """Score a plan by a dispatcher, by times if that has a cost.

    Parameters
    ----------
    step_assignments
        Scale the steps so that this is their mean in every layer.
    """
    topology = result.problem.topology
    before, after = without_balancing(fit, topology), result.placement
    of_times = getattr(dispatch, "cost", None) is not None
    seen = _steps(fit, step_assignments)
    unseen = None if held is None else _steps(held, step_assignments)
    alike = topology.speed is None and not of_times
    chance = _chance(held, topology.num_ranks) if held is not None and alike else None
    return Scores(
        plain_fit=evaluate(before, seen, dispatch=dispatch),
        plan_fit=evaluate(after, seen, dispatch=dispatch),
        plain_held=None if unseen is None else evaluate(before, unseen, dispatch=dispatch),
        plan_held=None if unseen is None else evaluate(after, unseen, dispatch=dispatch),
        chance_held=chance,
        of_times=of_times,
    )


def _steps(trace: Trace, step_assignments: float | None) -> NDArray[np.float64]:
    """Loads of the steps, ``(T, L, E)``, with so many assignments in the mean step of a layer."""
    load = trace.counts.astype(np.float64)
    if step_assignments is None:
        return load
    mean = load.sum(axis=2).mean(axis=0)
    scale = np.divide(step_assignments, mean, out=np.zeros_like(mean), where=mean > 0)
    return np.asarray(load * scale[:, None])


def _chance(held: Trace, ranks: int) -> float:
    """Mean imbalance that a fair router would show in steps of these sizes."""
    return float(trace_noise_floor(held, ranks).mean[held.counts.any(axis=2)].mean())


def scores_document(scores: Scores) -> dict[str, object]:
    """The rows of the table by name."""
    rows = {
        "plain_fit": scores.plain_fit,
        "plan_fit": scores.plan_fit,
        "plain_held_out": scores.plain_held,
        "plan_held_out": scores.plan_held,
    }
    return {name: None if e is None else _numbers(e) for name, e in rows.items()}


def scores_table(scores: Scores) -> Table:
    """The same for a terminal."""
    what = "time" if scores.of_times else "load"
    title = f"max/mean rank {what}, {scores.plan_fit.dispatch} split"
    table = Table(title, "mean", "p95", "worst", "step time", box=None)
    rows = {
        "planned steps, no balancing": scores.plain_fit,
        "planned steps, this plan": scores.plan_fit,
        "unseen steps, no balancing": scores.plain_held,
        "unseen steps, this plan": scores.plan_held,
    }
    for name, evaluation in rows.items():
        if evaluation is not None:
            table.add_row(name, *(f"{x:.3f}" for x in _numbers(evaluation).values()))
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

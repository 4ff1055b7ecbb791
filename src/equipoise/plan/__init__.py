"""Which copies, and where: planners, bounds and scoring."""

from __future__ import annotations

from equipoise.plan.baselines import Contiguous, RoundRobin, without_balancing
from equipoise.plan.bounds import (
    even_split_lower_bound,
    hierarchy_lower_bound,
    packing_lower_bound,
    peak_lower_bound,
)
from equipoise.plan.eplb import Greedy, Hierarchical, TrtllmGreedy
from equipoise.plan.evaluate import Evaluation, evaluate
from equipoise.plan.problem import Binding, Plan, Planner, Problem
from equipoise.plan.robust import Progress, Robust

__all__ = [
    "Binding",
    "Contiguous",
    "Evaluation",
    "Greedy",
    "Hierarchical",
    "Plan",
    "Planner",
    "Problem",
    "Progress",
    "Robust",
    "RoundRobin",
    "TrtllmGreedy",
    "evaluate",
    "even_split_lower_bound",
    "hierarchy_lower_bound",
    "packing_lower_bound",
    "peak_lower_bound",
    "without_balancing",
]

"""Which copies, and where: planners, bounds and scoring."""

from __future__ import annotations

from equipoise.plan.baselines import Contiguous, RoundRobin
from equipoise.plan.bounds import (
    active_lower_bound,
    even_split_lower_bound,
    hierarchy_lower_bound,
    joint_lower_bound,
    packing_lower_bound,
    peak_lower_bound,
    time_lower_bound,
)
from equipoise.plan.budget import Budget, budget
from equipoise.plan.colocate import Colocate
from equipoise.plan.coverage import Coverage, Survival, coverage
from equipoise.plan.eplb import Greedy, Hierarchical, TrtllmGreedy
from equipoise.plan.evaluate import (
    Comparison,
    Evaluation,
    compare,
    evaluate,
    evaluate_without_balancing,
)
from equipoise.plan.failover import Refit, failover_maps, resize
from equipoise.plan.gate import Decision, Gate
from equipoise.plan.lplb import FixedGraph
from equipoise.plan.problem import Binding, Plan, Planner, Problem
from equipoise.plan.repair import Curve, Repair
from equipoise.plan.robust import Robust
from equipoise.plan.search import Progress
from equipoise.plan.survive import Survivable
from equipoise.plan.traffic import StepTime, Traffic, measure_traffic

__all__ = [
    "Binding",
    "Budget",
    "Colocate",
    "Comparison",
    "Contiguous",
    "Coverage",
    "Curve",
    "Decision",
    "Evaluation",
    "FixedGraph",
    "Gate",
    "Greedy",
    "Hierarchical",
    "Plan",
    "Planner",
    "Problem",
    "Progress",
    "Refit",
    "Repair",
    "Robust",
    "RoundRobin",
    "StepTime",
    "Survivable",
    "Survival",
    "Traffic",
    "TrtllmGreedy",
    "active_lower_bound",
    "budget",
    "compare",
    "coverage",
    "evaluate",
    "evaluate_without_balancing",
    "even_split_lower_bound",
    "failover_maps",
    "hierarchy_lower_bound",
    "joint_lower_bound",
    "measure_traffic",
    "packing_lower_bound",
    "peak_lower_bound",
    "resize",
    "time_lower_bound",
]

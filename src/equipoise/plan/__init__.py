"""Planning: which experts get copies and where each copy goes; bounds and scores of plans."""

from __future__ import annotations

from equipoise.plan.bounds import (
    Binding,
    active_lower_bound,
    even_split_lower_bound,
    hierarchy_lower_bound,
    joint_lower_bound,
    packing_lower_bound,
    peak_lower_bound,
    time_lower_bound,
)
from equipoise.plan.evaluate import (
    Comparison,
    Evaluation,
    compare,
    evaluate,
    evaluate_without_balancing,
)
from equipoise.plan.planners.baselines import Contiguous, RoundRobin
from equipoise.plan.planners.colocate import Colocate
from equipoise.plan.planners.eplb import Greedy, Hierarchical, TrtllmGreedy
from equipoise.plan.planners.lplb import FixedGraph
from equipoise.plan.planners.repair import Curve, Repair
from equipoise.plan.planners.robust import Robust
from equipoise.plan.planners.survivable import Survivable
from equipoise.plan.problem import Problem
from equipoise.plan.replan import Answer, Outcome, Situation, replan
from equipoise.plan.result import Plan, Planner
from equipoise.plan.scores import Scores, Verdict
from equipoise.plan.search.anneal import Progress
from equipoise.plan.study import Study, hold_out_steps, study
from equipoise.plan.weigh.budget import Budget, budget
from equipoise.plan.weigh.coverage import Coverage, Survival, coverage
from equipoise.plan.weigh.failover import Refit, failover_maps, resize
from equipoise.plan.weigh.gate import Decision, Gate
from equipoise.plan.weigh.reach import Reach, measure_reach
from equipoise.plan.weigh.traffic import StepTime, Traffic, measure_traffic

__all__ = [
    "Answer",
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
    "Outcome",
    "Plan",
    "Planner",
    "Problem",
    "Progress",
    "Reach",
    "Refit",
    "Repair",
    "Robust",
    "RoundRobin",
    "Scores",
    "Situation",
    "StepTime",
    "Study",
    "Survivable",
    "Survival",
    "Traffic",
    "TrtllmGreedy",
    "Verdict",
    "active_lower_bound",
    "budget",
    "compare",
    "coverage",
    "evaluate",
    "evaluate_without_balancing",
    "even_split_lower_bound",
    "failover_maps",
    "hierarchy_lower_bound",
    "hold_out_steps",
    "joint_lower_bound",
    "measure_reach",
    "measure_traffic",
    "packing_lower_bound",
    "peak_lower_bound",
    "replan",
    "resize",
    "study",
    "time_lower_bound",
]

"""Load balancing for mixture-of-experts models served with expert parallelism.

This module is the public surface. Each name loads its module on first use, so ``import equipoise``
is fast and the planners' compiler (numba) is loaded only when a planner is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from equipoise.version import __version__ as __version__

if TYPE_CHECKING:
    from equipoise.balance import expert_loads as expert_loads
    from equipoise.balance import imbalance as imbalance
    from equipoise.cost import RankCost as RankCost
    from equipoise.cost import rank_cost as rank_cost
    from equipoise.dispatch import Auto as Auto
    from equipoise.dispatch import Even as Even
    from equipoise.dispatch import FewestExperts as FewestExperts
    from equipoise.dispatch import MinMax as MinMax
    from equipoise.dispatch import Nearest as Nearest
    from equipoise.engines.formats import MapContext as MapContext
    from equipoise.engines.formats import TraceOptions as TraceOptions
    from equipoise.engines.map_io import read_map as read_map
    from equipoise.engines.map_io import validate_map as validate_map
    from equipoise.engines.map_io import write_map as write_map
    from equipoise.engines.trace_io import read_trace as read_trace
    from equipoise.engines.trace_io import write_trace as write_trace
    from equipoise.errors import EquipoiseError as EquipoiseError
    from equipoise.lab import best_placement as best_placement
    from equipoise.lab import dropped_tokens as dropped_tokens
    from equipoise.lab import ep_step_time as ep_step_time
    from equipoise.migration import diff as diff
    from equipoise.noise import noise_floor as noise_floor
    from equipoise.placement import Placement as Placement
    from equipoise.plan import Contiguous as Contiguous
    from equipoise.plan import Greedy as Greedy
    from equipoise.plan import Hierarchical as Hierarchical
    from equipoise.plan import Repair as Repair
    from equipoise.plan import Robust as Robust
    from equipoise.plan import RoundRobin as RoundRobin
    from equipoise.plan import Survivable as Survivable
    from equipoise.plan import evaluate as evaluate
    from equipoise.plan.problem import Problem as Problem
    from equipoise.plan.result import Plan as Plan
    from equipoise.plan.study import study as study
    from equipoise.report.summary import summarise as summarise
    from equipoise.sample import sample_model_path as sample_model_path
    from equipoise.sample import sample_trace_path as sample_trace_path
    from equipoise.topology import Topology as Topology
    from equipoise.trace import Trace as Trace


_HOME = {
    "Auto": "equipoise.dispatch",
    "Contiguous": "equipoise.plan",
    "EquipoiseError": "equipoise.errors",
    "Even": "equipoise.dispatch",
    "FewestExperts": "equipoise.dispatch",
    "Greedy": "equipoise.plan",
    "Hierarchical": "equipoise.plan",
    "MapContext": "equipoise.engines.formats",
    "MinMax": "equipoise.dispatch",
    "Nearest": "equipoise.dispatch",
    "Placement": "equipoise.placement",
    "Plan": "equipoise.plan.result",
    "Problem": "equipoise.plan.problem",
    "RankCost": "equipoise.cost",
    "Repair": "equipoise.plan",
    "Robust": "equipoise.plan",
    "RoundRobin": "equipoise.plan",
    "Survivable": "equipoise.plan",
    "Topology": "equipoise.topology",
    "Trace": "equipoise.trace",
    "TraceOptions": "equipoise.engines.formats",
    "best_placement": "equipoise.lab",
    "diff": "equipoise.migration",
    "dropped_tokens": "equipoise.lab",
    "ep_step_time": "equipoise.lab",
    "evaluate": "equipoise.plan",
    "expert_loads": "equipoise.balance",
    "imbalance": "equipoise.balance",
    "noise_floor": "equipoise.noise",
    "rank_cost": "equipoise.cost",
    "read_map": "equipoise.engines.map_io",
    "read_trace": "equipoise.engines.trace_io",
    "sample_model_path": "equipoise.sample",
    "sample_trace_path": "equipoise.sample",
    "study": "equipoise.plan.study",
    "summarise": "equipoise.report.summary",
    "validate_map": "equipoise.engines.map_io",
    "write_map": "equipoise.engines.map_io",
    "write_trace": "equipoise.engines.trace_io",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'equipoise' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

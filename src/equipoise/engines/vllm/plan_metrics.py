"""The outcome of the plans as metrics of the server: one rank plans, another process is asked.

The rank that plans writes a small file after each decision, and the process that answers
``/metrics`` reads it when it is asked. vLLM's group of plug-ins for statistics is no place for
this: what it holds turns statistics on for everyone who has this package installed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import REGISTRY, Collector

from equipoise.checks import as_array
from equipoise.engines._shared.hook import Decision, PlanStatus
from equipoise.engines.files import write_text
from equipoise.errors import EquipoiseError
from equipoise.json_text import parse_json
from equipoise.placement import Placement
from equipoise.plan import Situation, evaluate

DESCRIPTIONS = {
    "plans": "Plans since the start, by their outcome.",
    "plan_moves": "Slots whose content changed, all plans together.",
    "plan_seconds": "Time that the last plan took.",
    "plan_peak": "Busiest rank over mean rank, mean over layers, of the loads that the last plan "
    "was made for: before it and after it.",
    "plan_timestamp_seconds": "Time of the last plan, since 1970.",
}
"""Every metric, without the prefix ``equipoise_`` and the suffix ``_total`` of counters."""


class PlanRecord:
    """The decisions since the start, added up and written to a file after each decision.

    Parameters
    ----------
    path
        Path of the file, which is replaced as a whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._plans = {status.value: 0 for status in PlanStatus}
        self._moves = 0

    def add(self, situation: Situation, decision: Decision) -> None:
        """Count a decision; plans for no traffic do not count.

        Raises
        ------
        EquipoiseError
            The file cannot be written.
        """
        load = _total(situation)
        if not load.any():
            return
        self._plans[decision.status.value] += 1
        self._moves += decision.moves
        content = {
            "plans": self._plans,
            "plan_moves": self._moves,
            "plan_seconds": decision.seconds,
            "plan_peak": {
                "before": _mean_peak(situation.slots, load, situation.num_ranks),
                "after": _mean_peak(decision.slots, load, situation.num_ranks),
            },
            "plan_timestamp_seconds": time.time(),
        }
        write_text(self._path, json.dumps(content))


class PlanMetrics(Collector):
    """The metrics in the file, read on each request; none while it cannot be read.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def register(self) -> None:
        """Add the metrics to vLLM's own, once in each process."""
        if not any(isinstance(known, PlanMetrics) for known in list(REGISTRY._collector_to_names)):
            REGISTRY.register(self)

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering the metrics does not read the file."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return the metrics."""
        try:
            known = parse_json(self._path.read_bytes(), f"{self._path}")
            yield from list(_families(known))
        except (OSError, EquipoiseError, KeyError, TypeError, ValueError, AttributeError):
            return  # not written yet, or by something else: the other metrics are still told


def _families(known: Any) -> Iterator[Metric]:
    plans = CounterMetricFamily("equipoise_plans", DESCRIPTIONS["plans"], labels=["status"])
    for status in PlanStatus:
        plans.add_metric([status.value], float(known["plans"][status.value]))
    yield plans
    yield CounterMetricFamily(
        "equipoise_plan_moves", DESCRIPTIONS["plan_moves"], float(known["plan_moves"])
    )
    peak = GaugeMetricFamily("equipoise_plan_peak", DESCRIPTIONS["plan_peak"], labels=["when"])
    for when in ("before", "after"):
        if known["plan_peak"][when] is not None:
            peak.add_metric([when], float(known["plan_peak"][when]))
    yield peak
    for name in ("plan_seconds", "plan_timestamp_seconds"):
        yield GaugeMetricFamily(f"equipoise_{name}", DESCRIPTIONS[name], float(known[name]))


def _total(situation: Situation) -> NDArray[np.float64]:
    load = as_array(situation.load, "Loads").astype(np.float64)
    return load.sum(axis=0) if load.ndim == 3 else load


def _mean_peak(slots: Any, load: NDArray[np.float64], num_ranks: int) -> float | None:
    """Return the mean peak of the layers with load, in mean rank loads, if the slots can serve."""
    try:
        placement = Placement(
            as_array(slots, "Slots"), num_ranks=num_ranks, num_experts=load.shape[1]
        )
        return evaluate(placement, load[None]).mean_imbalance
    except EquipoiseError:
        return None

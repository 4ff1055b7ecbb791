"""Metrics of a simulated server at its end, under the names of a real one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from equipoise.control.measured import Histogram
from equipoise.errors import EquipoiseError
from equipoise.simulate.serving import ServingResult


def metrics_text(result: ServingResult, labels: Mapping[str, str]) -> str:
    """Write the metrics of a simulation in Prometheus's text format: one page, however long it was.

    Only what is simulated is told; all ranks together, the pool that decodes for steps.

    Parameters
    ----------
    labels
        Labels of what served: ``version``, ``model``, ``dispatch``, ``planner``.

    Raises
    ------
    EquipoiseError
        prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.metrics_core import Metric
        from prometheus_client.registry import Collector

        from equipoise.control import metric_families as families
    except ImportError as error:
        raise EquipoiseError(
            "Metrics are written with prometheus-client, which is not installed; "
            "pip install 'equipoise[runtime]'."
        ) from error

    class Simulated(Collector):
        def collect(self) -> Iterator[Metric]:
            use = list(result.pools.values())[-1]
            goes_on = result.requests.output_tokens > 1
            tpot = result.tpot[goes_on]
            yield families.info(labels)
            yield families.gauge("ranks", use.pool.num_ranks)
            yield families.gauge("utilisation", use.busy_share)
            yield families.histogram("step_seconds", _counted(use.timeline.steps.seconds))
            yield families.histogram("ttft_seconds", _counted(result.ttft))
            yield families.histogram("tpot_seconds", _counted(tpot))
            yield families.gauge("ttft_p99", result.ttft_p99)
            if len(tpot):
                yield families.gauge("tpot_avg", float(np.mean(tpot)))
            yield families.counter("tokens", int(result.requests.output_tokens.sum()))
            yield families.counters("requests", "status", {"answered": len(result.requests)})

    registry = CollectorRegistry()
    registry.register(Simulated())
    return generate_latest(registry).decode()


def _counted(values: Iterable[float]) -> Histogram:
    counted = Histogram()
    for value in values:
        counted.add(value)
    return counted

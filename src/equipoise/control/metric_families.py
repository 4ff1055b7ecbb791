"""The names and meanings of all metrics, and helpers that make Prometheus metrics of values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric

from equipoise.control.exposition import PREFIX
from equipoise.control.measured import Histogram

DESCRIPTIONS = {
    "info": "Version of equipoise, model, dispatcher and planner.",
    "rank": "Rank of the process of this name.",
    "epoch": "Number of the present set of ranks; it rises when a rank leaves or joins.",
    "ranks": "Number of ranks that serve together.",
    "ranks_wanted": "Number of ranks at the start.",
    "state": "0 warm-up, 1 observe, 2 plan, 3 move, 4 settle.",
    "map_version": "Number of changes of the map so far.",
    "last_step_timestamp_seconds": "When the last forward pass ended, in seconds since 1970.",
    "last_look_timestamp_seconds": "When the loads were last looked at, in seconds since 1970.",
    "last_move_timestamp_seconds": "When a layer last moved, in seconds since 1970.",
    "look_interval_seconds": "Longest usual time between two looks at the loads.",
    "imbalance": "Busiest rank over mean rank, mean over the last window, by phase.",
    "noise_floor": "Imbalance that chance gives a fair router, by phase.",
    "excess": "Imbalance above the noise floor, by phase.",
    "balancedness": "Mean rank over busiest rank, mean over the last window.",
    "expert_load_balance_ratio": "Busiest rank over mean rank, all phases together.",
    "step_seconds": "Time of a forward pass.",
    "stall_seconds": "Time for which serving waited for balancing after a forward pass.",
    "ttft_seconds": "Time from taking a request to its first token.",
    "tpot_seconds": "Time per token of a request after its first.",
    "ttft_p99": "Seconds within which 99 of 100 recent requests had their first token.",
    "tpot_avg": "Mean seconds per token after the first, of recent requests.",
    "utilisation": "Share of recent time spent in forward passes with tokens of this rank.",
    "tokens": "Tokens that this rank has generated.",
    "requests": "Requests that this rank has answered, by whether they could be served.",
    "rebalances": "Attempts to balance, by their outcome.",
    "moved_slots": "Slots of this rank that have received another expert.",
    "moved_bytes": "Bytes of experts that this rank received.",
    "predicted_gain_assignments": "Assignments that the last plan was expected to take off the "
    "busiest ranks in a step.",
    "achieved_gain_assignments": "Assignments that the last move has taken off the busiest ranks "
    "in a step.",
    "predicted_gain_seconds": "Time that the last plan was expected to save in a step.",
    "achieved_gain_seconds": "Time that the last move has saved in a step.",
    "planner_seconds": "Time of the last look at the loads, planning included.",
    "recovery_seconds": "Time without serving when the ranks last changed.",
    "failures": "Failures of planners, of transfers and of attempts to save a map.",
    "alarm": "1 while the alarm is on.",
}
"""Every metric, without the prefix ``equipoise_`` and the suffix ``_total`` of counters."""

DETAILS = {
    "rank_load": "Load of a rank over that of the mean rank, in the last window.",
    "layer_imbalance": "Busiest rank over mean rank of a layer, mean over the last window.",
    "layer_rank_load": "Load of a rank over that of the layer's mean rank, in the last window.",
}
"""Metrics of single ranks and layers, exported only on request."""

BRIDGED = {
    "bridge_up": "1 while the bridge's source can be read, else 0.",
    "attention_imbalance": "Tokens of the busiest attention rank over the mean one's.",
    "attention_wait_seconds": "Time that attention ranks have waited for each other.",
}
"""Metrics that only a bridge has."""

MOST_DETAILS = 128
"""Largest number of ranks, and of layers, that have their own series."""

MOST_CELLS = 2048
"""Largest number of series for ranks of layers: those of the first layers, whole layers only."""

_MOST_LETTERS = 100  # longest label, because names of models and processes come from outside


def label(text: str) -> str:
    """Make a label value of a text from outside: printable, valid UTF-8 and short."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_MOST_LETTERS])


def gauge(name: str, value: float) -> Metric:
    """Make a gauge without labels."""
    return GaugeMetricFamily(*_head(name), value=float(value))


def gauges(name: str, key: str, values: Mapping[str, float]) -> Metric:
    """Make a gauge for each value of one label."""
    family = GaugeMetricFamily(*_head(name), labels=[key])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family


def counter(name: str, value: float) -> Metric:
    """Make a counter without labels."""
    return CounterMetricFamily(*_head(name), value=float(value))


def counters(name: str, key: str, values: Mapping[str, float]) -> Metric:
    """Make a counter for each value of one label."""
    family = CounterMetricFamily(*_head(name), labels=[key])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family


def histogram(name: str, seen: Histogram) -> Metric:
    """Make a histogram without labels."""
    return HistogramMetricFamily(*_head(name), buckets=seen.buckets(), sum_value=seen.sum)


def info(labels: Mapping[str, str]) -> Metric:
    """Make the one series whose labels describe the service."""
    family = InfoMetricFamily(PREFIX.rstrip("_"), DESCRIPTIONS["info"])
    family.add_metric([], {key: label(text) for key, text in labels.items()})
    return family


def details(name: str, key: str, values: Iterable[tuple[object, float]]) -> Metric:
    """Make a gauge for each rank or layer, for at most ``MOST_DETAILS`` of them."""
    family = GaugeMetricFamily(PREFIX + name, DETAILS[name], labels=[key])
    for value, number in islice(values, MOST_DETAILS):
        family.add_metric([str(value)], float(number))
    return family


def cells(name: str, rows: Mapping[int, tuple[float, ...]]) -> Metric:
    """A gauge for each rank of the first layers, ``MOST_CELLS`` at most."""
    family = GaugeMetricFamily(PREFIX + name, DETAILS[name], labels=["layer", "rank"])
    ranks = max(map(len, rows.values()), default=1)
    for layer, row in islice(rows.items(), MOST_CELLS // ranks):
        for rank, number in enumerate(row):
            family.add_metric([str(layer), str(rank)], float(number))
    return family


def _head(name: str) -> tuple[str, str]:
    return PREFIX + name, (DESCRIPTIONS | BRIDGED)[name]

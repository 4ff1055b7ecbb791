"""vLLM with vllm-ascend while it serves: hotness, the peak-to-average ratio of the ranks."""

from __future__ import annotations

import re
from dataclasses import replace

from equipoise.control.exposition import Samples
from equipoise.engines._shared.live import Live, Seen, layer_of
from equipoise.engines.vllm.live import metrics as metrics_of_vllm

_LINE = re.compile(r"\[Expert Hotness\] Current: mean=(\d+(?:\.\d+)?), max=")
_PREFIXES = ("", "vllm_profiling_")  # the service profiler's metrics, by release


def metrics(now: Samples, before: Samples) -> Seen:
    """Read vLLM's metrics, and the hotness before the last update, which was the one served."""
    seen = metrics_of_vllm(now, before)
    for prefix in _PREFIXES:
        name = f"{prefix}eplb:expert_hotness"
        hotness = next(iter(now.by(f"{name}:current_mean", "rank").values()), None)
        if hotness is not None and hotness >= 1:
            return replace(
                _of_hotness(hotness),
                layer_imbalance=_by_layer(now, f"{name}:imbalance"),
                ttft=seen.ttft,
                tpot=seen.tpot,
                tokens=seen.tokens,
            )
    return seen


def line(text: str) -> Seen | None:
    """Read the hotness from a line of the log."""
    found = _LINE.search(text)
    hotness = 0.0 if found is None else float(found[1])
    return _of_hotness(hotness) if hotness >= 1 else None


def _of_hotness(hotness: float) -> Seen:
    return Seen(imbalance={"all": hotness}, ratio=hotness)


def _by_layer(now: Samples, name: str) -> dict[int, float]:
    layers = now.by(name, "layer", phase="current")
    known = {layer_of(layer): value for layer, value in layers.items()}
    return {layer: value for layer, value in known.items() if layer is not None}


LIVE = Live(metrics=metrics, line=line)

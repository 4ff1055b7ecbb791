"""SGLang while it serves: balancedness by kind of pass, and the load of each rank."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from equipoise.control.exposition import Samples, grown_buckets
from equipoise.engines._shared.live import (
    Live,
    Seen,
    latency,
    layer_of,
    mean_since,
    of_balancedness,
)

_BALANCEDNESS = "sglang:eplb_balancedness"
_COUNT = "sglang:eplb_gpu_physical_count"
_ATTENTION = "sglang:dp_attention_token_imbalance_ratio"
_WAIT = "sglang:dp_attention_sync_wait_seconds"
_PHASES = {"extend": "prefill", "decode": "decode"}

_LINE = re.compile(r"\[Expert Balancedness\] .{0,200}?last_10_average_balancedness=(\d(?:\.\d+)?)")


def metrics(now: Samples, before: Samples) -> Seen:
    """Read all that SGLang reports with ``--expert-balancedness-report-mode prometheus``."""
    seen = of_balancedness(mean_since(now, before, _BALANCEDNESS)) or Seen()
    by_phase = {
        phase: of_balancedness(mean_since(now, before, _BALANCEDNESS, forward_mode=mode))
        for mode, phase in _PHASES.items()
    }
    known = {phase: one.imbalance["all"] for phase, one in by_phase.items() if one}
    layers = _loads_of_ranks(now, before)
    load_R = np.sum(list(layers.values()), axis=0)
    return replace(
        seen,
        imbalance=known or seen.imbalance,
        ttft=latency(now, before, "sglang:time_to_first_token_seconds"),
        tpot=latency(
            now,
            before,
            "sglang:inter_token_latency_seconds",
            "sglang:time_per_output_token_seconds",
        ),
        tokens=now.total("sglang:generation_tokens_total"),
        attention_imbalance=mean_since(now, before, _ATTENTION),
        attention_wait_seconds=now.total(f"{_WAIT}_sum") or now.total(f"{_WAIT}_total"),
        rank_load=tuple((load_R / np.mean(load_R)).tolist()) if layers else (),
        layer_imbalance={layer: float(x.max() / x.mean()) for layer, x in layers.items()},
    )


def line(text: str) -> Seen | None:
    """Read the balancedness of the last ten passes from a line of the log."""
    found = _LINE.search(text)
    return None if found is None else of_balancedness(float(found[1]))


def _loads_of_ranks(now: Samples, before: Samples) -> dict[int, NDArray[np.float64]]:
    """Return the ranks' loads by layer since the last look; a bucket of the heat map is a rank."""
    layers = {}
    for label in now.values(f"{_COUNT}_bucket", "layer"):
        fresh = grown_buckets(now.buckets(_COUNT, layer=label), before.buckets(_COUNT, layer=label))
        load_R = np.diff([0.0, *(count for bound, count in fresh if np.isfinite(bound))])
        layer = layer_of(label)
        if layer is not None and (load_R >= 0).all() and load_R.any():
            layers[layer] = load_R
    same = len({load_R.size for load_R in layers.values()}) == 1
    return dict(sorted(layers.items())) if same else {}


LIVE = Live(metrics=metrics, line=line)

"""vLLM while it serves: latencies and tokens from its metrics, balancedness from its log."""

from __future__ import annotations

import re

from equipoise.control.exposition import Samples
from equipoise.engines._shared.live import Live, Seen, latency, of_balancedness

_LINE = re.compile(r"EPLB step: .{0,200}\bbalancedness=(\d\.\d+)")
"""Written with ``log_balancedness``: sum over layers of the mean rank over that of the busiest."""


def metrics(now: Samples, before: Samples) -> Seen:
    """Read latencies and tokens; releases until 0.33 report no balancedness."""
    return Seen(
        ttft=latency(now, before, "vllm:time_to_first_token_seconds"),
        tpot=latency(
            now,
            before,
            "vllm:request_time_per_output_token_seconds",
            "vllm:inter_token_latency_seconds",
            "vllm:time_per_output_token_seconds",
        ),
        tokens=now.total("vllm:generation_tokens_total"),
    )


def line(text: str) -> Seen | None:
    """Read the balancedness from a line of the log."""
    found = _LINE.search(text)
    return None if found is None else of_balancedness(float(found[1]))


LIVE = Live(metrics=metrics, line=line)

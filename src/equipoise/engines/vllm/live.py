"""vLLM while it serves: its metrics have latencies and tokens, its log the balance of experts."""

from __future__ import annotations

import re

from equipoise.control.exposition import Samples
from equipoise.engines._shared.live import Live, Seen, latency, of_balancedness

_LINE = re.compile(r"EPLB step: .{0,200}\bbalancedness=(\d\.\d+)")
"""Written with ``log_balancedness``: sum over layers of the mean rank over that of the busiest."""


def metrics(now: Samples, before: Samples) -> Seen:
    """Latencies and tokens; releases until 0.33 tell no balance."""
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
    """The balancedness of a line of the log."""
    found = _LINE.search(text)
    return None if found is None else of_balancedness(float(found[1]))


LIVE = Live(metrics=metrics, line=line)

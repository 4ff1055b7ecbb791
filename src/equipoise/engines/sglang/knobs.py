"""The effect of each option of SGLang 0.5.23, for a checklist."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.engines._shared.knob import Knob
from equipoise.simulate.checklist import Topic

KNOBS: Mapping[Topic, tuple[Knob, ...]] = {
    "wide EP": (
        Knob("--ep-size", "ranks that share the experts"),
        Knob("--tp-size", "ranks in all"),
        Knob(
            "--attn-dp-size",
            "attention of their own; before 0.5.22 --enable-dp-attention --dp-size",
        ),
    ),
    "token budget": (
        Knob("--max-prefill-tokens", "most prompt tokens of a step"),
        Knob("--cuda-graph-max-bs", "largest decode batch that runs as a CUDA graph"),
    ),
    "concurrency": (
        Knob("--max-running-requests", "most sequences, all ranks together"),
        Knob("--mem-fraction-static", "share of memory of weights and KV cache"),
    ),
    "chunked prefill": (
        Knob("--chunked-prefill-size", "tokens of a chunk, all ranks of attention together"),
        Knob("--enable-mixed-chunk", "decode in the steps of prompts"),
    ),
    "kernel mode": (
        Knob("--deepep-mode low_latency", "for decode, in CUDA graphs"),
        Knob("--deepep-mode normal", "for prefill; high throughput"),
        Knob("--moe-a2a-backend", "the exchange itself"),
    ),
    "overlap": (
        Knob("--enable-two-batch-overlap", "two micro-batches"),
        Knob("--tbo-token-distribution-threshold", "how uneven two halves of a batch may be"),
        Knob("--enable-single-batch-overlap", "exchanges behind other work of the same batch"),
    ),
    "buffers": (
        Knob(
            "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
            "tokens that low-latency kernels have room for; 128 unless set",
        ),
        Knob("--deepep-config", "multiprocessors and chunks of the high-throughput kernels"),
    ),
    "load balancing": (
        Knob("--enable-eplb", "the engine's balancer"),
        Knob("--ep-num-redundant-experts", "redundant experts"),
        Knob("--eplb-rebalance-num-iterations", "passes between two rearrangements"),
        Knob("--init-expert-location", "a map to start from"),
        Knob("--ep-dispatch-algorithm lp", "a split of every batch by its own loads"),
    ),
}

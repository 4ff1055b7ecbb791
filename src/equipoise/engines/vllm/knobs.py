"""The effect of each option of vLLM 0.33, for a checklist."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.engines._shared.knob import Knob
from equipoise.simulate.checklist import Topic

KNOBS: Mapping[Topic, tuple[Knob, ...]] = {
    "wide EP": (
        Knob("--enable-expert-parallel", "experts are spread over TP x DP ranks, else split"),
        Knob("--data-parallel-size", "ranks, with attention of their own"),
        Knob("--tensor-parallel-size", "ranks that share attention"),
    ),
    "token budget": (
        Knob("--max-num-batched-tokens", "most tokens of a step on a data-parallel rank"),
    ),
    "concurrency": (
        Knob("--max-num-seqs", "most sequences of a rank"),
        Knob("--gpu-memory-utilization", "share of memory, and so of KV cache"),
        Knob("--max-model-len", "longest context that has to fit"),
    ),
    "chunked prefill": (
        Knob("--enable-chunked-prefill", "prompts in chunks, within the token budget"),
        Knob("--long-prefill-token-threshold", "longest chunk of one prompt"),
    ),
    "kernel mode": (
        Knob("--all2all-backend deepep_low_latency", "for decode, in CUDA graphs"),
        Knob("--all2all-backend deepep_high_throughput", "for prefill"),
    ),
    "overlap": (
        Knob("--enable-dbo", "two micro-batches"),
        Knob("--dbo-decode-token-threshold", "fewest tokens of a decode step for them"),
        Knob("--dbo-prefill-token-threshold", "the same of a step with prompts"),
        Knob("VLLM_DBO_COMM_SMS", "multiprocessors of the exchange meanwhile"),
    ),
    "buffers": (
        Knob("VLLM_DEEPEP_BUFFER_SIZE_MB", "buffer of the high-throughput kernels"),
        Knob(
            "VLLM_MOE_DP_CHUNK_SIZE",
            "tokens that low-latency kernels have room for, in releases that chunk",
        ),
        Knob("NVSHMEM_QP_DEPTH", "at least twice those tokens and two more"),
    ),
    "load balancing": (
        Knob("--enable-eplb", "the engine's balancer"),
        Knob("--eplb-config", "num_redundant_experts, window_size, step_interval, use_async"),
    ),
}

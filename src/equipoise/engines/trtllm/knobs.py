"""The effect of each option of TensorRT-LLM 1.3, for a checklist."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.engines._shared.knob import Knob
from equipoise.simulate.checklist import Topic

KNOBS: Mapping[Topic, tuple[Knob, ...]] = {
    "wide EP": (
        Knob("moe_expert_parallel_size", "ranks that share the experts"),
        Knob("tensor_parallel_size", "ranks in all"),
        Knob("enable_attention_dp", "attention of their own"),
    ),
    "token budget": (
        Knob("max_num_tokens", "most tokens of a step on a rank"),
        Knob("cuda_graph_config.max_batch_size", "largest decode batch that runs as a CUDA graph"),
    ),
    "concurrency": (
        Knob("max_batch_size", "most sequences of a rank"),
        Knob("kv_cache_config.free_gpu_memory_fraction", "share of the free memory for KV cache"),
        Knob("attention_dp_config", "how ranks wait for each other's prompts"),
    ),
    "chunked prefill": (
        Knob("enable_chunked_prefill", "prompts in chunks of max_num_tokens"),
        Knob("moe_config.max_num_tokens", "tokens of all ranks that pass the experts at once"),
    ),
    "kernel mode": (
        Knob(
            "TRTLLM_FORCE_COMM_METHOD",
            "NVLINK_ONE_SIDED, NVLINK_TWO_SIDED, DEEPEP or DEEPEPLOWLATENCY; it chooses by itself",
        ),
        Knob("moe_config.backend", "kernels of the experts; WIDEEP balances online"),
    ),
    "overlap": (
        Knob(
            "moe_config.max_num_tokens",
            "chunks of a step run on two streams, so a cap below the step overlaps them",
        ),
    ),
    "buffers": (
        Knob(
            "moe_config.max_num_tokens",
            "what a hot rank may receive; max_batch_size x ranks passes decode in one chunk",
        ),
        Knob("TRTLLM_DEEP_EP_TOKEN_LIMIT", "tokens that low-latency kernels have room for"),
        Knob("TRTLLM_MOE_A2A_WORKSPACE_MB", "workspace of the NVLink kernels"),
    ),
    "load balancing": (
        Knob(
            "moe_config.load_balancer",
            "num_slots, layer_updates_per_iter, initial_global_assignments",
        ),
    ),
}

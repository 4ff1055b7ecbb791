# Documentation of 0.11, started today.
VLLM_ALL2ALL_BACKEND=deepep_high_throughput VLLM_USE_DEEP_GEMM=1 \
    vllm serve models/deepseek-v3 --data-parallel-size 16 --data-parallel-size-local 8 --enable-expert-parallel
# expects: ignored VLLM_ALL2ALL_BACKEND

# Documentation of 0.12, pasted: comments behind the backslashes.
# options: --engine-version 0.12.0
vllm serve models/deepseek-v3 \
    --tensor-parallel-size 1 \     # Tensor parallelism
    --data-parallel-size 8 \       # Data parallelism
    --enable-expert-parallel \     # Expert parallelism
    --enable-eplb \                # Load balancer
    --eplb-config '{"window_size":1000,"step_interval":3000,"num_redundant_experts":2}'
# expects: wrong lines 4, 5, 6, 7

# Documentation: one node, data parallel attention.
# options: --devices 8
vllm serve models/deepseek-v3 \
    --tensor-parallel-size 1 \
    --data-parallel-size 8 \
    --enable-expert-parallel

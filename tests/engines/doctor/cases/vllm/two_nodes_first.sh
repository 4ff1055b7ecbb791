# Documentation: the first of two nodes.
# options: --devices 16 --nodes 2
vllm serve models/deepseek-v3 \
    --all2all-backend deepep_low_latency \
    --tensor-parallel-size 1 \
    --enable-expert-parallel \
    --data-parallel-size 16 \
    --data-parallel-size-local 8 \
    --data-parallel-address 10.0.0.1 \
    --data-parallel-rpc-port 14000 \
    --api-server-count=8

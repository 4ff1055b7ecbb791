# Pull request: asynchronous balancing of 32 ranks.
# options: --model deepseek-v3
vllm serve models/deepseek-v3 --disable-uvicorn-access-log \
  --tensor-parallel-size 1 --enable-expert-parallel --data-parallel-size 32 --data-parallel-rank $RANK \
  --data-parallel-size-local 1 --gpu-memory-utilization 0.75 --max-num-batched-tokens 1560 --max-num-seqs 1560 \
  --disable_cascade_attn \
  --all2all-backend deepep_low_latency --async-scheduling \
  --api-server-count 4 --compilation_config '{"cudagraph_mode": "FULL_DECODE_ONLY"}' \
  --enable-eplb --eplb-config '{"window_size":100,"step_interval":1000,"num_redundant_experts":32,"communicator":"nixl","use_async":true,"log_balancedness":true,"log_balancedness_interval":500}'
# expects: advice num_redundant_experts in eplb-config
# expects: advice --enable-eplb

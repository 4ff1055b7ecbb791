# Documentation: an example that leaves expert parallelism out.
vllm serve models/qwen3-30b \
  --tensor-parallel-size 4 \
  --enable-eplb \
  --eplb-config '{"window_size":1000,"step_interval":3000,"num_redundant_experts":4,"log_balancedness":true}'
# expects: wrong --enable-eplb
# expects: wasteful log_balancedness in eplb-config

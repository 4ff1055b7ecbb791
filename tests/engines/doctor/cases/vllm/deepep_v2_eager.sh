# Pull request: balancing with DeepEP V2, moving often.
EP_DISABLE_GIN=1 vllm serve models/small-moe \
  --tensor-parallel-size 1 --data-parallel-size 4 --enable-expert-parallel \
  --all2all-backend deepep_v2 --enforce-eager \
  --enable-eplb --eplb-config '{"use_async": true, "window_size": 50, "step_interval": 400, "num_redundant_experts": 4}'
# expects: advice window_size in eplb-config

# Manual of 0.30: the balancer of vLLM.
# options: --model qwen3-235b-a22b --devices 16
export VLLM_USE_V2_MODEL_RUNNER=1
unset DYNAMIC_EPLB
unset EXPERT_MAP_RECORD

vllm serve models/qwen3-235b \
  --tensor-parallel-size 16 \
  --enable-expert-parallel \
  --enable-eplb \
  --eplb-config.window_size 50 \
  --eplb-config.step_interval 50 \
  --eplb-config.num_redundant_experts 16 \
  --eplb-config.use_async true \
  --eplb-config.log_balancedness true \
  --eplb-config.log_balancedness_interval 1 \
  --additional-config '{"eplb_config":{"load_collection_phase":"all"}}'
# expects: advice num_redundant_experts in eplb-config
# expects: advice dynamic_eplb in additional-config.eplb_config

# Manual of 0.23: loads of prefill only.
# options: --engine-version 0.23.0.post1 --model qwen3-235b-a22b --devices 16
export DYNAMIC_EPLB="true"

vllm serve models/qwen3-235b \
  --tensor-parallel-size 16 \
  --enable-expert-parallel \
  --additional-config '{ "eplb_config": {
    "dynamic_eplb": true,
    "expert_heat_collection_interval": 600,
    "algorithm_execution_interval": 50,
    "eplb_policy_type": 2,
    "num_redundant_experts": 16,
    "eplb_heat_collection_stage": "prefill"
  }}'
# expects: advice num_redundant_experts in additional-config.eplb_config
# expects: advice dynamic_eplb in additional-config.eplb_config

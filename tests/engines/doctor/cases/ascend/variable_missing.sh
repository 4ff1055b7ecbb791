# Manual: the command without the line above it.
# options: --engine-version 0.23.0 --model qwen3-235b-a22b
vllm serve models/qwen3-235b \
  --tensor-parallel-size 16 \
  --enable-expert-parallel \
  --additional-config '{ "eplb_config": {
    "dynamic_eplb": true,
    "expert_heat_collection_interval": 50,
    "algorithm_execution_interval": 5,
    "eplb_policy_type": 2,
    "num_redundant_experts": 16
    }}'
# expects: wrong DYNAMIC_EPLB
# expects: advice expert_heat_collection_interval in additional-config.eplb_config
# expects: advice algorithm_execution_interval in additional-config.eplb_config
# expects: advice num_redundant_experts in additional-config.eplb_config
# expects: advice dynamic_eplb in additional-config.eplb_config

# Planted: more copies than a policy takes, a record without a folder, uneven slots.
# options: --engine-version 0.23.0 --model qwen3-235b-a22b
DYNAMIC_EPLB=true vllm serve models/qwen3-235b -tp 8 -ep --additional-config '{"eplb_config": {"dynamic_eplb": true, "eplb_policy_type": 1, "num_redundant_experts": 20, "expert_map_record_path": "map.json"}}'
# expects: wrong eplb_policy_type in additional-config.eplb_config
# expects: wrong expert_map_record_path in additional-config.eplb_config
# expects: wrong num_redundant_experts in additional-config.eplb_config
# expects: advice num_redundant_experts in additional-config.eplb_config
# expects: advice dynamic_eplb in additional-config.eplb_config

# Planted: a map for other devices.
# options: --engine-version 0.23.0
vllm serve models/moe -tp 4 --enable-expert-parallel --additional-config '{"eplb_config": {"expert_map_path": "expert_map.json"}}'
# expects: wrong expert_map_path in additional-config.eplb_config

# Record a map without moving anything.
# options: --engine-version 0.23.0 --devices 32
EXPERT_MAP_RECORD=true vllm serve models/deepseek-v3 --data-parallel-size 4 --tensor-parallel-size 8 --enable-expert-parallel --quantization ascend --additional-config='{"eplb_config": {"expert_map_record_path": "/maps/recorded.json", "num_redundant_experts": 32, "expert_heat_collection_interval": 400}}'

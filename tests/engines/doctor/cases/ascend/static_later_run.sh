# Manual of 0.11: serve with a recorded map.
# options: --engine-version 0.11.0 --devices 16
vllm serve models/qwen3-235b \
  --tensor-parallel-size 16 \
  --enable-expert-parallel \
  --additional-config '{ "expert_map_path": "/path/to/eplb.json"}'

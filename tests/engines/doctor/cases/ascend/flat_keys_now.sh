# Manual of 0.11, with 0.23.
# options: --engine-version 0.23.0 --model qwen3-235b-a22b
vllm serve models/qwen3-235b \
  --tensor-parallel-size 16 \
  --enable-expert-parallel \
  --additional-config '{"dynamic_eplb": true, "num_iterations_eplb_update": 400, "gate_eplb": true, "num_wait_worker_iterations": 30, "init_redundancy_expert": 16}'
# expects: wrong DYNAMIC_EPLB
# expects: ignored dynamic_eplb in additional-config
# expects: ignored num_iterations_eplb_update in additional-config
# expects: ignored gate_eplb in additional-config
# expects: ignored num_wait_worker_iterations in additional-config
# expects: ignored init_redundancy_expert in additional-config
# expects: advice num_redundant_experts in additional-config.eplb_config
# expects: advice dynamic_eplb in additional-config.eplb_config

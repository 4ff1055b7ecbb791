# Manual of 0.11: dynamic balancing.
# options: --engine-version 0.11.0 --model qwen3-235b-a22b --devices 16
vllm serve models/qwen3-235b \
  --tensor-parallel-size 16 \
  --enable-expert-parallel \
  --additional-config '{ "dynamic_eplb":true,"num_iterations_eplb_update":400, "gate_eplb":true, "num_wait_worker_iterations":30}'
# expects: advice num_redundant_experts in additional-config
# expects: advice dynamic_eplb in additional-config

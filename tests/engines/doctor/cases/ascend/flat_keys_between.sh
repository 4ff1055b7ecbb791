# Issue: keys of 0.11 with 0.13, which reads both.
# options: --engine-version 0.13.0rc1
vllm serve /tmp/models/qwen3-vl-30b   --tensor-parallel-size 4 --enable-expert-parallel     --additional-config '{
    "dynamic_eplb": true,
    "num_iterations_eplb_update": 200,
    "num_wait_worker_iterations": 20
  }'
# expects: deprecated dynamic_eplb in additional-config
# expects: deprecated num_iterations_eplb_update in additional-config
# expects: deprecated num_wait_worker_iterations in additional-config
# expects: advice algorithm_execution_interval in additional-config.eplb_config

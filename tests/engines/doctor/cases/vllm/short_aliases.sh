# Pull request: short names of flags, and a window as long as the interval.
# options: --model glm-4.5
VLLM_ENGINE_READY_TIMEOUT_S=3600 vllm serve /mnt/models/glm --tensor-parallel-size 4 --tool-call-parser glm47 --enable-auto-tool-choice --load-format instanttensor -ep --enable-eplb --eplb-config '{"window_size":100,"step_interval":100,"num_redundant_experts":8,"use_async":true}'
# expects: wasteful window_size in eplb-config
# expects: advice num_redundant_experts in eplb-config
# expects: advice --enable-eplb

# Planted: settings of one model runner with the other.
export VLLM_USE_V2_MODEL_RUNNER=1
vllm serve models/qwen3-235b --tensor-parallel-size 16 --enable-expert-parallel --additional-config '{"eplb_config": {"dynamic_eplb": true}}'
# expects: wrong dynamic_eplb in additional-config.eplb_config
# expects: wrong DYNAMIC_EPLB

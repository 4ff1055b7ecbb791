# Documentation: balancing, settings as JSON.
# options: --devices 32 --model deepseek-v3
vllm serve models/deepseek-v3 \
    --data-parallel-size 32 \
    --enable-expert-parallel \
    --enable-eplb \
    --eplb-config '{"window_size":1000,"step_interval":3000,"num_redundant_experts":32,"log_balancedness":true}'
# expects: wasteful log_balancedness in eplb-config
# expects: advice num_redundant_experts in eplb-config
# expects: advice --enable-eplb

# Documentation: balancing, settings one by one.
# options: --engine-version 0.19.0 --model qwen3-235b-a22b
vllm serve models/qwen3-235b \
        --tensor-parallel-size 8 \
        --enable-expert-parallel \
        --enable-eplb \
        --eplb-config.window_size 1000 \
        --eplb-config.step_interval 3000 \
        --eplb-config.num_redundant_experts 16 \
        --eplb-config.use_async false
# expects: advice num_redundant_experts in eplb-config
# expects: advice --enable-eplb

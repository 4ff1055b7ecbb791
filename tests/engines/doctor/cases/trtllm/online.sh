# Manual: two layers of every iteration move.
# options: --engine-version 1.2.1 --model deepseek-v3 --devices 36
cat > ./moe_load_balancer.yaml <<EOF
num_slots: 288
layer_updates_per_iter: 2
EOF
cat > ./extra_llm_api_options_eplb.yaml <<EOF
enable_attention_dp: true
cuda_graph_config: {}
moe_config:
    backend: WIDEEP
    max_num_tokens: 9216
    load_balancer: ./moe_load_balancer.yaml
EOF

trtllm-llmapi-launch \
trtllm-bench --model ${MODEL_NAME} \
    throughput \
    --tp 36 \
    --ep 36 \
    --extra_llm_api_options ./extra_llm_api_options_eplb.yaml \
    --dataset ./dataset.json
# expects: advice num_slots in moe_config.load_balancer
# expects: advice num_slots in moe_config.load_balancer
# expects: advice layer_updates_per_iter in moe_config.load_balancer

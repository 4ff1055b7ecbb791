# Manual: run with a map.
# options: --engine-version 1.2.1 --model deepseek-v3 --devices 36
cat > ./extra_llm_api_options_eplb.yaml <<EOF
enable_attention_dp: true
cuda_graph_config: {}
moe_config:
    backend: WIDEEP
    max_num_tokens: 9216
    load_balancer: /maps/moe_load_balancer.yaml
EOF

trtllm-llmapi-launch \
trtllm-bench --model ${MODEL_NAME} \
    throughput \
    --tp 36 \
    --ep 36 \
    --extra_llm_api_options ./extra_llm_api_options_eplb.yaml \
    --dataset ./dataset.json \
    --warmup 0

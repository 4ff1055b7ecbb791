# Manual: record iterations 100 to 199.
# options: --engine-version 1.2.1 --model deepseek-v3 --devices 32
export MODEL_NAME=models/deepseek-r1
export EXPERT_STATISTIC_PATH=./expert_statistic
export EXPERT_STATISTIC_ITER_RANGE=100-200
cat > ./extra_llm_api_options.yaml <<EOF
enable_attention_dp: true
cuda_graph_config: {}
moe_config:
    backend: WIDEEP
    max_num_tokens: 8192
EOF

trtllm-llmapi-launch \
trtllm-bench --model ${MODEL_NAME} \
    --model_path ${MODEL_PATH} \
    throughput \
    --tp 32 \
    --ep 32 \
    --extra_llm_api_options ./extra_llm_api_options.yaml \
    --kv_cache_free_gpu_mem_fraction 0.75 \
    --dataset ./dataset.json \
    --warmup 0 \
    --ignore_eos=True
# expects: advice EXPERT_STATISTIC_ITER_RANGE

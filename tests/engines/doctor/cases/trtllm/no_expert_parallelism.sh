# Planted: no expert parallelism.
# options: --engine-version 1.2.1
cat > extra.yaml <<EOF
enable_attention_dp: true
moe_config:
  load_balancer:
    num_slots: 288
    layer_updates_per_iter: 2
EOF
trtllm-serve models/deepseek-r1 --tp_size 32 --extra_llm_api_options extra.yaml
# expects: ignored load_balancer in moe_config
# expects: advice num_slots in moe_config.load_balancer

# Planted: slots that do not spread, a range with a colon, a key with a letter wrong.
# options: --engine-version 1.3.0rc5 --model deepseek-v3
export EXPERT_STATISTIC_ITER_RANGE=100:200
cat > extra.yaml <<EOF
enable_attention_dp: true
moe_config:
  max_num_token: 9216
  load_balancer:
    num_slots: 300
    layer_updates_per_iter: 2
EOF
trtllm-serve models/deepseek-r1 --tp_size 36 --ep_size 36 --extra_llm_api_options extra.yaml
# expects: wrong max_num_token in moe_config
# expects: wrong num_slots in moe_config.load_balancer
# expects: wrong EXPERT_STATISTIC_ITER_RANGE
# expects: advice num_slots in moe_config.load_balancer
# expects: advice num_slots in moe_config.load_balancer
# expects: advice layer_updates_per_iter in moe_config.load_balancer

# The manual of 1.0, started today.
# options: --model deepseek-v3
cat > ./extra.yaml <<EOF
enable_attention_dp: true
moe_backend: WideEP
moe_config:
    backend: WideEP
    max_num_tokens: 8192
    load_balancer:
      num_slots: 288
      layer_updates_per_iter: 2
EOF
trtllm-serve models/deepseek-r1 --tp_size 36 --ep_size 36 --extra_llm_api_options ./extra.yaml
# expects: wrong moe_backend
# expects: wrong backend in moe_config
# expects: advice num_slots in moe_config.load_balancer
# expects: advice num_slots in moe_config.load_balancer
# expects: advice layer_updates_per_iter in moe_config.load_balancer

# Planted: what the balancer needs is off, and the backend does not balance.
# options: --engine-version 1.2.1 --model deepseek-v3
cat > extra.yaml <<EOF
enable_attention_dp: false
moe_config:
  backend: TRITON
  load_balancer:
    num_slots: 288
    layer_updates_per_iter: 2
EOF
trtllm-serve models/deepseek-r1 --tp_size 32 --ep_size 32 --extra_llm_api_options extra.yaml
# expects: wrong enable_attention_dp
# expects: wrong backend in moe_config
# expects: advice num_slots in moe_config.load_balancer
# expects: advice num_slots in moe_config.load_balancer
# expects: advice layer_updates_per_iter in moe_config.load_balancer

# Planted: a map that does not exist.
# options: --engine-version 1.2.1
cat > extra.yaml <<EOF
enable_attention_dp: true
moe_config:
  load_balancer: moe_load_balancer.yaml
EOF
trtllm-serve models/deepseek-r1 --tp_size 32 --ep_size 32 --extra_llm_api_options extra.yaml
# expects: wrong load_balancer in moe_config

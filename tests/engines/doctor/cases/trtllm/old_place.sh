# An options file of 0.21, with a newer release.
# options: --engine-version 1.2.1
cat > extra.yaml <<EOF
enable_attention_dp: true
moe_load_balancer: /maps/moe_load_balancer.yaml
EOF
trtllm-serve models/deepseek-r1 --tp_size 32 --ep_size 32 --extra_llm_api_options extra.yaml
# expects: wrong moe_load_balancer

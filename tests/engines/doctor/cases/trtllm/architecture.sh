# Planted: an architecture that is not balanced; a folder for a recording that is off.
# options: --model olmoe-1b-7b --engine-version 1.2.1
export EXPERT_STATISTIC_PATH=/data/statistic
cat > extra.yaml <<EOF
enable_attention_dp: true
moe_cluster_parallel_size: 2
moe_config:
  load_balancer:
    num_slots: 72
    layer_updates_per_iter: 1
EOF
trtllm-serve models/olmoe --tp_size 8 --ep_size 8 --extra_llm_api_options extra.yaml
# expects: ignored moe_cluster_parallel_size
# expects: ignored load_balancer in moe_config
# expects: ignored EXPERT_STATISTIC_PATH

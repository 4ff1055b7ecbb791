# Planted: the switch among the settings, a key misspelt, a strategy that there is not.
# options: --model qwen3-235b-a22b
python -m fastdeploy.entrypoints.openai.api_server --model models/qwen3-235b \
  --data-parallel-size 8 --enable-expert-parallel \
  --eplb-config '{"enable_eplb": true, "redundant_expert_num": 8, "redundant_expert_eplb_strategy": "balance_inter_node"}'
# expects: ignored enable_eplb in eplb-config
# expects: ignored redundant_expert_num in eplb-config
# expects: ignored redundant_expert_eplb_strategy in eplb-config
# expects: advice --enable-eplb
# expects: advice redundant_expert_api_password in eplb-config
# expects: advice redundant_experts_num in eplb-config

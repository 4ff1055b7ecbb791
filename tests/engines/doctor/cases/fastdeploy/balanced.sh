# Balancing on request, with a copy more on every rank.
# options: --model qwen3-235b-a22b --devices 8
python -m fastdeploy.entrypoints.openai.api_server --model models/qwen3-235b \
  --data-parallel-size 8 --enable-expert-parallel --enable-eplb \
  --eplb-config '{"redundant_experts_num": 8, "redundant_expert_api_user": "operator", "redundant_expert_api_password": "secret"}'
# expects: advice --enable-eplb
# expects: advice redundant_experts_num in eplb-config

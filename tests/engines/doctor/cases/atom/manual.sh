# Documentation: balancing with the hottest experts on every rank, often.
# options: --model deepseek-v3
python -m atom.entrypoints.openai_server \
  --model models/deepseek-moe \
  --kv_cache_dtype fp8 -tp 8 --enable-expert-parallel --enable-dp-attention \
  --eplb-enable \
  --eplb-config '{"num_redundant_experts": 64, "placement_policy": "biased", "rebalance_interval": 200}'
# expects: wrong load_window_size in eplb-config
# expects: advice rebalance_min_balancedness in eplb-config
# expects: advice num_redundant_experts in eplb-config
# expects: advice --eplb-enable

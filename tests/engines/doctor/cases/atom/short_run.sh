# A short run that balances by shorter windows.
# options: --model deepseek-v3 --devices 8
export ATOM_DP_MASTER_PORT=29600
python -m atom.entrypoints.openai_server --model models/deepseek-moe -tp 8 --kv_cache_dtype fp8 \
  --enable-dp-attention --enable-expert-parallel --eplb-enable \
  --eplb-config '{"load_window_size": 100, "rebalance_interval": 200, "num_redundant_experts": 8, "rebalance_min_balancedness": 0.9}'
# expects: advice num_redundant_experts in eplb-config
# expects: advice --eplb-enable

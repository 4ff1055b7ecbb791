# Flags of half a year ago, started today.
python3 -m sglang.launch_server --model-path models/deepseek-v4 --tp 8 --dp 8 --enable-dp-attention --moe-a2a-backend deepep --deepep-mode normal --disaggregation-mode prefill --enable-deepep-waterfill --enable-expert-distribution-metrics --enable-eplb --eplb-rebalance-layers-per-chunk 8 --ep-num-redundant-experts 32
# expects: wrong --enable-expert-distribution-metrics
# expects: wrong --enable-deepep-waterfill
# expects: deprecated --enable-dp-attention

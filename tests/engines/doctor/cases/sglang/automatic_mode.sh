# Planted: the mode in which nothing can be counted.
python -m sglang.launch_server --model-path models/deepseek-v3 --tp 8 --attn-dp-size 8 --moe-a2a-backend deepep --enable-eplb --eplb-rebalance-layers-per-chunk 8 --ep-num-redundant-experts 8
# expects: wrong --deepep-mode

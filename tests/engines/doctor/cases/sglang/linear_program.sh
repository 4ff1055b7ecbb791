# Planted: a dispatch that needs a backend.
# options: --model deepseek-v3
python -m sglang.launch_server --model-path models/deepseek-v3 --tp 8 --ep-size 8 --enable-eplb --eplb-rebalance-layers-per-chunk 8 --ep-num-redundant-experts 8 --ep-dispatch-algorithm lp
# expects: wrong --ep-dispatch-algorithm
# expects: wrong --deepep-mode
# expects: advice --ep-num-redundant-experts
# expects: advice --enable-eplb

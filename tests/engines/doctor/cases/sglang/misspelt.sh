# Planted: a backend and an algorithm with a letter wrong, sizes that do not fit.
# options: --model deepseek-v3 --devices 16
python -m sglang.launch_server --model-path models/deepseek-v3 --tp 24 --moe-a2a-backend deep_ep --ep-size 8 --enable-eplb --eplb-algorithm deepseek_hierarchic --deepep-mode low_latency --ep-num-redundant-experts 10 --expert-distribution-recorder-buffer-size 2000
# expects: wrong --moe-a2a-backend
# expects: wrong --eplb-algorithm
# expects: wrong --expert-distribution-recorder-buffer-size
# expects: wrong --ep-num-redundant-experts
# expects: wrong --tp-size
# expects: ignored --ep-size
# expects: advice --ep-num-redundant-experts
# expects: advice --enable-eplb
# expects: advice --eplb-rebalance-layers-per-chunk

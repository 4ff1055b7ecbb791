# Planted: settings of a balancer that is off.
# options: --model qwen3-235b-a22b
python -m sglang.launch_server --model-path models/qwen3-235b --tp 8 --ep 4 --moe-a2a-backend deepep --deepep-mode low_latency --eplb-rebalance-num-iterations 500 --ep-num-redundant-experts 16
# expects: ignored --ep-size
# expects: ignored --eplb-rebalance-num-iterations
# expects: advice --ep-num-redundant-experts
# expects: advice --enable-eplb
# expects: advice --eplb-rebalance-layers-per-chunk

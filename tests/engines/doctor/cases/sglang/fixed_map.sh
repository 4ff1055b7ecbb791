# A map that is kept, with the dispatch that maps are made for.
# options: --model deepseek-v3 --devices 32 --nodes 4
python -m sglang.launch_server --model-path /models/deepseek-v3 --tp-size 32 --nnodes 4 --node-rank 0 --dist-init-addr 10.0.0.1:5000 --attn-dp-size 32 --moe-a2a-backend deepep --deepep-mode low_latency --ep-num-redundant-experts 32 --ep-dispatch-algorithm static --init-expert-location /maps/deepseek-v3-32.json --expert-balancedness-report-mode server_log
# expects: advice --ep-num-redundant-experts

# Pull request: a prefill server that is placed and then balanced.
# options: --engine-version 0.5.12 --model deepseek-v3 --devices 8
SGLANG_OPT_SWA_SPLIT_LEAF_ON_INSERT=1 SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=128 python3 -m sglang.launch_server --trust-remote-code --model-path ./models/deepseek-v4 --disable-cuda-graph --tp 8 --dp 8 --enable-dp-attention --enable-dp-lm-head --moe-a2a-backend deepep --chunked-prefill-size 32768 --mem-fraction-static 0.87 --max-running-requests 512 --deepep-mode normal --disaggregation-mode prefill --disaggregation-transfer-backend mooncake --nnodes 1 --node-rank 0 --host 0.0.0.0 --port 9091 --enable-expert-distribution-metrics --enable-eplb --eplb-min-rebalancing-utilization-threshold 0.6 --eplb-rebalance-num-iterations 5000 --ep-num-redundant-experts 32 --ep-dispatch-algorithm dynamic --eplb-algorithm deepseek --init-expert-location /data/loads/expert_distribution_recorder.pt
# expects: advice --init-expert-location
# expects: advice --ep-num-redundant-experts
# expects: advice --enable-eplb
# expects: advice --eplb-rebalance-layers-per-chunk

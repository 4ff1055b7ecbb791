# Pull request comment: copies without an all-to-all backend.
# options: --engine-version 0.5.6 --model deepseek-v3
python3 -m sglang.launch_server \
            --model models/deepseek-r1-bf16\
            --tp 32 \
            --trust-remote-code \
            --mem-fraction-static 0.9 \
            --disable-cuda-graph \
            --disable-radix-cache \
            --ep-size 32\
            --enable-dp-attention \
            --enable-dp-lm-head \
            --enable-eplb \
            --enable-expert-distribution-metrics \
            --ep-num-redundant-experts 32\
            --eplb-rebalance-layers-per-chunk 29
# expects: wrong --ep-num-redundant-experts
# expects: wrong --deepep-mode
# expects: advice --ep-num-redundant-experts
# expects: advice --enable-eplb

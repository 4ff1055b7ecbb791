# Pull request: 32 ranks, placement only.
# options: --engine-version 0.5.5 --model deepseek-v3 --devices 32
python -m sglang.launch_server \
  --model-path "$MODEL_PATH" \
  --tp-size 32 \
  --dp-size 32 \
  --ep-size 32 \
  --nnodes "$NNODES" \
  --node-rank "$NODE_RANK" \
  --dist-init-addr "$DIST_ADDR" \
  --trust-remote-code \
  --mem-fraction-static 0.85 \
  --enable-eplb \
  --eplb-algorithm deepseek \
  --ep-num-redundant-experts 0 \
  --ep-dispatch-algorithm dynamic \
  --enable-dp-attention \
  --enable-dp-lm-head \
  --moe-dense-tp-size 1 \
  --chunked-prefill-size 32768 \
  --cuda-graph-bs 256 \
  --moe-a2a-backend deepep \
  --deepep-mode normal \
  --deepep-config "$DEEPEP_CFG"
# expects: wasteful --deepep-mode
# expects: advice --ep-num-redundant-experts
# expects: advice --enable-eplb
# expects: advice --eplb-rebalance-layers-per-chunk

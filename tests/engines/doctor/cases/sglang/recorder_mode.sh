# Issue: a recorder that only writes files.
# options: --engine-version 0.5.23
python -m sglang.launch_server --model-path models/deepseek-v3 --tp 16 --attn-dp-size 16 --moe-a2a-backend deepep --deepep-mode normal --disaggregation-mode prefill --enable-eplb --eplb-rebalance-layers-per-chunk 8 --expert-distribution-recorder-mode per_token
# expects: wrong --expert-distribution-recorder-mode

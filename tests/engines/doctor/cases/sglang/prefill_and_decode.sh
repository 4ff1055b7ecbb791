# Two servers in one script.
# options: --engine-version 0.5.8
MODEL_PATH=/models/deepseek-v3
if [ "$ROLE" = prefill ]; then
  python -m sglang.launch_server --model-path ${MODEL_PATH} --disaggregation-mode prefill --tp-size 16 --nnodes 2 --node-rank $1 --moe-a2a-backend deepep --deepep-mode normal
else
  python -m sglang.launch_server --model-path ${MODEL_PATH} --disaggregation-mode decode --tp-size 16 --nnodes 2 --node-rank $1 --moe-a2a-backend deepep --deepep-mode low_latency
fi

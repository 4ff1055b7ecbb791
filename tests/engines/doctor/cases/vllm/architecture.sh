# Issue: an architecture whose experts cannot be moved.
# options: --model gpt-oss-120b
vllm serve models/gpt-oss --enable-expert-parallel \
  --tensor-parallel-size 2 --data-parallel-size 1 \
  --gpu-memory-utilization 0.85 --max-model-len 1024 --enable-eplb
# expects: ignored --enable-eplb

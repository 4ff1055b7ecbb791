# Pull request: one kernel for all of a layer.
# options: --devices 8
VLLM_ENGINE_READY_TIMEOUT_S=3600 \
vllm serve models/deepseek-v4 \
  --trust-remote-code \
  --kv-cache-dtype fp8 \
  --block-size 256 \
  --no-enable-prefix-caching \
  --data-parallel-size 8 \
  --enable-expert-parallel \
  --moe-backend deep_gemm_mega_moe \
  --attention_config.use_fp4_indexer_cache=True \
  --reasoning-parser deepseek_v4 \
  --enable-eplb \
  --eplb-config '{"use_async": true, "num_redundant_experts": 8}'

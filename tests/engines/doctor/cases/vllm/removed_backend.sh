# Issue: a backend that was removed.
export CUDA_VISIBLE_DEVICES=0,1
export VLLM_USE_V1=1
export VLLM_ALL2ALL_BACKEND=pplx
export NVSHMEM_REMOTE_TRANSPORT=none
python -m vllm.entrypoints.openai.api_server \
  --model models/small-moe \
  --enable-expert-parallel \
  --tensor-parallel-size 1 \
  --data-parallel-size 2 \
  --enforce-eager \
  --max-model-len 1024
# expects: ignored VLLM_ALL2ALL_BACKEND

# Pull request: data parallel attention without an all-to-all backend.
# options: --engine-version 0.5.10
export SGLANG_USE_AITER=1
export MORI_SHMEM_MODE=ISOLATION
model_path=/models/deepseek-r1-mxfp4/
python3 -m sglang.launch_server \
    --model-path $model_path \
    --host localhost \
    --port 8000 \
    --trust-remote-code \
    --tensor-parallel-size 4 \
    --data-parallel-size 4 \
    --expert-parallel-size 4 \
    --enable-dp-attention \
    --kv-cache-dtype fp8_e4m3 \
    --mem-fraction-static 0.9 \
    --page-size 1 \
    --disable-radix-cache

# Pull request of 2025, started today.
# options: --model deepseek-v3
export VLLM_ROCM_USE_AITER=1
export NCCL_DEBUG=WARN
model_path="/data/models/deepseek-v3"

# rm ~/.cache/vllm -r
vllm serve $model_path \
--tensor-parallel-size 8 \
--max-num-batched-tokens 32768 \
--no-enable-prefix-caching \
--compilation-config '{"cudagraph_mode": "FULL_AND_PIECEWISE"}' \
--gpu_memory_utilization 0.9 \
--enable-expert-parallel \
--enable-eplb \
--num-redundant-experts 8 \
--eplb-log-balancedness \
--eplb-window-size 3000 \
--eplb-step-interval 1000
# expects: wrong --num-redundant-experts
# expects: wrong --eplb-window-size
# expects: wrong --eplb-step-interval
# expects: wrong --eplb-log-balancedness
# expects: wrong window_size in eplb-config
# expects: wasteful log_balancedness in eplb-config
# expects: advice num_redundant_experts in eplb-config
# expects: advice --enable-eplb
